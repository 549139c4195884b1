"""What a command means where the user says nothing: the run without arguments, what a checkpoint says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_rs.class_paths import class_named, full_class_path
from lightning_rs.classifiers.base import CHECKPOINT_KEY
from lightning_rs.networks.checkpoints import names_its_network
from lightning_rs.networks.files import read_file
from lightning_rs.noise import Noise

# What the model learns from the data instead of being told twice.
LINKED = ("num_classes", "shape", "mean", "std", "domain", "grid")

# The network of a file of others that does not name it, until the command line does.
UNKNOWN_NETWORK = "(not named)"

DEFAULTS: dict[str, Any] = {
    "data": {"class_path": "lightning_rs.data.Digits", "init_args": {"batch_size": 128}},
    "model": {
        "class_path": "lightning_rs.classifiers.NoiseAugmentation",
        "init_args": {
            "network": "digits_cnn",
            "noise": {"class_path": "lightning_rs.noise.GaussianNoise", "init_args": {"sigma": 0.25}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.05}},
            "scheduler": "cosine",
        },
    },
    "certifier": {"class_path": "lightning_rs.Certifier", "init_args": {"n": 10_000}},
    "trainer": {
        "max_epochs": 60,
        "default_root_dir": "runs",
        "log_every_n_steps": 10,
        "logger": {
            "class_path": "pytorch_lightning.loggers.WandbLogger",
            "init_args": {"project": "lightning_rs", "save_dir": "runs", "offline": True},
        },
        "callbacks": [
            {
                "class_path": "lightning_rs.callbacks.EpochEndCertification",
                "init_args": {"images": 64, "every_n_epochs": 10},
            },
            {"class_path": "lightning_rs.callbacks.NoisyImageGrid"},
            {
                "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                # The loss is the smoother measure: a few noisy validation images tie in accuracy at early epochs.
                "init_args": {
                    "monitor": "val/loss_noisy",
                    "mode": "min",
                    "save_last": True,
                    "filename": "epoch{epoch:03d}-noisy{val/accuracy_noisy:.3f}",
                    "auto_insert_metric_name": False,
                },
            },
        ],
    },
}


def checkpoint_defaults(path: str) -> dict[str, Any]:
    """Return the model and data configuration that a checkpoint of ours carries; of others, the architecture.

    Damaged or missing files are reported later, by :func:`check_checkpoint`.
    """
    if is_foreign(path):
        model = DEFAULTS["model"]
        network = names_its_network(path) or UNKNOWN_NETWORK
        return {"model": {**model, "init_args": {**model["init_args"], "network": network}}}
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return {}
    own = contents.get(CHECKPOINT_KEY) if isinstance(contents, dict) else None
    if not own:
        return {}
    init_args = {name: value for name, value in own["init_args"].items() if name not in LINKED}
    specs = own.get("specs", {})
    lost = [name for name in own.get("left_out", {}) if name not in specs]
    if lost:
        rank_zero_warn(
            f"{path} could not hold the argument {', '.join(lost)} of {own['class_path']}: it is what the class says, "
            f"or what --model.{lost[0]} does"
        )
    init_args |= specs
    law = dict(own["noise"])
    kind = class_named(law.pop("class", None), Noise, "noise of the checkpoint")  # type: ignore[type-abstract]
    init_args["noise"] = {"class_path": full_class_path(kind), "init_args": law}
    defaults: dict[str, Any] = {"model": {"class_path": own["class_path"], "init_args": init_args}}
    if own.get("data"):
        defaults["data"] = own["data"]
    return defaults


def is_foreign(path: str | Path | None) -> bool:
    """Say whether a file holds weights that another code has trained; false for what cannot be read."""
    if path is None or not Path(path).is_file():
        return False
    try:
        _, contents = read_file(path)
    except ValueError:
        return False
    return CHECKPOINT_KEY not in contents and "pytorch-lightning_version" not in contents


def plain(value: Any) -> Any:
    """Return a parsed configuration as plain values, for the checkpoint."""
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
