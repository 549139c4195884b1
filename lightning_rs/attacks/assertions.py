"""Tests of what certificates assert at single points, by fresh votes; and what a contradiction means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_rs.attacks.geometry import Geometry
from lightning_rs.certificates.values import law_value_lower
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import DeterministicSplittingNoise
from lightning_rs.records import ABSTAIN, Certification
from lightning_rs.records.attacks import SLACK, ValueTest
from lightning_rs.session import Predictions, Session
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, clopper_pearson_upper

# Certificates of one class: inside the radius its probability exceeds one half. Others compare classes.
_ONE_CLASS = (
    "ChannelL2", "DipoleGradientL2", "DipoleL2", "FirstOrderL1", "FirstOrderLinf", "FirstOrderSubspaceL2", "GaussianL1",
    "GaussianL2", "GaussianLinf", "LaplaceL1", "MixedNormLinf", "NormPowerL2", "NormPowerLinf", "PureLinf",
    "SecondOrderL2", "SplittingL1", "UniformBoxL1", "UniformL1", "UniformLinf",
)  # fmt: skip


def asserted(record: Certification, noise: Noise, x: Tensor, z: Tensor, distance: float) -> float | None:
    """Return the lower bound that a certificate asserts at z of its class's probability, None if it asserts nothing.

    The larger of what the law of the noise gives at this very perturbation and, inside the radius of a certificate that
    bounds one class only, one half. For deterministic splitting noise it is a number of votes: each grid step takes at
    most one.

    Args:
        record: the certificate.
        noise: the law.
        x: the certified image, flat.
        z: the other point, flat.
        distance: norm of z - x in the certificate's norm, rounded down.
    """
    if record.prediction == ABSTAIN and record.top < 0:
        return None
    if isinstance(noise, DeterministicSplittingNoise):
        steps = round(noise.q * float((z.double() - x.double()).abs().sum()))
        return float(max(record.counts[claimed(record)] - steps - _doubtful(record), 0))
    lower = []
    tail = record.bounds.get("q_upper", 1 - record.bounds["p_lower"] if "p_lower" in record.bounds else None)
    if tail is not None and record.top == claimed(record):
        lower.append(law_value_lower(noise, min(float(tail), 1.0), (z.double() - x.double()).cpu().numpy()))
    if record.certificate.partition(":")[0] in _ONE_CLASS and within(record, distance):
        lower.append(0.5)
    known = [value for value in lower if value is not None]
    return max(known) if known else None


def claimed(record: Certification) -> int:
    """Return the class that a record states or, where it states nothing, that was the most frequent one."""
    if record.prediction != ABSTAIN:
        return record.prediction
    return record.top if record.top >= 0 else int(np.argmax(record.counts)) if record.counts else ABSTAIN


def within(record: Certification, distance: float) -> bool:
    """Return whether a perturbation of this norm, rounded down, lies in the certified ball."""
    if record.status not in ("certified", "decided"):
        return False
    reach = record.radius if record.target is None else record.target
    if record.steps is not None and record.grid is not None and record.target is None:
        return round(record.grid * distance, 3) <= record.steps
    return distance < reach


def shortened(distance: float) -> float:
    """Return a norm rounded down, for tests of lying inside."""
    return distance * (1 - SLACK)


def run_tests(
    session: Session,
    records: list[Certification],
    images: Tensor,
    points: Tensor,
    kind: str,
    geometry: Geometry,
    n: int,
    beta: float,
) -> list[ValueTest]:
    """Compare fresh votes at one point an image with what the image's certificate asserts there.

    Args:
        session: the prepared network that certified.
        records: the certificates.
        images: the certified images, (B, *shape).
        points: one point for each, (B, *shape).
        kind: name of the points.
        geometry: norm of the certificate.
        n: votes a point; an enumerated law is enumerated.
        beta: failure probability of each test.
    """
    votes = session.predict(points, n=n, alpha=beta)
    if session.lattice is not None:  # what the noise law in whole numbers may err by
        beta = session.lattice.level(beta, n, points[0].numel())
    distances = geometry.distance(images.flatten(1), points.flatten(1))
    return [
        judged(session.noise, record, image, point, kind, shortened(float(distance)), votes, row, beta)
        for row, (record, image, point, distance) in enumerate(zip(records, images, points, distances, strict=True))
    ]


def judged(
    noise: Noise,
    record: Certification,
    image: Tensor,
    point: Tensor,
    kind: str,
    distance: float,
    votes: Predictions,
    row: int,
    beta: float,
) -> ValueTest:
    """Return the outcome of one test from votes that were taken."""
    counts = votes.counts[row]
    own, total = claimed(record), int(counts.sum())
    lower = asserted(record, noise, image.flatten(), point.flatten(), distance)
    count = int(counts[own])
    exact = noise.outcomes is not None
    upper = float(count) if exact else float(clopper_pearson_upper(count, total, beta))
    prediction = int(votes.prediction[row])
    flipped = within(record, distance) and prediction not in (ABSTAIN, own)
    return ValueTest(
        kind=kind,
        distance=distance,
        lower=lower,
        count=count,
        n=total,
        upper=upper,
        prediction=prediction,
        counts=tuple(int(c) for c in counts),
        seed=votes.seed,
        beta=beta,
        failed=flipped or (lower is not None and upper < lower),
    )


def verdict(session: Session, record: Certification, image: Tensor, point: Tensor, n: int, tests: Any) -> str:
    """Say what a contradiction means, from votes of a new key at the image and a new test at the point.

    The image is certified again at alpha 1e-6 with other votes; if its new certificate is contradicted as well, chance
    is no explanation.
    """
    if any(test.failed and test.kind == "clean" for test in tests):
        return "the record itself is not reproduced: another checkpoint, noise, preprocessing or runtime"
    if session.noise.outcomes is not None:
        return "an exact certificate is contradicted: a bug, or a network that is not one fixed function"
    own = claimed(record)
    again = session.predict(image[None], n=n, alpha=1e-6)
    tail = float(clopper_pearson_tail_upper(int(again.counts[0, own]), n, 1e-6))
    lower = law_value_lower(session.noise, tail, (point.double() - image.double()).flatten().cpu().numpy())
    votes = session.predict(point[None], n=n, alpha=1e-6)
    upper = float(clopper_pearson_upper(int(votes.counts[0, own]), n, 1e-6))
    if lower is not None and upper < lower:
        return f"survives certification with a new key (p <= {upper:.6f} < {lower:.6f} at alpha 1e-6): a bug"
    return "not contradicted by certification with a new key: the alpha event that is allowed for, unless it repeats"


def tensors(image: Tensor, point: Tensor) -> dict[str, Any]:
    """Return both inputs as arrays, for a file."""
    return {"image": image.cpu().numpy(), "point": point.cpu().numpy(), "dtype": str(torch.float32)}


def _doubtful(record: Certification) -> int:
    """Return how many votes floating-point error could turn, here and at the other point: twice those of the record."""
    if "distance" not in record.bounds:
        return 0
    own, counts = claimed(record), record.counts
    margin = min(counts[own] - c - (i < own) for i, c in enumerate(counts) if i != own)
    return 2 * max(0, margin // 2 - int(record.bounds["distance"]))
