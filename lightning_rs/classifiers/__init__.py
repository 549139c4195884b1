"""LightningModules: one training objective a file."""

from lightning_rs.classifiers.augmentation import NoiseAugmentation
from lightning_rs.classifiers.base import BaseClassifier

__all__ = ["BaseClassifier", "NoiseAugmentation"]
