"""Tables that other programs wrote: read as far as they are clear, else refused with file, line, column and value."""

from __future__ import annotations

import gzip
import re
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

from lightning_rs.checks import kind_of

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
_NEEDED = COLUMNS[:4]
# What the field's programs call them; the first is ours.
_ALIASES = {
    "idx": ("idx", "index"),
    "label": ("label", "target", "y"),
    "predict": ("predict", "prediction", "pred"),
    "correct": ("correct",),
    "time": ("time",),
}
_RADII = ("radius", "radius_cohen", "cohen_radius", "exact_radius", "certified_radius", "radius_certified", "rad")
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_GZIP = b"\x1f\x8b"
_TRUTH = {"true": 1, "false": 0}


@dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
        where: file and line, for errors.
        index: the data set's own index.
        label: true class.
        prediction: class, or -1 where the program abstained.
        radius: as it was printed.
        correct: what the table claims, 0 or 1; None if it has no such column.
        seconds: time taken, None if unknown.
    """

    where: str
    index: int
    label: int
    prediction: int
    radius: Decimal
    correct: int | None
    seconds: float | None


@dataclass(frozen=True)
class Table:
    """The rows of a table, and the lines at its end that are no rows (averages, totals)."""

    rows: list[Row]
    summary: list[str]


def read_table(path: Path, columns: Sequence[str] | None = None, radius_column: str | None = None) -> Table:
    """Read a tab-separated table, plain or gzipped, with or without a byte order mark.

    Args:
        path: the file.
        columns: names of the columns in their order, for a file without a header line.
        radius_column: which column holds the radii; None: the one of a known name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, line, column and value, for whatever is not readable or not clear.
    """
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}:1: the file is empty: the columns {', '.join(_NEEDED)} are needed")
    if columns is None:
        columns = _cells(lines[0][1])
        _refuse_no_header(path, lines[0][0], columns)
        lines = lines[1:]
    chosen = _positions(path, columns, radius_column)
    body, summary = _without_summary(lines, chosen["idx"])
    if not body:
        raise ValueError(f"{path}: there is no row below the header: nothing to import")
    return Table([_row(f"{path}:{number}", _cells(line), columns, chosen) for number, line in body], summary)


def looks_like_table(path: Path, first: str) -> bool:
    """Return whether a file that is no record file is perhaps such a table."""
    names = {cell.lower() for cell in _cells(first)}
    known = {name for aliases in (*_ALIASES.values(), _RADII) for name in aliases}
    return bool({".tsv", ".csv", ".gz"} & set(path.suffixes)) or ("\t" in first and len(names & known) > 1)


def parse_seconds(text: str) -> float | None:
    """Return seconds from "0:00:18.583187", "1 day, 0:00:01" or "18.58"; None from an empty text.

    Raises:
        ValueError: if the text is none of these.
    """
    text = text.strip()
    if not text:
        return None
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return float(text)
    days, hours, minutes, seconds = clock.groups()
    return timedelta(
        days=int(days or 0), hours=int(hours), minutes=int(minutes), seconds=float(seconds)
    ).total_seconds()


def _text(path: Path) -> str:
    if not path.is_file():
        kind = kind_of(path)
        raise FileNotFoundError(f"no table at {path}{'' if kind == 'not there' else f', which is {kind}'}")
    data = path.read_bytes()
    try:
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:  # gzip's own: a damaged or unfinished file
        raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line}: not a text file in UTF-8: a byte is zero, as in UTF-16 or a damaged file")
    return text


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")]


def _refuse_no_header(path: Path, number: int, cells: Sequence[str]) -> None:
    if all(_number(cell) is None for cell in cells[:2]):
        return
    shown = " ".join([*COLUMNS[: len(cells)], *(f"column{i}" for i in range(len(COLUMNS), len(cells)))])
    raise ValueError(
        f"{path}:{number}: the file has no header line, it begins with {', '.join(cells[:6])}: "
        f"name its {len(cells)} columns in their order, for instance --columns {shown}"
    )


def _positions(path: Path, columns: Sequence[str], radius_column: str | None) -> dict[str, int]:
    """Return where the columns are that are used, by our names."""
    lower = [name.lower() for name in columns]
    if len(columns) == 1 and ("," in columns[0] or " " in columns[0]):
        raise ValueError(f"{path}:1: the columns must be separated by tabs, got {textwrap.shorten(columns[0], 80)!r}")
    twice = sorted({name for name in lower if lower.count(name) > 1 and name})
    if twice:
        raise ValueError(f"{path}:1: the column {twice[0]!r} occurs twice")
    found = {name: [lower.index(alias) for alias in aliases if alias in lower] for name, aliases in _ALIASES.items()}
    if radius_column is not None:
        found["radius"] = [lower.index(radius_column.lower())] if radius_column.lower() in lower else []
    else:
        found["radius"] = [lower.index(alias) for alias in _RADII if alias in lower]
        if lower.count("radius"):
            found["radius"] = [lower.index("radius")]
    several = [name for name, places in found.items() if len(places) > 1]
    if several:
        names = ", ".join(columns[place] for place in found[several[0]])
        how = "name one by --radius-column" if several[0] == "radius" else "rename all but one"
        raise ValueError(f"{path}:1: several columns may be the {several[0]}: {names}: {how}")
    missing = [name for name in _NEEDED if not found[name]]
    if missing:
        wanted = "" if radius_column is None or "radius" not in missing else f" ({radius_column!r} was asked for)"
        hint = "; --radius-column names another one" if missing == ["radius"] else ""
        raise ValueError(
            f"{path}:1: the columns {', '.join(missing)} are missing{wanted}, "
            f"got {', '.join(columns) or 'nothing'}{hint}"
        )
    return {name: places[0] for name, places in found.items() if places}


def _without_summary(lines: list[tuple[int, str]], first: int) -> tuple[list[tuple[int, str]], list[str]]:
    """Split off the lines at the end whose index is no number: averages and totals that some programs append."""
    end = len(lines)
    while end and not _begins_a_row(lines[end - 1][1], first):
        end -= 1
    return lines[:end], [f"line {number}: {line.strip()}" for number, line in lines[end:]]


def _begins_a_row(line: str, first: int) -> bool:
    cells = _cells(line)
    index = _number(cells[first]) if first < len(cells) else None
    if index is None:
        return False
    # A lone fraction is a total; a lone whole number may be a row that was cut off, which is an error.
    return len(cells) > 1 or index == index.to_integral_value()


def _row(where: str, cells: list[str], columns: Sequence[str], chosen: dict[str, int]) -> Row:
    if len(cells) != len(columns):
        raise ValueError(f"{where}: {len(columns)} columns expected, got {len(cells)}: {' | '.join(cells[:8])}")

    def whole(name: str, least: int) -> int:
        text = cells[chosen[name]]
        value = _number(text)
        if value is None or value != value.to_integral_value() or value < least:
            raise ValueError(f"{where}: column {columns[chosen[name]]} must be a whole number >= {least}, got {text!r}")
        return int(value)

    index, label = whole("idx", 0), whole("label", 0)
    radius = _number(cells[chosen["radius"]])
    if radius is None or radius < 0:
        shown = cells[chosen["radius"]]
        raise ValueError(f"{where}: column {columns[chosen['radius']]} must be a finite number >= 0, got {shown!r}")
    prediction = whole("predict", -1)
    if prediction == -1 and radius > 0:
        raise ValueError(
            f"{where}: column {columns[chosen['radius']]} must be 0 where the prediction is -1, got {radius}"
        )
    correct = _truth(where, columns[chosen["correct"]], cells[chosen["correct"]]) if "correct" in chosen else None
    try:
        seconds = parse_seconds(cells[chosen["time"]]) if "time" in chosen else None
    except ValueError as error:
        raise ValueError(
            f"{where}: column {columns[chosen['time']]} must be a time such as 0:00:18.5 or 18.5, "
            f"got {cells[chosen['time']]!r}"
        ) from error
    return Row(where, index, label, prediction, radius, correct, seconds)


def _truth(where: str, column: str, text: str) -> int:
    value = _TRUTH.get(text.lower(), _number(text))
    if value not in (0, 1):
        raise ValueError(f"{where}: column {column} must be 0, 1, True or False, got {text!r}")
    return int(value)


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
