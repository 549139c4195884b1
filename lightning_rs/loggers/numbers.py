"""The numbers that every logger gets, and the lines that people read at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from lightning_rs.metrics import abstention_rate, average_certified_radius, certified_accuracy, undecided_rate
from lightning_rs.noise import Noise
from lightning_rs.records import Certification
from lightning_rs.records.units import counts_pixels

# Radii of logged metrics, in units of sigma rounded to four digits of input units.
_FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
# Where radii count pixels.
_PIXELS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)


def metric_radii(sigma: float, norm: str = "l2") -> list[float]:
    """Return the radii at which metrics are logged for a noise of this scale and a certificate in this norm."""
    if counts_pixels(norm):
        return list(_PIXELS)
    return [round(factor * sigma, 4) for factor in _FACTORS]


def certification_metrics(
    certifications: Sequence[Certification], radii: Sequence[float], prefix: str = "certify"
) -> dict[str, float]:
    """Return ``prefix/ACR``, ``prefix/accuracy@R`` and ``prefix/abstain``; ACR is left out in decision mode.

    Args:
        certifications: records of at least one image, with labels.
        radii: radii R, in the unit of the norm.
        prefix: "certify" for the test data, "preview" for validation data during training.
    """
    accuracies = certified_accuracy(certifications, radii)
    metrics = {f"{prefix}/accuracy@{r:g}": float(a) for r, a in zip(radii, accuracies, strict=True)}
    metrics[f"{prefix}/abstain"] = float(abstention_rate(certifications))
    if all(record.has_radius for record in certifications):
        metrics[f"{prefix}/ACR"] = float(average_certified_radius(certifications))
    else:
        metrics[f"{prefix}/undecided"] = float(undecided_rate(certifications))
    return metrics


def log_numbers(trainer: pl.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log metrics everywhere; their x axis in W&B is one of them, elsewhere it is ``step``."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics(dict(metrics))
        else:
            logger.log_metrics(dict(metrics), step=step)


def write_out(trainer: pl.Trainer) -> None:
    """Let loggers write what they hold back: Lightning does that before its predict loop's results are there."""
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()


def summary(certifications: Sequence[Certification], noise: Noise) -> str:
    """Return the result of a run as a few lines for people."""
    labelled = [record for record in certifications if record.label is not None]
    if not labelled:
        return f"{len(certifications)} images without labels"
    first = labelled[0]
    lines = [f"{len(labelled)} images, {first.certificate} ({first.norm}), {noise!r}, alpha = {first.alpha:g}"]
    radii = metric_radii(noise.sigma, first.norm)
    accuracies = certified_accuracy(labelled, radii)
    lines.append(
        "certified accuracy  " + "  ".join(f"{a:.3f} at {r:g}" for a, r in zip(accuracies, radii, strict=True))
    )
    shares = [f"abstained {abstention_rate(labelled):.3f}"]
    if not first.has_radius:
        shares.append(f"undecided {undecided_rate(labelled):.3f}")
    else:
        shares.insert(0, f"average certified radius {average_certified_radius(labelled):.4f}")
    return "\n".join([*lines, ", ".join(shares)])
