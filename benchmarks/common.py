"""What the benchmarks share: alternating measurements, tables, JSON, and a word about the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom

Row = dict[str, Any]


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    own = argparse.ArgumentParser(description=description)
    own.add_argument("--out", type=Path, help="write the numbers here as JSON")
    own.add_argument("--quick", action="store_true", help="seconds instead of minutes: does it run at all")
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return own


def environment() -> Row:
    """Return what a number must be read with."""
    features = torch.cpu.get_capabilities()
    shown = [name for name in ("avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if features.get(name)]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": features.get("cpu_name") or platform.processor(),
        "instructions": shown,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def alternate(works: Mapping[str, Callable[[int], int]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return the samples a second of each work in each round; the works take turns, so that all see the same machine.

    Args:
        works: a work does as many samples as it is told to, or more, and returns how many when they are done.
        seconds: about how long a turn lasts.
        rounds: number of turns.
    """
    sizes = {name: _calibrated(work, seconds) for name, work in works.items()}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(_rate(work, sizes[name])[0])
    return rates


def _calibrated(work: Callable[[int], int], seconds: float) -> int:
    size = 64
    while True:
        rate, took = _rate(work, size)
        if took >= seconds / 8:
            return max(64, round(rate * seconds))
        size *= 4


def _rate(work: Callable[[int], int], size: int) -> tuple[float, float]:
    start = time.perf_counter()
    done = work(size)
    took = time.perf_counter() - start
    return done / took, took


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return "median (smallest-largest)"."""
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def median_interval(values: Sequence[float], digits: int = 2) -> str:
    """Return "median (low-high)", the 95 % interval of the median by order statistics; the range of a few values."""
    ordered = sorted(values)
    first = int(binom.ppf(0.025, len(ordered), 0.5))
    low, high = (ordered[max(first - 1, 0)], ordered[min(len(ordered) - first, len(ordered) - 1)])
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(ordered), low, high)]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as a Markdown table."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    print(f"\n{title}\n", *lines[:1], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], sep="\n")


def finish(out: Path | None, **tables: Any) -> Row:
    """Return the tables together with the environment, and write them to ``out`` if it is given."""
    result = {"environment": environment(), **tables}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result
