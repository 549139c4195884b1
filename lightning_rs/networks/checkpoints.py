"""Checkpoints of others: the randomized-smoothing literature, timm, plain weights; and the fingerprint of a network."""

from __future__ import annotations

import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from lightning_rs.networks.build import build_network, is_network, takes_argument
from lightning_rs.networks.files import load_weights, read_file
from lightning_rs.networks.normalize import Normalize

Constants = float | Sequence[float]


class CheckpointInfo(TypedDict):
    """What a checkpoint says of itself: ``arch`` as in the file, ``name`` the same for `build_network`."""

    arch: str
    name: str
    epoch: int | None
    num_classes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Arch:
    """An architecture of the literature: our name, the image size it was trained at, its last layer."""

    name: str
    size: int
    head: str = "fc"


_ARCHS = {
    "cifar_resnet20": _Arch("cifar_resnet20", 32),
    "cifar_resnet56": _Arch("cifar_resnet56", 32),
    "cifar_resnet110": _Arch("cifar_resnet110", 32),
    "cifar100_resnet110": _Arch("cifar_resnet110", 32),
    "wide_resnet40_2": _Arch("wide_resnet40_2", 32),
    "resnet50": _Arch("torchvision/resnet50", 224),
    "lenet": _Arch("mnist_lenet", 28, "fc2"),
    "mnist_lenet": _Arch("mnist_lenet", 28, "fc2"),
}

# Cohen's NormalizeLayer kept its constants out of the state dict, so they must come from elsewhere: those of
# his code (CIFAR-10, ImageNet) and of the forks that followed it (CIFAR-100; none on MNIST and Fashion-MNIST).
_NORMALIZATION: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.0,), (1.0,)),
    "fashion_mnist": ((0.0,), (1.0,)),
}
# The two halves of Sequential(normalize, net), as the literature's code and as ours name them.
_LAYOUTS = (("0.", "1."), ("normalize.", "net."))
_MEAN_KEYS, _STD_KEYS = ("mean", "means"), ("std", "sds")


def load_checkpoint(
    path: str | Path,
    network: str | None = None,
    network_args: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    shape: Sequence[int] | None = None,
    dataset: str | None = None,
    mean: Constants | None = None,
    std: Constants | None = None,
    normalize: bool = True,
) -> tuple[nn.Module, CheckpointInfo]:
    """Load weights that another code has trained.

    Files of ``torch.save`` and of safetensors are read, and no code is run from them (``weights_only=True``, always).
    The state dict stands alone or under ``state_dict`` (Cohen et al. and most later papers, timm), ``net`` (MACER),
    ``model``, ...; with or without the ``module.`` of DataParallel; it is that of a network alone or of
    ``Sequential(normalize, net)``. Checkpoints of ``fit`` are rebuilt by `BaseClassifier.load_from_checkpoint`.

    Args:
        path: the file.
        network: its architecture where the file does not name it (``arch``): a name or class path as of
            `build_network`, or a name of the literature ("lenet", "resnet50" of torchvision).
        network_args: further arguments of the network.
        num_classes: number of logits; read from the weights for the architectures of the literature.
        shape: shape of one image, ``(C, H, W)``; likewise.
        dataset: "cifar10", "cifar100", "imagenet", "mnist" or "fashion_mnist", for the normalisation that the
            literature used there; needed where the checkpoint does not hold its own.
        mean: normalisation instead of a data set's; with ``std``.
        std: see ``mean``.
        normalize: False for a network that takes pixels as they are (MACER's), or that normalises by itself.

    Returns:
        the network of `build_network`, in eval mode, normalisation inside; and what the file says of itself.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, leaves the architecture, the shape or the normalisation open (the message
            says what to pass), or has other weights than its architecture.
    """
    path = Path(path)
    state, content = read_file(path)
    arch = _arch(path, content, network, state)
    name = _ARCHS[arch].name if arch in _ARCHS else arch
    classes, dims = _sizes(path, arch, state, num_classes, shape)
    arguments = dict(network_args or {})
    own_constants = arch not in _ARCHS and takes_argument(name, "mean") and takes_argument(name, "std")
    if own_constants:
        given = _given_normalization(dataset, mean, std) or (None, None)
        built = build_network(name, classes, dims, *given, **arguments)
        load_weights(path, built.get_submodule("net"), _bare(path, state, built.get_submodule("net"))[0], arch)
    else:
        net = build_network(name, classes, dims, **arguments).get_submodule("net")
        weights, constants = _bare(path, state, net)
        load_weights(path, net, weights, arch)
        first = _first_layer(path, constants, dataset, mean, std, normalize, dims[0])
        built = nn.Sequential(OrderedDict(normalize=first, net=net))
    epoch = content.get("epoch")
    return built.eval(), CheckpointInfo(arch=arch, name=name, epoch=epoch, num_classes=classes, shape=dims)


def load_cohen_checkpoint(
    path: str | Path,
    dataset: str | None = None,
    mean: Constants | None = None,
    std: Constants | None = None,
    arch: str | None = None,
) -> tuple[nn.Module, CheckpointInfo]:
    """Load a checkpoint in the format of Cohen et al. (2019): `load_checkpoint` for the architectures of the papers.

    The file is a dict ``{epoch, arch, state_dict, optimizer}``; ``arch`` is for files that do not name theirs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `load_checkpoint`.
    """
    return load_checkpoint(path, network=arch, dataset=dataset, mean=mean, std=std)


def adopt_weights(path: str | Path, network: nn.Module) -> str:
    """Load a file of weights of others into a network of `build_network`, as the command line does.

    Args:
        path: the file, as for `load_checkpoint`.
        network: ``Sequential(normalize, net)`` of the architecture that the file was trained with; a normalisation
            in the file takes the place of its own.

    Returns:
        a line that says which normalisation is at work.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or has other weights.
    """
    state, _ = read_file(path)
    if state.keys() == network.state_dict().keys():
        load_weights(path, network, state, "the configured network")
        return f"weights and normalisation of {path}"
    net = network.get_submodule("net")
    weights, constants = _bare(Path(path), state, net)
    load_weights(path, net, weights, "the configured network")
    if constants:
        own = _own_normalization(Path(path), constants)
        network.register_module("normalize", own)
        return f"weights of {path}, which hold their normalisation: {own}"
    return f"weights of {path}, which hold no normalisation; at work: {network.get_submodule('normalize')}"


def names_its_network(path: str | Path) -> str | None:
    """Return the name for `build_network` of the architecture that a file of others names; None if it names none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read.
    """
    arch = read_file(path)[1].get("arch")
    if not isinstance(arch, str):
        return None
    return _ARCHS[arch].name if arch in _ARCHS else arch if is_network(arch) else None


def unnamed_network(path: str | Path) -> str:
    """Return what to tell a user of the command line whose file of weights does not name its architecture."""
    fitting = sorted({_ARCHS[arch].name for arch in fitting_networks(read_file(path)[0])})
    known = f" {' or '.join(fitting)}, which its weights fit" if fitting else " NAME (or the class path of your own)"
    return (
        f"ckpt_path {str(path)!r} holds weights and does not name their architecture: pass --model.network{known}, and "
        "--model.network_args for its arguments ({normalize: false} if it takes pixels as they are)"
    )


def fitting_networks(state: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures of the literature that have exactly these weights, by name and shape."""
    bare = [state, *(_below(state, second) for _, second in _LAYOUTS)]
    return [arch for arch in _ARCHS if any(_fits(arch, candidate) for candidate in bare)]


def state_dict_sha256(module: nn.Module) -> str:
    """Return the fingerprint of a network: SHA-256 over name, dtype, shape and bytes of each entry.

    Entries are taken in the order of their names and in row-major layout, so that neither the order in which
    layers were registered, nor the device, nor channels_last changes it; any changed weight, buffer, name,
    dtype or shape does.

    Raises:
        ValueError: if the state dict holds something other than tensors.
    """
    return weights_sha256(module.state_dict())


def weights_sha256(weights: Mapping[str, Any]) -> str:
    """Return :func:`state_dict_sha256` of a network with this state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"state_dict must hold tensors only, got {type(tensor).__name__} for {name!r}")
        header = repr((name, str(tensor.dtype), tuple(tensor.shape)))
        digest.update(f"{len(header)}:{header}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _arch(path: Path, content: Mapping[str, Any], given: str | None, state: Mapping[str, Tensor]) -> str:
    named = content.get("arch")
    if (
        given is not None
        and named is not None
        and given not in (named, _ARCHS[named].name if named in _ARCHS else None)
    ):
        raise ValueError(f"arch must be {named!r}, as checkpoint {path} says, or left out; got {given!r}")
    arch = named if named is not None else given
    if arch is not None and (arch in _ARCHS or is_network(str(arch))):
        return str(arch)
    if arch is None:
        fitting = fitting_networks(state)
        hint = f" (its weights fit {' and '.join(fitting)})" if fitting else ""
        raise ValueError(
            f"checkpoint {path} does not say its architecture: pass network{hint}: one of {', '.join(_ARCHS)}, "
            "timm/NAME, torchvision/NAME or the class path of your own, with num_classes and shape"
        )
    near = difflib.get_close_matches(str(arch), _ARCHS, n=1)
    hint = f" (near: {near[0]})" if near else ""
    raise ValueError(
        f"arch of checkpoint {path} must be one of {', '.join(_ARCHS)}, or known to build_network, got {arch!r}{hint}"
    )


def _bare(path: Path, state: Mapping[str, Tensor], net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of ``net`` and the constants of a normalisation before it."""
    needed = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    return (dict(state), {}) if needed <= state.keys() else _split(path, state)


def _split(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the network's own weights and the constants of its normalisation layer, prefixes taken off."""
    for first, second in _LAYOUTS:
        if not any(key.startswith(second) for key in state):
            continue
        weights = {key: value for key, value in state.items() if key.startswith(second)}
        constants = {key: value for key, value in state.items() if key.startswith(first)}
        stray = [key for key in state if key not in weights and key not in constants]
        if stray:
            raise ValueError(f"checkpoint {path} must hold Sequential(normalize, net), got {stray[0]!r} beside both")
        return _without(_without(weights, second), "module."), _without(_without(constants, first), "module.")
    return dict(state), {}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return _without(kept, "module.")


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _first_layer(
    path: Path,
    constants: Mapping[str, Tensor],
    dataset: str | None,
    mean: Constants | None,
    std: Constants | None,
    normalize: bool,
    channels: int,
) -> nn.Module:
    given = _given_normalization(dataset, mean, std)
    own = _own_normalization(path, constants) if constants else None
    if not normalize and (own is not None or given is not None):
        raise ValueError(f"normalize must be True where there is a normalisation, got False and {own or given}")
    if own is not None and given is not None and not _same(own, Normalize(*given, num_channels=own.mean.numel())):
        raise ValueError(
            f"checkpoint {path} holds its own normalisation {own}; leave out dataset, mean and std, got {given}"
        )
    if own is None and given is None and normalize:
        raise ValueError(
            f"checkpoint {path} does not hold its normalisation: pass mean and std, or dataset, one of "
            f"{', '.join(_NORMALIZATION)}, or normalize=False for a network that takes pixels as they are"
        )
    if own is not None:
        return own
    return nn.Identity() if given is None else Normalize(*given, num_channels=channels)


def _own_normalization(path: Path, constants: Mapping[str, Tensor]) -> Normalize:
    kinds = {"mean" if key in _MEAN_KEYS else "std" if key in _STD_KEYS else key for key in constants}
    if kinds != {"mean", "std"}:
        raise ValueError(f"checkpoint {path}: its first layer must hold mean and std, got {', '.join(constants)}")
    return Normalize(_constant(constants, _MEAN_KEYS), _constant(constants, _STD_KEYS))


def _constant(constants: Mapping[str, Tensor], names: Sequence[str]) -> list[float]:
    return next(value.reshape(-1).tolist() for key, value in constants.items() if key in names)


def _given_normalization(
    dataset: str | None, mean: Constants | None, std: Constants | None
) -> tuple[Constants, Constants] | None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got mean={mean!r} and std={std!r}")
    if mean is not None and std is not None:
        if dataset is not None:
            raise ValueError(f"give either dataset or mean and std, got dataset={dataset!r} and mean={mean!r}")
        return mean, std
    if dataset is not None and dataset not in _NORMALIZATION:
        raise ValueError(f"dataset must be one of {', '.join(_NORMALIZATION)}, got {dataset!r}")
    return None if dataset is None else _NORMALIZATION[dataset]


def _same(one: Normalize, other: Normalize) -> bool:
    return bool(torch.allclose(one.mean, other.mean) and torch.allclose(one.std, other.std))


def _sizes(
    path: Path, arch: str, state: Mapping[str, Tensor], num_classes: int | None, shape: Sequence[int] | None
) -> tuple[int, tuple[int, ...]]:
    """Return the number of classes and the shape: as given, else from the first and the last layer's weights."""
    if num_classes is not None and shape is not None:
        return num_classes, tuple(shape)
    if arch not in _ARCHS:
        missing = "num_classes" if num_classes is None else "shape"
        raise ValueError(f"checkpoint {path}: pass {missing}, which {arch} does not say")
    weights = _split(path, state)[0]
    first, last = "conv1.weight", f"{_ARCHS[arch].head}.weight"
    absent = [key for key in (first, last) if key not in weights]
    if absent:
        raise ValueError(f"checkpoint {path} does not hold the weights of {arch}: no weights named {absent[0]!r}")
    size = _ARCHS[arch].size
    found = (weights[first].shape[1], size, size)
    return num_classes or weights[last].shape[0], found if shape is None else tuple(shape)


def _fits(arch: str, weights: Mapping[str, Tensor]) -> bool:
    spec = _ARCHS[arch]
    if "conv1.weight" not in weights or f"{spec.head}.weight" not in weights or weights["conv1.weight"].ndim != 4:
        return False
    shape = (weights["conv1.weight"].shape[1], spec.size, spec.size)
    try:
        built = build_network(spec.name, weights[f"{spec.head}.weight"].shape[0], shape).get_submodule("net")
    except ValueError:
        return False
    mine = {key: value.shape for key, value in built.state_dict().items() if not key.endswith("num_batches_tracked")}
    return mine == {key: value.shape for key, value in weights.items() if not key.endswith("num_batches_tracked")}
