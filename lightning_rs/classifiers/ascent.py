"""Gradient ascent of a training step inside the ball around an image and the box of the pixels.

Both sets contain the image, and moving every coordinate towards it never leaves the ball: projecting to the ball and
clamping to the box gives a point of both. In l1, where that is far from the nearest one, the projection to both at once
is that of the attacks. Steps have a fixed length along the normalised gradient; an image whose
gradient is zero stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_rs.noise import (
    AblationNoise,
    BandNoise,
    BlockNoise,
    DeterministicSplittingNoise,
    LaplaceNoise,
    MixedNormNoise,
    Noise,
    PureLinfNoise,
    SplittingNoise,
    UniformNoise,
)
from lightning_rs.noise.base import Domain
from lightning_rs.numerics.projections import project_l1

Norm = Literal["l1", "l2", "linf"]
_L1 = (LaplaceNoise, UniformNoise, SplittingNoise, DeterministicSplittingNoise)
_LINF = (MixedNormNoise, PureLinfNoise)
_DROPPING = (AblationNoise, BandNoise, BlockNoise)
_SPARSE = 0.05  # share of the coordinates that one l1 step moves


def norm_of(noise: Noise) -> Norm:
    """Return the norm of the balls that a law's usual certificate is about, in which a training attacks.

    Raises:
        ValueError: for a noise that drops pixels: its certificates count pixels, and no gradient tells how to choose.
    """
    if isinstance(noise, _DROPPING):
        raise ValueError(
            f"noise must be one whose gradient reaches the pixels for an attack in training, got {noise!r}: it drops "
            "pixels, and its certificates count those that change. NoiseAugmentation, Stability and Consistency need "
            "no gradient by the pixels"
        )
    return "l1" if isinstance(noise, _L1) else "linf" if isinstance(noise, _LINF) else "l2"


def check_eps(eps: float, norm: Norm, dim: int, domain: Domain, name: str = "eps") -> float:
    """Return ``eps``, the argument ``name``.

    Raises:
        ValueError: unless it is finite and positive, and smaller than the whole box: 127 for 127/255 is a mistake.
    """
    width = 1.0 if domain is None else domain[1] - domain[0]
    most = width * {"l1": dim, "l2": math.sqrt(dim), "linf": 1.0}[norm]
    if not 0 < eps <= most:
        raise ValueError(
            f"{name} must lie in (0, {most:g}], the {norm} diameter of the images, in pixel units (a grey level of 8 "
            f"bits is 1/255), got {eps:g}"
        )
    return float(eps)


def ascend(
    objective: Callable[[Tensor], Tensor], images: Tensor, eps: float, steps: int, norm: Norm, domain: Domain
) -> Tensor:
    """Return ``steps`` steps of length 2 eps / steps from the images, projected (Salman et al. 2019).

    Args:
        objective: from images (B, *shape) to a sum over images, to be raised.
        images: where it starts, (B, *shape).
        eps: radius of the ball.
        steps: number of steps; 0 returns the images.
        norm: of the ball.
        domain: interval of the pixels, None for R^d.
    """
    point = images
    for _ in range(steps):
        point = project(
            point + 2.0 * eps / steps * direction(gradient(objective, point), norm), images, eps, norm, domain
        )
    return point


def gradient(objective: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Return the gradient of the objective at the point, detached."""
    at = point.detach().requires_grad_(True)
    (found,) = torch.autograd.grad(objective(at), at)
    return found.detach()


def direction(gradients: Tensor, norm: Norm) -> Tensor:
    """Return the steepest direction of each image in the norm: of norm 1, or 0 where the gradient is."""
    flat = gradients.flatten(1)
    if norm == "linf":
        return gradients.sign()
    if norm == "l2":
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / length.clamp(min=torch.finfo(flat.dtype).tiny)).view_as(gradients)
    # The steepest l1 step moves one pixel; a few at once, with equal sizes, is faster (SLIDE, Tramer and Boneh 2019).
    count = max(1, round(_SPARSE * flat.shape[1]))
    where = flat.abs().topk(count, dim=1).indices
    chosen = torch.zeros_like(flat).scatter_(1, where, flat.gather(1, where).sign())
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp(min=1.0)).view_as(gradients)


def project(point: Tensor, images: Tensor, eps: float, norm: Norm, domain: Domain) -> Tensor:
    """Return a point of the ball around each image and of the box near ``point``; in l1 the nearest one."""
    if norm == "l1":
        start, end = images.flatten(1), point.flatten(1)
        found = project_l1(end, start, end.new_full((len(end),), eps), domain).view_as(images)
        return torch.empty_like(images).copy_(found)  # in the layout of the images, by which variates are met
    delta = (point - images).flatten(1)
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / torch.linalg.vector_norm(delta, dim=1, keepdim=True).clamp(min=eps))
    inside = images + delta.view_as(images)
    return inside if domain is None else inside.clamp(*domain)
