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

# A vote is taken for kept, without its last outcomes, at so many standard deviations.
_CLEAR = 3.0
_BISECTIONS = 5
_REMEMBERED = 256  # images


class Outcomes:
    """The labels of single outcomes of an image, by the very network that certifies."""

    def __init__(self, session: Session) -> None:
        noise = session.sampler.noise
        assert isinstance(noise, DeterministicSplittingNoise)
        self._prepared, self._noise = session.prepared, noise
        self.size, self.q = noise.size, noise.q
        mixed = torch.randperm(noise.size, generator=torch.Generator().manual_seed(0))
        self._mixed = mixed.to(session.prepared.device)  # any part of it is a random sample of the outcomes

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
        """Return for each outcome whether two inputs differ in it, (K,)."""
        moved = (one != other).nonzero()[:, 0]
        every = torch.arange(self.size, device=one.device)
        v = self._noise.v.to(one.device)[moved]
        codes = [splitting_codes(whole[moved], v, every, self.size, self.q) for whole in (one, other)]
        return (codes[0] != codes[1]).any(1)

    def losing(
        self, whole: Tensor, own: int, classes: int, near: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor | None:
        """Return the labels of all outcomes, (K,), if the vote leaves the class, else None.

        None is given as soon as a random part of the outcomes makes it clear, a vote that is lost never without all of
        them.

        Args:
            whole: the input in grid steps, engine's order, (d,).
            own: the class.
            classes: number of classes.
            near: an input whose labels are known: only outcomes in which it differs are evaluated.
            known: its labels.
        """
        labels = torch.zeros(self.size, dtype=torch.int64, device=whole.device) if known is None else known.clone()
        differs = None if near is None else self.changed(whole, near)
        open_ = self._mixed if differs is None else self._mixed[differs[self._mixed]]
        settled = torch.ones(self.size, dtype=torch.bool, device=whole.device)
        settled[open_] = False
        for start in range(0, len(open_), self._prepared.micro_batch):
            part = open_[start : start + self._prepared.micro_batch]
            labels[part] = self.labels(whole, part)
            settled[part] = True
            if self._kept(labels, settled, open_[: start + len(part)], own, classes):
                return None
        return labels if lost(labels, own, classes) else None

    def _kept(self, labels: Tensor, settled: Tensor, seen: Tensor, own: int, classes: int) -> bool:
        """Return whether the class clearly leads every other one, by what is settled and what a sample of it says."""
        left = self.size - int(settled.sum())
        counts = torch.bincount(labels[settled], minlength=classes).double()
        share = torch.bincount(labels[seen], minlength=classes).double() / len(seen)
        mean = share[own] - share
        spread = (share[own] + share - mean.square()).clamp(min=1 / len(seen)) / len(seen)
        fewest = left * (mean - _CLEAR * spread.sqrt())
        lead = counts[own] - counts + fewest
        lead[own] = torch.inf
        return bool((lead > 0).all())

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
    spent, with the gradient taken anew after each share of it. The first input whose exact vote leaves the class is
    pulled back along its last share, then shortened as long as the vote stays lost, where only the outcomes that a
    shorter move changes are evaluated. A vote that is clearly kept is recognised by some of its outcomes; one is lost
    only by all of them. Beside it the cheapest combination of moves by one grid step is tried once an image, see
    :func:`single_step_attack`.

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
        self._few: dict[tuple[str, str, bytes, int], Tensor | None] = {}

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        if not isinstance(smoothed.noise, DeterministicSplittingNoise):
            raise ValueError(f"noise of SplittingMoves must be DeterministicSplittingNoise, got {smoothed.noise!r}")
        session = smoothed.session(tuple(aim.images.shape[1:]))
        return torch.cat(
            [
                _Moves(self, smoothed, session, image[None], int(own), aim.geometry).run(float(radius))
                for image, own, radius in zip(aim.images, aim.classes, aim.eps, strict=True)
            ]
        )

    def few(self, outcomes: Outcomes, session: Session, whole: Tensor, own: int) -> Tensor | None:
        """Return what :func:`single_step_attack` finds, which no radius changes, once an image."""
        key = (session.classifier, repr(session.noise), whole.cpu().numpy().tobytes(), own)
        if key not in self._few:
            while len(self._few) >= _REMEMBERED:
                del self._few[next(iter(self._few))]
            self._few[key] = single_step_attack(outcomes, whole, own, session.prepared.num_classes)
        return self._few[key]


class _Moves:
    """The attack on one image; inputs are in grid steps and the image's own order, (d,)."""

    def __init__(
        self,
        attack: SplittingMoves,
        smoothed: SmoothedClassifier,
        session: Session,
        image: Tensor,
        own: int,
        geometry: Geometry,
    ) -> None:
        self._attack, self._smoothed, self._session, self._geometry = attack, smoothed, session, geometry
        self._outcomes, self._classes, self._own = Outcomes(session), session.prepared.num_classes, own
        self._order, self._shape = session.prepared.order, image.shape
        self._original = (image.flatten().double() * self._outcomes.q).round().to(torch.int32)

    def run(self, eps: float) -> Tensor:
        """Return the image that the attack reaches within ``eps``."""
        budget = int(eps * self._outcomes.q + 1e-6)
        original = self._original
        if self._geometry.mask is None:
            begin = self._arranged(original)
            few = self._attack.few(self._outcomes, self._session, begin, self._own)
            if few is not None and int((few - begin).abs().sum()) <= budget:
                back = few if self._order is None else torch.empty_like(few).index_copy_(0, self._order, few)
                return self._image(back)
        whole = original
        for share in range(1, self._attack.steps + 1):
            spare = budget * share // self._attack.steps - int((whole - original).abs().sum())
            uphill = self._uphill(whole)
            further = self._pushed(whole, uphill, spare)
            labels = self._losing(further)
            if labels is not None:
                return self._image(self._shortened(*self._pulled(whole, uphill, spare, further, labels), uphill))
            whole = further
        return self._image(whole)

    def _uphill(self, whole: Tensor) -> Tensor:
        """Return the straight-through gradient of the margin by which other classes lead, (d,)."""
        self._smoothed.renew()
        x, own = self._image(whole), torch.tensor([self._own], device=whole.device)
        return self._geometry.within(Margin().gradient(self._smoothed, x, own))[0]

    def _pushed(self, whole: Tensor, uphill: Tensor, spare: int) -> Tensor:
        """Drive the pixels of the largest gradient to 0 or q until ``spare`` steps are spent."""
        onward = (whole - self._original).sign() * uphill.sign() >= 0  # a pixel may go on, but not back
        target = torch.where(uphill > 0, self._outcomes.q, 0).to(whole)
        room = torch.where(onward & (uphill != 0), (target - whole).abs(), 0)
        chosen = torch.argsort(uphill.abs() * (room > 0), descending=True)
        spent = (room[chosen].cumsum(0) - room[chosen]).clamp(max=spare)
        length = torch.minimum(room[chosen], (spare - spent).clamp(min=0)).to(whole)
        moved = whole.clone()
        moved[chosen] += length * torch.where(uphill > 0, 1, -1).to(whole)[chosen]
        return moved

    def _pulled(
        self, whole: Tensor, uphill: Tensor, spare: int, found: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the shortest push from ``whole`` that still loses the vote, by bisection, and its labels."""
        kept, enough = 0, spare
        for _ in range(_BISECTIONS):
            middle = (kept + enough) // 2
            if middle == kept:
                break
            shorter = self._pushed(whole, uphill, middle)
            again = self._losing(shorter, found, labels)
            if again is None:
                kept = middle
            else:
                enough, found, labels = middle, shorter, again
        return found, labels

    def _shortened(self, whole: Tensor, labels: Tensor, uphill: Tensor) -> Tensor:
        """Take back moves, many at first, then single ones, those of the smallest gradient first."""

        def moves(at: Tensor) -> Tensor:
            found = (at != self._original).nonzero()[:, 0]
            return found[torch.argsort(uphill[found].abs())]

        moved = moves(whole)
        size, position, trials = max(1, len(moved) // 2), 0, 0
        while trials < self._attack.trials and len(moved):
            part = moved[position : position + size]
            shorter = whole.clone()
            shorter[part] = self._original[part]
            again = self._losing(shorter, whole, labels)
            trials += 1
            if again is not None:
                whole, labels = shorter, again
                moved = moves(whole)
            else:
                position += size
            if position >= len(moved):
                if size == 1:
                    break
                size, position = max(1, size // 2), 0
        return whole

    def _losing(self, whole: Tensor, near: Tensor | None = None, known: Tensor | None = None) -> Tensor | None:
        close = None if near is None else self._arranged(near)
        return self._outcomes.losing(self._arranged(whole), self._own, self._classes, close, known)

    def _arranged(self, whole: Tensor) -> Tensor:
        return whole if self._order is None else whole[self._order]

    def _image(self, whole: Tensor) -> Tensor:
        return (whole.double() / self._outcomes.q).float().view(self._shape)
