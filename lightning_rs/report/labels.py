"""Statements about ranks and sets of labels, from the votes of finished records: neither network nor torch.

A request is a name and, behind a colon, its argument::

    TopK:5                        the label stays among the 5 most probable ones
    LabelSets:0,1,8,9+2-7         the prediction stays in its set: sets joined by +, labels by commas, ranges by -
    LabelSets:superclasses.txt    the same from a file, a line a set: NAME: 0, 1, 8-9
    Targets                       the prediction cannot become c within R_c, for every other class c

All bounds of one image hold together at its alpha: half of it for the label, the other half shared equally by the
classes that it is compared with (:func:`~lightning_rs.statistics.labels.label_bounds`). Nothing covers a k or sets that
somebody chose after looking at these votes: they must be fixed before. Exact votes have no alpha, and no such limit.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_rs.checks import FloatArray, IntArray, check_choice, folder_for, naming
from lightning_rs.records import ABSTAIN, Certification, floor_decimals
from lightning_rs.report.label_votes import ExactVotes, Found, SampledVotes, votes_of
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table, latex_comment

KINDS = ("TopK", "LabelSets", "Targets")
_INLINE = re.compile(r"[\d,+\s-]+")
_SHOWN = 20
_FIXED = (
    "k, the sets and the labels must have been fixed before these votes were seen: choosing them after is not covered."
)


_EXACT = (
    "TopK, LabelSets and Targets of exact files count the votes of all outcomes: nothing fails, and k, the sets and "
    "the labels may be chosen after looking."
)


@dataclass(frozen=True)
class Restated:
    """What records say beyond their own certificate.

    Attributes:
        runs: statements that tables compare by radius.
        targets: statements about every single class.
        notes: what a reader must know.
    """

    runs: Sequence[Run] = ()
    targets: Sequence[Targets] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Targets:
    """How far every image is from every other class.

    Attributes:
        run: the run that it comes from.
        radii: R_c, shape (B, C), in the unit of the norm, rounded down; NaN for the class that is certified.
        norm: norm of the radii.
        top: the class of each image that is certified, (B,).
        notes: images without statement, by row.
    """

    run: Run
    radii: FloatArray
    norm: str
    top: IntArray
    notes: dict[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return ["image", "label", "class", *(f"not {c}" for c in range(self.radii.shape[1]))]

    def table(self) -> Table:
        """Return the first images, radii rounded down, and the median over all."""
        shown = min(_SHOWN, len(self.run.records))
        rows = [[*self._names(i), *map(_short, self.radii[i])] for i in range(shown)]
        middle = [_short(_lower_median(column)) for column in self.radii.T]
        rows.append(["median", "", "", *middle])
        of = f"first {shown} of {len(self.run.records)} images" if shown < len(self.run.records) else f"{shown} images"
        title = f"{self.run.name}, class cannot become c within this radius ({of}; all radii of an image together)"
        return Table(f"{self.norm}: {title}", self.columns, rows)

    def csv(self) -> str:
        """Return all images at full precision; the cell of the certified class is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", *self.columns])
        for image, row in enumerate(self.radii):
            cells = ["" if np.isnan(radius) else repr(float(radius)) for radius in row]
            writer.writerow([self.run.name, *self._names(image), *cells])
        return out.getvalue()

    def _names(self, image: int) -> list[str]:
        record = self.run.records[image]
        return [str(record.index), "" if record.label is None else str(record.label), str(self.top[image])]


def restate(runs: Sequence[Run], requests: Sequence[str]) -> Restated:
    """Return what the votes of some runs certify of ranks and sets of labels.

    Args:
        runs: runs of record files; those that are not their file's first certificate are passed over, because all read
            the same votes.
        requests: ``TopK:5``, ``LabelSets:0-4+5-9``, ``LabelSets:FILE`` or ``Targets``.

    Raises:
        ValueError: for a request that is none, sets that overlap or name no class, and records whose votes say nothing:
            imported ones, votes after data-dependent stopping, antithetic pairs, laws whose radii come from tables.
        FileNotFoundError: if there is no such file of sets.
    """
    found: list[Run] = []
    targets: list[Targets] = []
    for request in requests:
        kind, _, argument = request.partition(":")
        check_choice("certificate", kind, KINDS)
        for run in (run for run in runs if run.primary):
            votes = votes_of(run, request)
            if kind == "TopK":
                found.append(_top(run, votes, request, argument))
            elif kind == "LabelSets":
                found.append(_sets(run, votes, request, argument))
            else:
                targets.append(_targets(run, votes, argument))
    exact = all(each.run.records[0].alpha == 0 for each in targets)
    return Restated(found, targets, _notes("Targets", exact) if targets else [])


def write_targets(targets: Sequence[Targets], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write ``report_targets.*`` in those of the formats that hold text, and return the files."""
    told = _EXACT if all(each.run.records[0].alpha == 0 for each in targets) else _FIXED
    texts = {
        "csv": lambda: "".join(each.csv() for each in targets),
        "md": lambda: "\n\n".join([*(each.table().markdown() for each in targets), f"- {told}"]) + "\n",
        "tex": lambda: "\n".join([latex_comment(told), *(each.table().latex() for each in targets)]) + "\n",
    }
    files = []
    for name in (name for name in formats if targets and name in texts):
        file = folder / f"report_targets.{name}"
        folder_for(folder)
        with naming(file):
            file.write_text(texts[name]())
        files.append(file)
    return files


def _top(run: Run, votes: SampledVotes | ExactVotes, request: str, argument: str) -> Run:
    classes = votes.counts.shape[1]
    if not argument.isdecimal() or not 1 <= int(argument) < classes:
        raise ValueError(f"{run.name}: TopK must name a number in 1..{classes - 1} (TopK:2), got {request!r}")
    k = int(argument)
    label = np.array([top if r.label is None else r.label for top, r in zip(votes.top, run.records, strict=True)])
    ranked = np.argsort(-votes.counts, axis=1, kind="stable")
    inside = (ranked[:, :k] == label[:, None]).any(axis=1)
    clean = np.where(inside, label, ranked[:, 0])
    return _run(run, votes, request, votes.ranks(label, k), label, clean, label)


def _sets(run: Run, votes: SampledVotes | ExactVotes, request: str, argument: str) -> Run:
    member = _parse(argument, votes.counts.shape[1])
    clean = member[votes.counts.argmax(axis=1)]
    known = np.array([-1 if record.label is None else int(member[record.label]) for record in run.records])
    return _run(run, votes, request, votes.sets(member), member[votes.top], clean, known)


def _targets(run: Run, votes: SampledVotes | ExactVotes, argument: str) -> Targets:
    if argument:
        raise ValueError(f"{run.name}: Targets takes no argument, got {argument!r}")
    radii = votes.targets()
    np.put_along_axis(radii, votes.top[:, None], np.nan, axis=1)
    return Targets(run, radii, votes.norm, votes.top, dict(votes.void))


def _run(
    run: Run, votes: SampledVotes | ExactVotes, request: str, found: Found, certified: IntArray, clean: IntArray,
    labels: IntArray,
) -> Run:  # fmt: skip
    """Return the run with other statements; its counts say nothing but the answer without perturbation."""
    size = int(max(certified.max(), clean.max(), labels.max())) + 1

    def stated(row: int, record: Certification) -> Certification:
        reach, n = float(found.radius[row]), record.n
        told: dict[str, Any] = {"prediction": int(certified[row]), "status": "certified"}
        if not found.stated[row]:
            told = {"prediction": ABSTAIN, "status": "abstain"}
        return replace(
            record, **told, radius=reach, norm=votes.norm, ball=votes.ball, certificate=request, radii={request: reach},
            label=None if record.label is None else int(labels[row]), top=int(certified[row]), runner_up=-1,
            counts=tuple(n if c == clean[row] else 0 for c in range(size)), counts0=(), note=votes.void.get(row, ""),
            bounds={name: float(values[row]) for name, values in found.bounds.items()},
        )  # fmt: skip

    records = [stated(row, record) for row, record in enumerate(run.records)]
    entry = {"class": request, "norm": votes.norm}
    name, remarks = f"{run.name}:{request}", _notes(request.partition(":")[0], votes.exact)
    return replace(run, name=name, certificate=request, records=records, entry=entry, alone=True, remarks=remarks)


def _parse(argument: str, classes: int) -> IntArray:
    """Return the number of its set for every class, (C,); classes that are in no set are sets of their own."""
    if not argument:
        raise ValueError("LabelSets must name its sets, LabelSets:0-4+5-9 or LabelSets:FILE, got nothing")
    if _INLINE.fullmatch(argument):
        texts = argument.split("+")
    else:
        lines = [line.partition("#")[0].strip() for line in Path(argument).read_text().splitlines()]
        texts = [line.partition(":")[2] if ":" in line else line for line in lines if line]
    member = np.full(classes, -1, dtype=np.int64)
    for number, text in enumerate(texts):
        for label in _labels(text, classes):
            if member[label] >= 0:
                raise ValueError(f"LabelSets must not repeat a label, got {label} twice in {argument!r}")
            member[label] = number
    rest = np.flatnonzero(member < 0)
    member[rest] = len(texts) + np.arange(len(rest))
    if len(np.unique(member)) < 2:
        raise ValueError(f"LabelSets must leave a class outside every set, got all {classes} in one: {argument!r}")
    return member


def _labels(text: str, classes: int) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else classes
        last = int(match[2]) if match and match[2] else first
        if not first <= last < classes:
            raise ValueError(f"LabelSets must list labels in 0..{classes - 1}, as 0,1 or 2-7, got {part.strip()!r}")
        found += range(first, last + 1)
    return found


def _notes(kind: str, exact: bool) -> list[str]:
    said = {
        "TopK": "TopK:k: the label (the selected class where it is unknown) stays among the k most probable classes; "
        "clean: it is among the k most frequent. Jia et al. (2020).",
        "LabelSets": "LabelSets: the prediction stays in its set of labels; right is a set that has the label. Classes "
        "in no set are sets of their own.",
        "Targets": f"Targets: radii of one image hold together. Tables show {_SHOWN} images, report_targets.csv all.",
    }
    if exact:
        return [said[kind], _EXACT]
    spent = (
        "TopK, LabelSets and Targets read the file's votes at its alpha: half for the label, half for the classes that "
        "it is compared with. The file's own certificate and each further request spend another alpha."
    )
    return [said[kind], spent, f"Of TopK, LabelSets and Targets: {_FIXED}"]


def _short(radius: float) -> str:
    return "-" if np.isnan(radius) else floor_decimals(float(radius), 3)


def _lower_median(column: FloatArray) -> float:
    known = np.sort(column[~np.isnan(column)])
    return float(known[(len(known) - 1) // 2]) if len(known) else float("nan")
