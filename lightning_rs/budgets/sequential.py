"""Budgets that stop early or draw a bound at random: staged, decision, randomized Clopper-Pearson."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_rs.budgets.base import Budget, Group, Mode, Outcome, Task
from lightning_rs.certificates.base import (
    ABSTAIN,
    Certificate,
    Radii,
    TopVoteCertificate,
    at,
    read,
)
from lightning_rs.checks import check_alpha, check_at_least, check_nonnegative, check_positive
from lightning_rs.engine.streams import Streams, image_name
from lightning_rs.evidence import Votes
from lightning_rs.setting import Selection, Setting
from lightning_rs.statistics.binomial import randomized_clopper_pearson_tail
from lightning_rs.statistics.sequential import DecisionRule, StagedClopperPearson, Verdict

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_STATUS = {Verdict.CERTIFIED: "decided", Verdict.REJECTED: "abstain", Verdict.UNDECIDED: "undecided"}


class VoteBudget(Budget):
    """A budget for certificates whose radius is a function of the top class's tail alone."""

    def check(self, certificates: Sequence[Certificate]) -> None:
        """Raise ``ValueError`` unless every certificate reads nothing but the votes for one class."""
        other = [c.name for c in certificates if not isinstance(c, TopVoteCertificate)]
        instead = "FixedSamples or DecideGridRadius" if any(c.exact for c in certificates) else "FixedSamples"
        if other:
            raise ValueError(
                f"budget {type(self).__name__} serves certificates that need only the vote of the top class; "
                f"{', '.join(other)} needs a fixed n: use {instead}"
            )


class StagedSamples(VoteBudget):
    """Clopper-Pearson after each of a few stages, alpha split over them; stops when more cannot pay.

    An image stops after the stage from which no later one can gain more than ``tolerance`` in radius. The bound of
    the stage where it stops holds whatever made it stop, because all stages hold together (union bound). Records
    cannot be recomputed at another alpha: after data-dependent stopping a plain Clopper-Pearson bound is void.

    Args:
        tolerance: radius that is given up, in units of the noise's sigma.
        first: size of the first stage.
        factor: ratio of consecutive stages up to n.
    """

    mode: ClassVar[Mode] = "staged"

    def __init__(self, tolerance: float = 0.03, first: int = 100, factor: float = 3.1622776601683795) -> None:
        self.tolerance = float(check_nonnegative("tolerance", tolerance))
        self.first = check_at_least("first", first, 1)
        if not factor > 1:
            raise ValueError(f"factor must be > 1, got {factor!r}")
        self.factor = float(factor)

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return {"mode": self.mode, "tolerance": self.tolerance, "first": self.first, "factor": self.factor}

    def fewest(self, n: int) -> int:
        """Return the size of the first stage, about."""
        return min(self.first, n)

    def pool(self, wanted: int, per_image: int) -> int:
        """Keep many images at work: most stop early."""
        return max(super().pool(wanted, per_image), 32)

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Sample stage by stage, with those images that go on."""
        setting = replace(task.setting, selection=selection)
        rule = StagedClopperPearson.geometric(setting.n, setting.alpha, self.first, self.factor)
        counts = np.zeros((len(group.images), task.sampler.prepared.num_classes), dtype=np.int64)
        used = np.zeros(len(group.images), dtype=np.int64)
        stopped = np.zeros(len(group.images), dtype=np.int64)
        tail = np.ones(len(group.images))
        active = np.arange(len(group.images))
        primary = task.certificates[0]
        assert isinstance(primary, TopVoteCertificate)
        for stage, size in enumerate(rule.sizes):
            counts[active] += _sample(task, group, selection, active, size - int(used[active[0]]), part=stage)
            used[active], stopped[active] = size, stage
            hits = at(counts[active], selection.top[active])
            tail[active] = rule.tail_upper(stage, hits)
            radius_of_tail = _in_sigmas(primary, replace(setting, selection=selection.take(active)))
            active = active[~rule.stop(stage, hits, radius_of_tail, self.tolerance)]
            if not len(active):
                break
        radii = {c.name: c.from_tail(tail, setting) for c in task.certificates if isinstance(c, TopVoteCertificate)}
        extra: dict[str, list[Any]] = {
            "stage": stopped.tolist(),
            "stages": [list(rule.sizes)] * len(used),
            "alphas": [list(rule.alphas)] * len(used),
        }
        return Outcome(radii, counts, setting.n, used, extra=extra)


class DecideRadius(VoteBudget):
    """Decides "certified at this radius, or not" and stops as soon as it knows; there is no radius.

    An anytime-valid bet (Voracek 2024; Waudby-Smith and Ramdas 2024) is looked at in growing steps. With probability
    at least 1 - alpha an image that does not have the radius is never certified, however often it was looked at.
    Finished images leave and new ones enter; the micro-batch shape stays. Images that are undecided after n samples
    are their own category.

    Args:
        radius: the target, in input units; fixed before sampling.
        first: samples before the first look.
        growth: each look comes after so many times the samples of the one before.
        alpha_reject: level at which an image is given up as not certified; None takes alpha. It does not touch the
            soundness of what is certified.
    """

    mode: ClassVar[Mode] = "decision"

    def __init__(self, radius: float, first: int = 32, growth: float = 1.2, alpha_reject: float | None = None) -> None:
        self.radius = float(check_positive("radius", radius))
        self.target = self.radius
        self.first = check_at_least("first", first, 1)
        if not growth > 1:
            raise ValueError(f"growth must be > 1, got {growth!r}")
        self.growth = float(growth)
        self.alpha_reject = None if alpha_reject is None else float(check_alpha(alpha_reject, "alpha_reject"))

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return {
            "mode": self.mode,
            "radius": self.radius,
            "first": self.first,
            "growth": self.growth,
            "alpha_reject": self.alpha_reject,
        }

    def check(self, certificates: Sequence[Certificate]) -> None:
        """Raise ``ValueError`` unless there is one certificate, a function of the top class's tail."""
        super().check(certificates)
        if len(certificates) != 1:
            raise ValueError(
                f"budget DecideRadius serves one certificate, got {', '.join(c.name for c in certificates)}"
            )

    def fewest(self, n: int) -> int:
        """Return the samples before the first look."""
        return min(self.first, n)

    def pool(self, wanted: int, per_image: int) -> int:
        """Take as many images as there are: a pool inside :meth:`run` bounds what is in flight."""
        return 4096

    def looks(self, n: int) -> list[int]:
        """Return the cumulative sample sizes at which an image is looked at; the same for every image."""
        sizes = [min(self.first, n)]
        while sizes[-1] < n:
            # Even steps of the first size keep chunks whole and depend on nothing but the rule.
            step = max(round(sizes[-1] * (self.growth - 1) / self.first), 1) * self.first
            sizes.append(min(sizes[-1] + step, n))
        return sizes

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Look, let finished images leave and others enter, until all are decided or out of samples."""
        certificate = task.certificates[0]
        assert isinstance(certificate, TopVoteCertificate)
        setting = replace(task.setting, selection=selection)
        threshold = certificate.threshold(self.radius + setting.rounding(certificate.norm), setting)
        looks = self.looks(setting.n)
        total = len(group.images)
        counts = np.zeros((total, task.sampler.prepared.num_classes), dtype=np.int64)
        used = np.zeros(total, dtype=np.int64)
        # A target that no tail certifies needs no samples: nothing can be certified there.
        rule = DecisionRule(threshold, setting.alpha, setting.n, self.alpha_reject) if threshold > 0 else None
        verdict = np.full(total, int(Verdict.REJECTED if rule is None else Verdict.UNDECIDED), dtype=np.int64)
        active: list[int] = []
        waiting, look = list(range(total)), np.zeros(total, dtype=np.int64)
        # Enough images to fill a few micro-batches of every worker even if each needs only the first look.
        prepared = task.sampler.prepared
        capacity = max(1, 4 * prepared.micro_batch * prepared.workers.count // self.first)
        while rule is not None and (waiting or active):
            entering = capacity - len(active)
            active, waiting = active + waiting[:entering], waiting[entering:]
            now = np.array(active)
            more = [looks[step] - (looks[step - 1] if step else 0) for step in look[now]]
            counts[now] += _sample(task, group, selection, now, more, look[now].tolist())
            used[now] += more
            verdict[now] = rule.decide(at(counts[now], selection.top[now]), used[now])
            look[now] += 1
            active = [int(row) for row in now if verdict[row] == Verdict.CONTINUE]
        return self._outcome(task, selection, counts, used, verdict, threshold)

    def _outcome(
        self, task: Task, selection: Selection, counts: IntArray, used: IntArray, verdict: IntArray, threshold: float
    ) -> Outcome:
        certified = verdict == Verdict.CERTIFIED
        radii = Radii(
            np.where(certified, selection.top, ABSTAIN),
            np.zeros(len(used)),
            {"threshold": np.full(len(used), threshold)},
        )
        status = [_STATUS[Verdict(v)] for v in verdict]
        return Outcome({task.certificates[0].name: radii}, counts, task.setting.n, used, status)


class RandomizedBound(VoteBudget):
    """Fixed n with randomized Clopper-Pearson: exact coverage, a slightly larger radius (at most about 1%).

    One number U an image is drawn before its samples, from the image's own stream, and stored. The tail bound can
    reach 0 when all votes agree and U < alpha, so the radius is capped.

    Args:
        tail_floor: smallest tail bound that is used; it caps the radius.
    """

    mode: ClassVar[Mode] = "randomized"

    def __init__(self, tail_floor: float = 1e-9) -> None:
        self.tail_floor = float(check_alpha(tail_floor, "tail_floor"))

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return {"mode": self.mode, "tail_floor": self.tail_floor}

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Collect n votes an image and bound them with its own U."""
        setting = replace(task.setting, selection=selection)
        counts = _sample(task, group, selection, np.arange(len(group.images)), setting.n, part=0)
        names = [image_name(index, sha256) for index, sha256 in zip(group.indices, group.sha256, strict=True)]
        drawn = np.array([_uniform(task, name) for name in names])
        hits = at(counts, selection.top)
        tail = np.maximum(randomized_clopper_pearson_tail(hits, setting.n, setting.alpha, drawn), self.tail_floor)
        radii = {c.name: c.from_tail(tail, setting) for c in task.certificates if isinstance(c, TopVoteCertificate)}
        used = np.full(len(group.images), setting.n, dtype=np.int64)
        return Outcome(radii, counts, setting.n, used, extra={"u": drawn.tolist()})


def _sample(
    task: Task,
    group: Group,
    selection: Selection,
    rows: IntArray,
    n: int | Sequence[int],
    part: int | Sequence[int],
) -> IntArray:
    """Return the class counts of ``n`` fresh samples of some images of the group, the same for all or one for each."""
    return read(task.collect(group.take(rows), selection.take(rows), [Votes], n, part), Votes).counts


def _uniform(task: Task, image: str) -> float:
    """Return the image's U in (0, 1), from a key of its own."""
    sampler = task.sampler
    streams = Streams(sampler.seed, sampler.classifier, task.purpose, sampler.planned)
    key = b"randomized bound" + streams.key(image, 0, 0)
    bits = int.from_bytes(hashlib.shake_128(key).digest(8), "little") >> 11
    return (bits + 0.5) / 2.0**53


def _in_sigmas(certificate: TopVoteCertificate, setting: Setting) -> Callable[[FloatArray], FloatArray]:
    return lambda tail: certificate.radius_of_tail(tail, setting) / setting.noise.sigma


__all__ = ["DecideRadius", "RandomizedBound", "StagedSamples", "VoteBudget"]
