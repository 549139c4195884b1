"""The l1 radius of Laplace noise."""

from __future__ import annotations

from lightning_rs.certificates.base import Setting, TopVoteCertificate
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import FloatArray
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.numerics.vote_radii import laplace_l1_radius


@usual_for(LaplaceNoise)
class LaplaceL1(TopVoteCertificate):
    """Open l1 ball of :func:`laplace_l1_radius`, from the one-sided bound on the votes of the top class.

    With probability at least 1 - alpha over the sampling, the smoothed class is constant in the ball. Radius
    in input units; it abstains where the bound does not exceed 1/2.
    """

    norm = "l1"
    noises = (LaplaceNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        assert isinstance(setting.noise, LaplaceNoise)
        return laplace_l1_radius(scale=setting.noise.scale, q_upper=q_upper)
