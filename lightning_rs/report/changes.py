"""How radii change from the first certificate of a record file to the others on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_rs.records import Certification, nearest_decimals
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table

FloatArray = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NOTE = (
    "Changes of radius: radius of a further certificate over that of its file's first one, less 1, over the images to "
    "which both give a radius; gained and lost count those to which only the further or only the first one gives one."
)


@dataclass(frozen=True)
class Change:
    """A further certificate of a file beside its first one.

    Attributes:
        first: the run of the file's first certificate.
        second: the run of the further one, of the same norm.
        percent: change of each radius in percent of the first, for the images that have both.
        gained: number of images with a radius by the further certificate only.
        lost: number of images with a radius by the first only.
    """

    first: Run
    second: Run
    percent: FloatArray
    gained: int
    lost: int

    @classmethod
    def of(cls, first: Run, second: Run) -> Change:
        """Compare two runs of one file, whose records are of the same images in the same order."""
        old, new = (np.array([_radius(record) for record in run.records]) for run in (first, second))
        both = (old > 0) & (new > 0)
        percent = 100 * (new[both] / old[both] - 1)
        return cls(first, second, percent, int(((old == 0) & (new > 0)).sum()), int(((old > 0) & (new == 0)).sum()))

    def row(self) -> list[str]:
        """Return certificate, images, share of larger radii, share larger by 1%, quantiles, mean, gained, lost."""
        head = [self.second.name, str(len(self.percent))]
        tail = [str(self.gained), str(self.lost)]
        if not len(self.percent):
            return [*head, *["-"] * (len(QUANTILES) + 3), *tail]
        larger = [nearest_decimals(float((self.percent > least).mean()), 3) for least in (0, 1)]
        numbers = [*np.quantile(self.percent, QUANTILES), self.percent.mean()]
        return [*head, *larger, *(_signed(float(number)) for number in numbers), *tail]


def changes(runs: Sequence[Run]) -> list[Change]:
    """Return each further certificate of a file beside the first of the same file, in the order of the runs."""
    firsts = {id(run.header): run for run in reversed(runs) if run.primary and not run.alone and run.target is None}
    found = [Change.of(firsts[id(r.header)], r) for r in runs if not r.primary and id(r.header) in firsts]
    files = list(firsts)
    return sorted(found, key=lambda change: (files[::-1].index(id(change.second.header)), _place(change.second)))


def change_table(found: Sequence[Change]) -> Table:
    """Return one row a further certificate."""
    columns = ["run", "images", "larger", "by > 1%", *(f"{quantile:.0%}" for quantile in QUANTILES), "mean"]
    norm, baselines = found[0].first.norm, list(dict.fromkeys(change.first.certificate for change in found))
    title = f"{norm}: change of radius in % against {' or '.join(baselines)} (quantiles and mean over images)"
    rows = [change.row() for change in found]
    return Table(title, [*columns, "gained", "lost"], rows, "changes", baselines)


def change_columns(found: Sequence[Change]) -> Mapping[str, Mapping[str, FloatArray]]:
    """Return the changes by certificate and then by run, as the figure wants them: runs are told apart by n or name."""
    sizes = {id(change.first.header): change.first.records[0].n for change in found}
    by_size = len(set(sizes.values())) == len(sizes) > 1
    columns: dict[str, dict[str, FloatArray]] = {}
    for change in found:
        own = change.first.name.removesuffix(f":{change.first.certificate}")
        label = f"n = {change.first.records[0].n:,}" if by_size else own
        if len(change.percent):
            columns.setdefault(change.second.certificate, {})[label] = change.percent
    return columns


def _place(run: Run) -> int:
    """Return the place of the run's certificate in the header: records list their radii in alphabetical order."""
    return list(run.header.binding["certificates"]).index(run.entry) if run.entry else 0


def _radius(record: Certification) -> float:
    return record.radius if record.status == "certified" else 0.0


def _signed(value: float) -> str:
    text = nearest_decimals(abs(value), 2)
    return f"{'-' if value < 0 else '+'}{text}" if text.strip("0.") else text
