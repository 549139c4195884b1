"""What a study is: parameters in, tables and figures out, written once into a folder of its own."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rs.checks import check_at_least, check_nonnegative, naming
from lightning_rs.noise.norm_power import SMALLEST_GAP
from lightning_rs.plots import save_figure
from lightning_rs.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, float | int | str]
Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        tables: rows by the name of the table; all rows of a table have the same columns.
        figures: figures by name.
        notes: findings in words, each with its numbers.
    """

    tables: Mapping[str, Sequence[Row]]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """Return tables and notes as text."""
        blocks = [_table(name, rows).text() for name, rows in self.tables.items()]
        return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in self.notes)]).rstrip()

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``NAME.csv`` for each table, ``NAME.png`` for each figure, ``study.md`` and ``study.json``.

        Raises:
            ValueError: if there is something in the folder already; it is kept.
        """
        folder = empty_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [_write_csv(folder / f"{name}.csv", rows) for name, rows in self.tables.items()]
        files += [save_figure(figure, folder / f"{name}.png") for name, figure in self.figures.items()]
        page = [_table(name, rows).markdown() for name, rows in self.tables.items()]
        texts = {
            "study.md": "\n\n".join([*page, "\n".join(f"- {note}" for note in self.notes)]) + "\n",
            "study.json": json.dumps({"tables": dict(self.tables), "notes": list(self.notes)}, indent=1) + "\n",
        }
        for name, text in texts.items():
            with naming(folder / name):
                (folder / name).write_text(text)
            files.append(folder / name)
        return files


class Study(ABC):
    """An experiment on laws and bounds that needs neither a network nor data, or the records of earlier runs.

    A subclass takes its parameters, seed included, as arguments, checks them in ``__init__`` and computes in ``run``.
    Equal parameters give equal results.
    """

    @abstractmethod
    def run(self, say: Say) -> StudyResult:
        """Compute; ``say`` takes a line about the progress now and then."""


def empty_folder(folder: str | Path) -> Path:
    """Return the folder as a path; raise ``ValueError`` if it is a file or holds anything."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"out must be a new or an empty folder, got {str(path)!r}; what is there is kept")
    return path


def check_powers(name: str, powers: Sequence[float], dim: int) -> list[float]:
    """Return powers of a norm as floats; raise ``ValueError`` unless there are some and all are in [0, dim - 1/4]."""
    check_at_least("dim", dim, 2)
    values = [float(k) for k in check_nonnegative(name, list(powers))]
    if not values or max(values) > dim - SMALLEST_GAP:
        raise ValueError(f"{name} must hold powers of at most dim - {SMALLEST_GAP}, got {values} at dim {dim}")
    return values


def _table(name: str, rows: Sequence[Row]) -> Table:
    columns = list(rows[0]) if rows else []
    return Table(name.replace("_", " "), columns, [[_cell(row[key]) for key in columns] for row in rows])


def _cell(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with naming(path), open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    return path
