"""Certification at epoch end and after training, record writing, figures; the only users of loggers."""

from lightning_rs.callbacks.certification import CertificationStage
from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.callbacks.figures import NoisyImageGrid
from lightning_rs.callbacks.logging import log_certifications, run_directory, summary
from lightning_rs.callbacks.natural import natural_certificate
from lightning_rs.callbacks.prediction import PredictionStage
from lightning_rs.callbacks.progress import Progress
from lightning_rs.callbacks.stage import SmoothingStage

__all__ = [
    "CertificationStage",
    "EpochEndCertification",
    "NoisyImageGrid",
    "PredictionStage",
    "Progress",
    "SmoothingStage",
    "log_certifications",
    "natural_certificate",
    "run_directory",
    "summary",
]
