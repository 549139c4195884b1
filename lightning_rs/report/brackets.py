"""Brackets of a report: what certificates state beside what attacks broke, and the gap between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_rs.plots.brackets import bracket_steps
from lightning_rs.records import ABSTAIN, Certification, Header, ceil_decimals, floor_decimals, nearest_decimals
from lightning_rs.records.attack_files import certification_sha256, is_attack_file, read_attacks
from lightning_rs.records.attacks import AttackRecord
from lightning_rs.records.units import unit
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table

FloatArray = NDArray[np.float64]
KINDS = ("certified at r", "not attacked at r", "gap")
NOTE = (
    "Brackets: the share of the attacked images that are right and certified at r, the share that are right and that "
    "no confirmed attack broke within r, and their difference: what is neither proved nor refuted. An attack that "
    "fails proves nothing."
)


@dataclass(frozen=True)
class Image:
    """One image between its certificate and the attacks on it.

    Attributes:
        norm: norm of both radii.
        bracket: as that of :class:`lightning_rs.records.attacks.AttackRecord`.
    """

    norm: str
    bracket: tuple[float, float]


@dataclass(frozen=True)
class Attacked:
    """A run beside the attacks on it; of several attacks on an image the smallest confirmed distance counts.

    Attributes:
        run: the run.
        attacks: what each image's attacks found, by index.
        told: which attacks these were, for people.
    """

    run: Run
    attacks: dict[int, list[AttackRecord]]
    told: str

    @property
    def images(self) -> list[Image]:
        """The images that were attacked, in the order of their indices."""
        broken = self.broken
        return [
            Image(record.norm, self._bracket(record, broken.get(record.index, math.inf)))
            for record in self.run.records
            if record.index in self.attacks
        ]

    @property
    def broken(self) -> dict[int, float]:
        """The smallest confirmed distance of each image that was broken."""
        found = {i: [r.attacked for r in tried if r.attacked is not None] for i, tried in self.attacks.items()}
        return {index: min(distances) for index, distances in found.items() if distances}

    @property
    def contradicted(self) -> list[AttackRecord]:
        """The attacks that contradict a certificate of the file."""
        return [record for tried in self.attacks.values() for record in tried if record.contradicted]

    def shares(self, radii: Sequence[float]) -> tuple[FloatArray, FloatArray]:
        """Return the shares of images certified at each radius, and not attacked at it."""
        edges, certified, standing = bracket_steps(self.images)
        at = np.searchsorted(edges, np.asarray(radii, dtype=np.float64), side="right") - 1
        return certified[at], standing[at]

    def summary(self) -> dict[str, float]:
        """Return counts and medians over the images that are certified and broken, NaN where there are none."""
        brackets = [image.bracket for image in self.images]
        both = np.array([b for b in brackets if b[0] > 0 and math.isfinite(b[1])]).reshape(-1, 2)
        low, high = both.T
        gap = high - low
        known = bool(len(both))
        return {
            "images": len(brackets),
            "right": sum(high > 0 for _, high in brackets),
            "certified": sum(low >= 0 < high for low, high in brackets),
            "broken": sum(high > 0 and math.isfinite(high) for _, high in brackets),
            "median_certified": float(np.median(low)) if known else math.nan,
            "median_attacked": float(np.median(high)) if known else math.nan,
            "median_gap": float(np.median(gap)) if known else math.nan,
            "least_ratio": float((high / low).min()) if known else math.nan,
            "tests": sum(len(record.tests) for tried in self.attacks.values() for record in tried),
            "contradicted": len(self.contradicted),
        }

    def notes(self) -> list[str]:
        """Return what is to be known of the attacks."""
        left = len(self.run.records) - len(self.images)
        notes = [f"{self.run.name}: attacked by {self.told}{f'; {left} images were not attacked' if left else ''}."]
        if bad := self.contradicted:
            notes.append(
                f"CONTRADICTED: {len(bad)} certificates of {self.run.name}, by chance or by a bug; first image "
                f"{bad[0].index}: {bad[0].contradiction}"
            )
        return notes

    def _bracket(self, record: Certification, broken: float) -> tuple[float, float]:
        if not any(tried.correct for tried in self.attacks[record.index]):
            return 0.0, 0.0
        return (_reach(record) if record.correct else -math.inf), broken


@dataclass(frozen=True)
class Brackets:
    """The attacked runs of one norm.

    Attributes:
        members: the runs with their attacks.
        radii: where they are compared.
    """

    members: Sequence[Attacked]
    radii: Sequence[float]

    def tables(self, title: str) -> list[Table]:
        """Return shares at each radius, and one row a run of counts and medians, rounded away from the claim."""
        rows = []
        for member in self.members:
            for kind, values in zip(KINDS, self._values(member), strict=True):
                rows.append([f"{member.run.name}: {kind}", *(nearest_decimals(float(value), 3) for value in values)])
        return [
            Table(
                f"{title}: brackets, certified at r and not attacked at r",
                ["run", *(f"{radius:g}" for radius in self.radii)], rows, "brackets",
            ),
            Table(
                f"{title}: attacks, medians over images that are certified and broken, in {unit(title)}",
                ["run", "images", "right", "certified", "broken", "R", "r*", "gap", "r*/R >=", "tests", "contradicted"],
                [_row(member) for member in self.members], "attacks",
            ),
        ]  # fmt: skip

    def csv(self) -> Table:
        """Return one row a run at full precision: counts, medians, then each share at each radius."""
        kinds = ("certified", "standing", "gap")
        names = [f"{kind}@{radius:g}" for kind in kinds for radius in self.radii]
        rows = []
        for member in self.members:
            counts = ["" if math.isnan(value) else repr(value) for value in member.summary().values()]
            shares = [repr(float(value)) for values in self._values(member) for value in values]
            rows.append([member.run.name, *counts, *shares, member.told])
        return Table("brackets", ["run", *self.members[0].summary(), *names, "attacks"], rows)

    def notes(self) -> list[str]:
        """Return what a reader must know of them."""
        return [NOTE, *(note for member in self.members for note in member.notes())]

    def figures(self, most: int) -> list[dict[str, list[Image]]]:
        """Return the images by run, for figures of at most so many runs."""
        images = [(member.run.name, member.images) for member in self.members]
        return [dict(images[start : start + most]) for start in range(0, len(images), most)]

    def _values(self, member: Attacked) -> tuple[FloatArray, FloatArray, FloatArray]:
        certified, standing = member.shares(self.radii)
        return certified, standing, standing - certified


def attacked_runs(
    runs: Sequence[Run], given: Iterable[str | Path] = (), passed: Iterable[str | Path] = ()
) -> tuple[list[Attacked], list[str]]:
    """Return the runs that were attacked, with what their attacks found, and remarks on what was left out.

    Args:
        runs: the runs; ``NAME.attack*.jsonl`` beside their files are looked at.
        given: further files of attacks, each of which must be of one of the runs.
        passed: further files that may be of one of them.

    Raises:
        FileNotFoundError: if a given file does not exist.
        ValueError: if a given file is none of attacks, or of other records.
    """
    hashes = {run.path: certification_sha256(run.header) for run in runs}
    asked = {Path(path).resolve(): Path(path) for path in given}
    found = {path.resolve(): path for path in [*passed_paths(passed), *_beside(runs)]}
    joined: dict[int, list[tuple[Path, Header, list[AttackRecord]]]] = {}
    remarks = []
    for place, path in {**found, **asked}.items():
        try:
            header, records = read_attacks(path)
            own = [number for number, run in enumerate(runs) if _belongs(header, run, hashes[run.path])]
            if not own:
                attacked = header.informative.get("records", "other records")
                raise ValueError(f"{path} holds attacks on {attacked}, which is none of the runs of this report")
            for number in own:
                _check_certificates(path, records, runs[number])
        except ValueError as error:
            if place in asked:
                raise
            remarks.append(f"Attacks left out: {error}.")
            continue
        for number in own:
            joined.setdefault(number, []).append((path, header, records))
    return [_joined(runs[number], parts) for number, parts in sorted(joined.items()) if _any(parts)], remarks


def passed_paths(paths: Iterable[str | Path]) -> list[Path]:
    """Return those of some paths that are files of attacks."""
    return [path for path in map(Path, paths) if is_attack_file(path)]


def _reach(record: Certification) -> float:
    return record.radius if record.target is None else record.target


def _check_certificates(path: Path, attacks: Sequence[AttackRecord], run: Run) -> None:
    """Refuse attacks that say something else of the certificates than their own file, unless that is read anew."""
    known = {record.index: record for record in run.records}
    for tried in attacks:
        record = known.get(tried.index)
        if record is None or record.alpha != tried.alpha:
            continue
        stated = record.prediction != ABSTAIN
        said, right = (tried.stated, tried.radius), (stated, _reach(record) if stated else 0.0)
        if said != right or tried.label != record.label or (stated and tried.prediction != record.prediction):
            raise ValueError(
                f"{path}: image {tried.index}: the attacked certificate must be that of {run.path}, label "
                f"{record.label}, class {record.prediction}, radius {right[1]!r}, got label {tried.label}, class "
                f"{tried.prediction}, radius {tried.radius!r}"
            )


def _any(parts: Sequence[tuple[Path, Header, list[AttackRecord]]]) -> bool:
    return any(records for _, _, records in parts)


def _belongs(header: Header, run: Run, sha256: str) -> bool:
    return header.binding.get("certification") == sha256 and header.binding.get("certificate") == run.certificate


def _beside(runs: Sequence[Run]) -> list[Path]:
    """Return the files of attacks that lie beside the files of runs, under their names."""
    found = []
    for path in dict.fromkeys(run.path for run in runs):
        near = sorted(path.parent.glob("*.jsonl")) if path.name else []
        found += [other for other in near if other.name.startswith(f"{path.stem}.attack")]
    return passed_paths(found)


def _joined(run: Run, parts: Sequence[tuple[Path, Header, list[AttackRecord]]]) -> Attacked:
    attacks: dict[int, list[AttackRecord]] = {}
    known = {record.index for record in run.records}
    for _, _, records in parts:
        for record in records:
            if record.index in known:
                attacks.setdefault(record.index, []).append(record)
    told = dict.fromkeys(f"{_named(header)} ({path})" for path, header, _ in parts)
    return Attacked(run, attacks, ", ".join(told))


def _named(header: Header) -> str:
    attacker = header.binding.get("attacker", {})
    kinds = [str(each.get("class")) for each in attacker.get("attacks") or []] or ["the usual attacks"]
    return f"{', '.join(kinds)}, confirmed by fresh votes at beta {attacker.get('beta', 0):g}"


def _row(member: Attacked) -> list[str]:
    told = member.summary()
    counts = [str(told[name]) for name in ("images", "right", "certified", "broken")]
    rounded = [
        "-" if math.isnan(told[name]) else shorten(told[name], 3)
        for name, shorten in (
            ("median_certified", floor_decimals), ("median_attacked", ceil_decimals), ("median_gap", ceil_decimals),
            ("least_ratio", floor_decimals),
        )
    ]  # fmt: skip
    return [member.run.name, *counts, *rounded, str(told["tests"]), str(told["contradicted"])]
