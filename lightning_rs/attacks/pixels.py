"""Attacks that change pixels instead of moving far: a patch that shows anything, or a number of pixels anywhere.

Their threat sets count: the side of a square, or pixels (all channels of one together), whole numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rs.attacks.base import Aim, Attack, check_steps
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.search import TRIES, Bracket, Search, Victim
from lightning_rs.checks import check_at_least, check_choice
from lightning_rs.engine.ballots import threshold_votes
from lightning_rs.noise.ablation import NULL, AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import EnumeratedNoise
from lightning_rs.smoothed import SmoothedClassifier

NORMS = ("patch", "l0")
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
# How far beyond its threshold a vote is pushed.
_LEAD = 0.05


@dataclass(frozen=True)
class PixelGeometry(Geometry):
    """The threat set of a certificate that counts pixels: within it, changed pixels may be anything of the box.

    Attributes:
        shape: shape of one input, (C, H, W).
    """

    shape: tuple[int, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what is no image, or another norm."""
        check_choice("norm", self.norm, NORMS)
        if len(self.shape) != 3 or self.domain is None:
            raise ValueError(
                f"shape must be (C, H, W) in a box for norm {self.norm!r}, got {self.shape}, {self.domain}"
            )

    @property
    def reach(self) -> int:
        """The largest size that is worth a try: the shorter side, or half of all pixels."""
        _, height, width = self.shape
        return min(height, width) if self.norm == "patch" else (height * width + 1) // 2

    def distance(self, x: Tensor, z: Tensor) -> FloatArray:
        """Return the side of the smallest square that holds all changed pixels, or their number, (m,)."""
        changed = (z.detach() != x.detach()).view(-1, *self.shape).any(1)
        if self.norm == "l0":
            return changed.flatten(1).sum(1).double().cpu().numpy()
        return torch.maximum(_extent(changed.any(2)), _extent(changed.any(1))).double().cpu().numpy()

    def random(self, x: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Return images with a random patch, or random pixels, of random colours."""
        assert self.domain is not None
        channels, height, width = self.shape
        low, high = self.domain
        colours = low + (high - low) * torch.rand(x.shape, generator=generator, device=x.device)
        masks = torch.zeros(len(x), height, width, dtype=torch.bool, device=x.device)
        for mask, size in zip(masks, eps.tolist(), strict=True):
            whole = math.floor(size + 1e-9)
            if self.norm == "patch":
                side = min(whole, height, width)
                top, left = (
                    int(torch.randint(room - side + 1, (1,), generator=generator, device=x.device))
                    for room in (height, width)
                )
                mask[top : top + side, left : left + side] = True
            else:
                chosen = torch.randperm(height * width, generator=generator, device=x.device)[:whole]
                mask.view(-1)[chosen] = True
        return torch.where(masks[:, None].expand(-1, channels, -1, -1).flatten(1), colours, x)

    def limited(self, z: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Return points in the box and on the grid; the image where more is changed than ``eps`` allows."""
        assert self.domain is not None
        points = self.snap(torch.where(z == x, x, z.clamp(*self.domain)), x)
        points = torch.where(z == x, x, points)  # rounding to the grid changes no pixel that nobody changed
        inside = torch.from_numpy(self.distance(x, points) <= eps.double().cpu().numpy() + 1e-9).to(x.device)
        return torch.where(inside[:, None], points, x)


class PixelBracket(Search):
    """Looks for the smallest whole size at which attacks succeed: doubled from the certified one, then halved in."""

    _successes: list[list[tuple[float, Tensor]]]

    def run(
        self,
        victim: Victim,
        images: Tensor,
        classes: Tensor,
        radii: FloatArray,
        seed: int,
        uphill: Tensor | None = None,
    ) -> Bracket:
        """Return the bracket of a batch; see :meth:`Search.run`."""
        most, best = math.floor(self.max_radius), images.clone()
        self._successes = [[] for _ in range(len(images))]
        low, high = np.floor(radii + 1e-9), np.full(len(images), np.inf)
        size = np.minimum(low + 1, most)
        for number in range(self.rounds + 8):
            open_ = np.where(np.isfinite(high), (high - low > 1) & (number < self.rounds + 6), low < most)
            rows = np.flatnonzero(open_)
            if not len(rows):
                break
            found, reached = self._attack(victim, images[rows], classes[rows], size[rows], seed + number, None)
            for row, point, distance in zip(rows, found, reached, strict=True):
                if np.isfinite(distance):
                    self._successes[row].append((float(distance), point))
            closer = reached < high[rows]
            best[rows[closer]] = found[torch.from_numpy(closer)]
            failed = ~np.isfinite(reached)
            low[rows[failed]] = np.maximum(low[rows[failed]], size[rows[failed]])
            high[rows] = np.minimum(high[rows], reached)
            size = np.where(np.isfinite(high), np.floor((low + np.minimum(high, most)) / 2), np.minimum(2 * low, most))
            size = np.maximum(size, np.minimum(low + 1, most))
        return self._confirm(victim, images, classes, best, high, low)

    def _pulled(self, victim: Victim, images: Tensor, points: Tensor, classes: Tensor) -> Tensor:
        """Return the points: a changed pixel counts, however little it is changed."""
        return points

    def _pushed(self, victim: Victim, images: Tensor, points: Tensor, rows: NDArray[np.int64], number: int) -> Tensor:
        """Return larger successes: the next one for the second try, the largest for the last."""
        surer = []
        for row in rows:
            known = sorted(self._successes[row], key=lambda success: success[0])
            surer.append(known[min(number, len(known) - 1) if number < TRIES - 1 else -1][1])
        return torch.stack(surer)


class PatchSearch(Attack):
    """A patch against band and block smoothing: every position is looked at, the dangerous ones are painted.

    The votes of all positions of the band or block are taken once. A patch can only change those that it touches, so
    that where some places let the class be lost in the worst case, the others need no attack. Places are ranked by how
    much room they give, and the pixels inside the first ``places`` of them are driven by the sign of the gradient of
    the touched votes, from random colours and from the image, away from the class and toward its strongest rival.
    Every step's exact votes are counted.

    Args:
        steps: ascent steps a place, each of them one pass over the touched positions.
        places: how many places of the patch are painted, an image.
        restarts: starts of each, the first from random colours.

    Raises:
        ValueError: for steps, places or restarts < 1; when it runs, for another noise.
    """

    norms: ClassVar[tuple[str, ...]] = ("patch",)

    def __init__(self, steps: int = 30, places: int = 6, restarts: int = 1) -> None:
        self.steps = check_steps(steps)
        self.places = check_at_least("places", places, 1)
        self.restarts = check_at_least("restarts", restarts, 1)

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        noise = smoothed.noise
        if not isinstance(noise, (BandNoise, BlockNoise)):
            raise ValueError(f"noise of PatchSearch must be BandNoise or BlockNoise, got {noise!r}")
        kept = kept_by(noise, aim.images.device)
        points = [
            self._one(smoothed, noise, kept, image, int(own), math.floor(float(eps) + 1e-9), aim.generator)
            for image, own, eps in zip(aim.images, aim.classes, aim.eps, strict=True)
        ]
        return torch.stack(points)

    def _one(
        self,
        smoothed: SmoothedClassifier,
        noise: BandNoise | BlockNoise,
        kept: Tensor,
        image: Tensor,
        own: int,
        side: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the most harmful painting that was found of one image."""
        _, height, width = noise.shape
        side = min(side, height, width)
        if side < 1:
            return image
        votes = self._votes(smoothed, noise, image, kept)  # (positions, classes)
        total = votes.sum(0)
        best, margin = image, int(_margin(total, own))
        rival = int((total - (torch.arange(len(total), device=total.device) == own) * 10**9).argmax())
        for top, left in self._ranked(votes, kept, own, side, noise):
            patch = torch.zeros(height, width, dtype=torch.bool, device=image.device)
            patch[top : top + side, left : left + side] = True
            touched = (kept & patch.flatten()).any(1)
            rest = votes[~touched].sum(0)
            for start in range(self.restarts):
                begin = torch.rand(image.shape, generator=generator, device=image.device) if start % 2 == 0 else image
                found, reached = self._painted(
                    smoothed, noise, torch.where(patch, begin, image), patch, kept[touched], rest, own, rival
                )
                # What loses no vote is still another input, at which the certificate asserts something.
                if reached < margin or (reached == margin and best is image and not torch.equal(found, image)):
                    best, margin = found, reached
                if margin < 0:
                    return best
        return best

    def _ranked(
        self, votes: Tensor, kept: Tensor, own: int, side: int, noise: BandNoise | BlockNoise
    ) -> list[tuple[int, int]]:
        """Return the places where the worst change of the touched votes loses the class, the worst ones first.

        Inside a certified ball there are none: then all, because the value test asks what a patch does there.
        """
        _, height, width = noise.shape
        found: list[tuple[int, int, int]] = []
        for top, left in itertools.product(range(height - side + 1), range(width - side + 1)):
            patch = torch.zeros(height, width, dtype=torch.bool, device=votes.device)
            patch[top : top + side, left : left + side] = True
            touched = (kept & patch.flatten()).any(1)
            rest = votes[~touched].sum(0)
            worst = int(_margin(rest + int(touched.sum()) * _one_rival(rest, own), own))
            found.append((worst, top, left))
        found.sort()
        losing = [place for place in found if place[0] < 0]
        return _spread([(top, left) for _, top, left in losing or found], self.places)

    def _painted(
        self,
        smoothed: SmoothedClassifier,
        noise: BandNoise | BlockNoise,
        z: Tensor,
        patch: Tensor,
        kept: Tensor,
        rest: Tensor,
        own: int,
        rival: int,
    ) -> tuple[Tensor, int]:
        """Return the best image of an ascent inside the patch, and the margin of its votes."""
        best, margin = z, 10**9
        momentum = torch.zeros_like(z)
        for step in range(self.steps + 1):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                logits = smoothed.network(_dropped(z, kept))
                loss = _loss(logits, noise.threshold, own, rival)
                (gradient,) = torch.autograd.grad(loss, z)
            reached = int(_margin(rest + _voted(logits.detach(), noise.threshold).sum(0), own))
            if reached < margin:
                best, margin = z.detach(), reached
            if margin < 0:
                break
            momentum = 0.75 * momentum + gradient / gradient.abs().mean().clamp(min=1e-12)
            size = 0.25 * (1 - step / (self.steps + 1))
            z = torch.where(patch, (z.detach() - size * momentum.sign()).clamp(0, 1), z.detach())
        return best, margin

    @torch.no_grad()
    def _votes(self, smoothed: SmoothedClassifier, noise: EnumeratedNoise, image: Tensor, kept: Tensor) -> Tensor:
        """Return the vote of every position, (positions, C)."""
        parts = [smoothed.network(_dropped(image, rows)) for rows in kept.split(256)]
        return _voted(torch.cat(parts), noise.threshold)


class PixelSearch(Attack):
    """Few pixels against ablation: a greedy start, then random exchange while the vote does not recover (sparse-RS).

    The pixels and colours with the largest gradient of the soft vote begin; each step exchanges a falling share of the
    chosen pixels for others, of extreme colours, and keeps what does not help the class among the m copies (Croce et
    al. 2022). The copies are drawn anew a few times, because few of them see a changed pixel.

    Args:
        steps: number of exchanges, m forward passes each.
        renewals: how often the copies are drawn anew.

    Raises:
        ValueError: for steps or renewals < 1; when it runs, for another noise.
    """

    norms: ClassVar[tuple[str, ...]] = ("l0",)

    def __init__(self, steps: int = 100, renewals: int = 4) -> None:
        self.steps = check_steps(steps)
        self.renewals = check_at_least("renewals", renewals, 1)

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        noise = smoothed.noise
        if not isinstance(noise, AblationNoise):
            raise ValueError(f"noise of PixelSearch must be AblationNoise, got {noise!r}")
        x, dim = aim.images, math.prod(aim.images.shape[1:])
        sizes = torch.floor(aim.eps + 1e-9).long().clamp(max=noise.pixels)
        smoothed.renew()
        kept = self._kept(smoothed, dim, x)
        chosen, colours = self._greedy(smoothed, x, aim.classes, kept, sizes)
        z = _coloured(x, chosen, colours)
        reached = self._soft(smoothed, z, aim.classes, kept)
        for step in range(self.steps):
            if step and step % -(-self.steps // self.renewals) == 0:
                smoothed.renew()
                kept = self._kept(smoothed, dim, x)
                reached = self._soft(smoothed, z, aim.classes, kept)
            share = max(0.02, 0.4 * (1 - step / self.steps) ** 1.5)
            others, recoloured = self._exchanged(chosen, colours, sizes, share, aim.generator)
            proposal = _coloured(x, others, recoloured)
            value = self._soft(smoothed, proposal, aim.classes, kept)
            better = value <= reached
            chosen = torch.where(better[:, None], others, chosen)
            colours = torch.where(better.view(-1, 1, 1), recoloured, colours)
            z = torch.where(better.view(-1, 1, 1, 1), proposal, z)
            reached = torch.minimum(value, reached)
        return z

    def _kept(self, smoothed: SmoothedClassifier, dim: int, x: Tensor) -> Tensor:
        """Return which pixels each copy keeps, (m, H W), bool."""
        return smoothed.variates(dim, x.device).view(-1, *x.shape[1:])[:, 0].flatten(1) > 0

    def _greedy(
        self, smoothed: SmoothedClassifier, x: Tensor, classes: Tensor, kept: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return masks, (B, H W), of the pixels that promise most, and what all pixels would become, (B, C, H W)."""
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._margin(smoothed, z, classes, kept).sum(), z)
        target = (gradient < 0).to(x.dtype)  # down the margin of the class
        gain = (gradient.abs() * (target - x).abs()).sum(1).flatten(1)
        rank = gain.argsort(1, descending=True).argsort(1)
        return rank < sizes[:, None], target.flatten(2)

    def _exchanged(
        self, chosen: Tensor, colours: Tensor, sizes: Tensor, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return masks and colours with a share of the chosen pixels, one at least, exchanged for random others."""
        noise = torch.rand(chosen.shape, generator=generator, device=chosen.device)
        count = (share * sizes).ceil().long().clamp(min=1)[:, None]
        leaving = torch.where(chosen, noise, 2.0).argsort(1).argsort(1) < count
        coming = torch.where(chosen, 2.0, noise).argsort(1).argsort(1) < count
        coming &= (sizes < chosen.shape[1])[:, None]
        others = torch.where((sizes < chosen.shape[1])[:, None], (chosen & ~leaving) | coming, chosen)
        fresh = torch.randint(2, colours.shape, generator=generator, device=colours.device).to(colours)
        return others, torch.where((coming | (leaving & others))[:, None], fresh, colours)

    @torch.no_grad()
    def _soft(self, smoothed: SmoothedClassifier, z: Tensor, classes: Tensor, kept: Tensor) -> Tensor:
        return self._margin(smoothed, z, classes, kept)

    def _margin(self, smoothed: SmoothedClassifier, z: Tensor, classes: Tensor, kept: Tensor) -> Tensor:
        """Return by how much the class leads its strongest rival in the mean probability of the copies, (B,)."""
        rows = torch.where(kept[:, None, None, :], z.flatten(2)[None], NULL)  # (m, B, C, H W)
        logits = smoothed.network(rows.reshape(-1, *z.shape[1:])).view(len(kept), len(z), -1)
        p = torch.softmax(logits, dim=-1).mean(0)
        own = p.gather(1, classes[:, None])[:, 0]
        return own - p.scatter(1, classes[:, None], -1.0).amax(1)


def kept_by(noise: EnumeratedNoise, device: torch.device) -> Tensor:
    """Return which pixels each position of a band or block keeps, (positions, H W), bool."""
    assert isinstance(noise, (BandNoise, BlockNoise))
    every = torch.arange(noise.size, device=device)
    rows = torch.empty(noise.size, math.prod(noise.shape), device=device)
    noise.split(torch.ones(rows.shape[1], device=device), every, rows)
    return (rows > 0).view(noise.size, noise.shape[0], -1)[:, 0]


def touched_positions(noise: BandNoise | BlockNoise, delta: FloatArray) -> int:
    """Return how many positions keep a pixel that a perturbation, (d,), changes."""
    changed = torch.from_numpy(np.asarray(delta) != 0).view(noise.shape[0], -1).any(0)
    return int((kept_by(noise, torch.device("cpu")) & changed).any(1).sum())


def _dropped(image: Tensor, kept: Tensor) -> Tensor:
    """Return the image with all but the kept pixels dropped, one row a mask of (m, H W)."""
    rows = torch.where(kept[:, None], image.flatten(1)[None], NULL)
    return rows.view(-1, *image.shape)


def _voted(logits: Tensor, threshold: float | None) -> Tensor:
    """Return the votes of rows, (m, C): of the largest logit, or of every class that reaches the threshold."""
    if threshold is not None:
        return threshold_votes(logits, threshold)[0]
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])


def _loss(logits: Tensor, threshold: float | None, own: int, rival: int) -> Tensor:
    """Return what falls when votes for the class are lost and the rival gains some."""
    if threshold is None:
        return torch.relu(logits[:, own] - logits[:, rival] + 1.0).sum()
    p = torch.softmax(logits, dim=1)
    return (torch.relu(p[:, own] - threshold + _LEAD) + torch.relu(threshold + _LEAD - p[:, rival])).sum()


def _margin(total: Tensor, own: int) -> Tensor:
    """Return the smallest ``n_own - n_c - 1{c < own}``, negative where the class is lost."""
    classes = torch.arange(len(total), device=total.device)
    gaps = total[own] - total - (classes < own).long()
    return torch.where(classes == own, torch.iinfo(torch.int64).max, gaps).min()


def _one_rival(total: Tensor, own: int) -> Tensor:
    """Return one vote for the strongest rival, (C,)."""
    classes = torch.arange(len(total), device=total.device)
    ahead = total * 2 + (classes < own)  # of equal counts the lower class comes first
    return (classes == torch.where(classes == own, -1, ahead).argmax()).long()


def _spread(places: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return the first places, no two of them neighbours while there are others."""
    chosen: list[tuple[int, int]] = []
    for reach in (2, 0):
        for top, left in places:
            if len(chosen) < count and all(max(abs(top - t), abs(left - c)) > reach for t, c in chosen):
                chosen.append((top, left))
    return chosen


def _coloured(x: Tensor, chosen: Tensor, colours: Tensor) -> Tensor:
    return torch.where(chosen[:, None], colours, x.flatten(2)).view_as(x)


def _extent(lines: Tensor) -> Tensor:
    """Return how many lines there are from the first true one to the last, (m,); 0 without any."""
    size = lines.shape[1]
    places = torch.arange(size, device=lines.device)
    first = torch.where(lines, places, size).amin(1)
    last = torch.where(lines, places, -1).amax(1)
    return (last - first + 1).clamp(min=0)
