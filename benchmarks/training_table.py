"""The table of objectives (results/training_mnist.md) from record files: average radii with intervals, pairwise.

    python -m benchmarks.training_table gaussian.jsonl consistency.jsonl ... [--radii 0 0.5 1] [--costs costs.json]

The first file is the baseline of the paired differences. Intervals are Student's, 95 %, over images: they speak about
the population of images, not about other seeds. ``--costs`` is a JSON object from a file's name (without suffix) to
what the training cost, one value a column, which this script cannot know.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from benchmarks.common import Row, show
from lightning_rs.metrics import abstention_rate, average_certified_radius, certified_accuracy, clean_accuracy
from lightning_rs.records import Certification, Header, nearest_decimals, read_records

CONFIDENCE = 0.95
Records = dict[int, Certification]


def read(paths: Sequence[Path]) -> dict[str, tuple[Header, Records]]:
    """Return header and records by image index of each file, under its name.

    Raises:
        ValueError: for two files of one name, or files whose records cannot be compared: other images, n, n0 or alpha.
    """
    found: dict[str, tuple[Header, Records]] = {}
    for path in paths:
        if path.stem in found:
            raise ValueError(f"files must have different names, got {path.stem} twice")
        header, records = read_records(path)
        found[path.stem] = header, {record.index: record for record in records}
    (name, (first, known)), *others = found.items()
    for other, (header, records) in others:
        for key in ("n", "n0", "alpha"):
            if header.binding.get(key) != first.binding.get(key):
                raise ValueError(f"{key} must be that of {name}, {first.binding.get(key)}, got {header.binding[key]}")
        if records.keys() != known.keys():
            raise ValueError(f"{other} must hold the images of {name}: {len(records)} and {len(known)} records")
        for index in records:
            if records[index].image != known[index].image:
                raise ValueError(f"image {index} of {other} is another one than that of {name}")
    return found


def radii_of(records: Records) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return radius times correctness of all images, in the order of their indices."""
    return np.array([records[i].radius * records[i].correct for i in sorted(records)], dtype=np.float64)


def half_width(values: np.ndarray[Any, Any]) -> float:
    """Return half the length of the Student interval of a mean; 0 where all values are equal."""
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    low, high = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(high - low) / 2


def row(name: str, records: Records, baseline: Records, radii: Sequence[float], cost: Mapping[str, Any]) -> Row:
    """Return one line of the table."""
    own, other = radii_of(records), radii_of(baseline)
    listed = [records[i] for i in sorted(records)]
    gain, half = float((own - other).mean()), half_width(own - other)
    accuracies = certified_accuracy(listed, radii)
    return {
        "model": name,
        **cost,
        "ACR": f"{nearest_decimals(average_certified_radius(listed), 4)} ± {nearest_decimals(half_width(own), 3)}",
        "less the first": "" if records is baseline else f"{gain:+.4f} ± {half:.4f}",
        "votes right": nearest_decimals(clean_accuracy(listed), 3),
        **{f"at {r:g}": nearest_decimals(share, 3) for r, share in zip(radii, accuracies, strict=True)},
        "abstained": nearest_decimals(abstention_rate(listed), 3),
    }


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Print the table and return its rows."""
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("records", nargs="+", type=Path)
    own.add_argument("--radii", nargs="+", type=float, default=[0.0, 0.5, 1.0, 1.5])
    own.add_argument("--costs", type=Path)
    args = own.parse_args(argv)
    costs = json.loads(args.costs.read_text()) if args.costs else {}
    columns = list(dict.fromkeys(key for cost in costs.values() for key in cost))
    found = read(args.records)
    baseline = next(iter(found.values()))
    rows = [
        row(name, records, baseline[1], args.radii, {key: costs.get(name, {}).get(key, "") for key in columns})
        for name, (_, records) in found.items()
    ]
    bound = baseline[0].binding
    noise = ", ".join(f"{key} {value}" for key, value in bound["noise"].items())
    setting = f"{len(baseline[1])} images, {noise}, n = {bound['n']:,}, alpha = {bound['alpha']:g}"
    show(setting, rows)
    return rows


if __name__ == "__main__":
    main()
