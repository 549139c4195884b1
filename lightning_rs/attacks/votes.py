"""A black box: random local changes that are kept while the hard vote does not recover."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rs.attacks.base import Aim, Attack, check_steps
from lightning_rs.smoothed import SmoothedClassifier


class VoteSearch(Attack):
    """Random search by votes alone, in the manner of the Square attack (Andriushchenko et al. 2020).

    Each step proposes to change a random window of the image, pushes it as far as the norm allows, projects onto ball
    and box, and keeps the proposal if the margin of the class over its strongest rival among the m copies does not
    grow. Windows shrink from half of the image to single pixels. It needs neither a gradient nor logits, and works for
    every noise.

    Args:
        steps: number of proposals, m forward passes each.

    Raises:
        ValueError: for steps < 1.
    """

    def __init__(self, steps: int = 200) -> None:
        self.steps = check_steps(steps)

    @torch.no_grad()
    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        x, directed = aim.x, aim.directed()
        smoothed.renew()
        z = aim.geometry.random(x, aim.eps, aim.generator) if directed is None else directed
        margin = _margin(smoothed, aim.shaped(z), aim.classes)
        for step in range(self.steps):
            window = _windows(aim.images.shape, 0.5 * (1 - step / self.steps) ** 2, aim.generator).to(x.device)
            proposal = aim.project(_pushed(z, window, aim))
            reached = _margin(smoothed, aim.shaped(proposal), aim.classes)
            kept = reached <= margin
            z = torch.where(kept[:, None], proposal, z)
            margin = torch.where(kept, reached, margin)
        return z


def _margin(smoothed: SmoothedClassifier, images: Tensor, classes: Tensor) -> Tensor:
    """Return the number of votes by which the class leads, (B,)."""
    scores = smoothed.copy_logits(images)
    votes = torch.nn.functional.one_hot(scores.argmax(2), scores.shape[2]).sum(0)
    own = votes.gather(1, classes[:, None])[:, 0]
    return own - votes.scatter(1, classes[:, None], -1).amax(1)


def _windows(shape: torch.Size, share: float, generator: torch.Generator) -> Tensor:
    """Return a random square window an image as flat masks, (B, d); for vectors random coordinates."""
    device = generator.device
    if len(shape) < 4:
        dim = int(torch.Size(shape[1:]).numel())
        return torch.rand(shape[0], dim, generator=generator, device=device) < max(share, 1.0 / dim)
    height, width = shape[-2:]
    side = max(1, round((share * height * width) ** 0.5))
    masks = torch.zeros(shape, dtype=torch.bool, device=device)
    tops = torch.randint(max(1, height - side + 1), (shape[0],), generator=generator, device=device).tolist()
    lefts = torch.randint(max(1, width - side + 1), (shape[0],), generator=generator, device=device).tolist()
    for mask, top, left in zip(masks, tops, lefts, strict=True):
        mask[..., top : top + side, left : left + side] = True
    return masks.flatten(1)


def _pushed(z: Tensor, window: Tensor, aim: Aim) -> Tensor:
    """Return z with one value, up or down, added in the window: so much that the window alone would use up eps."""
    signs = torch.randint(2, (len(z), 1), generator=aim.generator, device=z.device) * 2.0 - 1.0
    count = window.sum(1, keepdim=True).clamp(min=1)
    radius = aim.eps.to(z)[:, None]
    size = {"linf": 2 * radius, "l2": radius / count.sqrt(), "l1": radius / count}[aim.geometry.norm]
    return z + aim.geometry.within(window * signs * size)
