"""Record files without a network, consistent in every field that reading checks: :func:`save`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from lightning_rs.certificates.base import Setting
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import ABSTAIN, Certification, Header, RecordFile
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
NOISE = {"class": "GaussianNoise", "sigma": 0.25}


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


def certification(index: int = 0, **changes: Any) -> Certification:
    """Return a record whose votes support it, as far as ``changes`` do not say otherwise; its radius is its own."""
    alpha, hits = changes.get("alpha", 0.001), 980 - index % 60
    fields: dict[str, Any] = {
        "index": index,
        "label": 7,
        "prediction": 7,
        "norm": "l2",
        "certificate": "GaussianL2",
        "alpha": alpha,
        "n": 1000,
        "n_used": 1000,
        "top": 7,
        "runner_up": 3,
        "counts": (0, 0, 0, 1000 - hits, 0, 0, 0, hits, 0, 0),
        "counts0": (0, 0, 0, 1, 0, 0, 0, 9, 0, 0),
        **voted(hits, 1000, alpha if 0 < alpha < 1 else 0.001, 0.25),
        "image": SHA,
    }
    if "radius" in changes:
        fields["radii"] = {changes.get("certificate", "GaussianL2"): changes["radius"]}
    return Certification(**(fields | changes))


LOST = {"counts": (0, 0, 0, 490, 0, 0, 0, 510, 0, 0), "bounds": voted(510, 1000, 0.001, 0.25)["bounds"]}
ABSTAINED = {"prediction": ABSTAIN, "radius": 0.0, "status": "abstain", "radii": {"GaussianL2": 0.0}, **LOST}


RIGHT, WRONG = {"label": 7}, {"label": 3}
DECISION: dict[str, Any] = {"mode": "decision", "target": 0.5, "radius": 0.0}
FIVE = [
    certification(0, radius=1.0, **RIGHT),
    certification(1, radius=0.5, **RIGHT),
    certification(2, radius=2.0, **WRONG),
    certification(3, label=7, **ABSTAINED),
    certification(4, label=2, **ABSTAINED),
]
DECIDED = [
    certification(0, status="decided", **DECISION),
    certification(1, status="decided", label=3, **DECISION),
    certification(2, status="abstain", prediction=ABSTAIN, **DECISION),
    certification(3, status="undecided", prediction=ABSTAIN, **DECISION),
]


def random_records(rng: np.random.Generator, count: int) -> list[Certification]:
    records = []
    for index in range(count):
        label, prediction = (int(c) for c in rng.integers(0, 3, 2))
        if rng.random() < 0.2:
            records.append(certification(index, label=label, **ABSTAINED))
        else:
            radius = float(rng.choice([0.25, 0.5, rng.exponential(0.7)]))
            records.append(certification(index, label=label, prediction=prediction, radius=min(radius, 3.0)))
    return records


def header(indices: range | list[int] = range(0, 60, 20), **changes: Any) -> Header:
    """Return the header of a run on some images, under which :func:`certification` is believed."""
    description: dict[str, Any] = {
        **RUN,
        "noise": NOISE,
        "certificates": [GAUSSIAN_L2],
        "n0": 10,
        "n": 1000,
        "alpha": 0.001,
        "budget": {"mode": "fixed"},
    }
    data = {"name": "digits", "sha256": "cd" * 32}
    # Fixed, because another process may commit while the tests run.
    where = {"versions": {"torch": "2.11"}, "git": "0123", "host": "here", "time": "now", "command": []}
    return Header.create(description | changes, data=data, indices=indices, informative=where)


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


def changed(path: Path, edit: Callable[[dict[str, Any]], Any], row: int = 0, out: Path | None = None) -> Path:
    """Change the JSON of one line of a file, in place or into another file."""
    lines = path.read_text().splitlines()
    values = json.loads(lines[row])
    edit(values)
    lines[row] = json.dumps(values, separators=(",", ":"))
    target = path if out is None else out
    target.write_text("\n".join([*lines, ""]))
    return target
