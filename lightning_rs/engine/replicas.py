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


def attributes(network: nn.Module) -> dict[str, Any]:
    """Return what tells whether a call wrote to an attribute of a network's modules, or of their classes.

    A new tensor in an attribute that is no buffer does not count: what a forward keeps for its own later lines is
    traced as any other tensor.
    """
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
        held = [(name, vars(module), False), (name, module._buffers, True)]
        for owner, values, is_state in [*held, *((kind.__qualname__, vars(kind), False) for kind in kinds)]:
            found |= {f"{owner}.{key}".lstrip("."): _trace_of(value, is_state) for key, value in values.items()}
    return found


def _trace_of(value: Any, is_state: bool) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        version = 0 if value.is_inference() else value._version
        return ("tensor", id(value) if is_state else 0, version)
    return (id(value), len(value) if isinstance(value, dict | list | set) else 0)
