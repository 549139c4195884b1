"""Records of votes for reports: consistent with the header that is written around them."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from lightning_rs.records import ABSTAIN, Certification
from tests import fakes
from tests.fakes import certification, header

SIGMA, N = 8.0, 1000
CERTIFICATES: list[dict[str, Any]] = [{"class": "GaussianL2", "norm": "l2", "alpha_split": {"p_lower": 1.0}}]
EXACT: dict[str, Any] = {
    "certificate": "DeterministicSplittingL1", "norm": "l1", "ball": "closed", "alpha": 0.0, "radii": {}, "top": -1,
}  # fmt: skip
SPLITTING = {"class": "DeterministicSplittingNoise", "sigma": SIGMA}


def cohen_radius(count: int, n: int, alpha: float, sigma: float = SIGMA) -> float:
    """Written again from math.md A1 and A2, with scipy."""
    tail = special.betainccinv(n - count + 1, count, alpha) if count < n else -math.expm1(math.log(alpha) / n)
    if count == 0 or tail >= 0.5:
        return 0.0
    return float(-sigma * special.ndtri(tail))


def from_votes(index: int, label: int, counts: Sequence[int], alpha: float, **changes: Any) -> Certification:
    radius = cohen_radius(counts[1], sum(counts), alpha)
    stated = {} if radius > 0 else {"prediction": ABSTAIN, "status": "abstain"}
    bounds = fakes.voted(counts[1], sum(counts), alpha, SIGMA)["bounds"]
    n = sum(counts)
    fields: dict[str, Any] = {
        "label": label, "prediction": 1, "radius": radius, "counts": tuple(counts), "counts0": (1, 9, 0), "top": 1,
        "runner_up": 0, "alpha": alpha, "bounds": bounds, "radii": {"GaussianL2": radius}, "n": n, "n_used": n,
    }  # fmt: skip
    return certification(index, **(fields | stated | {"label": label} | changes))


def voted_records(alpha: float = 0.001, images: int = 40) -> list[Certification]:
    rng = np.random.default_rng(7)
    votes = [rng.multinomial(N, [0.2 * (1 - p), p, 0.8 * (1 - p)]) for p in rng.beta(3, 1, images)]
    return [from_votes(i, int(rng.integers(0, 2)), v.tolist(), alpha) for i, v in enumerate(votes)]


def save(path: Path, records: Sequence[Certification], **changes: Any) -> Path:
    counted = len(records[0].counts)
    described: dict[str, Any] = {"n": records[0].n, "num_classes": counted, "noise": noise(SIGMA)}
    shared = {key: changes.pop(key) for key in ("shared_noise",) if key in changes}
    head = header(**(described | {"alpha": records[0].alpha or 0.001} | changes))
    return fakes.save(path, records, dataclasses.replace(head, binding={**head.binding, **shared}))


def noise(sigma: float) -> dict[str, Any]:
    return {"class": "GaussianNoise", "sigma": sigma}


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
