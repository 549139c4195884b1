"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.driving import Forks

SHARED = Path(os.environ.get("LIGHTNING_RS_SHARED", Path(__file__).parents[2] / "shared"))
# Tests that take many seconds because they start processes: begun first, so that at the end no worker waits for one.
LONG = ("test_wheel.py", "test_house.py", "test_cli_processes.py", "test_attack_processes.py", "test_start_up.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    """W&B must never reach for the network, wherever a test starts it."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch  # here: the process that only hands out tests needs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; skips where it is not mounted."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What runs commands in processes of their own that need not import torch again."""
    from tests.driving import Forks

    with Forks() as forks:
        yield forks
