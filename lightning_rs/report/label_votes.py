"""The votes of a finished run, and what its law of noise makes of them: radii of ranks and sets of labels.

Gaussian noise in l2 from any certificate's votes; Laplace, uniform, splitting noise and ablation in the norm of the
file's certificate; deterministic splitting, bands and blocks exactly, from the votes of all outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rs.checks import FloatArray, IntArray
from lightning_rs.numerics.enumerated_votes import set_votes_distance, topk_votes_distance
from lightning_rs.numerics.kept_pixels import Kind, ablation_variation_radius, patch_side
from lightning_rs.numerics.label_radii import topk_l2_radius, topk_laplace_l1_radius, topk_variation
from lightning_rs.numerics.rounding import round_down
from lightning_rs.numerics.vote_radii import uniform_box_l1_radius
from lightning_rs.records.lowered import abandoned
from lightning_rs.records.votes import EXACT_LAWS, votes_flaw
from lightning_rs.report.runs import Run
from lightning_rs.statistics.labels import label_bounds

# In which norms a law is known to move; Gaussian votes speak of l2 whatever the file's certificate does. Somebody's own
# certificate may state radii of the same noise in another norm.
_NORMS = {
    "LaplaceNoise": ("l1",),
    "UniformNoise": ("l1", "l1:box", "linf"),
    "SplittingNoise": ("l1", "l1:box", "linf"),
    "AblationNoise": ("l0",),
    "DeterministicSplittingNoise": ("l1",),
    "BandNoise": ("patch",),
    "BlockNoise": ("patch",),
}
SAMPLED_LAWS = frozenset({"GaussianNoise", *_NORMS}) - EXACT_LAWS
_WHY_NOT = "its radii come from tables of one probability, which say nothing of several labels together"


@dataclass(frozen=True)
class Found:
    """What votes say of every image.

    Attributes:
        radius: (B,), in the unit of the norm; 0 where nothing is certified.
        stated: where the statement holds at the image itself, (B,).
        bounds: what it rests on, by name, (B,) each.
    """

    radius: FloatArray
    stated: NDArray[np.bool_]
    bounds: Mapping[str, FloatArray]


@dataclass(frozen=True)
class SampledVotes:
    """The votes of a fixed number of independent samples.

    Attributes:
        run: the run.
        counts: (B, C).
        level: what of alpha is left to the statistics.
        top: classes of the selection samples, (B,).
        doubtful: votes within the logit margin, which may be for any class, (B,); those for ``top`` are not counted.
        rounding: what comes off every radius, (B,).
        void: images whose votes may not be read, by row.
    """

    run: Run
    counts: IntArray
    level: float
    top: IntArray
    doubtful: IntArray
    rounding: FloatArray
    void: dict[int, str]
    exact = False

    @property
    def norm(self) -> str:
        """Norm of the radii."""
        return "l2" if self._law == "GaussianNoise" else self.run.norm

    @property
    def ball(self) -> Any:
        """Whether the ball contains its boundary."""
        return "open" if self._law == "GaussianNoise" else self.run.records[0].ball

    def ranks(self, label: IntArray, k: int) -> Found:
        """Return what keeps a label among the k most probable ones."""
        tail, upper = self._bounds(label)
        others = _without(upper, label)
        return self._found(self._radius(tail, others, k), {"q_upper": tail, "p_upper": others.max(axis=1)})

    def sets(self, member: IntArray) -> Found:
        """Return what keeps the prediction in the set of the selected class; ``member`` numbers the sets, (C,)."""
        tail, upper = self._bounds(self.top, member[None, :] != member[self.top][:, None])
        other = upper.max(axis=1)
        return self._found(self._radius(tail, other[:, None], 1), {"q_upper": tail, "p_upper": other})

    def targets(self) -> FloatArray:
        """Return the radius within which the prediction cannot become each other class, (B, C)."""
        tail, upper = self._bounds(self.top)
        return self._certified(self._radius(tail[:, None], upper[:, :, None], 1))

    @property
    def _law(self) -> str:
        return str(self.run.header.binding["noise"]["class"])

    def _bounds(self, label: IntArray, against: Any = None) -> tuple[FloatArray, FloatArray]:
        """Return :func:`label_bounds`; doubtful votes count against the label."""
        missing = np.where(label == self.top, 0, self.doubtful)
        return label_bounds(self.counts, label, self.level, against, missing, self.doubtful)

    def _radius(self, tail: FloatArray, others: FloatArray, k: int) -> FloatArray:
        noise = self.run.header.binding["noise"]
        if self._law == "GaussianNoise":
            return np.asarray(topk_l2_radius(tail, others, k, float(noise["sigma"])))
        if self._law == "LaplaceNoise":
            return np.asarray(topk_laplace_l1_radius(tail, others, k, float(noise["scale"])))
        return self._overlapping(np.asarray(topk_variation(tail, others, k)), noise)

    def _overlapping(self, variation: FloatArray, noise: Mapping[str, Any]) -> FloatArray:
        """Return how far the law may move before it has changed by a total variation."""
        shape = self.run.header.binding["shape"]
        if self._law == "AblationNoise":
            found = ablation_variation_radius(variation, int(noise["k"]), math.prod(shape[-2:]))
            return np.asarray(found, dtype=np.float64)
        width, dim = 2.0 * float(noise["lam"]), math.prod(shape)
        if self.run.norm == "l1:box":  # beyond one half its worst case is not known here
            tail = np.clip(np.nextafter(0.5 - variation, 1.0), 0.0, 1.0)
            return np.asarray(uniform_box_l1_radius(q_upper=tail, lam=float(noise["lam"]), dim=dim))
        if self.run.norm == "linf":
            with np.errstate(divide="ignore"):
                return np.asarray(round_down(-width * np.expm1(np.log1p(-variation) / dim)))
        return np.asarray(round_down(width * variation))

    def _found(self, radius: FloatArray, bounds: Mapping[str, FloatArray]) -> Found:
        left = self._certified(radius)
        return Found(left, left > 0, bounds)

    def _certified(self, radius: FloatArray) -> FloatArray:
        """Return radii, (B,) or (B, C), less what rounding and doubtful votes take."""
        rounding = self.rounding.reshape(-1, *[1] * (radius.ndim - 1))
        left = np.where(rounding > 0, np.nextafter(radius - rounding, -np.inf), radius)
        finite = np.maximum(np.where(np.isfinite(left), left, 0.0), 0.0)
        finite[list(self.void)] = 0.0
        return finite


@dataclass(frozen=True)
class ExactVotes:
    """The votes of all outcomes: nothing is sampled, and labels and sets may be chosen after looking.

    Attributes:
        run: the run.
        counts: (B, C).
        doubtful: outcomes that floating-point error could turn, (B,).
        void: never any: doubt is counted.
    """

    run: Run
    counts: IntArray
    doubtful: IntArray
    void: Mapping[int, str]
    exact = True

    @property
    def norm(self) -> str:
        """Norm of the radii."""
        return self.run.norm

    @property
    def ball(self) -> Any:
        """Whether the ball contains its boundary."""
        return self.run.records[0].ball

    @property
    def top(self) -> IntArray:
        """The answers, (B,); ties go to the lowest class."""
        return self.counts.argmax(axis=1)

    def ranks(self, label: IntArray, k: int) -> Found:
        """Return what keeps a label among the k classes with most votes."""
        return self._found(topk_votes_distance(self.counts, label, k, several=self._several, doubtful=self.doubtful))

    def sets(self, member: IntArray) -> Found:
        """Return what keeps the answer in its set; ``member`` numbers the sets, (C,)."""
        inside = member[None, :] == member[self.top][:, None]
        return self._found(set_votes_distance(self.counts, inside, several=self._several, doubtful=self.doubtful))

    def targets(self) -> FloatArray:
        """Return the radius within which the answer cannot become each other class, (B, C)."""
        classes = self.counts.shape[1]
        distance = [
            set_votes_distance(
                self.counts, np.arange(classes) != c, several=self._several, doubtful=self.doubtful
            )
            for c in range(classes)
        ]  # fmt: skip
        return self._radii(np.stack(distance, axis=1))

    @property
    def _several(self) -> bool:
        return self.run.header.binding["noise"].get("threshold") is not None

    def _found(self, distance: IntArray) -> Found:
        return Found(self._radii(distance), distance >= 0, {"distance": distance.astype(np.float64)})

    def _radii(self, distance: IntArray) -> FloatArray:
        noise = self.run.header.binding["noise"]
        if noise["class"] == "DeterministicSplittingNoise":
            return np.asarray(np.maximum(distance, 0) / int(noise["q"]))
        kind: Kind = "band" if noise["class"] == "BandNoise" else "block"
        _, height, width = noise["shape"]
        room = width if kind == "band" else min(height, width)
        return np.asarray(patch_side(distance, int(noise["kept"]), room, kind), dtype=np.float64)


def votes_of(run: Run, request: str) -> SampledVotes | ExactVotes:
    """Return the votes of a run.

    Raises:
        ValueError: if they are not those of a fixed number of independent samples or of all outcomes, or if their law
            says nothing of several labels.
    """
    wrong = votes_flaw(run.header, run.records, SAMPLED_LAWS | EXACT_LAWS)
    law = run.header.binding.get("noise", {}).get("class")
    if wrong is not None:
        why = f" ({_WHY_NOT})" if wrong.endswith(f"got noise {law}") else ""
        raise ValueError(f"{run.name}: {request} needs the votes of a fixed number of samples, {wrong}{why}")
    norms = _NORMS.get(str(law), (run.norm,))
    if run.norm not in norms:
        raise ValueError(
            f"{run.name}: {request} of {law} is known in {' or '.join(norms)}, got records in {run.norm!r} first: "
            "certify with a certificate of such a norm before the others"
        )
    theorem = str(run.header.binding["certificates"][0]["class"])
    if law in EXACT_LAWS and "." in theorem:  # whose radii reading does not recompute
        raise ValueError(f"{run.name}: {request} needs all outcomes to be counted, which nobody checks for {theorem}")
    counts = np.array([record.counts for record in run.records], dtype=np.int64)
    doubtful = np.array([int(record.extra.get("doubtful", 0)) for record in run.records])
    if law in EXACT_LAWS:
        return ExactVotes(run, counts, doubtful, {})
    alpha = run.records[0].alpha - run.header.alpha_noise
    if not alpha > 0:
        raise ValueError(f"{run.name}: alpha must exceed {run.header.alpha_noise!r} of the noise law, got {alpha!r}")
    given_up = "its certificates were given up: logits moved by more than votes allow for"
    # Where logits moved too much all certificates of a file are given up; otherwise the margin covers it.
    void = {row: given_up for row, record in enumerate(run.records) if abandoned(record) == set(record.radii)}
    top = np.array([record.top for record in run.records])
    return SampledVotes(run, counts, alpha, top, doubtful, _rounding(run), void)


def _rounding(run: Run) -> FloatArray:
    """Return the distance, (B,), by which images off a grid were rounded, in the norm of the radii; at least that."""
    lattice = run.header.binding.get("lattice")
    if not isinstance(lattice, dict) or lattice.get("grid") is not None:
        return np.zeros(len(run.records))
    base, taken = run.norm.partition(":")[0], [record.bounds.get("rounding", np.nan) for record in run.records]
    # Gaussian radii are in l2: ||z||_2 <= ||z||_1 and <= sqrt(d) ||z||_inf.
    to_l2 = run.header.binding["noise"]["class"] == "GaussianNoise" and base == "linf"
    factor = np.sqrt(float(np.prod(run.header.binding["shape"]))) if to_l2 else 1.0
    found = np.array(taken) * factor
    if base not in ("l1", "l2", "linf") or np.isnan(found).any():
        raise ValueError(
            f"{run.name}: records must say by how much images were rounded in l1, l2 or linf, got {run.norm}"
        )
    return np.asarray(np.nextafter(found, np.inf), dtype=np.float64)


def _without(values: FloatArray, label: IntArray) -> FloatArray:
    """Return the rows without the entry of their label, (B, C - 1)."""
    keep = np.arange(values.shape[1]) != label[:, None]
    return values[keep].reshape(len(values), -1)
