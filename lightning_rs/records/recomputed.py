"""What the counts of records certify, computed again: bounds from counts, radii from bounds.

The usual votes-only theorems are computed here from numbers alone, without torch, so that reading stays quick; every
other one is asked itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_rs.numerics.vote_radii import (
    SLACK,
    gaussian_l2_radius,
    laplace_l1_radius,
    uniform_box_l1_radius,
    uniform_l1_radius,
    uniform_linf_radius,
)
from lightning_rs.records.certification import ABSTAIN, Certification
from lightning_rs.records.header import Header
from lightning_rs.statistics.binomial import (
    clopper_pearson_tail_upper,
    randomized_clopper_pearson_tail,
    simultaneous_tail_bounds,
)
from lightning_rs.statistics.sequential import DecisionRule, StagedClopperPearson, Verdict

if TYPE_CHECKING:
    from lightning_rs.certificates.base import Certificate, Setting

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Records = Sequence[Certification]


@dataclass(frozen=True)
class Plain:
    """A theorem as numbers: its norm, its laws by name, radii of tails, perhaps with a bound of all other classes."""

    norm: str
    laws: tuple[str, ...]
    radius: Callable[[Mapping[str, Any], int, FloatArray, FloatArray | None], FloatArray]
    classes: int = 1


def _l2(noise: Mapping[str, Any], dim: int, tail: FloatArray, other: FloatArray | None) -> FloatArray:
    return np.asarray(gaussian_l2_radius(q_upper=tail, sigma=float(noise["sigma"]), p_upper=other))


def _l1(noise: Mapping[str, Any], dim: int, tail: FloatArray, other: FloatArray | None) -> FloatArray:
    return np.asarray(uniform_l1_radius(q_upper=tail, lam=float(noise["lam"]), p_upper=other))


PLAIN: dict[str, Plain] = {
    "GaussianL2": Plain("l2", ("GaussianNoise",), _l2),
    "GaussianL1": Plain("l1", ("GaussianNoise",), _l2),
    "GaussianLinf": Plain("linf", ("GaussianNoise",), lambda *a: _l2(*a) / math.sqrt(a[1]) * (1 - SLACK)),
    "GaussianTwoClassL2": Plain("l2", ("GaussianNoise",), _l2, classes=2),
    "UniformL1": Plain("l1", ("UniformNoise",), _l1),
    "SplittingL1": Plain("l1", ("SplittingNoise",), _l1),
    "UniformTwoClassL1": Plain("l1", ("UniformNoise", "SplittingNoise"), _l1, classes=2),
    "UniformLinf": Plain(
        "linf", ("UniformNoise", "SplittingNoise"),
        lambda noise, dim, tail, _: np.asarray(uniform_linf_radius(q_upper=tail, lam=float(noise["lam"]), dim=dim)),
    ),
    "UniformBoxL1": Plain(
        "l1:box", ("UniformNoise", "SplittingNoise"),
        lambda noise, dim, tail, _: np.asarray(uniform_box_l1_radius(q_upper=tail, lam=float(noise["lam"]), dim=dim)),
    ),
    "LaplaceL1": Plain(
        "l1", ("LaplaceNoise",),
        lambda noise, dim, tail, _: np.asarray(laplace_l1_radius(q_upper=tail, scale=float(noise["scale"]))),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Theorem:
    """What a header says of one certificate, checked against what is known of it.

    Attributes:
        entry: the header's words.
        name: how records list it.
        norm: its norm.
        ball: its ball.
        exact: whether it has no failure probability.
    """

    entry: Mapping[str, Any]
    name: str
    norm: str
    ball: str
    exact: bool

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Theorem:
        """Return the theorem of a header's entry.

        Raises:
            ValueError: if it is unknown, or has another norm, ball or split of alpha than the entry says.
        """
        plain = PLAIN.get(entry["class"])
        if plain is not None:
            found = cls(entry, entry["class"], plain.norm, "open", False)
        else:
            made = _certificate(entry)
            found = cls(entry, made.name, made.norm, made.ball, made.exact)
            split = dict(made.alpha_split)
            if entry.get("alpha_split", split) != split:
                raise ValueError(f"alpha_split must be {split}, got {entry['alpha_split']!r}")
        for key in ("name", "norm", "ball"):
            if entry.get(key, getattr(found, key)) != getattr(found, key):
                raise ValueError(f"{key} of {entry['class']} must be {getattr(found, key)!r}, got {entry[key]!r}")
        return found

    @property
    def plain(self) -> Plain | None:
        """The theorem as numbers, if it is one of the usual ones."""
        return PLAIN.get(self.entry["class"])

    @cached_property
    def made(self) -> Certificate:
        """The certificate itself."""
        return _certificate(self.entry)

    def radii(self, run: Recording, tail: FloatArray, other: FloatArray | None = None) -> FloatArray:
        """Return the radii of tails, (B,)."""
        if self.plain is not None:
            return self.plain.radius(run.noise, run.dim, tail, other)
        return np.asarray(self.made.radius_of_tail(tail, run.setting), dtype=np.float64)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Expected:
    """What a field must be in every record, and why.

    Attributes:
        field: how errors call it.
        values: its right values, (B,).
        because: where they come from.
        read: how to find it in a record.
    """

    field: str
    values: FloatArray
    because: str
    read: Callable[[Certification], float]


@dataclass(frozen=True)
class Recording:
    """The records of one file and its header, as arrays."""

    header: Header
    records: Records
    theorems: Sequence[Theorem] = field(default_factory=tuple)

    @property
    def noise(self) -> Mapping[str, Any]:
        """The law, in the header's words."""
        return self.header.binding["noise"]

    @property
    def alpha(self) -> float:
        """What of an image's failure probability is left to the statistics, after the error of the noise law."""
        lattice = self.header.binding.get("lattice") or {}
        return float(self.header.binding["alpha"]) - float(lattice.get("alpha_noise", 0.0))

    @property
    def rounds(self) -> bool:
        """Whether images off a grid were rounded to a lattice, and the distance taken off the radius."""
        lattice = self.header.binding.get("lattice")
        return isinstance(lattice, dict) and lattice.get("grid") is None

    @property
    def n(self) -> int:
        """Planned samples."""
        return self.records[0].n

    @property
    def dim(self) -> int:
        """Number of input coordinates."""
        return math.prod(self.header.binding.get("shape", [1]))

    @cached_property
    def counts(self) -> IntArray:
        """Votes, (B, C)."""
        return np.array([record.counts for record in self.records], dtype=np.int64)

    @cached_property
    def counts0(self) -> IntArray | None:
        """Votes of the selection samples, (B, C); None where records have none."""
        return np.array([r.counts0 for r in self.records], dtype=np.int64) if self.records[0].counts0 else None

    @cached_property
    def top(self) -> IntArray:
        """Selected classes, (B,)."""
        return np.array([record.top for record in self.records], dtype=np.int64)

    @cached_property
    def runner_up(self) -> IntArray:
        """Second classes, (B,)."""
        return np.array([record.runner_up for record in self.records], dtype=np.int64)

    @property
    def hits(self) -> IntArray:
        """Votes for the selected class, (B,)."""
        return np.take_along_axis(self.counts, self.top[:, None], axis=1)[:, 0]

    @property
    def budget(self) -> Mapping[str, Any]:
        """How samples were spent."""
        return self.header.binding.get("budget", {"mode": "fixed"})

    @cached_property
    def setting(self) -> Setting:
        """What certificates know beside the evidence."""
        import lightning_rs.noise  # noqa: F401  (registers every law by its name)
        from lightning_rs.certificates.base import Selection, Setting
        from lightning_rs.noise.base import noise_from_dict

        shape = tuple(self.header.binding.get("shape", [1]))
        selection = Selection(self.top, self.runner_up, self.counts0)
        return Setting(noise_from_dict(self.noise), self.alpha, self.n, shape, selection=selection)


def recompute_all(header: Header, theorems: Sequence[Theorem], records: Records) -> Iterator[Expected]:
    """Yield what bounds, radii and predictions must be."""
    run = Recording(header, records, theorems)
    mode = run.budget.get("mode", "fixed")
    if mode == "decision":
        yield from _decisions(run)
        return
    if mode == "staged":
        yield from _stages(run)
    for theorem in theorems:
        yield from _one(run, theorem, mode)


def _one(run: Recording, theorem: Theorem, mode: str) -> Iterator[Expected]:
    """Yield what one certificate's bounds and radii must be."""
    prefix = "" if theorem is run.theorems[0] else f"{theorem.name}."
    bounds, radius, prediction = _certified(run, theorem, mode)
    for name, values in bounds.items():
        yield _bound(f"{prefix}{name}", values)
    if radius is None:
        return
    if run.rounds:
        taken = np.array([record.bounds.get(f"{prefix}rounding", math.nan) for record in run.records])
        left = np.where(radius > 0, np.maximum(np.nextafter(radius - taken, -np.inf), 0.0), 0.0)
        radius, prediction = np.where(taken >= 0, left, np.nan), np.where(left > 0, prediction, float(ABSTAIN))
    yield Expected(
        f"radii[{theorem.name!r}]", radius, f"which the recorded bounds certify by {theorem.name}",
        lambda record: record.radii[theorem.name],
    )  # fmt: skip
    if not prefix:
        yield Expected(
            "prediction", prediction, "which the recorded votes certify", lambda record: float(record.prediction)
        )


def _certified(
    run: Recording, theorem: Theorem, mode: str
) -> tuple[Mapping[str, FloatArray], FloatArray | None, FloatArray]:
    """Return bounds that follow from the votes, the radius if it follows from bounds, and the prediction."""
    plain = theorem.plain
    if plain is not None and plain.classes == 2:
        method = theorem.entry.get("method", "bonferroni")
        tail, other = simultaneous_tail_bounds(run.counts, run.top, run.alpha, method, run.runner_up, run.counts0)
        radius = theorem.radii(run, tail, other)
        return {"p_lower": 1.0 - tail, "q_upper": tail, "p_upper": other}, radius, _stated(run, radius)
    one_tail = plain is not None or hasattr(theorem.made, "radius_of_tail")
    if one_tail and not (plain is None and theorem.made.shared_failure):
        tail = _tail(run, mode)
        radius = theorem.radii(run, tail)
        return {"p_lower": 1.0 - tail, "q_upper": tail}, radius, _stated(run, radius)
    if one_tail:  # a table that takes minutes to draw again: the bounds only
        tail = _tail(run, mode)
        return {"p_lower": 1.0 - tail, "q_upper": tail}, None, _stated(run, tail)
    return _asked(run, theorem.made)


def _asked(run: Recording, certificate: Certificate) -> tuple[Mapping[str, FloatArray], FloatArray | None, FloatArray]:
    """Ask the certificate itself: everything from the votes, or the bound of the tail that follows from them."""
    from lightning_rs.evidence import EnumeratedVotes, PairVotes, Votes

    kinds = set(certificate.evidence)
    if kinds == {EnumeratedVotes} or kinds == {PairVotes} or (kinds == {Votes} and certificate.votes_only):
        votes = {kind: _votes(run, kind) for kind in kinds}
        found = certificate.certify(votes, run.setting)
        return found.bounds, found.radius, found.prediction.astype(np.float64)
    share = certificate.alpha_split.get("p_lower")
    if Votes not in kinds or share is None:
        return {}, None, np.array([])
    tail = _fixed(run, float(share))
    return {"p_lower": 1.0 - tail, "q_upper": tail}, None, np.array([])


def _votes(run: Recording, kind: type[Any]) -> Any:
    """Return the evidence that the recorded counts are."""
    import torch

    from lightning_rs.evidence import EnumeratedVotes, PairVotes, Votes

    if kind is EnumeratedVotes:
        doubtful = [int(record.extra.get("doubtful", 0)) for record in run.records]
        return EnumeratedVotes(torch.from_numpy(run.counts), torch.tensor(doubtful))
    if kind is PairVotes:
        both, one = (np.array([record.extra[name] for record in run.records]) for name in ("both", "exactly_one"))
        return PairVotes.of(both, one)
    return Votes.of(run.counts)


def _tail(run: Recording, mode: str) -> FloatArray:
    """Return the upper bound of 1 - p that the votes give, (B,)."""
    if mode == "fixed":
        return _fixed(run, 1.0)
    if mode == "randomized":
        drawn = np.array([float(record.extra.get("u", math.nan)) for record in run.records])
        tail = randomized_clopper_pearson_tail(run.hits, run.n, run.alpha, np.clip(np.nan_to_num(drawn), 1e-300, 1.0))
        return np.where(np.isnan(drawn), 1.0, np.maximum(tail, float(run.budget["tail_floor"])))
    rule = _rule(run)
    tail = np.ones(len(run.records))
    for stage in range(len(rule.sizes)):
        rows = np.array([record.extra.get("stage") == stage for record in run.records])
        tail[rows] = rule.tail_upper(stage, np.minimum(run.hits[rows], rule.sizes[stage]))
    return tail


def _fixed(run: Recording, share: float) -> FloatArray:
    """Return Clopper-Pearson bounds of the tail at a share of alpha, solved once for each count that occurs."""
    distinct, where = np.unique(run.hits, return_inverse=True)
    return np.asarray(clopper_pearson_tail_upper(distinct, run.n, share * run.alpha), dtype=np.float64)[where]


def _rule(run: Recording) -> StagedClopperPearson:
    budget = run.budget
    return StagedClopperPearson.geometric(run.n, run.alpha, int(budget["first"]), float(budget["factor"]))


def _stages(run: Recording) -> Iterator[Expected]:
    """Yield what staged records say of their stages: those of the header's rule."""
    rule = _rule(run)
    last = len(rule.sizes) - 1
    stages = [record.extra.get("stage") for record in run.records]
    known = [stage if isinstance(stage, int) and 0 <= stage <= last else last for stage in stages]
    yield Expected(
        "n_used", np.array([float(rule.sizes[stage]) for stage in known]), "the size of the stage where it stopped",
        lambda record: float(record.n_used),
    )  # fmt: skip
    for name, values in (("stages", rule.sizes), ("alphas", rule.alphas)):
        for place, value in enumerate(values):
            yield Expected(
                f"extra[{name!r}][{place}]", np.full(len(run.records), float(value)), "as the header's budget says",
                lambda record, name=name, place=place: _item(record.extra.get(name), place),  # type: ignore[misc]
            )  # fmt: skip


def _decisions(run: Recording) -> Iterator[Expected]:
    """Yield what a decision must be, from the votes so far."""
    (theorem,) = run.theorems
    yield Expected("radii", np.zeros(len(run.records)), "because decisions have no radius", lambda r: r.radius)
    if theorem.exact:
        decided = _enumerated(run)
        status = np.where(decided > 0, 1.0, 2.0)
    else:
        threshold = _item([record.bounds.get("threshold", math.nan) for record in run.records], 0)
        target = float(run.budget["radius"])
        yield _bound("threshold", np.full(len(run.records), _checked_threshold(run, theorem, threshold, target)))
        if threshold > 0:
            rule = DecisionRule(threshold, run.alpha, run.n, run.budget.get("alpha_reject"))
            verdict = rule.decide(run.hits, np.array([record.n_used for record in run.records]))
        else:
            verdict = np.full(len(run.records), int(Verdict.REJECTED))
        codes = {Verdict.CERTIFIED: 1.0, Verdict.REJECTED: 2.0, Verdict.UNDECIDED: 3.0}
        status = np.array([codes.get(Verdict(v), math.nan) for v in np.atleast_1d(verdict)])
    yield Expected(
        "status", status, "as the votes say (1: decided, 2: abstain, 3: undecided)",
        lambda record: {"decided": 1.0, "abstain": 2.0, "undecided": 3.0}.get(record.status, 0.0),
    )  # fmt: skip
    top = run.counts.argmax(axis=1) if theorem.exact else run.top
    yield Expected(
        "prediction", np.where(status == 1.0, top, ABSTAIN).astype(np.float64), "which the recorded votes decide",
        lambda record: float(record.prediction),
    )  # fmt: skip


def _checked_threshold(run: Recording, theorem: Theorem, threshold: float, target: float) -> float:
    """Return the threshold if it certifies the target and a little more would not; else NaN, which equals nothing."""
    if not 0 <= threshold < 1:
        return math.nan
    little = max(threshold * (1 + 1e-6), 1e-290)
    reached = np.asarray(theorem.radii(run, np.array([threshold, little]))) >= target
    tight = run.rounds or not reached[1]  # off a grid the worst rounding is added to the target
    return threshold if (reached[0] or threshold == 0) and tight else math.nan


def _enumerated(run: Recording) -> IntArray:
    """Return 1 where the enumeration so far decides that the target is reached, -1 where it is not, else 0."""
    from lightning_rs.certificates.splitting import splitting_target_status

    noise: Any = run.setting.noise
    certificate: Any = run.theorems[0].made
    goal = certificate.needed(float(run.budget["radius"]), noise)
    used = np.array([record.n_used for record in run.records])
    doubtful = np.array([int(record.extra.get("doubtful", 0)) for record in run.records])
    return np.atleast_1d(splitting_target_status(run.counts, noise.size - used, goal, doubtful=doubtful))


def _stated(run: Recording, radius: FloatArray) -> FloatArray:
    return np.where(radius > 0, run.top, ABSTAIN).astype(np.float64)


def _bound(name: str, values: FloatArray) -> Expected:
    return Expected(
        f"bounds[{name!r}]", values, "which the recorded votes give",
        lambda record: record.bounds.get(name, math.nan),
    )  # fmt: skip


def _item(values: Any, place: int) -> float:
    """Return one number of a list in a record, NaN if there is none."""
    if not isinstance(values, list) or place >= len(values) or not isinstance(values[place], int | float):
        return math.nan
    return float(values[place])


def _certificate(entry: Mapping[str, Any]) -> Certificate:
    import lightning_rs.certificates  # noqa: F401  (registers every theorem by its name)
    from lightning_rs.certificates.base import certificate_from_dict

    return certificate_from_dict(entry)
