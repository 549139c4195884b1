"""One norm and statement of a report: the numbers, the tables and the notes that say what they mean."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rs.metrics import (
    abstention_rate,
    average_certified_radius,
    clean_accuracy,
    hard_half_radius,
    undecided_rate,
)
from lightning_rs.records import ceil_decimals, complement, floor_decimals, nearest_decimals, read_seconds
from lightning_rs.records.units import counts_pixels, unit
from lightning_rs.report.brackets import Brackets
from lightning_rs.report.changes import NOTE as NOTE_ON_CHANGES
from lightning_rs.report.changes import Change, change_table
from lightning_rs.report.paired import NOTE, Pair
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table
from lightning_rs.statistics.accuracy import Method, accuracy_interval

FloatArray = NDArray[np.float64]
CONFIDENCE = 0.95
_MOST_RADII = 8  # steps from the smallest to the largest radius
_TAILS = (0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0001)
_METHODS = {
    "bernstein": "Theorem 5 of Cohen et al. 2019, at each radius by itself",
    "exact": "Theorem 5 with the exact binomial tail, at each radius by itself",
    "uniform": "Theorem 5 with the exact binomial tail, at all radii at once",
}


@dataclass(frozen=True)
class Group:
    """Runs of one norm and statement, with the radii at which they are compared.

    Attributes:
        norm: norm of all radii.
        runs: the runs, in the order given.
        radii: radii in the unit of the norm: input units, or pixels.
        rho: failure probability of the bounds on the whole set of images.
        method: which form of Theorem 5.
        pairs: runs that are compared image by image.
        changes: further certificates of a file beside its first one.
        remarks: what is to be known of the files before the numbers are read.
        statement: what is certified, where it is not that the answer stays the same.
        brackets: the runs that were attacked.
    """

    norm: str
    runs: Sequence[Run]
    radii: Sequence[float]
    rho: float
    method: Method
    pairs: Sequence[Pair] = ()
    changes: Sequence[Change] = ()
    remarks: Sequence[str] = ()
    statement: str = ""
    brackets: Brackets | None = None

    @property
    def title(self) -> str:
        """The norm, and the statement."""
        return f"{self.norm}, {self.statement}" if self.statement else self.norm

    def tables(self) -> list[Table]:
        """Return accuracies, Theorem 5 bounds and intervals, rounded for people: bounds away from the claim."""
        at = [f"{radius:g}" for radius in self.radii]
        return [
            self._accuracies(at),
            *([] if counts_pixels(self.norm) else [self._scaled()]),
            *self._votes(),
            self._averages(),  # last of these: easy images dominate it, and it grows with n
            Table(
                f"{self.title}: true certified accuracy of these images is at least, with probability >= "
                f"{complement(self.rho)} ({_METHODS[self.method]})",
                ["run", *at],
                [self._bounds(run) for run in self.runs],
                "theorem-5",
            ),
            Table(
                f"{self.title}: {CONFIDENCE:.0%} Clopper-Pearson intervals for random images of the same kind",
                ["run", *at],
                [[run.name, *self._intervals(run)] for run in self.runs],
                "intervals",
            ),
            *(self.brackets.tables(self.title) if self.brackets else []),
            *(pair.table(self.radii, f"pair-{i}") for i, pair in enumerate(self.pairs, 1)),
            *([change_table(self.changes)] if self.changes else []),
        ]

    def notes(self) -> list[str]:
        """Return what a reader must know to read the tables right."""
        notes = [f"{run.name}: {run.setting}." for run in self.runs]
        notes.append(
            f"Certified accuracy at r: share of images that are right and certified at radius r, in {unit(self.norm)}."
        )
        notes.append("clean: share whose majority vote is right, an estimate without a guarantee.")
        notes.append(
            "ACR: mean over images of the radius, 0 where the answer is wrong; easy images dominate it, and it grows "
            "with n. hard half: the same mean over the half of the images with the smallest radii, each run's own."
        )
        if any(run.tails is not None for run in self.runs):
            notes.append(
                "p: probability that the base classifier gives the label under noise; its lower bounds hold image by "
                "image, each with the share of alpha that the certificate gives it."
            )
        if len(self.runs) > 1:
            notes.append("The envelope picks the best run at each radius after the fact: it is not a guarantee.")
        if len({frozenset(record.index for record in run.records) for run in self.runs}) > 1:
            notes.append("The runs cover different images: differences between them are partly due to that.")
        if not all(run.alone for run in self.runs):
            notes.append(
                "Certificates of one file read the same samples, each at its own alpha: the statements of k of them "
                "hold together with probability 1 - k alpha."
            )
        imported = [run.name for run in self.runs if run.header.imported]
        if imported:
            notes.append(
                f"Imported: {', '.join(imported)}. Radii are those that another program printed, lowered by one "
                "unit of their last printed or third significant digit."
            )
        notes += [told for run in self.runs if (told := _timing(run))]
        notes += [NOTE, *(pair.note() for pair in self.pairs)] if self.pairs else []
        notes += [NOTE_ON_CHANGES] if self.changes else []
        notes += self.brackets.notes() if self.brackets else []
        notes.extend(note for run in self.runs for note in _notes(run))
        notes.extend(dict.fromkeys(remark for run in self.runs for remark in run.remarks))
        notes += [f"No bound on the whole set: {run.refusal}." for run in self.runs if run.refusal]
        return [*notes, *self.remarks]

    def csv(self) -> str:
        """Return one row a run with everything that the text says of it, at full precision; empty where unknown.

        ``acc@R`` is the certified accuracy at R, ``acc_low@R`` to ``acc_high@R`` its interval, ``bound@R`` the bound of
        Theorem 5; ``acc@R*sigma`` is at R times the run's sigma, ``p@P`` the share of images that are right and whose
        lower bound of p is at least P.
        """
        rows = self.csv_rows()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return out.getvalue()

    def csv_rows(self) -> list[dict[str, str]]:
        """Return the rows of :meth:`csv` by column."""
        return [{name: _cell(value) for name, value in self._csv_row(run).items()} for run in self.runs]

    def pair_table(self) -> Table:
        """Return all pairs in one table, a row a pair and radius, for CSV."""
        tables = [pair.table(self.radii) for pair in self.pairs]
        rows = [
            [pair.first.name, pair.second.name, str(len(pair.records)), *row]
            for pair, table in zip(self.pairs, tables, strict=True)
            for row in table.rows
        ]
        return Table("pairs", ["first", "second", "images", *tables[0].columns], rows)

    def _csv_row(self, run: Run) -> dict[str, Any]:
        records, first = run.records, run.records[0]
        data = run.header.binding.get("data", {})
        low, high = (np.where(np.isfinite(run.accuracy(self.radii)), ends, np.nan) for ends in self._interval_ends(run))
        bounds = [None] * len(self.radii) if run.refusal else run.lower_bound(self.radii, self.rho, self.method)
        scaled = run.accuracy([r * run.sigma for r in self.scaled_radii])
        shares, seconds = _shares(run), _seconds(run)
        row: dict[str, Any] = {
            "run": run.name, "sigma": run.sigma, "n_images": len(records), "acr": average_certified_radius(records),
            "abstain": abstention_rate(records), "undecided": undecided_rate(records) if run.target else None,
            "clean": clean_accuracy(records), "hard_half_acr": hard_half_radius(records), "norm": self.norm,
            "ball": first.ball, "grid": first.grid, "certificate": run.certificate, "noise": run.noise,
            "alpha": max(record.alpha for record in records), "n": first.n, "n0": run.header.binding.get("n0"),
            "mode": first.mode, "target": run.target, "data": data.get("name"), "split": data.get("split"),
            "classifier": run.header.binding.get("classifier"), "confidence": CONFIDENCE, "rho": self.rho,
            "theorem_5": self.method, "seconds_mean": float(np.mean(seconds)) if seconds else None,
            "seconds_median": float(np.median(seconds)) if seconds else None,
            "notes": " ".join(_notes_of(run)), "file": str(run.path),
        }  # fmt: skip
        for name, radii, values in (
            ("acc@{:g}", self.radii, run.accuracy(self.radii)), ("acc_low@{:g}", self.radii, low),
            ("acc_high@{:g}", self.radii, high), ("bound@{:g}", self.radii, bounds),
            ("acc@{:g}*sigma", self.scaled_radii, scaled),
            ("p@{:g}", [1 - tail for tail in _TAILS], [None] * len(_TAILS) if shares is None else shares),
        ):  # fmt: skip
            row |= {name.format(radius): value for radius, value in zip(radii, values, strict=True)}
        return row

    @property
    def scaled_radii(self) -> list[float]:
        """Where accuracies are compared in units of each run's sigma: there, noise levels have the same scale."""
        if counts_pixels(self.norm):  # which no sigma scales
            return []
        return default_radii(self.runs, scaled=True)

    def _accuracies(self, at: Sequence[str]) -> Table:
        undecided = any(run.target is not None for run in self.runs)
        columns = ["run", "sigma", "images", "abstain", *(["undecided"] if undecided else []), "clean"]
        rows = [self._accuracy_row(run, undecided) for run in self.runs]
        if len(self.runs) > 1:
            blank = [""] * (len(columns) - 1)
            rows.append(["envelope (descriptive)", *blank, *map(_nearest, self._envelope())])
        return Table(f"{self.title}: certified accuracy at radius r =", [*columns, *at], rows, "accuracy")

    def _accuracy_row(self, run: Run, undecided: bool) -> list[str]:
        records = run.records
        row = [run.name, f"{run.sigma:g}", str(len(records)), _nearest(abstention_rate(records))]
        row += [*([_nearest(undecided_rate(records))] if undecided else []), _nearest(clean_accuracy(records))]
        return [*row, *map(_nearest, run.accuracy(self.radii))]

    def _averages(self) -> Table:
        rows = [
            [run.name, *(_nearest(mean(run.records), 4) for mean in (average_certified_radius, hard_half_radius))]
            for run in self.runs
        ]
        return Table(
            f"{self.title}: average certified radius, in {unit(self.norm)}", ["run", "ACR", "hard half"], rows, "acr"
        )

    def _scaled(self) -> Table:
        radii = self.scaled_radii
        rows = [[run.name, *map(_nearest, run.accuracy([r * run.sigma for r in radii]))] for run in self.runs]
        columns = ["run", *(f"{radius:g}" for radius in radii)]
        return Table(f"{self.title}: certified accuracy at r / sigma =", columns, rows, "scaled")

    def _votes(self) -> list[Table]:
        shares = [(run, _shares(run)) for run in self.runs]
        rows = [[run.name, *map(_nearest, found)] for run, found in shares if found is not None]
        columns = ["run", *(f"{1 - tail:g}" for tail in _TAILS)]
        title = f"{self.title}: share of images that are right and whose lower bound of p >= "
        return [Table(title.rstrip(), columns, rows, "votes")] if rows else []

    def _bounds(self, run: Run) -> list[str]:
        if run.refusal is not None:
            return [run.name, *["refused"] * len(self.radii)]
        bounds = run.lower_bound(self.radii, self.rho, self.method)
        return [run.name, *("-" if math.isnan(bound) else floor_decimals(bound, 3) for bound in bounds)]

    def _intervals(self, run: Run) -> list[str]:
        low, high = self._interval_ends(run)
        known = np.isfinite(run.accuracy(self.radii))
        return [
            f"{floor_decimals(a, 3)}-{ceil_decimals(b, 3)}" if shown else "-"
            for a, b, shown in zip(low, high, known, strict=True)
        ]

    def _interval_ends(self, run: Run) -> tuple[FloatArray, FloatArray]:
        return accuracy_interval(run.hits(self.radii), len(run.records), CONFIDENCE)

    def _envelope(self) -> FloatArray:
        accuracies = np.array([run.accuracy(self.radii) for run in self.runs])
        known = np.isfinite(accuracies).any(axis=0)
        return np.where(known, np.where(np.isfinite(accuracies), accuracies, -1.0).max(axis=0), np.nan)


def default_radii(runs: Sequence[Run], further: Sequence[float] = (), scaled: bool = False) -> list[float]:
    """Return round radii from 0 to the largest that some image is certified at: at most nine, which fit on a page.

    Where radii count pixels they are whole numbers.

    Args:
        runs: the runs.
        further: radii that are to be reached as well.
        scaled: in units of each run's sigma.
    """
    reach = [(record.radius if record.target is None else record.target, run.sigma if scaled else 1.0)
             for run in runs for record in run.records if record.correct]  # fmt: skip
    largest = max([*(radius / unit for radius, unit in reach), *further], default=0.0)
    if runs and counts_pixels(runs[0].norm):
        return sorted({*_whole(int(largest)), *(run.target for run in runs if run.target is not None)})
    step = 0.25
    if largest > 0 and not 2 * step <= largest <= _MOST_RADII * step:
        step = _nice_step(largest)
    radii = [round(i * step, 12) for i in range(int(largest / step + 1e-9) + 1)]
    targets = set() if scaled else {run.target for run in runs if run.target is not None}
    return sorted({*radii, *targets})


def _whole(largest: int) -> list[float]:
    """Return all whole numbers if they are few; else 0, 1, 2, 3, 5 and at most four steps, which are multiples of 5."""
    if largest <= _MOST_RADII:
        return [float(r) for r in range(largest + 1)]
    step = int(max(5.0, _nice_step(2.0 * largest)))
    return [float(r) for r in sorted({0, 1, 2, 3, 5, *range(step, largest + 1, step)})]


def _nice_step(largest: float) -> float:
    scale = 10.0 ** math.floor(math.log10(largest / _MOST_RADII))
    return next(scale * factor for factor in (1, 2, 2.5, 5, 10) if largest <= _MOST_RADII * scale * factor)


def _shares(run: Run) -> list[float] | None:
    """Return the share of images whose label is bounded to have p >= 1 - tail, for each of the tails."""
    tails = run.tails
    return None if tails is None else [float((tails <= tail).mean()) for tail in _TAILS]


def _notes_of(run: Run) -> list[str]:
    """Return what is to be known of a run by itself."""
    notes = [f"{run.name}: {run.setting}."]
    if run.header.imported:
        notes.append(f"{run.name} was imported: radii are those that another program printed, lowered.")
    notes += [*_notes(run), *([told] if (told := _timing(run)) else [])]
    if run.refusal:
        notes.append(f"No bound on the whole set: {run.refusal}.")
    return [*notes, *([f"{run.name} {run.header.remark}."] if run.header.remark else [])]


def _timing(run: Run) -> str:
    """Return what an image of a run took; empty if that is unknown."""
    seconds = _seconds(run)
    if not seconds:
        return ""
    ends = f"{np.mean(seconds):.3g} s in the mean, {np.median(seconds):.3g} s in the median"
    return f"{run.name}: an image took {ends} ({len(seconds):,} timed)."


def _seconds(run: Run) -> list[float]:
    """Return the seconds of each timed image; none for a further certificate of a file, which came along."""
    timed = read_seconds(run.path) if run.primary else {}
    return [timed[record.index] for record in run.records if record.index in timed]


def _notes(run: Run) -> list[str]:
    notes = []
    if run.target is not None:
        notes.append(f"{run.name} only decided whether the radius reaches {run.target:g}: it has no radii.")
    grids = {record.grid for record in run.records} - {None}
    if grids:
        notes.append(f"{run.name} holds for inputs that are multiples of 1/{grids.pop()}.")
    expected = run.header.expected
    if expected is not None and len(expected) > len(run.records):
        notes.append(f"{run.name} is unfinished: {len(run.records)} of {len(expected)} images.")
    return notes


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _nearest(value: float, decimals: int = 3) -> str:
    return "-" if math.isnan(value) else nearest_decimals(value, decimals)
