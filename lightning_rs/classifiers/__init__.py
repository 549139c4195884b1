"""LightningModules: one training objective a file."""

from lightning_rs.classifiers.augmentation import NoiseAugmentation
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.classifiers.clean import CleanTraining
from lightning_rs.classifiers.denoising import DenoiserTraining

__all__ = ["BaseClassifier", "CleanTraining", "DenoiserTraining", "NoiseAugmentation"]
