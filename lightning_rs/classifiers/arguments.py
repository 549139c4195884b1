"""What a classifier was built with, as plain values: authors of objectives write no bookkeeping for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SCALARS = (bool, int, float, str, type(None))
_ABSENT = object()


def constructor_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``cls(*args, **kwargs)`` by name, with defaults; those behind ``**kwargs`` as given.

    A call that does not fit the signature gives what it names: its own TypeError follows from ``__init__``.
    """
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # as written, not of an instance
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:
        return dict(kwargs)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            found.update(bound.arguments[name])
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = bound.arguments[name]
    return found


def plain_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that are plain values, and the names of those that are objects no checkpoint can hold."""
    found = {name: plain_value(value) for name, value in arguments.items()}
    return {k: v for k, v in found.items() if v is not _ABSENT}, [k for k, v in found.items() if v is _ABSENT]


def plain_value(value: Any) -> Any:
    """Return numbers, strings, paths, and lists and mappings of them as plain values; a marker for anything else."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0:
        return value.item()
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        items = {str(key): plain_value(item) for key, item in value.items()}
        return items if _ABSENT not in items.values() else _ABSENT
    if isinstance(value, (list, tuple)):
        entries = [plain_value(item) for item in value]
        return entries if all(entry is not _ABSENT for entry in entries) else _ABSENT
    return _ABSENT
