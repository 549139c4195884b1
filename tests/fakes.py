"""Record files without a network, consistent in every field that reading checks: :func:`save`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from lightning_rs.certificates.base import Setting
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import Certification, Header, RecordFile
from lightning_rs.statistics.sequential import DecisionRule, Verdict

SHA = "5a" * 32
RUN: dict[str, Any] = {
    "seed": 0,
    "stage": "certify",
    "classifier": "ab" * 32,
    "function": {"class": "tests.Fake", "logits": [[0.5, -0.5]]},
    "num_classes": 10,
    "shape": [1, 8, 8],
    "runtime": {"precision": "bf16-true", "micro_batch": 400},
    "lattice": None,
    "separate_passes": False,
}
GAUSSIAN_L2: dict[str, Any] = {"class": "GaussianL2", "norm": "l2", "alpha_split": {"p_lower": 1.0}}


def cohen(hits: int, n: int, alpha: float, sigma: float) -> tuple[float, float]:
    """Return the tail and the radius, written again from math.md A1 and A2 with scipy."""
    tail = special.betainccinv(n - hits + 1, hits, alpha) if 0 < hits < n else -np.expm1(np.log(alpha) / n)
    tail = 1.0 if hits == 0 else float(tail)
    return tail, float(max(0.0, -sigma * special.ndtri(tail))) if tail < 0.5 else 0.0


def voted(hits: int, n: int, alpha: float, sigma: float) -> dict[str, Any]:
    """Return bounds, radius and radii that ``hits`` of ``n`` votes give."""
    tail, radius = cohen(hits, n, alpha, sigma)
    return {
        "bounds": {"p_lower": 1.0 - tail, "q_upper": tail}, "radius": radius, "radii": {"GaussianL2": radius},
    }  # fmt: skip


def faithful(record: Certification, header: Header) -> Certification:
    """Return a record that reading believes under a header, with the statement of ``record``.

    One that its votes support stays as it is; a decision gets votes that make it; any other becomes what a printed
    table says: an imported record has a radius and no votes.
    """
    if header.binding.get("imported"):
        nothing: dict[str, Any] = {"counts": (), "counts0": (), "bounds": {}, "radii": {}, "top": -1, "runner_up": -1}
        return dataclasses.replace(record, n_used=record.n, image="", **nothing)
    return _decided(record, header) if record.mode == "decision" else record


def header_of(records: Sequence[Certification], header: Header) -> Header:
    """Return the header under which the records are consistent: that of an import where votes do not support them."""
    binding = dict(header.binding)
    first = records[0]
    if first.mode == "decision":
        budget = {"mode": "decision", "radius": first.target, "alpha_reject": None}
        return dataclasses.replace(header, binding={**binding, "budget": budget})
    if binding.get("imported") or all(_supported(record, binding) for record in records):
        return header
    binding |= {"imported": True, "independent": not binding["shared_noise"], "n": first.n, "alpha": first.alpha}
    binding["certificates"] = [{"class": first.certificate, "norm": first.norm, "ball": first.ball}]
    return dataclasses.replace(header, binding=binding)


def save(path: Path, records: Sequence[Certification], header: Header) -> Path:
    """Write records under the header that makes them consistent, whatever images the header announces."""
    fitting = header_of(records, header)
    binding = {**fitting.binding, "subset": {"indices": [record.index for record in records]}}
    fitting = dataclasses.replace(fitting, binding=binding)
    with RecordFile(path, fitting) as file:
        file.append([faithful(record, fitting) for record in records])
    return path


def _supported(record: Certification, binding: dict[str, Any]) -> bool:
    """Whether the votes give the radii, all of which but Cohen's somebody else computed from them."""
    if record.mode != "fixed" or sum(record.counts) != record.n_used or len(record.radii) > 1:
        return len(record.radii) > 1 or record.mode != "fixed"
    if record.alpha == 0:
        return False
    expected = cohen(record.counts[record.top], record.n, record.alpha, binding["noise"]["sigma"])[1]
    return bool(np.isclose(record.radius, expected, rtol=1e-9)) and record.prediction in (record.top, -1)


def _decided(record: Certification, header: Header) -> Certification:
    """Return the decision with votes that make it."""
    binding = header.binding
    sigma, n, classes = binding["noise"]["sigma"], record.n, len(record.counts)
    setting = Setting(GaussianNoise(sigma), record.alpha, n, tuple(binding["shape"]))
    assert record.target is not None
    threshold = GaussianL2().threshold(record.target, setting)
    rule = DecisionRule(threshold, record.alpha, n, None)
    wanted = {"decided": Verdict.CERTIFIED, "abstain": Verdict.REJECTED, "undecided": Verdict.UNDECIDED}
    verdicts = rule.decide(np.arange(n + 1), np.full(n + 1, n))
    hits = int(np.flatnonzero(verdicts == int(wanted[record.status]))[-1])
    counts = [0] * classes
    counts[record.top], counts[record.runner_up] = hits, n - hits
    return dataclasses.replace(record, counts=tuple(counts), bounds={"threshold": threshold}, radii={"GaussianL2": 0.0})
