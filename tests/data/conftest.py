"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_rs.data import ImageDataModule
from tests.data.examples import EXAMPLES, build


@pytest.fixture(params=sorted(EXAMPLES))
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an example whose files lie in ``tmp_path``."""
    EXAMPLES[request.param][2](tmp_path, monkeypatch)
    return request.param


@pytest.fixture
def module(example: str, tmp_path: Path) -> ImageDataModule:
    """Every data module in turn."""
    return build(example, tmp_path)
