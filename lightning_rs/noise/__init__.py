"""How an input is randomised: one law a file."""

from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import AdditiveNoise, EnumeratedNoise, Noise, noise_from_dict, noise_to_dict
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerNoise, PureLinfNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise

__all__ = [
    "AblationNoise",
    "AdditiveNoise",
    "BandNoise",
    "BlockNoise",
    "DeterministicSplittingNoise",
    "EnumeratedNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "MixedNormNoise",
    "Noise",
    "NormPowerNoise",
    "PureLinfNoise",
    "SplittingNoise",
    "UniformNoise",
    "noise_from_dict",
    "noise_to_dict",
]
