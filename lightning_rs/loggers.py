"""What goes to loggers: metrics, the per-image table, curves and images. The only user of wandb."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from lightning_rs.metrics import abstention_rate, average_certified_radius, certified_accuracy, undecided_rate
from lightning_rs.noise import Noise
from lightning_rs.plots import certified_accuracy_figure, save_figure
from lightning_rs.records import Certification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Radii of logged metrics, in units of sigma rounded to two digits of input units.
_FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
_COLUMNS = ("index", "label", "prediction", "radius", "correct", "status", "p_lower", "n_used", "statement")


def run_directory(trainer: pl.Trainer) -> Path:
    """Return the folder of this run: the logger's, as ModelCheckpoint uses it, else the trainer's own.

    Without a logger that is ``run_folder``, which the command line sets, or ``default_root_dir``.
    """
    logger = trainer.logger
    if logger is None:
        return getattr(trainer, "run_folder", None) or Path(trainer.default_root_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def prepare_loggers(trainer: pl.Trainer) -> None:
    """Apply ``WANDB_SILENT`` before the W&B run starts, or it warns about an argument that Lightning passes on."""
    if os.environ.get("WANDB_SILENT") == "true" and any(isinstance(log, WandbLogger) for log in trainer.loggers):
        import wandb

        wandb.termsetup(wandb.Settings(silent=True), None)


def close_loggers(failed: bool = False) -> None:
    """End the W&B run of this process, if there is one, so that the next command gets its own; say where it lies."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return
    folder, offline = Path(run.dir).parent, run.offline
    run.finish(exit_code=int(failed))
    if offline:
        print(f"W&B run, offline: wandb sync {folder}", file=sys.stderr)


def metric_radii(sigma: float) -> list[float]:
    """Return the radii at which metrics are logged for a noise of this scale."""
    return [round(factor * sigma, 4) for factor in _FACTORS]


def certification_metrics(
    certifications: Sequence[Certification], radii: Sequence[float], prefix: str = "certify"
) -> dict[str, float]:
    """Return ``prefix/ACR``, ``prefix/accuracy@R`` and ``prefix/abstain``; ACR is left out in decision mode."""
    accuracies = certified_accuracy(certifications, radii)
    metrics = {f"{prefix}/accuracy@{r:g}": float(a) for r, a in zip(radii, accuracies, strict=True)}
    metrics[f"{prefix}/abstain"] = float(abstention_rate(certifications))
    if all(record.mode != "decision" for record in certifications):
        metrics[f"{prefix}/ACR"] = float(average_certified_radius(certifications))
    return metrics


def log_certifications(trainer: pl.Trainer, certifications: Sequence[Certification], noise: Noise) -> dict[str, float]:
    """Log metrics, the table of images and the curve of certified accuracy; return the metrics."""
    labelled = [record for record in certifications if record.label is not None]
    if not labelled:
        return {}
    metrics = certification_metrics(labelled, metric_radii(noise.sigma))
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
        if isinstance(logger, WandbLogger):
            logger.log_table("certify/images", columns=list(_COLUMNS), data=[_row(record) for record in labelled])
    if all(record.mode != "decision" for record in labelled):
        title = f"{noise!r}, n = {labelled[0].n:,}, alpha = {labelled[0].alpha:g}"
        log_figure(trainer, "certify/curve", certified_accuracy_figure({title: labelled}, norm=labelled[0].norm))
    return metrics


def summary(certifications: Sequence[Certification], noise: Noise) -> str:
    """Return the result of a run as a few lines for people."""
    labelled = [record for record in certifications if record.label is not None]
    if not labelled:
        return f"{len(certifications)} images without labels"
    first = labelled[0]
    lines = [f"{len(labelled)} images, {first.certificate} ({first.norm}), {noise!r}, alpha = {first.alpha:g}"]
    radii = metric_radii(noise.sigma)
    accuracies = certified_accuracy(labelled, radii)
    lines.append(
        "certified accuracy  " + "  ".join(f"{a:.3f} at {r:g}" for a, r in zip(accuracies, radii, strict=True))
    )
    shares = [f"abstained {abstention_rate(labelled):.3f}"]
    if first.mode == "decision":
        shares.append(f"undecided {undecided_rate(labelled):.3f}")
    else:
        shares.insert(0, f"average certified radius {average_certified_radius(labelled):.4f}")
    return "\n".join([*lines, ", ".join(shares)])


def log_figure(trainer: pl.Trainer, key: str, figure: Figure) -> None:
    """Show a figure on every logger that takes pictures; without one, save it in the run's folder."""
    shown = False
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [_pixels(figure)])
            shown = True
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, global_step=trainer.global_step)
            shown = True
    if not shown:
        save_figure(figure, run_directory(trainer) / (key.replace("/", "_") + ".png"))


def _row(record: Certification) -> list[Any]:
    return [
        record.index,
        record.label,
        record.prediction,
        record.radius,
        record.correct,
        record.status,
        record.bounds.get("p_lower"),
        record.n_used,
        repr(record),
    ]


def _pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
