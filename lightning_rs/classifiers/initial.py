"""Warm start: the weights of a network trained before, for instance under another sigma."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lightning_rs.shipped import checkpoint_path

_PREFIX = "network."


def load_initial_weights(network: nn.Module, path: str | Path, name: str = "init_from") -> None:
    """Load the network of a checkpoint of ours into ``network``, which has the same shape; its noise does not matter.

    ``path`` is a file, or the name of a shipped checkpoint; ``name`` is the argument that says it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds no network of ours, or another one.
    """
    path = checkpoint_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} must be a checkpoint file, got {str(path)!r}, which does not exist")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises anything on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} {str(path)!r} is damaged or no checkpoint: {reason}") from error
    weights = {key.removeprefix(_PREFIX): value for key, value in held.items() if key.startswith(_PREFIX)}
    mine = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    for key in (*mine, *theirs):
        if mine.get(key) != theirs.get(key):
            raise ValueError(
                f"{name} {str(path)!r} must hold the weights of the configured network: {key} has shape "
                f"{theirs.get(key, 'none')} there and {mine.get(key, 'none')} here"
            )
    network.load_state_dict(weights)
