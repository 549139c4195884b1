"""What a classifier was built with, as plain values, and back: authors of objectives write no bookkeeping for it.

Members of an enum stand in a checkpoint by their name, dataclasses as mappings of their fields; the annotation of the
argument says what they were, to the command line as to :func:`revived`.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SCALARS = (bool, int, float, str, type(None))
_ABSENT = object()


def constructor_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``cls(*args, **kwargs)`` by name, with defaults; those behind ``**kwargs`` as given.

    What stands behind ``*args`` has the names of the base class that it is passed on to. A call that does not fit the
    signature gives what it names: its own TypeError follows from ``__init__``.

    Raises:
        ValueError: for arguments without a name, because a checkpoint gives them back by name.
    """
    return _bound(cls, list(_constructors(cls)), args, kwargs)


def _bound(
    cls: type, constructors: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any], own: bool = True
) -> dict[str, Any]:
    nameless = f"{cls.__name__} must take its arguments by name, as a checkpoint gives them back"
    if not constructors:
        raise ValueError(f"{nameless}, got {args[0]!r} without one")
    signature = inspect.signature(constructors[0])
    try:
        bound = (signature.bind if own else signature.bind_partial)(None, *args, **kwargs)
    except TypeError:
        return dict(kwargs)
    if own:
        bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if name not in bound.arguments:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found.update(bound.arguments[name])
        elif parameter.kind is parameter.VAR_POSITIONAL:
            values = bound.arguments[name]
            passed = _bound(cls, constructors[1:], values, {}, own=False) if values else {}
            # A name that is given as well, or a network that is no text: they were not for the base class.
            if passed.keys() & kwargs.keys() or not isinstance(passed.get("network", ""), str):
                raise ValueError(f"{nameless}, got {values[0]!r} without one")
            found |= passed
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"{nameless}: {name!r} cannot be given by name")
        else:
            found[name] = bound.arguments[name]
    return found


def plain_arguments(cls: type, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments as plain values, and the names of those that are objects no checkpoint can hold.

    A default that is such an object is in neither: it comes back by itself.
    """
    annotations, defaults = _annotations(cls), _defaults(cls)
    found = {name: _plain(value, annotations.get(name, Any)) for name, value in arguments.items()}
    objects = [name for name, value in found.items() if value is _ABSENT]
    return (
        {name: value for name, value in found.items() if value is not _ABSENT},
        [name for name in objects if arguments[name] is not defaults.get(name, _ABSENT)],
    )


def revived(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a checkpoint as ``cls`` takes them: enums, dataclasses, paths and tuples again."""
    annotations = _annotations(cls)
    return {name: _revived(value, annotations.get(name, Any)) for name, value in arguments.items()}


def _plain(value: Any, annotation: Any = Any) -> Any:
    """Return numbers, strings, paths, and lists and mappings of them as plain values; a marker for anything else."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0:
        number = value.item()
        return number if type(number) in _SCALARS else _ABSENT
    if type(value) in _SCALARS:
        return value
    if isinstance(value, enum.Enum):
        return value.name if type(value) in _alternatives(annotation) else _ABSENT
    if dataclasses.is_dataclass(value) and type(value) in _alternatives(annotation):
        fields = {field.name: field for field in dataclasses.fields(value)}
        hints = typing.get_type_hints(type(value))
        parts = {name: _plain(getattr(value, name), hints[name]) for name in fields}
        whole = all(field.init for field in fields.values()) and not any(part is _ABSENT for part in parts.values())
        return parts if whole else _ABSENT
    if isinstance(value, Mapping):
        items = {key: _plain(item) for key, item in value.items()}
        plain = all(type(key) in _SCALARS for key in items) and _ABSENT not in items.values()
        return items if plain else _ABSENT
    if isinstance(value, (list, tuple)):
        entries = [_plain(item) for item in value]
        return entries if all(entry is not _ABSENT for entry in entries) else _ABSENT
    return _ABSENT


def _revived(value: Any, annotation: Any) -> Any:
    for kind in _alternatives(annotation):
        if inspect.isclass(kind) and issubclass(kind, enum.Enum) and value in list(kind.__members__):
            return kind[value]
        if dataclasses.is_dataclass(kind) and inspect.isclass(kind) and isinstance(value, Mapping):
            hints = typing.get_type_hints(kind)
            return kind(**{name: _revived(part, hints.get(name, Any)) for name, part in value.items()})
        if inspect.isclass(kind) and issubclass(kind, Path) and isinstance(value, str):
            return kind(value)
        if (kind is tuple or typing.get_origin(kind) is tuple) and isinstance(value, list):
            return tuple(value)
    return value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return what a union is a union of; of anything else itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _constructors(cls: type) -> Iterator[Any]:
    """Return the constructors of a class and of those it inherits from, as they are written."""
    return (vars(base)["__init__"] for base in cls.__mro__ if base is not object and "__init__" in vars(base))


def _annotations(cls: type) -> dict[str, Any]:
    """Return what the arguments of a class are annotated with; those of base classes where they are passed on."""
    found: dict[str, Any] = {}
    for constructor in _constructors(cls):
        try:
            hints = typing.get_type_hints(constructor)
        except Exception:  # annotations that name what is not imported
            continue
        found = hints | found
    return found


def _defaults(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for constructor in _constructors(cls):
        found = {name: each.default for name, each in inspect.signature(constructor).parameters.items()} | found
    return found
