"""Tests of what certificates assert at single points, by fresh votes; and what a contradiction means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.pixels import touched_positions
from lightning_rs.certificates.values import evidence_value_lower, law_value_lower
from lightning_rs.checks import FloatArray
from lightning_rs.noise.ablation import BandNoise, BlockNoise
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import DeterministicSplittingNoise
from lightning_rs.records import ABSTAIN, Certification
from lightning_rs.records.attacks import SLACK, ValueTest
from lightning_rs.session import Predictions, Session
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, clopper_pearson_upper

# Certificates of one class: inside the radius its probability exceeds one half. Others compare classes.
_ONE_CLASS = (
    "AblationL0", "ChannelL2", "DipoleGradientL2", "DipoleL2", "FirstOrderL1", "FirstOrderLinf", "FirstOrderSubspaceL2",
    "GaussianL1", "GaussianL2", "GaussianLinf", "LaplaceL1", "MixedNormLinf", "NormPowerL2", "NormPowerLinf",
    "PureLinf", "SecondOrderL2", "SplittingL1", "UniformBoxL1", "UniformL1", "UniformLinf",
)  # fmt: skip


def asserted(record: Certification, noise: Noise, delta: FloatArray, distance: float) -> float | None:
    """Return the lower bound that a certificate asserts of its class's probability, None if it asserts nothing.

    The largest of what the law of the noise, bounds of gradients and antithetic pairs give at this very perturbation
    and, inside the radius of a certificate that bounds one class only, one half. For enumerated laws it is a number of
    votes: each grid step of splitting takes at most one, each position that a patch touches one as well.

    Args:
        record: the certificate.
        noise: the law.
        delta: the perturbation, (d,).
        distance: its norm, the certificate's, rounded down.
    """
    if record.prediction == ABSTAIN and record.top < 0:
        return None
    if isinstance(noise, DeterministicSplittingNoise):
        steps = round(noise.q * float(np.abs(delta).sum()))
        return float(max(record.counts[claimed(record)] - steps - _doubtful(record), 0))
    if isinstance(noise, (BandNoise, BlockNoise)):
        touched = touched_positions(noise, delta)
        return float(max(record.counts[claimed(record)] - touched - _doubtful(record), 0))
    lower: list[float | None] = []
    bounds = own_bounds(record)
    if record.top == claimed(record):
        if "q_upper" in bounds:
            lower.append(law_value_lower(noise, min(bounds["q_upper"], 1.0), delta))
        lower.append(evidence_value_lower(bounds, noise.sigma, delta))
    if record.certificate.partition(":")[0] in _ONE_CLASS and within(record, distance):
        lower.append(0.5)
    known = [value for value in lower if value is not None]
    return max(known) if known else None


def own_bounds(record: Certification) -> dict[str, float]:
    """Return the bounds that belong to the record's certificate, by their plain names."""
    prefix = f"{record.certificate}."
    own = {name.removeprefix(prefix): value for name, value in record.bounds.items() if name.startswith(prefix)}
    found = own or {name: value for name, value in record.bounds.items() if "." not in name}
    if "p_lower" in found:
        found.setdefault("q_upper", 1 - found["p_lower"])
    return found


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
    x, z = images.flatten(1), points.flatten(1)
    distances, deltas = geometry.distance(x, z), moved(session, x, z)
    return [
        judged(session.noise, record, deltas[row], kind, shortened(float(distances[row])), votes, row, beta)
        for row, record in enumerate(records)
    ]


def moved(session: Session, x: Tensor, z: Tensor) -> FloatArray:
    """Return by how much the noise law moves from rows x to rows z, float64, (B, d): the inputs as the engine has them.

    Off a grid the engine rounds inputs to its own lattice; radii have that taken off, values at a point have it here.
    """
    if session.lattice is None:
        return (z.double() - x.double()).cpu().numpy()
    lattice = session.lattice.lattice
    return ((lattice.place(z) - lattice.place(x)) / float(lattice.scale)).cpu().numpy()


def judged(
    noise: Noise,
    record: Certification,
    delta: FloatArray,
    kind: str,
    distance: float,
    votes: Predictions,
    row: int,
    beta: float,
) -> ValueTest:
    """Return the outcome of one test from votes that were taken."""
    counts = votes.counts[row]
    own, total = claimed(record), int(counts.sum())
    lower = asserted(record, noise, delta, distance)
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
        row=row,
        beta=beta,
        failed=flipped or (lower is not None and upper < lower),
    )


def repeat(
    session: Session, record: Certification, image: Tensor, point: Tensor, geometry: Geometry, n: int, beta: float
) -> tuple[ValueTest, ...]:
    """Return the tests of a contradiction again, on fresh votes: at the image, half way, and at the point.

    They say whether it repeats and how far from the image it begins; they are no further chance for it to occur.
    """
    x, z = image.flatten()[None], point.flatten()[None]
    half = geometry.snap(x + 0.5 * (z - x), x)
    steps = {"clean again": x, "half way": half, "again": z}
    return tuple(
        run_tests(session, [record], image[None], at.view(1, *image.shape), kind, geometry, n, beta)[0]
        for kind, at in steps.items()
    )


def revote(session: Session, point: Tensor, test: ValueTest) -> tuple[int, ...]:
    """Return the votes of a recorded test, taken again with its key: the same ones, if everything else is the same.

    Args:
        session: the prepared network, of the same checkpoint, noise and runtime.
        point: where, (*shape), as it was fed.
        test: the recorded test.
    """
    batch = point[None].expand(test.row + 1, *point.shape)  # the position in the batch is part of the key
    return tuple(int(count) for count in session.predict(batch, n=test.n, seed=test.seed).counts[test.row])


def verdict(
    session: Session, record: Certification, image: Tensor, point: Tensor, n: int, tests: Sequence[ValueTest]
) -> tuple[str, bool]:
    """Say what a contradiction means, and whether it is certain, from votes of a new key at the image and at the point.

    The image is certified again at alpha 1e-6 with other votes. If its new certificate is contradicted as well, or if
    the recorded bound at the image holds, from which all else is said to follow, chance is no explanation: each of
    these statements fails with a probability of some 1e-6. What all images share (a table of radii) they do not test.
    """
    if session.noise.outcomes is not None:
        return "an exact certificate is contradicted: a bug, or a network that is not one fixed function", True
    if any(test.failed and test.kind == "clean" for test in tests):
        return "the record itself is not reproduced: another checkpoint, noise, preprocessing or runtime", False
    own = claimed(record)
    again = session.predict(image[None], n=n, alpha=1e-6)
    tail = float(clopper_pearson_tail_upper(int(again.counts[0, own]), n, 1e-6))
    (delta,) = moved(session, image.flatten()[None], point.flatten()[None])
    lower = law_value_lower(session.noise, tail, delta)
    votes = session.predict(point[None], n=n, alpha=1e-6)
    upper = float(clopper_pearson_upper(int(votes.counts[0, own]), n, 1e-6))
    if lower is not None and upper < lower:
        return f"survives certification with a new key (p <= {upper:.6f} < {lower:.6f} at alpha 1e-6): a bug", True
    bound = own_bounds(record).get("q_upper")
    if bound is not None and record.top == own and tail <= bound:
        says = f"what the record says of the image (p >= {1 - bound:.6f}) is confirmed by fresh votes: a bug"
        made = (each for each in session.certifier.certificates if each.name == record.certificate)
        shared = next((each.shared_failure for each in made), 0.0)
        return (f"{says}, or the event of probability {shared:g} that all images share" if shared else says), True
    return "not contradicted by certification with a new key: the alpha event that is allowed for", False


def _doubtful(record: Certification) -> int:
    """Return how many votes floating-point error could turn, here and at the other point: twice those of the record."""
    if "distance" not in record.bounds:
        return 0
    own, counts = claimed(record), record.counts
    margin = min(counts[own] - c - (i < own) for i, c in enumerate(counts) if i != own)
    return 2 * max(0, margin // 2 - int(record.bounds["distance"]))
