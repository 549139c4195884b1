"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("LIGHTNING_RS_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    """W&B must never reach for the network, wherever a test starts it."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; skips where it is not mounted."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data at {SHARED}")
    return SHARED
