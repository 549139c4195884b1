"""What goes to loggers: metrics, configuration, charts, the per-image table. The only user of wandb."""

from lightning_rs.loggers.attacks import AttackLog
from lightning_rs.loggers.certification import CertificationLog, log_certifications
from lightning_rs.loggers.jobs import Job, fit_job
from lightning_rs.loggers.numbers import certification_metrics, metric_radii, summary
from lightning_rs.loggers.pictures import log_figure
from lightning_rs.loggers.predictions import PredictionLog
from lightning_rs.loggers.runs import begin, close_loggers, held, prepare_loggers, run_directory, when_begun

__all__ = [
    "AttackLog",
    "CertificationLog",
    "Job",
    "PredictionLog",
    "begin",
    "certification_metrics",
    "close_loggers",
    "fit_job",
    "held",
    "log_certifications",
    "log_figure",
    "metric_radii",
    "prepare_loggers",
    "run_directory",
    "summary",
    "when_begun",
]
