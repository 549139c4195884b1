"""A budget that stops an enumeration as soon as the outcomes that are left cannot change the decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_rs.budgets.base import Budget, Group, Mode, Outcome, Task
from lightning_rs.certificates.base import ABSTAIN, Certificate, Radii, read
from lightning_rs.certificates.splitting import (
    EnumeratedCertificate,
    splitting_target_status,
    votes_until_decided,
)
from lightning_rs.checks import check_at_least, check_positive
from lightning_rs.evidence import EnumeratedVotes
from lightning_rs.noise.base import EnumeratedNoise
from lightning_rs.setting import Selection

IntArray = NDArray[np.int64]


class DecideGridRadius(Budget):
    """Decides exactly "certified at this radius, or not" for enumerated noise; there is no radius.

    Deterministic splitting noise has a radius in l1, bands and blocks have the side of a patch. The K outcomes are
    evaluated in their fixed order until those that are left cannot change the answer, whatever they vote
    (:func:`~lightning_rs.certificates.splitting.splitting_target_status`): every image is decided, and the decision is
    that of the full enumeration. Nothing is sampled, alpha is not used. An image is looked at when a decision first
    becomes possible, so that looking more often would save nothing beyond ``step``.

    Votes inside the measured logit margin count against the certificate, as in the full enumeration. Outcomes that
    were not evaluated count for the strongest rival, at the image and everywhere in the ball, so that their doubt costs
    nothing more: where there is doubt, stopping early may certify an image that the full enumeration gives up.

    No order of the outcomes is better on the whole: with shares p_A and p_B of a random order a certified image
    stops after about (K + 2 D) / (1 + p_A - p_B) outcomes, D the distance that the radius needs, and no order can stop
    it before (K + 2 D) / 2.

    Args:
        radius: the target in the units of the certificate, input units or pixels; certified means that D reaches what
            the certificate needs for it, for splitting noise floor(q radius).
        step: smallest number of outcomes that is evaluated at once, but never more than a sixteenth of all of them:
            28 bands are looked at one by one.
    """

    mode: ClassVar[Mode] = "decision"

    def __init__(self, radius: float, step: int = 32) -> None:
        self.radius = float(check_positive("radius", radius))
        self.target = self.radius
        self.step = check_at_least("step", step, 1)

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return {"mode": self.mode, "radius": self.radius, "step": self.step}

    def check(self, certificates: Sequence[Certificate]) -> None:
        """Raise ``ValueError`` unless there is one certificate, of an enumeration."""
        if len(certificates) != 1 or not isinstance(certificates[0], EnumeratedCertificate):
            raise ValueError(
                "budget DecideGridRadius serves one of DeterministicSplittingL1, PatchBand, PatchBlock, got "
                f"{', '.join(c.name for c in certificates)}"
            )

    def fewest(self, n: int) -> int:
        """Return half of the outcomes, without which nothing is decided."""
        return -(-n // 2)

    def pool(self, wanted: int, per_image: int) -> int:
        """Keep many images at work: the last looks are small."""
        return max(4 * super().pool(wanted, per_image), 32)

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Evaluate outcomes of those images that are still open, until none is."""
        noise, images = task.setting.noise, len(group.images)
        (certificate,) = task.certificates
        assert isinstance(noise, EnumeratedNoise)
        assert isinstance(certificate, EnumeratedCertificate)
        goal = certificate.needed(self.radius, noise)
        step = min(self.step, max(1, noise.size // 16))
        counts = np.zeros((images, task.sampler.prepared.num_classes), dtype=np.int64)
        used, doubtful = np.zeros(images, dtype=np.int64), np.zeros(images, dtype=np.int64)
        status = np.full(images, splitting_target_status(counts[0], noise.size, goal))
        while (status == 0).any():
            rows = np.flatnonzero(status == 0)
            left = noise.size - used[rows]
            more = votes_until_decided(counts[rows], left, goal, doubtful=doubtful[rows])
            more = np.minimum(np.maximum(more, step), left)
            outcomes = [range(*ends) for ends in zip(used[rows].tolist(), (used[rows] + more).tolist(), strict=True)]
            votes = task.collect(group.take(rows), selection.take(rows), [EnumeratedVotes], outcomes=outcomes)
            found = read(votes, EnumeratedVotes)
            counts[rows] += found.counts
            doubtful[rows] += found.doubtful
            used[rows] += more
            status[rows] = splitting_target_status(counts[rows], noise.size - used[rows], goal, doubtful=doubtful[rows])
        return self._outcome(task, counts, used, doubtful, status > 0)

    def _outcome(
        self, task: Task, counts: IntArray, used: IntArray, doubtful: IntArray, certified: NDArray[np.bool_]
    ) -> Outcome:
        notes = {int(row): f"{doubtful[row]} votes within the logit margin" for row in np.flatnonzero(doubtful)}
        prediction = np.where(certified, counts.argmax(axis=1), ABSTAIN)
        radii = Radii(prediction, np.zeros(len(used)), notes=notes)
        status = ["decided" if yes else "abstain" for yes in certified]
        extra = {"doubtful": doubtful.tolist()}
        return Outcome({task.certificates[0].name: radii}, counts, task.setting.n, used, status, extra)
