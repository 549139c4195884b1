"""`build_network`: every base network by name, with its normalisation as the first layer."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_rs.checks import check_at_least
from lightning_rs.networks.cifar_resnet import CifarResNet
from lightning_rs.networks.external import (
    build_timm,
    build_torchvision,
    is_timm_name,
    timm_names,
    torchvision_names,
)
from lightning_rs.networks.normalize import Normalize
from lightning_rs.networks.pooling import LowResolution, pooled_shape
from lightning_rs.networks.small import MLP, DigitsCNN, MnistLeNet, SmallCNN
from lightning_rs.networks.wide_resnet import WideResNet

Shape = tuple[int, ...]
Builder = Callable[..., nn.Module]


def build_network(
    name: str,
    num_classes: int,
    shape: Sequence[int],
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build the network ``name`` for inputs of ``shape``, with its normalisation inside.

    Args:
        name: one of ours (``cifar_resnet20``, ``cifar_resnet56``, ``cifar_resnet110``, ``wide_resnet40_2``,
            ``mnist_lenet``, ``digits_cnn``, ``small_cnn``, ``mlp``, ``low_resolution``), ``timm/NAME`` or a bare timm
            name, or ``torchvision/NAME``; see `available_networks`.
        num_classes: number of logits.
        shape: shape of one input without the batch, ``(C, H, W)`` for images, ``(d,)`` for vectors.
        mean: constants of `Normalize`, one number or one a channel, in pixel units. None, with ``std``, for a
            network that takes pixels as they are.
        std: see ``mean``.
        **kwargs: arguments of the named network (``hidden_sizes`` of the MLP, ``dropout`` of the WideResNet,
            ``base`` and ``pool`` of `LowResolution`, ``pretrained`` and anything else of timm's and
            torchvision's models).

    Returns:
        ``Sequential(normalize, net)`` in training mode; ``normalize`` is `Normalize`, or the identity.

    Raises:
        ValueError: for an unknown name (with near matches), an unknown argument, constants that do not fit,
            or a shape that the network cannot take.
        RuntimeError: if pretrained weights cannot be downloaded.
    """
    check_at_least("num_classes", num_classes, 1)
    dims = tuple(check_at_least("shape", size, 1) for size in shape)
    normalize = _normalize(mean, std, dims)
    net = _build(name, num_classes, dims, kwargs)
    network = nn.Sequential(OrderedDict(normalize=normalize, net=net))
    _check_output(network, name, num_classes, dims)
    return network


def available_networks(pattern: str = "*") -> list[str]:
    """Return the names that `build_network` takes, ours first, filtered by a shell-style ``pattern``."""
    prefixed = [f"timm/{name}" for name in timm_names()]
    prefixed += [f"torchvision/{name}" for name in torchvision_names()]
    return fnmatch.filter([*_BUILDERS, *prefixed], pattern)


def _normalize(mean: float | Sequence[float] | None, std: float | Sequence[float] | None, shape: Shape) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError(f"mean and std must be given together, got mean={mean!r} and std={std!r}")
    return Normalize(mean, std, num_channels=shape[0])


def _build(name: str, num_classes: int, shape: Shape, kwargs: dict[str, Any]) -> nn.Module:
    builder, own_name = _find_builder(name)
    parameters = inspect.signature(builder).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    unknown = [key for key in kwargs if key not in known]
    if unknown and not takes_any:
        takes = ", ".join(known[2:]) or "none"
        raise ValueError(f"network {name} has no argument {unknown[0]!r}; it takes: {takes}")
    if builder is build_timm or builder is build_torchvision:
        _image(name, shape)
        return builder(own_name, num_classes, shape, **kwargs)
    return builder(num_classes, shape, **kwargs)


def _find_builder(name: str) -> tuple[Builder, str]:
    library, _, own_name = name.partition("/")
    if name in _BUILDERS:
        return _BUILDERS[name], name
    if library == "torchvision" and own_name in torchvision_names():
        return build_torchvision, own_name
    own_name = own_name if library == "timm" else name
    if own_name and library != "torchvision" and is_timm_name(own_name):
        return build_timm, own_name
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


def _low_resolution(
    num_classes: int, shape: Shape, base: str = "cifar_resnet20", pool: int = 2, **kwargs: Any
) -> nn.Module:
    return LowResolution(_build(base, num_classes, pooled_shape(shape, pool), kwargs), pool)


_BUILDERS: dict[str, Builder] = {
    "cifar_resnet20": _cifar_resnet(20),
    "cifar_resnet56": _cifar_resnet(56),
    "cifar_resnet110": _cifar_resnet(110),
    "wide_resnet40_2": _wide_resnet40_2,
    "mnist_lenet": _mnist_lenet,
    "digits_cnn": _digits_cnn,
    "small_cnn": _small_cnn,
    "mlp": MLP,
    "low_resolution": _low_resolution,
}
