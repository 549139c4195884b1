"""What a run of W&B is told of itself: readable name, group, tags, the whole configuration, the axis of each metric."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from lightning_rs.certifier import Certifier
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.noise import Noise, noise_to_dict
from lightning_rs.records import Header, environment

Kind = Literal["fit", "certify", "predict", "attack"]
# Axis and summary of a metric: "trainer/global_step" and "epoch" are Lightning's.
Axes = Mapping[str, tuple[str, str]]
_TRAINING: Axes = {
    "train/learning_rate": ("trainer/global_step", "last"),
    "train/images_per_s": ("trainer/global_step", "mean"),
    "val/accuracy_clean": ("epoch", "max"),
    "val/accuracy_noisy": ("epoch", "max"),
    "val/loss_noisy": ("epoch", "min"),
}
_LOGITS = "logits"  # of the function, on fixed inputs: hundreds of numbers that nobody compares by eye


@dataclass(frozen=True)
class Job:
    """What one command does.

    Attributes:
        kind: the command, W&B's job type.
        name: readable name of the run.
        group: the same for a training and everything that is done with its checkpoints.
        tags: data, network, noise, objective, certificates.
        config: plain values.
        axes: x axis and summary ("max", "min", "mean", "last") of each metric.
    """

    kind: Kind
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    axes: Axes


def metric_axes(prefix: str, radii: Iterable[float], axis: str, kept: str) -> dict[str, tuple[str, str]]:
    """Return axis and summary of what ``certification_metrics`` computes; of rates of failure the last value."""
    good = {f"{prefix}/{name}": (axis, kept) for name in ("ACR", *(f"accuracy@{r:g}" for r in radii))}
    return {**good, **{f"{prefix}/{name}": (axis, "last") for name in ("abstain", "undecided")}}


def fit_job(
    trainer: pl.Trainer, model: BaseClassifier, previews: Sequence[tuple[Certifier, int, Sequence[float]]]
) -> Job:
    """Return what a training is.

    Args:
        trainer: after the optimizers are made.
        model: what is trained.
        previews: certifier, number of images and radii of each certification at epoch ends.
    """
    data = getattr(trainer, "datamodule", None)
    name = data.name if isinstance(data, ImageDataModule) else "data"
    axes = {metric: value for _, _, radii in previews for metric, value in _preview_axes(radii).items()}
    config = {
        **_model(model),
        "data": _training_data(data),
        "optimizer": _optimizer(trainer),
        "scheduler": [type(each.scheduler).__name__ for each in trainer.lr_scheduler_configs],
        "seed": model.seed,
        "trainer": {
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "precision": str(trainer.precision),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "processes": trainer.world_size,
        },
        "preview": [{**certifier.describe(), "images": images} for certifier, images, _ in previews],
        **environment(),
    }
    return Job(
        "fit", _title("fit", name, model), _group(model, _run_id(trainer)), _tags(name, model), config,
        {**_TRAINING, **axes},
    )  # fmt: skip


def certify_job(model: BaseClassifier, header: Header, records: Path, radii: Sequence[float], noise: Noise) -> Job:
    """Return what a certification is: everything that binds its records, and where it ran."""
    binding, informative = dict(header.binding), dict(header.informative)
    names = [str(each["name"]) for each in binding["certificates"]]
    checkpoint = dict(informative.get("checkpoint") or {})
    config = {
        **_model(model),
        **binding,
        "function": {key: value for key, value in binding["function"].items() if key != _LOGITS},
        "noise_of_the_checkpoint": noise_to_dict(model.noise),
        "records": str(records),
        **{key: value for key, value in informative.items() if key not in ("model", "sigma")},
    }
    data = str(binding["data"]["name"])
    axes = metric_axes("certify", radii, "certify/images", "last")
    axes |= {f"certify/{name}": ("certify/images", "last") for name in ("images_per_s", "complete")}
    return Job(
        "certify",
        f"{_title('certify', data, model, noise)} n={binding['n']:g}",
        _group(model, checkpoint_key(checkpoint, str(binding["classifier"]))),
        _tags(data, model, noise, names),
        config,
        axes,
    )


def stage_job(
    kind: Literal["predict", "attack"],
    model: BaseClassifier,
    data: ImageDataModule,
    noise: Noise,
    checkpoint: Mapping[str, Any],
    classifier: str,
    config: Mapping[str, Any],
    metrics: Iterable[str],
) -> Job:
    """Return what a prediction or an attack is; ``config`` adds how it is done."""
    axis = f"{kind}/images"
    told = {
        **_model(model), "data": data.describe(), "noise": noise_to_dict(noise), "checkpoint": dict(checkpoint),
        "classifier": classifier, **config, **environment(),
    }  # fmt: skip
    return Job(
        kind,
        _title(kind, data.name, model, noise),
        _group(model, checkpoint_key(checkpoint, classifier)),
        _tags(data.name, model, noise),
        told,
        {f"{kind}/{name}": (axis, "last") for name in metrics},
    )


def checkpoint_file(path: str | Path | None) -> dict[str, Any]:
    """Return path and SHA-256 of a checkpoint file, nothing if there is none."""
    if path is None or not Path(path).is_file():
        return {}
    with open(path, "rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def checkpoint_key(checkpoint: Mapping[str, Any], classifier: str) -> str:
    """Return what is common to everything that is done with a checkpoint.

    The id of the W&B run that trained it where it still lies in that run's folder; else the start of its SHA-256; for
    weights that no file holds, the start of theirs.
    """
    path = Path(str(checkpoint.get("path", ""))).absolute()
    run = path.parent.parent
    if path.parent.name == "checkpoints" and any((run.parent.parent / "wandb").glob(f"*run-*-{run.name}")):
        return run.name
    return str(checkpoint.get("sha256") or classifier)[:8]


def _preview_axes(radii: Sequence[float]) -> dict[str, tuple[str, str]]:
    return metric_axes("preview", radii, "epoch", "max")


def _run_id(trainer: pl.Trainer) -> str:
    ids = [logger.version for logger in trainer.loggers if isinstance(logger.version, str)]
    named = [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return str((named or ids or ["training"])[0])


def _model(model: BaseClassifier) -> dict[str, Any]:
    own = {"network", "network_args", "init_from", "num_classes", "shape", "mean", "std", "domain", "grid"}
    return {
        "objective": model.objective,
        "model": {key: value for key, value in model.hparams.items() if key in own},
        "noise": noise_to_dict(model.noise),
    }


def _training_data(data: Any) -> dict[str, Any]:
    """Describe the training data without reading the test data."""
    if not isinstance(data, ImageDataModule):
        return {"class": type(data).__name__}
    return {
        "name": data.name,
        "train": len(data.split_indices("train")),
        "val": len(data.split_indices("val")),
        "split_seed": data.split_seed,
        "batch_size": data.batch_size,
        "augment": data.augment,
        "fingerprint": data.source("train").fingerprint(),
    }


def _optimizer(trainer: pl.Trainer) -> list[dict[str, Any]]:
    found = []
    for optimizer in trainer.optimizers:
        values = {key: value for key, value in optimizer.defaults.items() if isinstance(value, (bool, int, float))}
        found.append({"class": type(optimizer).__name__, **values})
    return found


def _title(kind: str, data: str, model: BaseClassifier, noise: Noise | None = None) -> str:
    return f"{kind} {data} {_network(model)} {_law(noise or model.noise)}"


def _group(model: BaseClassifier, key: str) -> str:
    return f"{_network(model)} {_law(model.noise)} {key}"


def _tags(
    data: str, model: BaseClassifier, noise: Noise | None = None, certificates: Sequence[str] = ()
) -> tuple[str, ...]:
    law = type(noise or model.noise).__name__
    # W&B refuses tags of more than 64 characters
    return tuple(dict.fromkeys(tag[:64] for tag in (data, _network(model), law, type(model).__name__, *certificates)))


def _network(model: BaseClassifier) -> str:
    return str(model.hparams["network"]).rpartition(".")[2]


def _law(noise: Noise) -> str:
    return f"{type(noise).__name__.removesuffix('Noise').lower()}-{noise.sigma:g}"
