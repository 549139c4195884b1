"""Noise schedules of diffusion models: which timestep was trained at which noise level. Numbers only, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.checks import as_float64, check_at_least, check_choice, check_positive

# beta of the first and the last step, where the schedule has them: DDPM, and the latent models that square a line.
_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


def alphas_cumprod(
    schedule: str = "linear", steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
) -> NDArray[np.float64]:
    r"""Return :math:`\bar\alpha_t = \prod_{i \le t} (1 - \beta_i)` of a published schedule, (steps,), float64.

    Args:
        schedule: "linear" (Ho et al., 2020: beta from 1e-4 to .02), "scaled_linear" (the square of a line, .00085 to
            .012) or "cosine" (Nichol and Dhariwal, 2021; beta at most .999).
        steps: number of timesteps: 1000 of DDPM and guided diffusion, 4000 of improved diffusion on CIFAR-10.
        beta_start: beta of the first step, where it is not the published one; not of "cosine".
        beta_end: beta of the last.

    Raises:
        ValueError: for an unknown schedule or a number out of range.
    """
    check_choice("schedule", schedule, [*_BETAS, "cosine"])
    check_at_least("steps", steps, 1)
    if schedule == "cosine":
        if (beta_start, beta_end) != (None, None):
            raise ValueError(f"schedule 'cosine' has no beta_start and beta_end, got {beta_start!r} and {beta_end!r}")
        level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    else:
        first, last = _BETAS[schedule]
        ends = (first if beta_start is None else beta_start, last if beta_end is None else beta_end)
        power = 2 if schedule == "scaled_linear" else 1
        betas = np.linspace(ends[0] ** (1 / power), ends[1] ** (1 / power), steps) ** power
    return check_alphas_cumprod(np.cumprod(1 - betas))


def denoising_timestep(sigma: ArrayLike, alphas_cumprod: ArrayLike | Sequence[float]) -> NDArray[np.int64]:
    r"""Return the timestep at which a diffusion model was trained on noise closest to ours.

    Noise of standard deviation ``sigma`` on pixels in [0, 1] is ``2 sigma`` in model units [-1, 1]; the model saw
    :math:`\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}` at step t (Carlini et al., 2023). The nearest in log
    sigma is taken: the noise stays what the certificate says, a mismatch only costs accuracy. (Their code takes the
    next larger level and adds the difference.)

    Args:
        sigma: standard deviation of the noise in input units, any shape.
        alphas_cumprod: the schedule, (T,), decreasing within (0, 1).

    Returns:
        timesteps counted from 0, as diffusers and guided diffusion number them; shape of ``sigma``.

    Raises:
        ValueError: if sigma is not positive or the schedule is none.
    """
    level = np.log(2 * check_positive("sigma", sigma))
    alphas = check_alphas_cumprod(alphas_cumprod)
    levels = 0.5 * (np.log1p(-alphas) - np.log(alphas))
    return np.abs(level[..., None] - levels).argmin(axis=-1)


def check_alphas_cumprod(values: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """Return a schedule as float64; raise ``ValueError`` unless it decreases within (0, 1)."""
    alphas = as_float64("alphas_cumprod", values)
    if alphas.ndim != 1 or len(alphas) == 0:
        raise ValueError(f"alphas_cumprod must be one number a timestep, got shape {alphas.shape}")
    inside = bool((alphas > 0).all() and (alphas < 1).all())
    if not inside or (np.diff(alphas) >= 0).any():
        raise ValueError(
            f"alphas_cumprod must decrease within (0, 1), got {alphas[0]:g} ... {alphas[-1]:g}: it is the running "
            "product of 1 - beta, not beta"
        )
    return alphas
