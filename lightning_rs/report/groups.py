"""One norm of a report: the numbers, the tables and the notes that say what they mean."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_rs.metrics import (
    abstention_rate,
    average_certified_radius,
    clean_accuracy,
    undecided_rate,
)
from lightning_rs.records import ceil_decimals, complement, floor_decimals, nearest_decimals
from lightning_rs.report.changes import NOTE as NOTE_ON_CHANGES
from lightning_rs.report.changes import Change, change_table
from lightning_rs.report.paired import NOTE, Pair
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table
from lightning_rs.statistics.accuracy import Method, accuracy_interval

FloatArray = NDArray[np.float64]
CONFIDENCE = 0.95
_MOST_RADII = 16
_METHODS = {
    "bernstein": "Theorem 5 of Cohen et al. 2019, at each radius by itself",
    "exact": "Theorem 5 with the exact binomial tail, at each radius by itself",
    "uniform": "Theorem 5 with the exact binomial tail, at all radii at once",
}


@dataclass(frozen=True)
class Group:
    """Runs of one norm, with the radii at which they are compared.

    Attributes:
        norm: norm of all radii.
        runs: the runs, in the order given.
        radii: radii in input units.
        rho: failure probability of the bounds on the whole set of images.
        method: which form of Theorem 5.
        pairs: runs that are compared image by image.
        changes: further certificates of a file beside its first one.
    """

    norm: str
    runs: Sequence[Run]
    radii: Sequence[float]
    rho: float
    method: Method
    pairs: Sequence[Pair] = ()
    changes: Sequence[Change] = ()

    def tables(self) -> list[Table]:
        """Return accuracies, Theorem 5 bounds and intervals, rounded for people: bounds away from the claim."""
        at = [f"{radius:g}" for radius in self.radii]
        return [
            self._accuracies(at),
            Table(
                f"{self.norm}: true certified accuracy of these images is at least, with probability >= "
                f"{complement(self.rho)} ({_METHODS[self.method]})",
                ["run", *at],
                [self._bounds(run) for run in self.runs],
            ),
            Table(
                f"{self.norm}: {CONFIDENCE:.0%} Clopper-Pearson intervals for random images of the same kind",
                ["run", *at],
                [[run.name, *self._intervals(run)] for run in self.runs],
            ),
            *(pair.table(self.radii) for pair in self.pairs),
            *([change_table(self.changes)] if self.changes else []),
        ]

    def notes(self) -> list[str]:
        """Return what a reader must know to read the tables right."""
        notes = [f"{run.name}: {run.setting}." for run in self.runs]
        notes.append(
            "Certified accuracy at r: share of images that are right and certified at radius r, in input units."
        )
        notes.append("clean: share whose majority vote is right, an estimate without a guarantee.")
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
        notes += [NOTE, *(pair.note() for pair in self.pairs)] if self.pairs else []
        notes += [NOTE_ON_CHANGES] if self.changes else []
        notes.extend(note for run in self.runs for note in _notes(run))
        return [*notes, *(f"No bound on the whole set: {run.refusal}." for run in self.runs if run.refusal)]

    def csv(self) -> str:
        """Return one row a run: run, sigma, n_images, acr, abstain, then acc@R; full precision, empty if unknown."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "sigma", "n_images", "acr", "abstain", *(f"acc@{radius:g}" for radius in self.radii)])
        for run in self.runs:
            numbers = [average_certified_radius(run.records), abstention_rate(run.records), *run.accuracy(self.radii)]
            cells = ["" if math.isnan(number) else repr(float(number)) for number in numbers]
            writer.writerow([run.name, repr(run.sigma), len(run.records), *cells])
        return out.getvalue()

    def _accuracies(self, at: Sequence[str]) -> Table:
        undecided = any(run.target is not None for run in self.runs)
        columns = ["run", "sigma", "images", "ACR", "abstain", *(["undecided"] if undecided else []), "clean"]
        rows = [self._accuracy_row(run, undecided) for run in self.runs]
        if len(self.runs) > 1:
            rows.append(["envelope (descriptive)", *[""] * (len(columns) - 1), *map(_nearest, self._envelope())])
        return Table(f"{self.norm}: certified accuracy at radius r =", [*columns, *at], rows)

    def _accuracy_row(self, run: Run, undecided: bool) -> list[str]:
        records = run.records
        row = [run.name, f"{run.sigma:g}", str(len(records)), _nearest(average_certified_radius(records), 4)]
        row += [_nearest(abstention_rate(records)), *([_nearest(undecided_rate(records))] if undecided else [])]
        return [*row, _nearest(clean_accuracy(records)), *map(_nearest, run.accuracy(self.radii))]

    def _bounds(self, run: Run) -> list[str]:
        if run.refusal is not None:
            return [run.name, *["refused"] * len(self.radii)]
        bounds = run.lower_bound(self.radii, self.rho, self.method)
        return [run.name, *("-" if math.isnan(bound) else floor_decimals(bound, 3) for bound in bounds)]

    def _intervals(self, run: Run) -> list[str]:
        low, high = accuracy_interval(run.hits(self.radii), len(run.records), CONFIDENCE)
        known = np.isfinite(run.accuracy(self.radii))
        return [
            f"{floor_decimals(a, 3)}-{ceil_decimals(b, 3)}" if shown else "-"
            for a, b, shown in zip(low, high, known, strict=True)
        ]

    def _envelope(self) -> FloatArray:
        accuracies = np.array([run.accuracy(self.radii) for run in self.runs])
        known = np.isfinite(accuracies).any(axis=0)
        return np.where(known, np.where(np.isfinite(accuracies), accuracies, -1.0).max(axis=0), np.nan)


def default_radii(runs: Sequence[Run]) -> list[float]:
    """Return round radii from 0 to the largest that some image is certified at; 0.25 apart where that is sensible."""
    records = [record for run in runs for record in run.records if record.correct]
    largest = max((record.radius if record.target is None else record.target for record in records), default=0.0)
    step = 0.25
    if largest > 0 and not 2 * step <= largest <= _MOST_RADII * step:
        step = _nice_step(largest)
    radii = [round(i * step, 12) for i in range(int(largest / step + 1e-9) + 1)]
    return sorted({*radii, *(run.target for run in runs if run.target is not None)})


def _nice_step(largest: float) -> float:
    scale = 10.0 ** math.floor(math.log10(largest / _MOST_RADII))
    return next(scale * factor for factor in (1, 2, 2.5, 5, 10) if largest <= _MOST_RADII * scale * factor)


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


def _nearest(value: float, decimals: int = 3) -> str:
    return "-" if math.isnan(value) else nearest_decimals(value, decimals)
