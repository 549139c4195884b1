"""Checkpoints of the randomized-smoothing literature, and the fingerprint of a network."""

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

from lightning_rs.networks.build import build_network
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


def load_cohen_checkpoint(
    path: str | Path,
    dataset: str | None = None,
    mean: Constants | None = None,
    std: Constants | None = None,
    arch: str | None = None,
) -> tuple[nn.Module, CheckpointInfo]:
    """Load a checkpoint in the format of Cohen et al. (2019), which most later papers share.

    The file is a dict ``{epoch, arch, state_dict, optimizer}``. The state dict is that of a network alone or
    of ``Sequential(normalize, net)``, with or without the ``module.`` of DataParallel before either. It is
    always read with ``weights_only=True``, which runs no code from the file.

    Args:
        path: the file.
        dataset: "cifar10", "cifar100", "imagenet", "mnist" or "fashion_mnist", for the normalisation that the
            literature used there; needed where the checkpoint does not hold its own.
        mean: normalisation instead of a data set's; with ``std``.
        std: see ``mean``.
        arch: architecture, for files that do not name theirs.

    Returns:
        the network of `build_network`, in eval mode, normalisation inside; and what the file says of itself.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is corrupt, is not such a checkpoint, names an unknown architecture, has other
            weights than its architecture, or leaves the normalisation open.
    """
    path = Path(path)
    content = _read(path)
    arch = _arch(path, content, arch)
    weights, constants = _split(path, content["state_dict"])
    mean, std = _normalization(path, constants, dataset, mean, std)
    spec = _ARCHS[arch]
    num_classes, channels = _sizes(path, arch, weights)
    shape = (channels, spec.size, spec.size)
    network = build_network(spec.name, num_classes, shape, mean=mean, std=std)
    _load(path, arch, network.get_submodule("net"), weights)
    epoch = content.get("epoch")
    info = CheckpointInfo(arch=arch, name=spec.name, epoch=epoch, num_classes=num_classes, shape=shape)
    return network.eval(), info


def state_dict_sha256(module: nn.Module) -> str:
    """Return the fingerprint of a network: SHA-256 over name, dtype, shape and bytes of each entry.

    Entries are taken in the order of their names and in row-major layout, so that neither the order in which
    layers were registered, nor the device, nor channels_last changes it; any changed weight, buffer, name,
    dtype or shape does.

    Raises:
        ValueError: if the state dict holds something other than tensors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"state_dict must hold tensors only, got {type(tensor).__name__} for {name!r}")
        header = repr((name, str(tensor.dtype), tuple(tensor.shape)))
        digest.update(f"{len(header)}:{header}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: path must name a file written by torch.save")
    wanted = "{epoch, arch, state_dict, optimizer} of tensors, numbers and strings"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, end of file: torch.load fails in many ways
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"checkpoint {path} cannot be read with weights_only=True ({detail}); "
            f"it must be a file of torch.save with {wanted}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        got = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint {path} must hold {wanted}, got {got}")
    return content


def _arch(path: Path, content: Mapping[str, Any], given: str | None) -> str:
    named = content.get("arch")
    if given is not None and named is not None and given != named:
        raise ValueError(f"arch must be {named!r}, as checkpoint {path} says, or left out; got {given!r}")
    arch = named if named is not None else given
    if arch in _ARCHS:
        return str(arch)
    near = difflib.get_close_matches(str(arch), _ARCHS, n=1)
    hint = f" (near: {near[0]})" if near else ""
    raise ValueError(f"arch of checkpoint {path} must be one of {', '.join(_ARCHS)}, got {arch!r}{hint}")


def _split(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the network's own weights and the constants of its normalisation layer, prefixes taken off."""
    state = _without(state, "module.")
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


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _normalization(
    path: Path,
    constants: Mapping[str, Tensor],
    dataset: str | None,
    mean: Constants | None,
    std: Constants | None,
) -> tuple[Constants, Constants]:
    given = _given_normalization(dataset, mean, std)
    kinds = {"mean" if key in _MEAN_KEYS else "std" if key in _STD_KEYS else key for key in constants}
    if constants and kinds != {"mean", "std"}:
        raise ValueError(f"checkpoint {path}: its first layer must hold mean and std, got {', '.join(constants)}")
    if not constants and given is None:
        raise ValueError(
            f"checkpoint {path} does not hold its normalisation: pass mean and std, or dataset, one of "
            f"{', '.join(_NORMALIZATION)}"
        )
    if not constants:
        assert given is not None
        return given
    own = Normalize(_constant(constants, _MEAN_KEYS), _constant(constants, _STD_KEYS))
    if given is not None and not _same(own, Normalize(*given, num_channels=own.mean.numel())):
        raise ValueError(
            f"checkpoint {path} holds its own normalisation {own}; leave out dataset, mean and std, got {given}"
        )
    return own.mean.tolist(), own.std.tolist()


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


def _sizes(path: Path, arch: str, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the number of classes and of channels, from the first and the last layer's weights."""
    first, last = "conv1.weight", f"{_ARCHS[arch].head}.weight"
    missing = [key for key in (first, last) if key not in weights]
    if missing:
        raise ValueError(_mismatch(path, arch, f"no weights named {missing[0]!r}"))
    return weights[last].shape[0], weights[first].shape[1]


def _load(path: Path, arch: str, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    # A plain dict carries no version metadata, so files from before num_batches_tracked load as well.
    try:
        net.load_state_dict(OrderedDict(weights), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ValueError(_mismatch(path, arch, "; ".join(line[:160] for line in lines))) from error


def _mismatch(path: Path, arch: str, detail: str) -> str:
    return f"checkpoint {path} does not hold the weights of {arch}: {detail}; state_dict must match arch"
