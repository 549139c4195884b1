"""The certificate that is meant when none is named: the usual one of the noise."""

from __future__ import annotations

from lightning_rs.certificates import (
    Certificate,
    DeterministicSplittingL1,
    GaussianL2,
    LaplaceL1,
    MixedNormLinf,
    NormPowerL2,
    PureLinf,
    SplittingL1,
    UniformL1,
)
from lightning_rs.noise import (
    DeterministicSplittingNoise,
    GaussianNoise,
    LaplaceNoise,
    MixedNormNoise,
    Noise,
    NormPowerNoise,
    PureLinfNoise,
    SplittingNoise,
    UniformNoise,
)

_NATURAL: dict[type[Noise], type[Certificate]] = {
    GaussianNoise: GaussianL2,
    LaplaceNoise: LaplaceL1,
    UniformNoise: UniformL1,
    SplittingNoise: SplittingL1,
    DeterministicSplittingNoise: DeterministicSplittingL1,
    NormPowerNoise: NormPowerL2,
    MixedNormNoise: MixedNormLinf,
    PureLinfNoise: PureLinf,
}


def natural_certificate(law: type[Noise]) -> type[Certificate]:
    """Return the usual certificate for a noise.

    Raises:
        ValueError: for a law that has none, because then it must be named.
    """
    if law not in _NATURAL:
        known = ", ".join(noise.__name__ for noise in _NATURAL)
        raise ValueError(f"certificates must be named for {law.__name__}; without a name they are known for {known}")
    return _NATURAL[law]
