"""What people see: one line an error, warnings without code, and no advertisements of libraries."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_rs.checks import without_unsafe_advice

# Third-party warnings that say nothing about the user's run, by name, with the reason.
_IGNORED = (
    # PyTorch Lightning asks torch for a class that torch renamed.
    r".*isinstance\(treespec, LeafSpec\).*",
    # The small data sets are held in memory, where worker processes only cost time.
    r".*does not have many workers which may be a bottleneck.*",
    # A resumed certification may have nothing left to do, in one process or in all.
    r"Total length of `.*` across ranks is zero.*",
    # A certification stage writes its results itself.
    r"predict returned None if it was on purpose.*",
)
# Lines of PyTorch Lightning's log that advertise other products.
_ADVERTISED = ("litlogger", "litmodels")
# Lines of an argument parser's message that repeat what others say better.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |"
    r"Problem with given class_path |Expected a <class 'NoneType'>|Given value: (Namespace|NestedArg)\("
)


def shorten(message: str) -> str:
    """Return the message of an error as one line; the nested report of the argument parser loses its skeleton.

    The parser lists every alternative of a type with all that is wrong in it; what remains here is the option, what it
    takes and what it was given.
    """
    worker = re.match(r"Caught \w+ in (DataLoader worker process \d+)\.", message)
    if worker:  # torch sends the whole traceback of its process instead of the error
        return f"in the data ({worker[1]}): {message.strip().splitlines()[-1]}"
    message = re.sub(r"^\[Errno \d+\] ", "", without_unsafe_advice(message))
    option: list[str] = []
    said: list[str] = []
    for raw in message.splitlines():
        line = re.sub(r"^(\s|- )*", "", raw)
        found = re.fullmatch(r'Parser key "([^"]*)":(.*)', line)
        if found:
            option.append(found[1])
            line = found[2].strip()
        if not line or _NOISE.match(line):
            continue
        line = re.sub(r"^Given value: (.*)", r"got \1", line)
        line = re.sub(r"Expected an? <class '([^']*)'>", r"expected \1", line)
        line = re.sub(r"Expected an? (typing\.)?Literal\[(.*?)\]", r"expected one of \2", line)
        if line not in said:
            said.append(line.replace(". Got value:", ", got"))
    prefix = f"{'.'.join(option)}: " if option else ""
    return prefix + "; ".join(said).replace(".;", ";").replace(":;", ":")


def report_error(error: BaseException, hint: str = "") -> None:
    """Print an error as one line on standard error; other processes than the first say which they are."""
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0)
    where = f" (process {rank})" if rank else ""
    print(f"error{where}: {shorten(str(error)) or type(error).__name__}{hint}", file=sys.stderr)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, warnings are one line each, from the first process; those that say nothing are not shown."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    written = warnings.formatwarning
    with warnings.catch_warnings():
        if int(os.environ.get("LOCAL_RANK", "0") or 0):
            warnings.simplefilter("ignore")
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        logger.addFilter(_is_no_advertisement)
        warnings.formatwarning = _one_line
        try:
            yield
        finally:
            warnings.formatwarning = written
            logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(product in record.getMessage() for product in _ADVERTISED)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    del category, filename, lineno, line
    return f"warning: {' '.join(str(message).split())}\n"
