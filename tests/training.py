"""Small trainings in Python: a trainer without noise around it, a classifier that learns the digits in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data import Digits
from lightning_rs.noise import GaussianNoise
from lightning_rs.trainer import Trainer


def classifier(network: str = "digits_cnn", seed: int = 0, **kwargs: Any) -> NoiseAugmentation:
    """Return a seeded classifier for digits."""
    torch.manual_seed(seed)
    data = Digits()
    arguments = {"noise": GaussianNoise(0.25), "mean": data.mean, "std": data.std, "grid": data.grid, **kwargs}
    return NoiseAugmentation(network, **arguments)


def trainer(folder: Path, **kwargs: Any) -> Trainer:
    """Return a quiet trainer on the CPU."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "max_epochs": 2,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**quiet, **kwargs})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
