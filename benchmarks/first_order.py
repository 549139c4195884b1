"""What gradient information is worth (Mohapatra et al. 2020, Fig. 2): tables and a figure from finished records.

Each record file holds, for the same samples, the radii of configs/certify/mohapatra.yaml, at one noise level.

    python -m benchmarks.first_order runs/mohapatra/mnist_*.jsonl --figure benchmarks/results/first_order_mnist.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from benchmarks.common import Row, finish, show
from lightning_rs.metrics import average_certified_radius
from lightning_rs.plots import certified_accuracy_panels, save_figure
from lightning_rs.records import floor_decimals
from lightning_rs.report import Run, load_runs

#: Certificates without and with gradients, by the norm of the perturbation; a region is appended to the last.
PAIRS = {
    "l1": ("GaussianL1", "FirstOrderL1"),
    "l2": ("GaussianL2", "SecondOrderL2"),
    "linf": ("GaussianLinf", "FirstOrderLinf"),
    "l2 in a subspace": ("GaussianL2", "ChannelL2"),
}
KINDS = ("without gradients", "with gradients")
#: Where p_lower may lie; a radius can gain only where there is room for a gradient.
RANGES = ((0.5, 0.9), (0.9, 0.99), (0.99, 0.999), (0.999, 1.0))


def sorted_runs(paths: Sequence[str | Path]) -> dict[str, dict[str, dict[str, Run]]]:
    """Return the runs by norm, kind and noise level.

    Raises:
        ValueError: if a certificate is missing from a file, or two files have the same noise level.
    """
    levels: dict[str, dict[str, Run]] = {}
    for path in paths:
        runs = {run.certificate.partition(":")[0]: run for run in load_runs([path])}
        missing = {name for names in PAIRS.values() for name in names} - set(runs)
        if missing:
            raise ValueError(
                f"{path} must hold the certificates of mohapatra.yaml, {', '.join(sorted(missing))} missing"
            )
        level = f"sigma {next(iter(runs.values())).sigma:g}"
        if level in levels:
            raise ValueError(f"records must differ in their noise, got {level} twice")
        levels[level] = runs
    ordered = dict(sorted(levels.items(), key=lambda item: float(item[0].split()[1])))
    return {
        _titled(norm, ordered): {
            kind: {level: runs[name] for level, runs in ordered.items()}
            for kind, name in zip(KINDS, names, strict=True)
        }
        for norm, names in PAIRS.items()
    }


def _titled(norm: str, levels: Mapping[str, Mapping[str, Run]]) -> str:
    region = next(iter(levels.values()))["ChannelL2"].norm
    return f"l2 ({region.partition(':')[2]})" if "subspace" in norm else norm


def averages(runs: Mapping[str, Mapping[str, Mapping[str, Run]]]) -> list[Row]:
    """Return one row for each norm and noise level: average radii and the paired difference."""
    rows = []
    for norm, kinds in runs.items():
        for level, without in kinds[KINDS[0]].items():
            gains = _gains(without, kinds[KINDS[1]][level])
            low, high = ttest_1samp(gains, 0.0).confidence_interval(0.95) if np.ptp(gains) > 0 else [gains.mean()] * 2
            own, better = (average_certified_radius(run.records) for run in (without, kinds[KINDS[1]][level]))
            rows.append(
                {
                    "norm": norm,
                    "noise": level,
                    "images": len(gains),
                    "ACR without": f"{own:.5f}",
                    "ACR with": f"{better:.5f}",
                    "difference (95 % interval)": f"{gains.mean():+.5f} ({low:+.5f} to {high:+.5f})",
                    "change": f"{gains.mean() / own:+.1%}",
                    "larger": int((gains > 0).sum()),
                    "smaller": int((gains < 0).sum()),
                }
            )
    return rows


def _gains(without: Run, with_it: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    pairs = zip(without.records, with_it.records, strict=True)
    return np.array([b.radius * b.correct - a.radius * a.correct for a, b in pairs])


def accuracies(runs: Mapping[str, Mapping[str, Mapping[str, Run]]], points: int = 6) -> list[Row]:
    """Return certified accuracies without -> with, at radii that are shares of the largest one of the norm."""
    rows = []
    for norm, kinds in runs.items():
        largest = max(record.radius for own in kinds.values() for run in own.values() for record in run.records)
        radii = [float(floor_decimals(largest * k / points, 4 if largest < 0.2 else 2)) for k in range(points)]
        for level in [*kinds[KINDS[0]], *(["envelope (descriptive)"] if len(kinds[KINDS[0]]) > 1 else [])]:
            cells = []
            for k, radius in enumerate(radii):
                pair = []
                for kind in KINDS:
                    own = kinds[kind].values() if level.startswith("envelope") else [kinds[kind][level]]
                    pair.append(max(float(run.accuracy([radius])[0]) for run in own))
                cells.append((f"r{k}", f"{radius:g}: {pair[0]:.2f} -> {pair[1]:.2f}"))
            rows.append({"norm": norm, "noise": level, **dict(cells)})
    return rows


def by_probability(runs: Mapping[str, Mapping[str, Mapping[str, Run]]]) -> list[Row]:
    """Return where the gain is: mean ratio of radii with and without, by the lower bound of p without gradients."""
    rows = []
    for level in next(iter(runs.values()))[KINDS[0]]:
        for low, high in RANGES:
            row: Row = {"noise": level, "p_lower": f"{low:g}-{high:g}"}
            for norm, kinds in runs.items():
                pairs = zip(kinds[KINDS[0]][level].records, kinds[KINDS[1]][level].records, strict=True)
                chosen = [(a, b) for a, b in pairs if low <= a.bounds["p_lower"] < high and a.radius > 0]
                row["images"] = len(chosen)
                ratio = [b.radius / a.radius for a, b in chosen]
                row[norm] = f"{np.mean(ratio):.3f}" if ratio else "-"
            rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> Row:
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("records", nargs="+", type=Path, help="record files, one a noise level")
    own.add_argument("--figure", type=Path, help="write the figure here")
    own.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = own.parse_args(argv)
    runs = sorted_runs(args.records)
    tables = {"averages": averages(runs), "accuracies": accuracies(runs), "by_probability": by_probability(runs)}
    show("Average certified radius, the same images and samples", tables["averages"])
    show("Certified accuracy at r, without -> with gradients", tables["accuracies"])
    show("Radius with gradients over radius without, by the lower bound of p", tables["by_probability"])
    if args.figure:
        curves = {
            norm: {kind: {level: run.records for level, run in kinds[kind].items()} for kind in reversed(KINDS)}
            for norm, kinds in runs.items()
        }
        save_figure(certified_accuracy_panels(curves), args.figure)
    return finish(args.out, **tables)


if __name__ == "__main__":
    main()
