"""High-precision reference values (mpmath, 34 digits), by group."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ORACLES = [Path(__file__).with_name(name) for name in ("oracles.json", "oracles-next.json")]


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


@cache
def _load() -> list[dict[str, Any]]:
    return [_numbers(case) for file in ORACLES for case in json.loads(file.read_text())["cases"]]


def oracle_cases(group: str) -> list[dict[str, Any]]:
    """Return all cases of a group; a misspelt group raises instead of testing nothing."""
    cases = [case for case in _load() if case["group"] == group]
    if not cases:
        raise KeyError(f"no oracle group {group!r}")
    return cases
