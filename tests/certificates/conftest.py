"""Tables of these tests go to one temporary directory, never to the user's."""

from __future__ import annotations

import pytest

from lightning_rs.numerics import linf_table


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(linf_table.CACHE, str(tmp_path_factory.getbasetemp() / "tables"))
