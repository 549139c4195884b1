"""Callbacks of training: certification at epoch end, figures, pace."""

from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.callbacks.figures import NoisyImageGrid
from lightning_rs.callbacks.pace import TrainingPace

__all__ = ["EpochEndCertification", "NoisyImageGrid", "TrainingPace"]
