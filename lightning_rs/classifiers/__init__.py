"""LightningModules: one training objective a file."""

from lightning_rs.classifiers.augmentation import NoiseAugmentation
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.classifiers.catrs import CATRS
from lightning_rs.classifiers.clean import CleanTraining
from lightning_rs.classifiers.consistency import Consistency
from lightning_rs.classifiers.copies import NoisyCopies
from lightning_rs.classifiers.denoising import DenoiserTraining
from lightning_rs.classifiers.macer import MACER
from lightning_rs.classifiers.smoothadv import SmoothAdv
from lightning_rs.classifiers.smoothmix import SmoothMix
from lightning_rs.classifiers.stability import Stability

__all__ = [
    "CATRS",
    "MACER",
    "BaseClassifier",
    "CleanTraining",
    "Consistency",
    "DenoiserTraining",
    "NoiseAugmentation",
    "NoisyCopies",
    "SmoothAdv",
    "SmoothMix",
    "Stability",
]
