"""Objects as plain dictionaries, and back: ours by their short name, everybody else's by their whole class path.

A checkpoint or a record file names the laws, theorems and budgets that it was made with. ``{"class": "GaussianNoise"}``
is one of ours; ``{"class": "mine.MyNoise"}`` is imported when it is needed, from wherever Python finds ``mine``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_OURS = __name__.partition(".")[0]
_PLAIN = (bool, int, float, str, type(None))


def class_path(kind: type[Any]) -> str:
    """Return the name by which files know a class: short for ours, ``module.Class`` for others."""
    ours = kind.__module__.partition(".")[0] == _OURS
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def full_class_path(kind: type[Any]) -> str:
    """Return a class path that configurations understand; ours are named where their package exports them."""
    if kind.__module__.partition(".")[0] == _OURS:
        return f"{'.'.join(kind.__module__.split('.')[:2])}.{kind.__name__}"
    return class_path(kind)


def parameters(thing: object) -> dict[str, Any]:
    """Return the constructor arguments of an object that keeps each under its own name.

    Raises:
        ValueError: if it does not keep one, or takes some that have no name of their own.
    """
    names = _argument_names(thing)
    lost = [name for name in names if not hasattr(thing, name)]
    if lost:
        raise ValueError(f"{class_path(type(thing))} must keep its argument {lost[0]!r} as self.{lost[0]}")
    return {name: getattr(thing, name) for name in names}


def _argument_names(thing: object) -> list[str]:
    """Return the names of a constructor's arguments; what it passes on to its base classes, by the names there."""
    path, names, passed = class_path(type(thing)), list[str](), list[str]()
    for base in type(thing).__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        taken = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        by_place = next((each.name for each in taken if each.kind is each.POSITIONAL_ONLY), None)
        if by_place is not None:
            raise ValueError(f"{path} must take its argument {by_place!r} by name, as files give it: leave out the '/'")
        passed = [each.name for each in taken if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        names += [each.name for each in taken if each.name not in (*passed, *names)]
        if not passed or any(getattr(thing, name, None) for name in passed):
            break
    if passed:  # to nobody, or kept: two objects would look the same
        raise ValueError(f"{path} must name each of its arguments, got *{passed[0]}: files give them back by name")
    return names


def to_dict(thing: object, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"class": class path, **spec}``.

    Raises:
        ValueError: if a value is not plain (numbers, text, lists, mappings): files could not hold it.
    """
    path = class_path(type(thing))
    odd = [name for name, value in spec.items() if not _is_plain(value)]
    if odd:
        raise ValueError(
            f"{path} must describe itself by plain values (numbers, text, lists), got {type(spec[odd[0]]).__name__} "
            f"for {odd[0]!r}"
        )
    return {"class": path, **spec}


def check_rebuilds(thing: T, spec: Mapping[str, Any], base: type[T], what: str) -> None:
    """Check that the description of an object gives the object back; for ours the tests do.

    Args:
        thing: the object.
        spec: of :func:`to_dict`.
        base: as for :func:`from_dict`.
        what: as for :func:`from_dict`.

    Raises:
        ValueError: if it gives another one, or none.
    """
    if "." in spec["class"] and from_dict(spec, base, what) != thing:
        raise ValueError(f"{what} {thing!r} is not rebuilt by its own description, {dict(spec)!r}: another one is")


def from_dict(spec: Mapping[str, Any], base: type[T], what: str) -> T:
    """Rebuild an object from :func:`to_dict`.

    Args:
        spec: the class path under "class", and the constructor arguments.
        base: what it must be.
        what: how errors call it, for instance "noise".

    Raises:
        ValueError: if the class is unknown, its module cannot be imported, or its arguments are not accepted.
    """
    kind = class_named(spec.get("class"), base, what)
    arguments = {key: value for key, value in spec.items() if key != "class"}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{what} {spec['class']} does not take the parameters {arguments!r}: {error}") from error


def class_named(path: Any, base: type[T], what: str) -> type[T]:
    """Return the concrete class that :func:`class_path` gave this name, importing its module if need be.

    Raises:
        ValueError: naming the module or the class that is missing, or the classes that are known.
    """
    live = known_classes(base)
    if path in live:
        return live[path]
    if not isinstance(path, str) or "." not in path:
        ours = ", ".join(sorted(name for name in live if "." not in name))
        raise ValueError(f"{what} must be one of {ours}, or a class path (mymodule.MyClass), got {path!r}")
    found = _imported(path, what)
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise ValueError(f"{what} must be a concrete subclass of {base.__name__}, got {path!r}")
    return found


def known_classes(base: type[T]) -> dict[str, type[T]]:
    """Return the concrete classes below ``base`` that have been defined so far, by the name that files know."""
    return {class_path(kind): kind for kind in _subclasses(base) if not inspect.isabstract(kind)}


def _imported(path: str, what: str) -> Any:
    """Import what a class path names; nested classes have several names behind their module."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                continue  # perhaps a class with a class in it
            raise ValueError(f"{what} {path!r}: module {module!r} needs {error.name!r}, which is missing") from error
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{what} {path!r}: importing {module!r} failed: {type(error).__name__}: {reason}"
            ) from error
        for name in parts[length:]:
            found = getattr(found, name, None)
        if found is None:
            raise ValueError(f"{what} {path!r}: module {module!r} has no {'.'.join(parts[length:])!r}")
        return found
    module = path.rpartition(".")[0]
    raise ValueError(
        f"{what} {path!r}: there is no module {module!r}; install it, or run where it lies (or set PYTHONPATH)"
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _subclasses(kind: type[T]) -> Iterator[type[T]]:
    for direct in kind.__subclasses__():
        yield direct
        yield from _subclasses(direct)
