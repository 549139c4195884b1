"""`build_network`: every base network by name or class path, with its normalisation as the first layer."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rs.checks import check_at_least
from lightning_rs.networks.cifar_resnet import CifarResNet
from lightning_rs.networks.denoise import DenoisedNetwork, Part
from lightning_rs.networks.external import (
    build_timm,
    build_torchvision,
    is_timm_name,
    timm_names,
    torchvision_names,
)
from lightning_rs.networks.files import load_weights, read_file, read_own_part
from lightning_rs.networks.normalize import Normalize
from lightning_rs.networks.null_coding import NullCoding
from lightning_rs.networks.parts import call_part, import_part, is_part, self_contained
from lightning_rs.networks.pooling import LowResolution, pooled_shape
from lightning_rs.networks.small import MLP, DigitsCNN, MnistLeNet, PooledCNN, SmallCNN
from lightning_rs.networks.wide_resnet import WideResNet

Shape = tuple[int, ...]
Builder = Callable[..., nn.Module]
Constants = float | Sequence[float]


def build_network(
    name: str,
    num_classes: int,
    shape: Sequence[int],
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    normalize: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Build the network ``name`` for inputs of ``shape``, with its normalisation inside.

    Args:
        name: one of ours (``cifar_resnet20``, ``cifar_resnet56``, ``cifar_resnet110``, ``wide_resnet40_2``,
            ``mnist_lenet``, ``digits_cnn``, ``small_cnn``, ``pooled_cnn``, ``mlp``, ``low_resolution``, ``null_coded``,
            ``denoised``), ``timm/NAME`` or a bare timm name, ``torchvision/NAME``, or the class path of your own
            ``nn.Module``, ``mynet.MyNet``; see `available_networks`.
        num_classes: number of logits. Passed to a network of your own if its constructor takes ``num_classes``, as
            are ``shape``, and ``mean`` with ``std``, which then are its business: no layer is put before it.
        shape: shape of one input without the batch, ``(C, H, W)`` for images, ``(d,)`` for vectors.
        mean: constants of `Normalize`, one number or one a channel, in pixel units. None, with ``std``, for a
            network that takes pixels as they are.
        std: see ``mean``.
        normalize: False for a network that takes pixels as they are although the data has a mean and std.
        **kwargs: arguments of the named network (``hidden_sizes`` of the MLP, ``dropout`` of the WideResNet,
            ``base`` and ``pool`` of `LowResolution`, ``base`` behind `NullCoding`, ``pretrained`` and anything else of
            timm's and torchvision's models). A mapping may stand for a module, see `lightning_rs.networks.parts`.

    Returns:
        ``Sequential(normalize, net)`` in training mode; ``normalize`` is `Normalize`, or the identity.

    Raises:
        ValueError: for an unknown name (with near matches), a class path that leads to no module, an unknown argument,
            constants that do not fit, or a shape that the network cannot take.
        RuntimeError: if pretrained weights cannot be downloaded.
    """
    check_at_least("num_classes", num_classes, 1)
    dims = tuple(check_at_least("shape", size, 1) for size in shape)
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got mean={mean!r} and std={std!r}")
    constants = {} if mean is None or not normalize else {"mean": mean, "std": std}
    builder, own_name = _find_builder(name)
    inside = {"mean", "std"} <= set(_parameters(builder))
    first = nn.Identity() if inside or not constants else Normalize(**constants, num_channels=dims[0])  # type: ignore[arg-type]
    if builder is not _denoised:  # which resizes, and knows what its parts see
        data = _Data(num_classes, dims, mean if normalize else None, std if normalize else None)
        kwargs = {key: _module_or_value(value, data) for key, value in kwargs.items()}
    net = _build(builder, own_name, name, num_classes, dims, {**(constants if inside else {}), **kwargs})
    network = nn.Sequential(OrderedDict(normalize=first, net=net))
    _check_output(network, name, num_classes, dims)
    return network


def is_network(name: str) -> bool:
    """Say whether `build_network` knows ``name``; class paths are imported."""
    try:
        _find_builder(name)
    except ValueError:
        return False
    return True


def takes_argument(name: str, argument: str) -> bool:
    """Say whether the network ``name`` has an argument of that name; raise ``ValueError`` for an unknown network."""
    return argument in _parameters(_find_builder(name)[0])


def network_arguments(
    name: str, arguments: Mapping[str, Any] | None, sigma: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a network with its noise level linked, to build it now and to rebuild it later.

    A network with an argument ``sigma`` (`DenoisedNetwork`, perhaps your own) is told that of the noise unless it is
    given another, which is allowed with a warning: its accuracy suffers, the certificate does not.

    Args:
        name: as for `build_network`.
        arguments: as configured.
        sigma: of the noise under which the network is trained and certified.

    Returns:
        the arguments for now, and those for a checkpoint: plain values that need no other file.

    Raises:
        ValueError: for an unknown network, or an argument that a checkpoint cannot hold.
    """
    own = dict(arguments or {})
    if takes_argument(name, "sigma"):
        told = own.setdefault("sigma", sigma)
        if told != sigma:
            warnings.warn(
                f"network {name} is told sigma={told!r}, but the noise has sigma={sigma:g}: certificates hold, at the "
                "cost of accuracy",
                stacklevel=3,
            )
    return own, self_contained(own)


def available_networks(pattern: str = "*") -> list[str]:
    """Return the names that `build_network` takes, ours first, filtered by a shell-style ``pattern``."""
    prefixed = [f"timm/{name}" for name in timm_names()]
    prefixed += [f"torchvision/{name}" for name in torchvision_names()]
    return fnmatch.filter([*_BUILDERS, *prefixed], pattern)


def _parameters(builder: Builder) -> list[str]:
    parameters = inspect.signature(builder).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def _build(
    builder: Builder, own_name: str, name: str, num_classes: int, shape: Shape, kwargs: dict[str, Any]
) -> nn.Module:
    if builder is build_timm or builder is build_torchvision:
        _image(name, shape)
        return builder(own_name, num_classes, shape, **kwargs)
    if builder not in _BUILDERS.values():  # the user's own: it gets what it asks for
        offered = {"num_classes": num_classes, "shape": shape}
        asked = {key: value for key, value in offered.items() if key in _parameters(builder)}
        return call_part(builder, name, {**asked, **kwargs})
    known = _parameters(builder)
    takes_any = len(known) < len(inspect.signature(builder).parameters)
    unknown = [key for key in kwargs if key not in known]
    if unknown and not takes_any:
        takes = ", ".join(known[2:]) or "none"
        raise ValueError(f"network {name} has no argument {unknown[0]!r}; it takes: {takes}")
    return builder(num_classes, shape, **kwargs)


@dataclass(frozen=True)
class _Data:
    """What the networks inside a network learn from the data, unless they are told otherwise."""

    num_classes: int
    shape: Shape
    mean: Constants | None = None
    std: Constants | None = None


def _module_or_value(value: Any, data: _Data) -> Any:
    """Return the module that a mapping in a configuration stands for; other values as they are."""
    if isinstance(value, (list, tuple)):
        return [_module_or_value(item, data) for item in value]
    if not isinstance(value, Mapping):
        return value
    if not is_part(value):
        return {key: _module_or_value(item, data) for key, item in value.items()}
    if "checkpoint" in value:
        inner, state = read_own_part(value["checkpoint"], value.get("part"))
        return _with_weights(_module_or_value(inner, data), value["checkpoint"], state, inner)
    if "class_path" in value:
        path = str(value["class_path"])
        arguments = {key: _module_or_value(item, data) for key, item in (value.get("init_args") or {}).items()}
        module = call_part(import_part(path), path, arguments)
    else:
        told = {key: item for key, item in value.items() if key not in ("network", "network_args", "weights")}
        own = {**vars(data), **told, **(value.get("network_args") or {})}
        module = build_network(str(value["network"]), **own)
    if value.get("weights") is None:
        return module
    return _with_weights(module, value["weights"], read_file(value["weights"])[0], value)


def _with_weights(module: nn.Module, path: Any, state: Mapping[str, Tensor], spec: Mapping[str, Any]) -> nn.Module:
    # Files of others hold the network alone; ours and those of wrapped networks hold it behind its normalisation.
    inside = (
        module.get_submodule("net") if "network" in spec and not any(k.startswith("net.") for k in state) else module
    )
    load_weights(path, inside, state, str(spec.get("class_path") or spec.get("network")))
    return module


def _find_builder(name: str) -> tuple[Builder, str]:
    library, _, own_name = name.partition("/")
    if name in _BUILDERS:
        return _BUILDERS[name], name
    if library == "torchvision" and own_name in torchvision_names():
        return build_torchvision, own_name
    own_name = own_name if library == "timm" else name
    if own_name and library != "torchvision" and is_timm_name(own_name):
        return build_timm, own_name
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        found = import_part(name, "network")
        return _BUILDERS["denoised"] if found is DenoisedNetwork else found, name
    raise ValueError(f"name must be a known network, got {name!r}; {_near(name)}")


def _near(name: str) -> str:
    by_own_name: dict[str, list[str]] = {}
    for full in available_networks():
        by_own_name.setdefault(full.rpartition("/")[2], []).append(full)
    close = difflib.get_close_matches(name.rpartition("/")[2], by_own_name, n=4)
    near = [full for own_name in close for full in by_own_name[own_name]]
    hint = f"near: {', '.join(near)}" if near else f"ours are {', '.join(_BUILDERS)}"
    return f"{hint}; available_networks() lists all"


def _check_output(network: nn.Module, name: str, num_classes: int, shape: Shape) -> None:
    """Push one image through, so that a shape that does not fit is refused here and not in the first epoch."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"network {name} cannot take inputs of shape {shape}: {reason}") from error
    network.train(training)
    if not isinstance(output, torch.Tensor) or output.shape != (1, num_classes):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"network {name} must return logits of shape (1, {num_classes}), got {got}")


def _image(name: str, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"network {name} takes images of shape (C, H, W), got shape {shape}")
    return shape


def _cifar_resnet(depth: int) -> Builder:
    def build(num_classes: int, shape: Shape) -> nn.Module:
        return CifarResNet(depth, num_classes, _image(f"cifar_resnet{depth}", shape)[0])

    return build


def _wide_resnet40_2(num_classes: int, shape: Shape, dropout: float = 0.0) -> nn.Module:
    return WideResNet(40, 2, num_classes, _image("wide_resnet40_2", shape)[0], dropout)


def _mnist_lenet(num_classes: int, shape: Shape) -> nn.Module:
    return MnistLeNet(num_classes, _image("mnist_lenet", shape))


def _digits_cnn(num_classes: int, shape: Shape) -> nn.Module:
    return DigitsCNN(num_classes, _image("digits_cnn", shape))


def _small_cnn(num_classes: int, shape: Shape, channels: Sequence[int] = (16, 32), hidden: int = 128) -> nn.Module:
    return SmallCNN(num_classes, _image("small_cnn", shape), channels, hidden)


def _pooled_cnn(
    num_classes: int, shape: Shape, channels: Sequence[Sequence[int]] = ((32,), (64, 64)), hidden: int = 256
) -> nn.Module:
    return PooledCNN(num_classes, _image("pooled_cnn", shape), channels, hidden)


def _low_resolution(
    num_classes: int, shape: Shape, base: str = "cifar_resnet20", pool: int = 2, **kwargs: Any
) -> nn.Module:
    small = pooled_shape(shape, pool)
    return LowResolution(_build(*_find_builder(base), base, num_classes, small, kwargs), pool)


def _null_coded(
    num_classes: int,
    shape: Shape,
    base: str = "small_cnn",
    mean: Constants | None = None,
    std: Constants | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The code stands for normalisation, which would move the mark of a dropped pixel among the colours."""
    del mean, std
    channels, *size = _image("null_coded", shape)
    net = _build(*_find_builder(base), base, num_classes, (2 * channels, *size), kwargs)
    return nn.Sequential(OrderedDict(code=NullCoding(), net=net))


def _denoised(
    num_classes: int,
    shape: Shape,
    denoiser: Any = None,
    classifier: Any = None,
    sigma: float | None = None,
    to_classifier: Sequence[float | Sequence[float]] = (1.0, 0.0),
    resize: int | Sequence[int] | None = None,
    freeze: Part | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> nn.Module:
    """Normalisation belongs to the classifier: the denoiser sees pixels."""
    for name, value in (("denoiser", denoiser), ("classifier", classifier), ("sigma", sigma)):
        if value is None:
            raise ValueError(f"network denoised needs the argument {name!r} in network_args, got none")
    size = (shape[0], *((resize,) * 2 if isinstance(resize, int) else resize)) if resize is not None else shape
    before = {"class_path": denoiser} if isinstance(denoiser, str) else denoiser
    after = {"network": classifier} if isinstance(classifier, str) else classifier
    return DenoisedNetwork(
        _module_or_value(before, _Data(num_classes, shape)),
        _module_or_value(after, _Data(num_classes, size, mean, std)),
        sigma,  # type: ignore[arg-type]
        to_classifier,
        resize,
        freeze,
    )


_BUILDERS: dict[str, Builder] = {
    "cifar_resnet20": _cifar_resnet(20),
    "cifar_resnet56": _cifar_resnet(56),
    "cifar_resnet110": _cifar_resnet(110),
    "wide_resnet40_2": _wide_resnet40_2,
    "mnist_lenet": _mnist_lenet,
    "digits_cnn": _digits_cnn,
    "small_cnn": _small_cnn,
    "pooled_cnn": _pooled_cnn,
    "mlp": MLP,
    "low_resolution": _low_resolution,
    "null_coded": _null_coded,
    "denoised": _denoised,
}
