"""Attacks confirm with entropy that nobody foresees; their tests with seeds that differ each time but repeat."""

from __future__ import annotations

import itertools

import pytest

from lightning_rs import session
from lightning_rs.attacks import attacker


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search by votes misses now and then, so a test of what it finds would fail in one of twenty runs."""
    seeds = itertools.count(1)
    for module in (session, attacker):
        monkeypatch.setattr(module, "fresh_seed", lambda: next(seeds))
