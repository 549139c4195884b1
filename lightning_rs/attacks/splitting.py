"""Exact attacks on deterministic splitting noise: no statistics, because its votes can be enumerated.

Raising pixel i from X_i to X_i + t on the grid changes exactly the outcomes b = (X_i + j - v_i) mod K, j = 0..t-1, and
in each of them pixel i alone, by 1/2; lowering it by t those with j = -1..-t. So a unit of budget, 1/q of l1, buys one
pixel of one outcome, and what disjoint moves do to the votes adds up exactly.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_rs.attacks.base import Aim, Attack, check_steps
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.objectives import Margin
from lightning_rs.noise.splitting import DeterministicSplittingNoise, splitting_codes
from lightning_rs.session import Session
from lightning_rs.smoothed import SmoothedClassifier


class Outcomes:
    """The labels of single outcomes of an image, by the very network that certifies."""

    def __init__(self, session: Session) -> None:
        noise = session.sampler.noise
        assert isinstance(noise, DeterministicSplittingNoise)
        self._prepared, self._noise = session.prepared, noise
        self.size, self.q = noise.size, noise.q

    @torch.inference_mode()
    def labels(self, whole: Tensor, outcomes: Tensor) -> Tensor:
        """Return the labels (k,) of rows ``whole``, grid steps in the engine's order, (d,) or (k, d)."""
        size, found = self._prepared.micro_batch, []
        rows = self._prepared.buffer(size)
        for start in range(0, len(outcomes), size):
            part = outcomes[start : start + size]
            x = whole if whole.ndim == 1 else whole[start : start + size]
            self._noise.split(x / self.q, part, rows[: len(part)])
            found.append(self._prepared.labels(rows)[: len(part)].clone())
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def all_labels(self, whole: Tensor) -> Tensor:
        """Return the labels of all K outcomes, (K,)."""
        return self.labels(whole, torch.arange(self.size, device=whole.device))

    def changed(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the outcomes in which two inputs differ."""
        every = torch.arange(self.size, device=one.device)
        v = self._noise.v.to(one.device)
        codes = [splitting_codes(whole, v, every, self.size, self.q) for whole in (one, other)]
        return (codes[0] != codes[1]).any(1).nonzero()[:, 0]

    def single_moves(self, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return pixel, direction, the one outcome that it changes and that outcome's new label, of all moves by 1."""
        v = self._noise.v.to(whole.device).long()
        x = whole.long()
        up, down = (x < self.q).nonzero()[:, 0], (x > 0).nonzero()[:, 0]
        pixel = torch.cat([up, down])
        direction = torch.cat([torch.ones_like(up), -torch.ones_like(down)])
        outcome = (x[pixel] - v[pixel] - (direction < 0).long()) % self.size
        size, labels = self._prepared.micro_batch, []
        for start in range(0, len(pixel), size):
            rows = slice(start, start + size)
            moved = whole.repeat(len(pixel[rows]), 1)
            moved[torch.arange(len(moved)), pixel[rows]] += direction[rows]
            labels.append(self.labels(moved, outcome[rows]))
        return pixel, direction, outcome, torch.cat(labels)


def lost(labels: Tensor, own: int, classes: int) -> bool:
    """Return whether the vote over all outcomes leaves the class; ties go to the lowest class."""
    return int(torch.bincount(labels, minlength=classes).argmax()) != own


def single_step_attack(outcomes: Outcomes, whole: Tensor, own: int, classes: int) -> Tensor | None:
    """Return the input that the fewest moves by one grid step carry over the boundary, or None if none do.

    At most one move an outcome and a pixel is used. Against every rival c a move gains 2 if it turns a vote for the
    class into one for c, 1 if it removes a vote for the class or adds one to c. The gains add up exactly; the fewest
    whose sum reaches the margin are an attack of j / q.

    Args:
        outcomes: labels of single outcomes.
        whole: the input in grid steps, engine's order, (d,).
        own: the class to leave.
        classes: number of classes.
    """
    before = outcomes.all_labels(whole)
    counts = torch.bincount(before, minlength=classes)
    pixel, direction, outcome, after = outcomes.single_moves(whole)
    best: Tensor | None = None
    for rival in range(classes):
        needed = int(counts[own] - counts[rival]) + (1 if rival > own else 0)
        if rival == own:
            continue
        was, now = before[outcome], after
        gain = (was == own).long() - (now == own).long() + (now == rival).long() - (was == rival).long()
        moved, used_pixels, used_outcomes, total, count = whole.clone(), set(), set(), 0, 0
        for move in torch.argsort(gain, descending=True, stable=True).tolist():
            i, b = int(pixel[move]), int(outcome[move])
            if total >= needed or gain[move] <= 0:
                break
            if i in used_pixels or b in used_outcomes:
                continue
            moved[i] += int(direction[move])
            used_pixels.add(i)
            used_outcomes.add(b)
            total, count = total + int(gain[move]), count + 1
        shorter = best is None or count < int((best - whole).abs().sum())
        if total >= needed and count and shorter:
            best = moved
    return best


class SplittingMoves(Attack):
    """Few pixels, long moves: against deterministic splitting noise, in l1, with exact votes.

    The pixels with the largest straight-through gradient of the vote's margin are driven to 0 or 1 until the budget is
    spent, with the gradient taken anew after each share of it; the first input whose exact vote leaves the class is
    then shortened as long as the vote stays lost, where only the outcomes that a shorter move restores are evaluated.
    Beside it the cheapest combination of moves by one grid step is tried, see :func:`single_step_attack`.

    Args:
        steps: number of shares of the budget.
        trials: number of shortenings tried.

    Raises:
        ValueError: for steps < 1; when it runs, for another noise.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1",)

    def __init__(self, steps: int = 16, trials: int = 60) -> None:
        self.steps = check_steps(steps)
        self.trials = trials

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        if not isinstance(smoothed.noise, DeterministicSplittingNoise):
            raise ValueError(f"noise of SplittingMoves must be DeterministicSplittingNoise, got {smoothed.noise!r}")
        session = smoothed.session(tuple(aim.images.shape[1:]))
        return torch.cat(
            [
                self._one(smoothed, session, image[None], int(own), float(radius), aim.geometry)
                for image, own, radius in zip(aim.images, aim.classes, aim.eps, strict=True)
            ]
        )

    def _one(
        self, smoothed: SmoothedClassifier, session: Session, image: Tensor, own: int, eps: float, geometry: Geometry
    ) -> Tensor:
        outcomes, total = Outcomes(session), session.prepared.num_classes
        q, order = outcomes.q, session.prepared.order
        original = (image.flatten().double() * q).round().to(torch.int32)
        arranged = original if order is None else original[order]

        def flips(whole: Tensor) -> bool:
            return lost(outcomes.all_labels(whole if order is None else whole[order]), own, total)

        budget = int(eps * q + 1e-6)
        few = None if geometry.mask is not None else single_step_attack(outcomes, arranged, own, total)
        if few is not None and int((few - arranged).abs().sum()) <= budget:
            back = few if order is None else torch.empty_like(few).index_copy_(0, order, few)
            return (back.double() / q).float().view(image.shape)
        whole = original.clone()
        for share in range(1, self.steps + 1):
            spare = budget * share // self.steps - int((whole - original).abs().sum())
            whole = self._pushed(smoothed, whole, original, own, spare, geometry, image.shape, q)
            if flips(whole):
                whole = self._shortened(outcomes, whole, original, own, total, order)
                break
        return (whole.double() / q).float().view(image.shape)

    def _pushed(
        self,
        smoothed: SmoothedClassifier,
        whole: Tensor,
        original: Tensor,
        own: int,
        spare: int,
        geometry: Geometry,
        shape: torch.Size,
        q: int,
    ) -> Tensor:
        """Drive the pixels of the largest gradient to 0 or q until ``spare`` steps are spent."""
        smoothed.renew()
        x = (whole.double() / q).float().view(shape)
        uphill = geometry.within(Margin().gradient(smoothed, x, torch.tensor([own], device=x.device)))[0]
        onward = (whole - original).sign() * uphill.sign() >= 0  # a pixel may go on, but not back
        target = torch.where(uphill > 0, q, 0).to(whole)
        room = torch.where(onward & (uphill != 0), (target - whole).abs(), 0)
        chosen = torch.argsort(uphill.abs() * (room > 0), descending=True)
        spent = (room[chosen].cumsum(0) - room[chosen]).clamp(max=spare)
        length = torch.minimum(room[chosen], (spare - spent).clamp(min=0)).to(whole)
        moved = whole.clone()
        moved[chosen] += length * torch.where(uphill > 0, 1, -1).to(whole)[chosen]
        return moved

    def _shortened(
        self, outcomes: Outcomes, whole: Tensor, original: Tensor, own: int, classes: int, order: Tensor | None
    ) -> Tensor:
        """Take back moves, many at first, then single ones, while the vote stays lost."""

        def arranged(values: Tensor) -> Tensor:
            return values if order is None else values[order]

        labels = outcomes.all_labels(arranged(whole))
        moved = (whole != original).nonzero()[:, 0]
        size, position, trials = max(1, len(moved) // 2), 0, 0
        while trials < self.trials and len(moved):
            part = moved[position : position + size]
            shorter = whole.clone()
            shorter[part] = original[part]
            again = outcomes.changed(arranged(shorter), arranged(whole))
            tried = labels.clone()
            tried[again] = outcomes.labels(arranged(shorter), again)
            trials += 1
            if lost(tried, own, classes):
                whole, labels = shorter, tried
                moved = (whole != original).nonzero()[:, 0]
            else:
                position += size
            if position >= len(moved):
                if size == 1:
                    break
                size, position = max(1, size // 2), 0
        return whole
