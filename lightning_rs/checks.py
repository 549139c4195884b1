"""Argument checks: every refusal names the argument, its value and what would be right."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_float64(name: str, value: ArrayLike) -> FloatArray:
    """Return ``value`` as a float64 array; raise ``ValueError`` if any entry is NaN."""
    array = np.asarray(value, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} must not be NaN, got {_show(value)}")
    return array


def as_count(name: str, value: ArrayLike) -> IntArray:
    """Return ``value`` as an int64 array; raise ``ValueError`` unless all entries are integers >= 0."""
    array = np.asarray(value)
    if array.dtype.kind not in "iub" and not np.all(np.equal(np.mod(array, 1), 0)):
        raise ValueError(f"{name} must hold whole numbers, got {_show(value)}")
    counts = array.astype(np.int64)
    if (counts < 0).any():
        raise ValueError(f"{name} must be >= 0, got {_show(value)}")
    return counts


def check_alpha(alpha: ArrayLike, name: str = "alpha") -> FloatArray:
    """Return failure probabilities as float64; raise ``ValueError`` unless all lie in (0, 1)."""
    array = as_float64(name, alpha)
    if not ((array > 0) & (array < 1)).all():
        raise ValueError(f"{name} must lie in (0, 1), got {_show(alpha)}")
    return array


def check_probability(name: str, value: ArrayLike) -> FloatArray:
    """Return probabilities as float64; raise ``ValueError`` unless all lie in [0, 1]."""
    array = as_float64(name, value)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} must lie in [0, 1], got {_show(value)}")
    return array


def check_positive(name: str, value: ArrayLike) -> FloatArray:
    """Return float64 values; raise ``ValueError`` unless all are finite and > 0."""
    array = as_float64(name, value)
    if not ((array > 0) & np.isfinite(array)).all():
        raise ValueError(f"{name} must be finite and > 0, got {_show(value)}")
    return array


def check_nonnegative(name: str, value: ArrayLike) -> FloatArray:
    """Return float64 values; raise ``ValueError`` unless all are >= 0 (infinity is allowed)."""
    array = as_float64(name, value)
    if not (array >= 0).all():
        raise ValueError(f"{name} must be >= 0, got {_show(value)}")
    return array


def check_at_least(name: str, value: int, least: int) -> int:
    """Return the integer ``value``; raise ``ValueError`` unless it is a whole number >= ``least``."""
    try:
        right = not isinstance(value, (bool, str)) and int(value) == value and value >= least
    except (TypeError, ValueError, OverflowError):  # a list, nan, infinity
        right = False
    if not right:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    options = list(choices)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def tail_of(p_lower: ArrayLike | None, q_upper: ArrayLike | None, name: str = "p_lower") -> FloatArray:
    """Return the tail ``q = 1 - p`` from whichever of the two was given.

    Near one the tail carries the information: ``p = 1 - 1e-17`` is not a float64, ``q = 1e-17`` is.

    Raises:
        ValueError: if both or neither are given, or a value lies outside [0, 1].
    """
    if (p_lower is None) == (q_upper is None):
        raise ValueError(f"give exactly one of {name} and q_upper (= 1 - {name})")
    if q_upper is not None:
        return check_probability("q_upper", q_upper)
    return 1.0 - check_probability(name, p_lower if p_lower is not None else math.nan)


def given(name: str, value: ArrayLike | None) -> Any:
    """Return ``value``; raise ``ValueError`` if it was left out.

    Arguments behind ``p_lower`` are optional in the signature only because ``q_upper`` can replace it.
    """
    if value is None:
        raise ValueError(f"{name} must be given, got None")
    return value


_UNSAFE_ADVICE = re.compile(r"Weights only load failed|In PyTorch 2\.6|Re-running `torch\.load`|weights_only=False")


def without_unsafe_advice(message: str) -> str:
    """Return the message of a loader without torch's advice to load a file in a way that may run what is in it."""
    head, *advice = _UNSAFE_ADVICE.split(message, maxsplit=1)
    if not advice:
        return message
    reason = "it is cut short, or holds more than tensors and plain values, and loading that could run foreign code"
    return f"{head}{reason}"


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within it, an error of the system that does not say which file it met (a full disk) names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def renamed(error: OSError, path: str | Path) -> OSError:
    """Return an error of the system about a temporary file as one about the file that it was to become."""
    return error if error.errno is None else type(error)(error.errno, error.strerror, str(path))


def folder_for(out: str | Path, name: str = "out") -> Path:
    """Return a folder to write into, made if it is not there; raise ``NotADirectoryError`` where something else is."""
    out = Path(out)
    for place in (out, *out.parents):  # what is in the way may be one of the folders above
        if os.path.lexists(place) and not place.is_dir():
            where = "" if place == out else f" below {place}"
            raise NotADirectoryError(f"{name} must be a folder, got {out}{where}, which is {kind_of(place)}")
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def refuse_no_file(path: str | Path, name: str) -> None:
    """Raise ``ValueError`` for a path that is there and is no file: a device can be read for ever, a pipe never."""
    if os.path.lexists(path) and not Path(path).is_file() and kind_of(path) != _DANGLING:
        raise ValueError(f"{name} must be a file, got {path}, which is {kind_of(path)}")


_DANGLING = "a link to nothing"


def kind_of(path: str | Path) -> str:
    """Say what a path is: "a folder", "a pipe", ... ; "not there" if nothing."""
    path = Path(path)
    kinds = (
        (path.is_file, "a file"), (path.is_dir, "a folder"), (path.is_fifo, "a pipe"), (path.is_socket, "a socket"),
        (path.exists, "a device"),
    )  # fmt: skip
    with suppress(RuntimeError):  # pathlib's word for links in a circle, in some of its methods
        for is_one, kind in kinds:
            if is_one():
                return kind
    if not path.is_symlink():
        return "not there"
    try:
        path.stat()
    except FileNotFoundError:
        return _DANGLING
    except OSError:
        pass
    return "a link in a circle"


def _show(value: Any) -> str:
    text = np.array2string(np.asarray(value), threshold=6) if not np.isscalar(value) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
