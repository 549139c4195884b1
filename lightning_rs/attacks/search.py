"""The smallest radius at which attacks succeed, image by image, and its confirmation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from lightning_rs.attacks.base import Attack
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.records import ABSTAIN
from lightning_rs.session import Predictions, Session
from lightning_rs.smoothed import SmoothedClassifier

_BISECTIONS = 6
TRIES = 3
# A confirmation needs a lead: pushed a little further out, a point that only just failed usually has it.
_PUSH = 1.04
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Victim:
    """What is attacked: the soft vote that attacks see, the session that decides, and where they may go.

    Attributes:
        smoothed: differentiable soft vote.
        session: the prepared network that certifies.
        geometry: the threat set.
    """

    smoothed: SmoothedClassifier
    session: Session
    geometry: Geometry


@dataclass(frozen=True)
class Bracket:
    """Smallest confirmed adversarial points of a batch.

    Attributes:
        points: (B, *shape); the images where none was found.
        distance: their norms in float64, infinite where none was found, (B,).
        searched: largest radius without success, (B,).
        confirmation: of each image, or None.
    """

    points: Tensor
    distance: FloatArray
    searched: FloatArray
    confirmation: list[dict[str, Any] | None]


class Search:
    """Widens the radius until an attack succeeds, then narrows it.

    Candidates are screened by few votes, as adaptively as it takes; only the last point is confirmed, on votes that no
    step has seen. Each success is first pulled back along the segment to its image.

    Args:
        attacks: tried one after another at each radius.
        rounds: radii tried after the first success.
        max_radius: largest radius tried.
        screen: votes of a screening.
        n: votes of the confirmation.
        beta: failure probability of the confirmation of one image, over all its tries.
    """

    def __init__(
        self, attacks: Sequence[Attack], rounds: int, max_radius: float, screen: int, n: int, beta: float
    ) -> None:
        self.attacks = list(attacks)
        self.rounds = rounds
        self.max_radius = max_radius
        self.screen = screen
        self.n = n
        self.beta = beta

    def run(
        self,
        victim: Victim,
        images: Tensor,
        classes: Tensor,
        radii: FloatArray,
        seed: int,
        uphill: Tensor | None = None,
    ) -> Bracket:
        """Return the bracket of a batch.

        Args:
            victim: what is attacked.
            images: (B, *shape).
            classes: classes to leave, (B,).
            radii: certified radii, (B,): nothing is searched inside.
            seed: of the attacks' randomness.
            uphill: directions to begin with as well, flat, (B, d).
        """
        best = images.clone()
        high = np.full(len(images), np.inf)
        low = np.asarray(radii, dtype=np.float64).copy()
        unit = np.maximum(low, 0.05 * self.max_radius)
        eps = np.minimum(1.5 * unit, self.max_radius)
        for number in range(self.rounds + 8):
            open_ = np.where(np.isfinite(high), (high - low > 0.02 * high) & (number < self.rounds + 4), low < eps)
            rows = np.flatnonzero(open_)
            if not len(rows):
                break
            toward = None if uphill is None else uphill[rows]
            found, reached = self._attack(victim, images[rows], classes[rows], eps[rows], seed + number, toward)
            closer = reached < high[rows]
            best[rows[closer]] = found[torch.from_numpy(closer)]
            failed = ~np.isfinite(reached)
            low[rows[failed]] = np.maximum(low[rows[failed]], eps[rows[failed]])
            high[rows] = np.minimum(high[rows], reached)
            wider = np.minimum(2 * eps, self.max_radius)
            eps = np.where(np.isfinite(high), low + 0.6 * np.maximum(np.minimum(high, 1e9) - low, 0), wider)
        return self._confirm(victim, images, classes, best, high, low)

    def _attack(
        self,
        victim: Victim,
        images: Tensor,
        classes: Tensor,
        eps: FloatArray,
        seed: int,
        uphill: Tensor | None,
    ) -> tuple[Tensor, FloatArray]:
        """Return the closest screened points of all attacks at the given radii, and their norms or infinity."""
        best, reached = images.clone(), np.full(len(images), np.inf)
        for attack in self.attacks:
            radius = torch.from_numpy(eps).to(images.device)
            points = attack(victim.smoothed, images, classes, radius, victim.geometry, seed, uphill)
            success = self._screened(victim, points, classes)
            rows = np.flatnonzero(success)
            if not len(rows):
                continue
            pulled = self._pulled(victim, images[rows], points[rows], classes[rows])
            length = victim.geometry.distance(images[rows].flatten(1), pulled.flatten(1))
            closer = length < reached[rows]
            best[rows[closer]] = pulled[torch.from_numpy(closer)]
            reached[rows] = np.minimum(reached[rows], length)
        return best, reached

    def _pulled(self, victim: Victim, images: Tensor, points: Tensor, classes: Tensor) -> Tensor:
        """Return the closest point on each segment that still passes the screening."""
        x, z, best = images.flatten(1), points.flatten(1), points
        near, far = np.zeros(len(images)), np.ones(len(images))
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            share = torch.from_numpy(middle).to(x)[:, None]
            tried = victim.geometry.snap(x + share * (z - x), x).view(images.shape)
            success = self._screened(victim, tried, classes)
            best = torch.where(torch.from_numpy(success).view(-1, *[1] * (images.ndim - 1)), tried, best)
            far, near = np.where(success, middle, far), np.where(success, near, middle)
        return best

    def _screened(self, victim: Victim, points: Tensor, classes: Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which points lose the vote by so much that their confirmation is likely."""
        votes = victim.session.predict(points, n=self.screen, alpha=0.5)
        if victim.session.noise.outcomes is not None:
            return np.asarray(votes.prediction != classes.cpu().numpy())
        needed = -float(ndtri(self.beta / TRIES / 2)) / math.sqrt(self.n) + 1 / math.sqrt(self.screen)
        return lead(votes, classes) > needed

    def _confirm(
        self, victim: Victim, images: Tensor, classes: Tensor, points: Tensor, high: FloatArray, low: FloatArray
    ) -> Bracket:
        confirmation: list[dict[str, Any] | None] = [None] * len(images)
        points, own = points.clone(), classes.cpu().numpy()
        level = self.beta / TRIES
        pending = np.flatnonzero(np.isfinite(high))
        for number in range(TRIES):
            if not len(pending):
                break
            if number:
                points[pending] = self._pushed(victim, images[pending], points[pending], pending, number)
            votes = victim.session.predict(points[pending], n=self.n, alpha=level)
            for place, row in enumerate(pending):
                if votes.prediction[place] not in (ABSTAIN, own[row]):
                    confirmation[row] = {
                        "counts": votes.counts[place].tolist(),
                        "n": int(votes.counts[place].sum()),
                        "beta": level,
                        "seed": votes.seed,
                        "prediction": int(votes.prediction[place]),
                        "tries": number + 1,
                    }
            pending = np.array([row for row in pending if confirmation[row] is None], dtype=np.int64)
        distance = victim.geometry.distance(images.flatten(1), points.flatten(1))
        found = np.array([each is not None for each in confirmation])
        return Bracket(points, np.where(found, distance, np.inf), low, confirmation)

    def _pushed(self, victim: Victim, images: Tensor, points: Tensor, rows: NDArray[np.int64], number: int) -> Tensor:
        """Return the points of some rows for another try, the ``number``-th after the first: surer ones."""
        x, z = images.flatten(1), points.flatten(1)
        far = torch.from_numpy(2 * victim.geometry.distance(x, z) + 1e-9)
        further = victim.geometry.project(x + _PUSH * (z - x), x, far)
        return victim.geometry.snap(further, x).view(images.shape)


def lead(votes: Predictions, classes: Tensor) -> FloatArray:
    """Return by which share of the votes another class leads the given one, negative where it does not, (B,)."""
    counts, own = votes.counts.astype(np.float64), classes.cpu().numpy()
    rows = np.arange(len(counts))
    mine = counts[rows, own].copy()
    counts[rows, own] = -1
    return (counts.max(1) - mine) / np.maximum(votes.counts.sum(1), 1)
