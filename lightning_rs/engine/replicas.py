"""Copies of a network, one a thread: each has its own buffers and attributes, and all read the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def replica(forward: Callable[[Tensor], Tensor]) -> Any:
    """Return a deep copy of a network that shares its parameters and packed weights, which nothing writes to.

    What is no module, a plain function, has no copy: it is returned as it is.
    """
    if not isinstance(forward, nn.Module):
        return forward
    shared: dict[int, Any] = {id(parameter): parameter for parameter in forward.parameters()}
    for module in forward.modules():
        # Weights in oneDNN's own layout are opaque: they cannot be copied, nor written to.
        packed = [v for v in vars(module).values() if isinstance(v, Tensor) and not torch._C._has_storage(v)]
        shared |= {id(weight): weight for weight in packed}
    return copy.deepcopy(forward, shared)
