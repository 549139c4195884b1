"""Import and export of the table that the field's scripts write: idx, label, predict, radius, correct, time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from lightning_rs.checks import naming
from lightning_rs.records.certification import Ball, Certification, to_line
from lightning_rs.records.header import Header, environment
from lightning_rs.records.plausibility import check_import, largest_radius
from lightning_rs.records.reading import is_record_file, read_records, read_seconds, sidecar_path
from lightning_rs.records.rounding import floor_decimals
from lightning_rs.records.tables import COLUMNS, Row, parse_seconds, read_table
from lightning_rs.records.writing import write_complete, write_whole

DECIMALS = 6

__all__ = ["Imported", "export_tsv", "import_table", "import_tsv", "lowered", "parse_seconds"]


@dataclass(frozen=True)
class Imported:
    """What an import found.

    Attributes:
        images: number of images.
        left_out: lines at the end of the table that are no rows.
    """

    images: int
    left_out: list[str]


def import_tsv(
    path: str | Path,
    out: str | Path,
    *,
    noise: Mapping[str, Any],
    n: int,
    alpha: float,
    n0: int,
    norm: str = "l2",
    certificate: str = "GaussianL2",
    ball: Ball = "open",
    grid: int | None = None,
    data: str = "unknown",
    columns: Sequence[str] | None = None,
    radius_column: str | None = None,
    independent: bool = False,
) -> int:
    """Turn a table into a record file and return the number of images; see :func:`import_table`."""
    return import_table(
        path, out, noise=noise, n=n, alpha=alpha, n0=n0, norm=norm, certificate=certificate, ball=ball, grid=grid,
        data=data, columns=columns, radius_column=radius_column, independent=independent,
    ).images  # fmt: skip


def import_table(
    path: str | Path,
    out: str | Path,
    *,
    noise: Mapping[str, Any],
    n: int,
    alpha: float,
    n0: int,
    norm: str,
    certificate: str,
    ball: Ball,
    grid: int | None,
    data: str,
    columns: Sequence[str] | None,
    radius_column: str | None,
    independent: bool,
) -> Imported:
    """Turn a table into a record file.

    The table says nothing about noise, samples and alpha: they are arguments, checked against each other and against
    the radii. It has no raw counts, so that nothing can be recomputed. Programs print few digits, rounded to nearest:
    every radius is lowered by one unit of its last printed or of its third significant digit, whichever is larger.
    Whether images shared noise is unknown, so that Theorem 5 is refused unless ``independent`` asserts it.

    Args:
        path: the table, tab separated, perhaps gzipped, with at least the columns idx, label, predict and radius.
        out: the record file; an existing one is kept if it says the same and refused otherwise.
        noise: the law with its parameters, for instance ``{"class": "GaussianNoise", "sigma": 0.25}``.
        n: estimation samples an image.
        alpha: failure probability an image.
        n0: selection samples an image.
        norm: norm of the certified balls.
        certificate: name of the certificate.
        ball: whether the balls contain their boundary.
        grid: number of steps of the inputs if the statement needs one.
        data: name of the data set.
        columns: names of the columns in their order, for a table without a header line.
        radius_column: which column holds the radii; None: the one of a known name.
        independent: assert that every image had noise of its own.

    Raises:
        ValueError: for arguments that contradict each other; naming file and line, if a row is not readable,
            contradicts itself, or has a radius that these arguments cannot certify.
        FileNotFoundError: if there is no such table.
    """
    path = Path(path)
    check_import(noise, n, n0, alpha, norm, certificate, ball, grid)
    most = largest_radius(noise, certificate, n, alpha)
    fixed: dict[str, Any] = {
        "norm": norm, "certificate": certificate, "alpha": alpha, "n": n, "n_used": n, "ball": ball, "grid": grid,
    }  # fmt: skip
    if path.is_file() and is_record_file(path):
        raise ValueError(
            f"{path} is a record file, not a table: nothing needs to be imported; report, merge and export read it as "
            "it is, those of lightning_rs 0.1 too"
        )
    table = read_table(path, columns, radius_column)
    records: dict[int, Certification] = {}
    for row in table.rows:
        record = _record(row, fixed, most)
        if record.index in records:
            raise ValueError(f"{row.where}: image {record.index} occurs twice")
        records[record.index] = record
    source = {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    described = {"noise": dict(noise), "n0": n0, "n": n, "alpha": alpha, "budget": {"mode": "fixed"}, "imported": True}
    described["certificates"] = [{"class": certificate, "norm": norm, "ball": ball}]
    described["independent"] = independent
    header = Header.create(described, data={"name": data}, indices=None, informative={**environment(), **source})
    write_whole(out, header, [records[index].to_json() for index in sorted(records)])
    seconds = {row.index: row.seconds for row in table.rows if row.seconds is not None}
    timings = (to_line({"index": index, "seconds": seconds[index]}) + "\n" for index in sorted(seconds))
    with naming(sidecar_path(out)):
        sidecar_path(out).write_text("".join(timings))
    return Imported(len(records), table.summary)


def export_tsv(path: str | Path, out: str | Path) -> int:
    """Write a record file as a table and return the number of images.

    Radii are rounded down to 6 decimals; ball, grid and counts are lost. The time is empty where the
    sidecar has none.

    Raises:
        ValueError: if a record has no label, or no radius because it was made in decision mode.
        FileExistsError: if ``out`` exists.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; it is never overwritten: choose another name")
    header, records = read_records(path)
    if header.remark is not None:
        warnings.warn(f"{path} {header.remark}", stacklevel=2)
    seconds = read_seconds(path)
    lines = ["\t".join(COLUMNS)]
    for record in records:
        if not record.has_radius:
            raise ValueError(f"{path}: image {record.index} was made in decision mode and has no radius to export")
        if record.label is None:
            raise ValueError(f"{path}: image {record.index} has no label: the table needs one")
        clock = str(timedelta(seconds=seconds[record.index])) if record.index in seconds else ""
        radius = floor_decimals(record.radius, DECIMALS)
        fields = (record.index, record.label, record.prediction, radius, int(record.correct), clock)
        lines.append("\t".join(map(str, fields)))
    write_complete(out, lines)
    return len(records)


def lowered(printed: Decimal) -> float:
    """Return a printed radius less one unit of its last printed or of its third significant digit, whichever is larger.

    Programs round to three digits, up as often as down, and drop trailing zeros: 0.36 may have been 0.3596 or 0.355.
    """
    if printed == 0:
        return 0.0
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(1).scaleb(max(exponent, printed.adjusted() - 2))
    return float(max(printed - unit, Decimal(0)))


def _record(row: Row, fixed: Mapping[str, Any], most: float | None) -> Certification:
    radius = lowered(row.radius)
    if most is not None and radius > most:
        raise ValueError(
            f"{row.where}: radius {row.radius} is more than {fixed['certificate']} can certify with n = {fixed['n']}, "
            f"alpha = {fixed['alpha']!r} and this noise, {most:.6g}: are they the ones of this table?"
        )
    certified = row.prediction >= 0
    record = Certification(
        index=row.index, label=row.label, prediction=row.prediction, radius=radius,
        status="certified" if certified else "abstain",
        note=f"imported: radius printed as {row.radius}" if certified else "imported", **fixed,
    )  # fmt: skip
    if row.correct is not None and row.correct != record.correct:
        raise ValueError(
            f"{row.where}: column correct says {row.correct}, but label is {row.label} and predict is {row.prediction}"
        )
    return record
