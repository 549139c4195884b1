"""How an input is randomised: one law a file."""

from lightning_rs.noise.base import AdditiveNoise, EnumeratedNoise, Noise, noise_from_dict, noise_to_dict
from lightning_rs.noise.gaussian import GaussianNoise

__all__ = ["AdditiveNoise", "EnumeratedNoise", "GaussianNoise", "Noise", "noise_from_dict", "noise_to_dict"]
