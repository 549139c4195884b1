"""Weights of our own files: Lightning checkpoints without Lightning, and safetensors with their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_rs.networks.files import reason_not_loaded

# What a checkpoint of ours says of itself stands under this key, in safetensors as JSON.
OWN_KEY = "lightning_rs"
_PREFIX = "network."


def read_own_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a checkpoint of ``fit`` says of itself, and the weights of its base network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or no checkpoint of lightning_rs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a checkpoint file, got {str(path)!r}, which does not exist")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:  # the file may be whole; a damaged one makes torch seek, and the system say "invalid"
        raise
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
        raise ValueError(f"checkpoint {str(path)!r} is damaged or no checkpoint: {reason_not_loaded(error)}") from error
    own = contents.get(OWN_KEY) if isinstance(contents, Mapping) else None
    if not isinstance(own, Mapping) or not {"init_args", "noise"} <= own.keys():
        raise ValueError(
            f"checkpoint {str(path)!r} is not of lightning_rs: build the network "
            "(lightning_rs.load_cohen_checkpoint reads the format of Cohen et al.) and pass it with its noise"
        )
    weights = contents["state_dict"]
    return dict(own), {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}


def save_safetensors(path: str | Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the weights and buffers of a network, with ``config`` as metadata; tied weights are written twice."""
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    save_file(weights, str(path), metadata={OWN_KEY: json.dumps(config)})


def load_safetensors(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of a file of :func:`save_safetensors`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds no config.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a safetensors file, got {str(path)!r}, which does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        config = json.loads(metadata.get(OWN_KEY, "null"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged or no safetensors file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} holds weights only: build the network, load them and pass it with its noise")
    return config, weights
