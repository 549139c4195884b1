"""Callbacks of training: certification at epoch end, figures."""

from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.callbacks.figures import NoisyImageGrid

__all__ = ["EpochEndCertification", "NoisyImageGrid"]
