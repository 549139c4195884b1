"""Tables and figure of the l1 comparison (results/l1_mnist.md) from record files NOISE_SIGMA_*.jsonl in one folder.

python -m benchmarks.l1_tables runs/l1 --sigmas 1.0 2.0 3.5 --figure benchmarks/results/l1_mnist.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import show
from lightning_rs.plots.curves import accuracy_steps
from lightning_rs.plots.style import COLOURS, STYLES, finish, save_figure
from lightning_rs.records import Certification, Header, read_records
from lightning_rs.report.paired import Pair
from lightning_rs.report.runs import Run

RADII = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
NOISES = {"uniform": "uniform", "ssn": "SSN", "dssn": "DSSN"}
Records = dict[int, Certification]


def read(folder: Path, name: str) -> tuple[Header, Records] | None:
    """Return the largest record file of one noise and sigma, or None."""
    paths = [path for path in folder.glob(f"{name}_*.jsonl") if path.stem.removeprefix(f"{name}_") in ("200", "full")]
    found = [read_records(path) for path in paths]
    if not found:
        return None
    header, records = max(found, key=lambda pair: len(pair[1]))
    return header, {record.index: record for record in records}


def accuracies(records: Sequence[Certification]) -> dict[str, str]:
    """Return certified accuracy at each radius, in input units."""
    return {f"{r:g}": f"{np.mean([record.certified_at(r) for record in records]):.3f}" for r in RADII}


def row(sigma: str, name: str, records: Sequence[Certification]) -> dict[str, str]:
    """Return one line of the main table."""
    mean = np.mean([record.radius * record.correct for record in records])
    clean = np.mean([record.correct for record in records])
    first = {"sigma": sigma, "noise": name, "images": str(len(records)), "ACR": f"{mean:.4f}", "at 0": f"{clean:.3f}"}
    return first | accuracies(records)


def also(header: Header, records: Sequence[Certification]) -> Mapping[str, list[Certification]]:
    """Return the statements of the other certificates that read the same samples, by name."""
    binding = header.binding
    return {
        spec["name"]: [r.under(spec["name"], spec["norm"], "open", binding["alpha"]) for r in records]
        for spec in binding["certificates"][1:]
    }


def run_of(name: str, header: Header, records: list[Certification]) -> Run:
    """Return the statements of the first certificate of a file as a run."""
    entry = header.binding["certificates"][0]
    return Run(name, header, entry["name"], records, entry)


def paired_rows(sigma: str, name: str, header: Header, records: list[Certification], ours: Run) -> list[dict[str, str]]:
    """Return what DSSN has over each certificate of another noise: difference, interval and p at each radius."""
    runs = {name: records} | {f"{name}, {other}": statements for other, statements in also(header, records).items()}
    rows = []
    for label, statements in runs.items():
        pair = Pair.of(run_of(label, header, statements), ours)
        cells = dict.fromkeys((f"{r:g}" for r in RADII), "")
        for radius, difference, interval, _, _, p_value in pair.table(RADII).rows:
            if any(record.certified_at(float(radius)) for both in pair.records for record in both):
                cells[radius] = f"{difference} [{interval.replace(' to ', ', ')}] {p_value}"
        gain = pair.note().partition(": average certified radius ")[2].rstrip(".")
        gain = gain.replace("(95% Student interval ", "[").replace(" to ", ", ").replace(")", "]")
        rows.append({"sigma": sigma, "less": label, **cells, "average radius": gain})
    return rows


def figure_of(runs: Mapping[str, Mapping[str, Sequence[Certification]]]) -> Figure:
    """Return one panel a sigma, one step curve a noise."""
    figure = Figure(figsize=(3.6 * len(runs) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(panels, runs.items(), strict=True):
        for position, (name, records) in enumerate(curves.items()):
            number = list(NOISES.values()).index(name) if name in NOISES.values() else position
            edges, heights = accuracy_steps(records)
            ends, steps = np.append(edges, edges[-1]), np.concatenate([heights[:1], heights, [0.0]])
            axes.step(ends, steps, where="pre", label=name, color=COLOURS[number], linestyle=STYLES[number], lw=1.8)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, None)
        finish(axes, "l1 radius r (input units)", "certified accuracy at r" if axes is panels[0] else "", title)
        axes.legend(loc="lower left", fontsize=9, frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("folder", type=Path)
    own.add_argument("--sigmas", nargs="+", default=["1.0", "2.0", "3.5"])
    own.add_argument("--figure", type=Path, help="write the curves here")
    args = own.parse_args(argv)
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    panels, whole = {}, {}
    for sigma in args.sigmas:
        found = {name: pair for name in NOISES if (pair := read(args.folder, f"{name}_{sigma}")) is not None}
        common = set.intersection(*(set(records) for _, records in found.values())) if found else set()
        same = {name: [records[index] for index in sorted(common)] for name, (_, records) in found.items()}
        for name, records in same.items():
            rows.append(row(sigma, NOISES[name], records))
            for other, statements in also(found[name][0], records).items():
                rows.append(row(sigma, f"{NOISES[name]}, {other}", statements))
        if "dssn" in same:
            ours = run_of("DSSN", found["dssn"][0], same["dssn"])
            for name in ("ssn", "uniform"):
                if name in same:
                    pairs += paired_rows(sigma, NOISES[name], found[name][0], same[name], ours)
        panels[f"sigma = {sigma}, {len(common)} images"] = {NOISES[name]: records for name, records in same.items()}
        if len(found.get("dssn", (None, common))[1]) > len(common):
            whole[f"sigma = {sigma}"] = list(found["dssn"][1].values())
    show("Certified accuracy on the same images", rows)
    show("DSSN less the others: difference [95 % interval] McNemar p", pairs)
    if whole:
        show("DSSN on all images", [row(name, "DSSN", records) for name, records in whole.items()])
        panels[f"DSSN alone, {max(map(len, whole.values())):,} images"] = whole
    if args.figure is not None:
        save_figure(figure_of(panels), args.figure)
    return rows


if __name__ == "__main__":
    main()
