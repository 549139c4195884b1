"""Import and export of the table that the field's scripts write: idx, label, predict, radius, correct, time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_rs.records.certification import Ball, Certification, to_line
from lightning_rs.records.header import Header, environment
from lightning_rs.records.reading import read_records, read_seconds, sidecar_path
from lightning_rs.records.rounding import floor_decimals
from lightning_rs.records.writing import write_whole

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
DECIMALS = 6
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


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
) -> int:
    """Turn a table into a record file and return the number of images.

    The table says nothing about noise, samples and alpha: they are arguments. It has no raw counts, so that
    nothing can be recomputed, and its radii are as printed: the scripts round to three digits, possibly up.

    Args:
        path: the table, tab separated, with at least the columns idx, label, predict and radius.
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

    Raises:
        ValueError: naming file and line, if a row is not readable or contradicts itself.
        FileNotFoundError: if there is no such table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}")
    fixed: dict[str, Any] = {
        "norm": norm, "certificate": certificate, "alpha": alpha, "n": n, "n_used": n, "ball": ball, "grid": grid,
    }  # fmt: skip
    rows = _rows(path)
    records: dict[int, Certification] = {}
    seconds: dict[int, float] = {}
    for where, row in rows:
        record, took = _record(where, row, fixed)
        if record.index in records:
            raise ValueError(f"{where}: image {record.index} occurs twice")
        records[record.index] = record
        if took is not None:
            seconds[record.index] = took
    source = {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    described = {"noise": dict(noise), "n0": n0, "n": n, "alpha": alpha, "budget": {"mode": "fixed"}, "imported": True}
    described["certificates"] = [{"class": certificate, "norm": norm, "ball": ball}]
    header = Header.create(described, data={"name": data}, indices=None, informative={**environment(), **source})
    write_whole(out, header, [records[index].to_json() for index in sorted(records)])
    timings = (to_line({"index": index, "seconds": seconds[index]}) + "\n" for index in sorted(seconds))
    sidecar_path(out).write_text("".join(timings))
    return len(records)


def export_tsv(path: str | Path, out: str | Path) -> int:
    """Write a record file as a table and return the number of images.

    Radii are rounded down to 6 decimals; ball, grid and counts are lost. The time is empty where the
    sidecar has none.

    Raises:
        ValueError: if a record has no label, or no radius because it was made in decision mode.
        FileExistsError: if ``out`` exists.
    """
    _, records = read_records(path)
    seconds = read_seconds(path)
    lines = ["\t".join(COLUMNS)]
    for record in records:
        if record.mode == "decision":
            raise ValueError(f"{path}: image {record.index} was made in decision mode and has no radius to export")
        if record.label is None:
            raise ValueError(f"{path}: image {record.index} has no label: the table needs one")
        clock = str(timedelta(seconds=seconds[record.index])) if record.index in seconds else ""
        radius = floor_decimals(record.radius, DECIMALS)
        fields = (record.index, record.label, record.prediction, radius, int(record.correct), clock)
        lines.append("\t".join(map(str, fields)))
    with open(out, "x") as file:
        file.write("\n".join(lines) + "\n")
    return len(records)


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


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    lines = path.read_text().splitlines()
    names = lines[0].split("\t") if lines else []
    missing = [name for name in COLUMNS[:4] if name not in names]
    if missing:
        raise ValueError(f"{path}:1: the columns {', '.join(missing)} are missing, got {', '.join(names) or 'nothing'}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{path}:{number}: {len(names)} columns expected, got {len(cells)}")
        rows.append((f"{path}:{number}", dict(zip(names, cells, strict=True))))
    return rows


def _record(where: str, row: Mapping[str, str], fixed: Mapping[str, Any]) -> tuple[Certification, float | None]:
    try:
        label, prediction, radius = int(row["label"]), int(row["predict"]), float(row["radius"])
        status = "certified" if prediction >= 0 else "abstain"
        record = Certification(
            index=int(row["idx"]), label=label, prediction=prediction, radius=radius, status=status,  # type: ignore[arg-type]
            note="imported: radius as printed, possibly rounded up", **fixed,
        )  # fmt: skip
        took = parse_seconds(row.get("time", ""))
        claimed = int(row.get("correct", record.correct))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if claimed != record.correct:
        raise ValueError(f"{where}: column correct says {claimed}, but label is {label} and predict is {prediction}")
    return record, took
