"""Statements about ranks and sets of labels, from the votes of finished records: neither network nor torch.

A request is a name and, behind a colon, its argument::

    TopK:5                        the label stays among the 5 most probable ones
    LabelSets:0,1,8,9+2-7         the prediction stays in its set: sets joined by +, labels by commas, ranges by -
    LabelSets:superclasses.txt    the same from a file, a line a set: NAME: 0, 1, 8-9
    Targets                       the prediction cannot become c within R_c, for every other class c

All bounds of one image hold together at its alpha: half of it for the label, the other half shared equally by the
classes that it is compared with (:func:`~lightning_rs.statistics.labels.label_bounds`). Nothing covers a k or sets that
somebody chose after looking at these votes: they must be fixed before.
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
from lightning_rs.numerics.label_radii import topk_l2_radius
from lightning_rs.numerics.vote_radii import gaussian_l2_radius
from lightning_rs.records import ABSTAIN, Certification, floor_decimals
from lightning_rs.records.lowered import abandoned
from lightning_rs.records.votes import votes_flaw
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table, latex_comment
from lightning_rs.statistics.labels import label_bounds

KINDS = ("TopK", "LabelSets", "Targets")
_INLINE = re.compile(r"[\d,+\s-]+")
_SHOWN = 20
_FIXED = (
    "k, the sets and the labels must have been fixed before these votes were seen: choosing them after is not covered."
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
        radii: R_c, shape (B, C), in input units, rounded down; NaN for the class that is certified.
        notes: images without statement, by row.
    """

    run: Run
    radii: FloatArray
    notes: dict[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return ["image", "label", "class", *(f"not {c}" for c in range(self.radii.shape[1]))]

    def table(self) -> Table:
        """Return the first images, radii rounded down, and the median over all."""
        shown = min(_SHOWN, len(self.run.records))
        rows = [[*_names(self.run.records[i]), *map(_short, self.radii[i])] for i in range(shown)]
        middle = [_short(_lower_median(column)) for column in self.radii.T]
        rows.append(["median", "", "", *middle])
        of = f"first {shown} of {len(self.run.records)} images" if shown < len(self.run.records) else f"{shown} images"
        title = f"l2: {self.run.name}, class cannot become c within this radius ({of}; all radii of an image together)"
        return Table(title, self.columns, rows)

    def csv(self) -> str:
        """Return all images at full precision; the cell of the certified class is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", *self.columns])
        for record, row in zip(self.run.records, self.radii, strict=True):
            cells = ["" if np.isnan(radius) else repr(float(radius)) for radius in row]
            writer.writerow([self.run.name, *_names(record), *cells])
        return out.getvalue()


def restate(runs: Sequence[Run], requests: Sequence[str]) -> Restated:
    """Return what the votes of some runs certify of ranks and sets of labels.

    Args:
        runs: runs of record files; those that are not their file's first certificate are passed over, because all read
            the same votes.
        requests: ``TopK:5``, ``LabelSets:0-4+5-9``, ``LabelSets:FILE`` or ``Targets``.

    Raises:
        ValueError: for a request that is none, sets that overlap or name no class, and records whose votes say nothing:
            imported ones, votes after data-dependent stopping, antithetic pairs, other noise than Gaussian.
        FileNotFoundError: if there is no such file of sets.
    """
    found: list[Run] = []
    targets: list[Targets] = []
    for request in requests:
        kind, _, argument = request.partition(":")
        check_choice("certificate", kind, KINDS)
        for run in (run for run in runs if run.primary):
            votes = _Votes.of(run, request)
            if kind == "TopK":
                found.append(_top(run, votes, request, argument))
            elif kind == "LabelSets":
                found.append(_sets(run, votes, request, argument))
            else:
                targets.append(_targets(run, votes, argument))
    return Restated(found, targets, _notes("Targets") if targets else [])


def write_targets(targets: Sequence[Targets], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write ``report_targets.*`` in those of the formats that hold text, and return the files."""
    texts = {
        "csv": lambda: "".join(each.csv() for each in targets),
        "md": lambda: "\n\n".join([*(each.table().markdown() for each in targets), f"- {_FIXED}"]) + "\n",
        "tex": lambda: "\n".join([latex_comment(_FIXED), *(each.table().latex() for each in targets)]) + "\n",
    }
    files = []
    for name in (name for name in formats if targets and name in texts):
        file = folder / f"report_targets.{name}"
        folder_for(folder)
        with naming(file):
            file.write_text(texts[name]())
        files.append(file)
    return files


@dataclass(frozen=True)
class _Votes:
    """The votes of a run, and what a statement needs beside them.

    Attributes:
        counts: (B, C).
        level: what of alpha is left to the statistics.
        sigma: the noise, in input units.
        top: classes of the selection samples, (B,).
        doubtful: votes within the logit margin, which may be for any class, (B,); those for ``top`` are not counted.
        rounding: what comes off every radius, (B,).
        void: images whose votes may not be read, by row.
    """

    counts: IntArray
    level: float
    sigma: float
    top: IntArray
    doubtful: IntArray
    rounding: FloatArray
    void: dict[int, str]

    @classmethod
    def of(cls, run: Run, request: str) -> _Votes:
        """Return the votes of a run, or raise ``ValueError`` if they are not those of independent Gaussian samples."""
        wrong = votes_flaw(run.header, run.records)
        if wrong is not None:
            raise ValueError(f"{run.name}: {request} needs the votes of a fixed number of samples, {wrong}")
        records = run.records
        alpha = records[0].alpha - run.header.alpha_noise
        if not alpha > 0:
            raise ValueError(
                f"{run.name}: alpha must exceed {run.header.alpha_noise!r} of the noise law, got {alpha!r}"
            )
        given_up = "its certificates were given up: logits moved by more than votes allow for"
        # Where logits moved too much all certificates of a file are given up; otherwise the margin covers it.
        void = {row: given_up for row, record in enumerate(records) if abandoned(record) == set(record.radii)}
        counts = np.array([record.counts for record in records], dtype=np.int64)
        top = np.array([record.top for record in records])
        doubtful = np.array([int(record.extra.get("doubtful", 0)) for record in records])
        sigma = float(run.header.binding["noise"]["sigma"])
        return cls(counts, alpha, sigma, top, doubtful, _rounding(run), void)

    def bounds(self, label: IntArray, against: Any = None) -> tuple[FloatArray, FloatArray]:
        """Return :func:`label_bounds`; doubtful votes count against the label."""
        missing = np.where(label == self.top, 0, self.doubtful)
        return label_bounds(self.counts, label, self.level, against, missing, self.doubtful)

    def certified(self, radius: FloatArray) -> FloatArray:
        """Return radii, (B,) or (B, C), less what rounding and doubtful votes take."""
        rounding = self.rounding.reshape(-1, *[1] * (radius.ndim - 1))
        left = np.where(rounding > 0, np.nextafter(radius - rounding, -np.inf), radius)
        finite = np.maximum(np.where(np.isfinite(left), left, 0.0), 0.0)
        finite[list(self.void)] = 0.0
        return finite


def _rounding(run: Run) -> FloatArray:
    """Return the l2 distance, (B,), by which images off a grid were rounded; at least that."""
    lattice = run.header.binding.get("lattice")
    if not isinstance(lattice, dict) or lattice.get("grid") is not None:
        return np.zeros(len(run.records))
    base = run.norm.partition(":")[0]
    # ||z||_2 <= ||z||_1 and <= sqrt(d) ||z||_inf.
    factor = np.sqrt(float(np.prod(run.header.binding["shape"]))) if base == "linf" else 1.0
    taken = np.array([record.bounds.get("rounding", np.nan) for record in run.records]) * factor
    if base not in ("l1", "l2", "linf") or np.isnan(taken).any():
        raise ValueError(
            f"{run.name}: records must say by how much images were rounded in l1, l2 or linf, got {run.norm}"
        )
    return np.asarray(np.nextafter(taken, np.inf), dtype=np.float64)


def _top(run: Run, votes: _Votes, request: str, argument: str) -> Run:
    classes = votes.counts.shape[1]
    if not argument.isdecimal() or not 1 <= int(argument) < classes:
        raise ValueError(f"{run.name}: TopK must name a number in 1..{classes - 1} (TopK:2), got {request!r}")
    k = int(argument)
    label = np.array([record.top if record.label is None else record.label for record in run.records])
    tail, upper = votes.bounds(label)
    others = _without(upper, label)
    radius = votes.certified(np.asarray(topk_l2_radius(tail, others, k, votes.sigma)))
    ranked = np.argsort(-votes.counts, axis=1, kind="stable")
    inside = (ranked[:, :k] == label[:, None]).any(axis=1)
    clean = np.where(inside, label, ranked[:, 0])
    return _run(run, votes, request, radius, label, clean, label, {"q_upper": tail, "p_upper": others.max(axis=1)})


def _sets(run: Run, votes: _Votes, request: str, argument: str) -> Run:
    classes = votes.counts.shape[1]
    member = _parse(argument, classes)
    own = member[votes.top]
    tail, upper = votes.bounds(votes.top, member[None, :] != own[:, None])
    found = np.asarray(gaussian_l2_radius(q_upper=tail, sigma=votes.sigma, p_upper=upper.max(axis=1)))
    clean = member[votes.counts.argmax(axis=1)]
    known = np.array([-1 if record.label is None else int(member[record.label]) for record in run.records])
    bounds = {"q_upper": tail, "p_upper": upper.max(axis=1)}
    return _run(run, votes, request, votes.certified(found), own, clean, known, bounds)


def _targets(run: Run, votes: _Votes, argument: str) -> Targets:
    if argument:
        raise ValueError(f"{run.name}: Targets takes no argument, got {argument!r}")
    tail, upper = votes.bounds(votes.top)
    radii = votes.certified(np.asarray(gaussian_l2_radius(q_upper=tail[:, None], sigma=votes.sigma, p_upper=upper)))
    np.put_along_axis(radii, votes.top[:, None], np.nan, axis=1)
    return Targets(run, radii, votes.void)


def _run(
    run: Run, votes: _Votes, request: str, radius: FloatArray, certified: IntArray, clean: IntArray, labels: IntArray,
    bounds: dict[str, FloatArray],
) -> Run:  # fmt: skip
    """Return the run with other statements; its counts say nothing but the answer without perturbation."""
    size = int(max(certified.max(), clean.max(), labels.max())) + 1

    def stated(row: int, record: Certification) -> Certification:
        reach, n = float(radius[row]), record.n
        told: dict[str, Any] = {"prediction": int(certified[row]), "status": "certified"}
        if reach == 0:
            told = {"prediction": ABSTAIN, "status": "abstain"}
        return replace(
            record, **told, radius=reach, norm="l2", ball="open", certificate=request, radii={request: reach},
            label=None if record.label is None else int(labels[row]), top=int(certified[row]), runner_up=-1,
            counts=tuple(n if c == clean[row] else 0 for c in range(size)), counts0=(), note=votes.void.get(row, ""),
            bounds={name: float(values[row]) for name, values in bounds.items()},
        )  # fmt: skip

    records = [stated(row, record) for row, record in enumerate(run.records)]
    entry = {"class": request, "norm": "l2"}
    name, remarks = f"{run.name}:{request}", _notes(request.partition(":")[0])
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


def _notes(kind: str) -> list[str]:
    said = {
        "TopK": "TopK:k: the label (the selected class where it is unknown) stays among the k most probable classes; "
        "clean: it is among the k most frequent. Jia et al. (2020).",
        "LabelSets": "LabelSets: the prediction stays in its set of labels; right is a set that has the label. Classes "
        "in no set are sets of their own.",
        "Targets": f"Targets: radii of one image hold together. Tables show {_SHOWN} images, report_targets.csv all.",
    }
    spent = (
        "TopK, LabelSets and Targets read the file's votes at its alpha: half for the label, half for the classes that "
        "it is compared with. The file's own certificate and each further request spend another alpha."
    )
    return [said[kind], spent, f"Of TopK, LabelSets and Targets: {_FIXED}"]


def _without(values: FloatArray, label: IntArray) -> FloatArray:
    """Return the rows without the entry of their label, (B, C - 1)."""
    keep = np.arange(values.shape[1]) != label[:, None]
    return values[keep].reshape(len(values), -1)


def _names(record: Certification) -> list[str]:
    return [str(record.index), "" if record.label is None else str(record.label), str(record.top)]


def _short(radius: float) -> str:
    return "-" if np.isnan(radius) else floor_decimals(float(radius), 3)


def _lower_median(column: FloatArray) -> float:
    known = np.sort(column[~np.isnan(column)])
    return float(known[(len(known) - 1) // 2]) if len(known) else float("nan")
