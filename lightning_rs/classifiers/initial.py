"""Warm start: the weights of a network trained before, for instance under another sigma."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lightning_rs.shipped import checkpoint_path

_PREFIX = "network."


def load_initial_weights(network: nn.Module, path: str | Path) -> None:
    """Load the network of a checkpoint of ours into ``network``, which has the same shape; its noise does not matter.

    ``path`` is a file, or the name of a shipped checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds no network of ours, or another one.
    """
    path = checkpoint_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"init_from must be a checkpoint file, got {str(path)!r}, which does not exist")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises anything on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"init_from {str(path)!r} is damaged or no checkpoint: {reason}") from error
    weights = {name.removeprefix(_PREFIX): value for name, value in held.items() if name.startswith(_PREFIX)}
    mine = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    for name in (*mine, *theirs):
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"init_from {str(path)!r} must hold the weights of the configured network: {name} has shape "
                f"{theirs.get(name, 'none')} there and {mine.get(name, 'none')} here"
            )
    network.load_state_dict(weights)
