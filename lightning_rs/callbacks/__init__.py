"""Certification at epoch end and after training, record writing, figures; the only users of loggers."""

from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.callbacks.figures import NoisyImageGrid
from lightning_rs.callbacks.logging import log_certifications, run_directory, summary
from lightning_rs.callbacks.progress import Progress
from lightning_rs.callbacks.stage import CertificationStage, PredictionStage

__all__ = [
    "CertificationStage",
    "EpochEndCertification",
    "NoisyImageGrid",
    "PredictionStage",
    "Progress",
    "log_certifications",
    "run_directory",
    "summary",
]
