"""What Trainer.certify and Trainer.predict run: record sets, progress, ranks."""

from lightning_rs.stages.attack import AttackStage
from lightning_rs.stages.base import SmoothingStage
from lightning_rs.stages.certification import CertificationStage
from lightning_rs.stages.contradictions import check_certificates
from lightning_rs.stages.prediction import PredictionStage
from lightning_rs.stages.progress import Progress
from lightning_rs.stages.transfer import TransferStage

__all__ = [
    "AttackStage",
    "CertificationStage",
    "PredictionStage",
    "Progress",
    "SmoothingStage",
    "TransferStage",
    "check_certificates",
]
