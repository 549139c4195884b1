"""Files of weights, ours and of others: read without running code from them, and said in one line what is wrong."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Where the published codes keep the state dict: most; MACER and many CIFAR codes; timm and DeiT; others.
STATE_KEYS = ("state_dict", "net", "model", "model_state_dict", "state_dict_ema", "weights", "params", "params_ema")
# What DataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
# What LightningModules of others put before the names of their network: taken off where all names have it.
_ATTRIBUTES = ("model.", "network.", "net.", "classifier.", "backbone.", "encoder.")
_OWN_KEY = "lightning_rs"
_WANTED = "a state dict, alone or under one of the keys " + ", ".join(STATE_KEYS)


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of weights: of ``torch.save`` (always with ``weights_only=True``) or of safetensors.

    Returns:
        the state dict, without the prefixes of DataParallel and torch.compile; and whatever else the file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read without running code from it, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: path must name a file written by torch.save or safetensors")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    if _is_state(content):
        return _unwrapped(content), {}
    states = [key for key in content if _is_state(content[key])] if isinstance(content, dict) else []
    found = next((key for key in STATE_KEYS if key in states), states[0] if len(states) == 1 else None)
    if found is None:
        got = ", ".join(sorted(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint {path} must hold {_WANTED}; got {got or 'nothing'}")
    return _unwrapped(content[found]), {key: value for key, value in content.items() if key != found}


def load_weights(path: str | Path, module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put a state dict into a module.

    Raises:
        ValueError: if it holds the weights of another module, naming what does not fit.
    """
    wanted = module.state_dict()
    prefix = next((p for p in _ATTRIBUTES if state and all(key.startswith(p) for key in state)), "")
    if prefix and not any(key.startswith(prefix) for key in wanted):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    for key, value in state.items():  # whole numbers in the place of weights are those of a quantised network
        if key in wanted and wanted[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(
                f"checkpoint {path} does not hold the weights of {what}: {key} must be of a floating-point type, got "
                f"{value.dtype}"
            )
    # A plain dict carries no version metadata, so files from before num_batches_tracked load as well.
    try:
        module.load_state_dict(OrderedDict(state), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        detail = "; ".join(line[:160] for line in lines)
        raise ValueError(f"checkpoint {path} does not hold the weights of {what}: {detail}") from error


def read_own_part(path: str | Path, part: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the network of a classifier trained here, or a part of it, from its checkpoint.

    Args:
        path: a checkpoint of ours.
        part: None for the whole network as it classifies pixels; "denoiser" or "classifier" of a `DenoisedNetwork`.

    Returns:
        the configuration that builds it, a mapping as in `lightning_rs.networks.parts`; and its state dict.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of ours, or has no such part.
    """
    state, content = read_file(path)
    own = content.get(_OWN_KEY)
    if not isinstance(own, dict) or "init_args" not in own:
        raise ValueError(
            f"checkpoint {path} must be one of lightning_rs, which names its network; for others give "
            "{class_path: ..., weights: ...} or {network: ..., weights: ...}"
        )
    args = own["init_args"]
    names = ("network", "network_args", "mean", "std", "num_classes", "shape")
    spec: dict[str, Any] = {name: args[name] for name in names if args.get(name) is not None}
    if part is None:
        return spec, _below(state, "network.")
    inner = (args.get("network_args") or {}).get(part)
    weights = _below(state, f"network.net.{part}.")
    if inner is None or not weights:
        raise ValueError(f"checkpoint {path} has no part {part!r}: its network is {args['network']!r}")
    if isinstance(inner, str):
        inner = {"class_path": inner} if part == "denoiser" else {**spec, "network": inner, "network_args": {}}
    return dict(inner), weights


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _read_torch(path: Path) -> Any:
    try:
        # timm keeps its command line in its files; a namespace of plain values runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:  # the file may be whole; a damaged one makes torch seek, and the system say "invalid"
        raise
    except Exception as error:  # zip, pickle, end of file: torch.load fails in many ways
        raise ValueError(
            f"checkpoint {path} cannot be read with weights_only=True ({reason_not_loaded(error)}); it must be a file "
            f"of torch.save or safetensors with {_WANTED}, and beside it numbers, strings and tensors only"
        ) from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"checkpoint {path} is damaged or no safetensors file: {reason}") from error


def reason_not_loaded(error: BaseException) -> str:
    """Say why ``torch.load`` refused a file, without its advice to load it unsafely."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text) or re.search(r"Unsupported (?:global|class): \S* ?(\S+)", text)
    if named:
        return f"it holds objects of {named[1]}, which would run code"
    first = (text.splitlines() or [type(error).__name__])[0]
    if isinstance(error, EOFError):
        return "it is empty or cut short"
    # What the unpickler stumbled over: a number of its own, or a character.
    plain = "weights_only" in first or "Weights only" in first or len(first) < 8
    return "it is no file of weights" if plain else first


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(state)
    while prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found
