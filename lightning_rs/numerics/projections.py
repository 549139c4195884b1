"""Projections onto norm balls cut with a box, row by row."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lightning_rs.checks import FloatArray, as_float64, check_nonnegative, check_probability


def project_l1_box(z: ArrayLike, x: ArrayLike, eps: ArrayLike) -> FloatArray:
    r"""Return the nearest point to ``z`` with ``||. - x||_1 <= eps`` and all coordinates in [0, 1].

    With u = z - x, a = |u| and the room c_i = 1 - x_i where u_i > 0, else x_i, the change is
    ``sign(u) clip(a - mu, 0, c)``: mu = 0 if that fits into eps, else the root of the piecewise linear, decreasing
    ``sum_i clip(a_i - mu, 0, c_i) = eps``, found by sorting its 2 d break points. Projecting onto the ball and clipping
    to the box afterwards is another point, which wastes part of eps.

    Args:
        z: points, (..., d).
        x: centres in [0, 1], (..., d).
        eps: radii >= 0, (...).

    Returns:
        Projections, (..., d), float64.

    Raises:
        ValueError: for NaN, ``x`` outside [0, 1], or negative ``eps``.

    Example:
        >>> project_l1_box([0.3, -0.2, 0.8, 2.0], [0.0, 0.0, 0.0, 1.0], 0.4).round(6).tolist()
        [0.0, 0.0, 0.4, 1.0]
    """
    target, centre = np.broadcast_arrays(as_float64("z", z), check_probability("x", x))
    radius = np.broadcast_to(check_nonnegative("eps", eps), target.shape[:-1])
    rows = [torch.tensor(np.ascontiguousarray(part)).reshape(-1, target.shape[-1]) for part in (target, centre)]
    found = project_l1(rows[0], rows[1], torch.tensor(radius.ravel()), (0.0, 1.0))
    return found.numpy().reshape(target.shape)


def project_l1(z: Tensor, x: Tensor, eps: Tensor, domain: tuple[float, float] | None) -> Tensor:
    """Return the projections of :func:`project_l1_box` for any box or none; (m, d), (m, d), (m,) of one dtype."""
    move = z - x
    size = move.abs()
    if domain is None:
        room = torch.full_like(x, torch.inf)
    else:
        room = torch.where(move > 0, domain[1] - x, x - domain[0])
    total = torch.minimum(size, room).sum(1)
    # Between break points the sum falls with the number of coordinates that neither stand at their room nor at 0.
    points, order = torch.cat([(size - room).clamp(min=0), size], dim=1).sort(dim=1)
    turns = torch.cat([torch.ones_like(x), -torch.ones_like(x)], dim=1).gather(1, order)
    falling = turns.cumsum(1)
    spans = points.diff(dim=1)
    # The sum at every break point; at the first, which is >= 0, it is still the total.
    values = torch.cat([total[:, None], total[:, None] - (falling[:, :-1] * spans).cumsum(1)], dim=1)
    last = ((values >= eps[:, None]).sum(1) - 1).clamp(min=0)[:, None]
    rate = falling.gather(1, last).clamp(min=1)
    excess = values.gather(1, last) - eps[:, None]
    shift = torch.where(total[:, None] <= eps[:, None], 0.0, points.gather(1, last) + excess / rate)
    return x + move.sign() * torch.minimum((size - shift).clamp(min=0), room)
