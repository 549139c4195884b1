"""What the records of several smoothed classifiers say together about one image, by three rules.

``routed``: h(x) = g_{s(x)}(x), a smoothed selector s chooses among smoothed experts g_1, ..., g_K, one of which may
be uncertified; ``cascade``: noise levels are tried in turn, the first whose top class exceeds p0 answers; ``best``:
several certificates of one smoothed classifier. Each part holds at its own alpha, fixed before it was sampled, and all
of them together at the sum (union bound: no part need be independent of another).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rs.numerics.routes import cascade_l2_radius, route_distances
from lightning_rs.records.certification import ABSTAIN, Certification
from lightning_rs.records.header import Header
from lightning_rs.records.lowered import abandoned
from lightning_rs.records.recomputed import Recording, Theorem
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, clopper_pearson_upper
from lightning_rs.statistics.labels import label_bounds

FloatArray = NDArray[np.float64]
Rule = Literal["routed", "cascade", "best"]
#: How records call the certificate of each rule.
NAMES: dict[str, str] = {"routed": "Routed", "cascade": "Cascade", "best": "BestOf", "transfer": "Transfer"}


@dataclass(frozen=True)
class Part:
    """One classifier of a combination.

    Attributes:
        records: its records, one an image; None where it was not asked, because it could not matter.
        alpha: failure probability of one of its records.
        level: what of alpha the error of the noise law leaves to the statistics.
        sigma: its noise, in input units.
        rounded: whether images were rounded to a lattice, which distances pay for.
        header: of its record file, if it has one.
    """

    records: Sequence[Certification | None]
    alpha: float = 0.0
    level: float = 0.0
    sigma: float = 0.0
    rounded: bool = False
    header: Header | None = None

    @classmethod
    def of(cls, header: Header, records: Sequence[Certification]) -> Part:
        """Return the classifier of a record file."""
        alpha, lattice = float(header.binding["alpha"]), header.binding.get("lattice")
        rounded = isinstance(lattice, Mapping) and lattice.get("grid") is None
        sigma = float(header.binding["noise"].get("sigma", 0.0))  # which only Gaussian parts are asked for
        return cls(records, alpha, alpha - header.alpha_noise, sigma, rounded, header)

    @classmethod
    def uncertified(cls, images: int) -> Part:
        """Return an expert of which nothing is known."""
        return cls([None] * images)

    @property
    def known(self) -> list[Certification]:
        """Its records, where it must have all of them."""
        found = [record for record in self.records if record is not None]
        assert len(found) == len(self.records)
        return found

    @property
    def counts(self) -> NDArray[np.int64]:
        """Votes, (B, C)."""
        return np.array([record.counts for record in self.known], dtype=np.int64)

    @property
    def top(self) -> NDArray[np.int64]:
        """Classes of the selection samples, (B,); -1 where it was not asked."""
        return np.array([ABSTAIN if record is None else record.top for record in self.records], dtype=np.int64)

    @property
    def doubtful(self) -> NDArray[np.int64]:
        """Votes within the logit margin, (B,): those for ``top`` are not among its counts."""
        return np.array([int(record.extra.get("doubtful", 0)) for record in self.known], dtype=np.int64)

    @property
    def void(self) -> NDArray[np.bool_]:
        """Images whose votes may not be read, because logits moved too much."""
        return np.array([abandoned(record) == set(record.radii) for record in self.known])

    @property
    def rounding(self) -> FloatArray:
        """What is taken off distances where images were rounded to a lattice, (B,)."""
        if not self.rounded:
            return np.zeros(len(self.records))
        return np.array([record.bounds.get("rounding", math.inf) for record in self.known])


@dataclass(frozen=True)
class _Answers:
    """What a rule says: for each image the class, the radius, the part that answers (-1: none), and its bounds."""

    top: NDArray[np.int64]
    radius: FloatArray
    part: NDArray[np.int64]
    bounds: Mapping[str, FloatArray]


def total_alpha(parts: Sequence[Part]) -> float:
    """Return the failure probability of all parts together, rounded up."""
    return float(np.nextafter(math.fsum(part.alpha for part in parts), 1.0))


def combine_records(rule: str, p0: float | None, parts: Sequence[Part], alpha: float) -> list[Certification]:
    """Return one record an image, in the order of the parts' records.

    Args:
        rule: "routed" (the first part is the selector), "cascade" or "best".
        p0: acceptance threshold of a cascade.
        parts: the classifiers, already known to fit each other.
        alpha: failure probability of all parts together.
    """
    if rule == "routed":
        answers = _routed(parts[0], parts[1:])
    elif rule == "cascade":
        answers = _cascade(parts, 0.5 if p0 is None else p0)
    else:
        answers = _best(parts)
    return [_record(NAMES[rule], alpha, parts, answers, row) for row in range(len(parts[0].records))]


@dataclass(frozen=True)
class Transfer:
    """The paired samples that carry records to another classifier.

    Attributes:
        pairs: samples an image.
        alpha: failure probability of the bound on harmful pairs.
        level: what of it the error of the noise law leaves.
    """

    pairs: int
    alpha: float
    level: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Transfer:
        """Return what a header says, or raise ``ValueError`` for numbers that cannot be."""
        pairs, alpha, spent = told.get("pairs"), told.get("alpha"), told.get("alpha_noise")
        whole = isinstance(pairs, int) and not isinstance(pairs, bool) and pairs >= 1
        if (
            not whole
            or not isinstance(alpha, float)
            or not isinstance(spent, int | float)
            or not 0 <= spent < alpha < 1
        ):
            raise ValueError(f"a transfer needs pairs >= 1 and 0 <= alpha_noise < alpha < 1, got {dict(told)!r}")
        return cls(int(pairs), alpha, alpha - float(spent))  # type: ignore[arg-type]

    def total(self, alpha: float) -> float:
        """Return the failure probability of both bounds, rounded up; raise ``ValueError`` if it reaches 1."""
        both = float(np.nextafter(alpha + self.alpha, 2.0))
        if not both < 1:
            raise ValueError(f"alpha of the records and of the pairs must sum to less than 1, got {both!r}")
        return both


def transfer_records(
    part: Part, harmful: NDArray[np.int64], void: NDArray[np.bool_], told: Transfer
) -> list[Certification]:
    """Return the records of another classifier that loses at most the harmful pairs, in the order of the part's.

    The part's own theorem turns the larger tail into a radius, whatever the law: it is a function of one tail, and
    nothing in it knows whose tail that is.

    Args:
        part: the first classifier, of a record file; its records have the bound ``q_upper`` of the tail.
        harmful: pairs in which the first classifier answers ``top`` and the other does not, (B,).
        void: images on which logits moved too much, (B,).
        told: the pairs.
    """
    more = np.asarray(clopper_pearson_upper(harmful, told.pairs, told.level), dtype=np.float64)
    own = np.array([record.bounds["q_upper"] for record in part.known])
    tail = np.minimum(np.nextafter(own + more, 2.0), 1.0)
    assert part.header is not None
    theorem = Theorem.of(part.header.binding["certificates"][0])
    reached = theorem.radii(Recording(part.header, part.known, [theorem]), tail)
    radius = np.where(void | part.void, 0.0, np.maximum(_less(reached, part.rounding), 0.0))
    bounds = {"q_upper": tail, "harmful_upper": more}
    answers = _Answers(part.top, radius, np.zeros(len(radius), dtype=np.int64), bounds)
    name, alpha = NAMES["transfer"], told.total(part.alpha)
    made = [_record(name, alpha, [part], answers, row) for row in range(len(radius))]
    return [
        replace(record, extra={**record.extra, "harmful": int(harmful[row]), "void": bool(void[row])})
        for row, record in enumerate(made)
    ]


def selector_bounds(
    counts: NDArray[np.int64], top: NDArray[np.int64], alpha: float, doubtful: NDArray[np.int64] | int = 0
) -> tuple[FloatArray, FloatArray]:
    """Return upper bounds of one minus the selected route's probability, (B,), and of every route's, (B, K).

    They hold together at ``alpha``. With two routes one event is enough: what one has not, the other has.
    """
    if counts.shape[1] > 2:
        return label_bounds(counts, top, alpha, gained=doubtful)
    hits = np.take_along_axis(counts, top[:, None], axis=1)[:, 0]
    tail = np.asarray(clopper_pearson_tail_upper(hits, counts.sum(axis=1), alpha), dtype=np.float64)
    return tail, np.repeat(tail[:, None], 2, axis=1)


def selector_distances(selector: Part) -> tuple[FloatArray, FloatArray]:
    """Return the bound of one minus the selected route's probability, (B,), and how far other routes are, (B, K)."""
    tail, upper = selector_bounds(selector.counts, selector.top, selector.level, selector.doubtful)
    away = route_distances(tail, upper, selector.top, selector.sigma)
    left = np.maximum(_less(away, selector.rounding[:, None]), 0.0)
    return tail, np.where(selector.void[:, None], 0.0, left)


def _routed(selector: Part, experts: Sequence[Part]) -> _Answers:
    (tail, away), route = selector_distances(selector), selector.top
    top = np.full(len(route), ABSTAIN, dtype=np.int64)
    for k, expert in enumerate(experts):
        top[route == k] = expert.top[route == k]
    own = np.zeros(away.shape)
    for k, expert in enumerate(experts):
        for row, record in enumerate(expert.records):
            own[row, k] = record.radius if record is not None and record.prediction == top[row] >= 0 else 0.0
    radius = np.where(top >= 0, np.maximum(own, away).min(axis=1), 0.0)  # routed_radius, rounding taken off
    distances = {f"route_{k}.distance": away[:, k] for k in range(len(experts))}
    radii = {f"route_{k}.radius": own[:, k] for k in range(len(experts))}
    return _Answers(top, radius, route, {"selector.q_upper": tail, **distances, **radii})


def _cascade(levels: Sequence[Part], p0: float) -> _Answers:
    images, sigmas = len(levels[0].records), [level.sigma for level in levels]
    tails, uppers = zip(*(_level_bounds(level) for level in levels), strict=True)
    # One ulp less: 1 - q is rounded to nearest.
    lower = np.stack([np.where(level.void, 0.0, np.nextafter(1.0 - tail, 0.0)) for level, tail in
                      zip(levels, tails, strict=True)], axis=1)  # fmt: skip
    rounding = np.max([level.rounding for level in levels], axis=0)
    top, radius = np.full(images, ABSTAIN, dtype=np.int64), np.zeros(images)
    answering = np.full(images, -1, dtype=np.int64)
    for k in range(len(levels)):
        (rows,) = np.nonzero(lower[:, k] > p0)
        label = levels[k].top[rows]
        own, other = np.full((len(rows), len(levels)), np.nan), np.ones((len(rows), len(levels)))
        own[:, k] = lower[rows, k]
        for j in range(k):
            rivals = uppers[j][rows].copy()
            np.put_along_axis(rivals, label[:, None], 0.0, axis=1)
            # The label itself leaves no more to the others than its own tail, where that is known.
            known = np.where(levels[j].top[rows] == label, tails[j][rows], 1.0)
            other[:, j] = np.where(levels[j].void[rows], 1.0, np.minimum(rivals.max(axis=1), known))
        found = np.maximum(_less(np.asarray(cascade_l2_radius(sigmas, p0, own, other)), rounding[rows]), 0.0)
        better = found > radius[rows]
        chosen = rows[better]
        top[chosen], radius[chosen], answering[chosen] = label[better], found[better], k
    first = np.where(answering < 0, 0, answering)
    fallback = np.stack([level.top for level in levels], axis=1)[np.arange(images), first]
    bounds = {f"level_{k}.lower": lower[:, k] for k in range(len(levels))}
    return _Answers(np.where(top >= 0, top, fallback), radius, first, bounds)


def _level_bounds(level: Part) -> tuple[FloatArray, FloatArray]:
    """Return the tail of the selected class at half of alpha, and bounds of all classes at the other half."""
    counts, n = level.counts, level.counts.sum(axis=1)
    hits = np.take_along_axis(counts, level.top[:, None], axis=1)[:, 0]
    tail = np.asarray(clopper_pearson_tail_upper(hits, n, 0.5 * level.level), dtype=np.float64)
    most = np.minimum(counts + level.doubtful[:, None], n[:, None])
    upper = clopper_pearson_upper(most, n[:, None], 0.5 * level.level / counts.shape[1])
    return tail, np.asarray(upper, dtype=np.float64)


def _best(parts: Sequence[Part]) -> _Answers:
    radius = np.array([[record.radius for record in part.known] for part in parts])
    said = np.array([[record.prediction for record in part.known] for part in parts])
    chosen = radius.argmax(axis=0)
    rows = np.arange(radius.shape[1])
    top = said[chosen, rows]
    # Two certified classes contradict each other: one of the statements failed, and nobody knows which.
    agree = ((said == top) | (said == ABSTAIN)).all(axis=0)
    fallback = np.stack([part.top for part in parts])[chosen, rows]
    bounds = {f"part_{k}.radius": radius[k] for k in range(len(parts))}
    return _Answers(np.where(top >= 0, top, fallback), np.where(agree, radius[chosen, rows], 0.0), chosen, bounds)


def _record(name: str, alpha: float, parts: Sequence[Part], answers: _Answers, row: int) -> Certification:
    """Return the record of one image, with those of all parts in it."""
    experts = parts[1:] if name == NAMES["routed"] else parts
    place = int(answers.part[row])
    answering = experts[place].records[row]
    seen = [part.records[row] for part in (*experts, *parts)]
    own = answering if answering is not None else next(record for record in seen if record is not None)
    radius, top = float(answers.radius[row]), int(answers.top[row])
    certified = radius > 0
    votes: dict[str, Any] = {"counts": (), "counts0": (), "top": ABSTAIN, "runner_up": ABSTAIN}
    if answering is not None:
        votes = {key: getattr(own, key) for key in votes} | {"top": top}
    spoken = {"arithmetic": own.extra["arithmetic"]} if "arithmetic" in own.extra else {}
    return Certification(
        index=own.index, image=own.image, label=own.label, prediction=top if certified else ABSTAIN,
        radius=radius if certified else 0.0, norm=own.norm, certificate=name, alpha=alpha, n=own.n, n_used=own.n_used,
        ball=own.ball, grid=own.grid, **votes, bounds={key: float(v[row]) for key, v in answers.bounds.items()},
        radii={name: radius if certified else 0.0}, status="certified" if certified else "abstain", mode="fixed",
        extra={"part": place, "parts": [_plain(part, row) for part in parts], **spoken},
    )  # fmt: skip


def _plain(part: Part, row: int) -> dict[str, Any] | None:
    record = part.records[row]
    return None if record is None else json.loads(record.to_json())


def _less(distance: FloatArray, rounding: FloatArray) -> FloatArray:
    """Return distances less what rounding takes, rounded down; untouched where that is nothing."""
    return np.where(rounding > 0, np.nextafter(distance - rounding, -np.inf), distance)
