"""Certified accuracy, average certified radius and abstention: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_rs.records import Certification

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def certified_counts(certifications: Iterable[Certification], radii: Sequence[float]) -> IntArray:
    """Return how many images are correct and certified at each radius, shape (len(radii),).

    Raises:
        ValueError: if an image has no label, or a radius is negative.
    """
    if not all(r >= 0 for r in radii):
        raise ValueError(f"radii must be >= 0, got {list(radii)}")
    right = [c for c in _labelled(certifications) if c.correct]
    return np.array([sum(c.certified_at(r) for c in right) for r in radii], dtype=np.int64)


def certified_accuracy(certifications: Iterable[Certification], radii: Sequence[float]) -> FloatArray:
    """Return the share of images that are correct and certified at each radius.

    ``#{i: correct, radius_i >= r} / m`` (Cohen et al. 2019, section 4); see
    :meth:`Certification.certified_at <lightning_rs.records.Certification.certified_at>` for radii that count grid
    steps, and for decision mode, where nothing is known above the target. Abstained and undecided images count as
    not certified.

    Args:
        certifications: records of m >= 1 images.
        radii: radii in input units, >= 0.

    Returns:
        Shape (len(radii),), float64.

    Raises:
        ValueError: if there are no images, one has no label, or a radius is negative.
    """
    records = _some(certifications)
    return certified_counts(records, radii) / len(records)


def average_certified_radius(certifications: Iterable[Certification]) -> float:
    """Return the mean over images of ``radius * correct`` (Zhai et al. 2020), in input units.

    Wrong and abstained images count as 0. Images of decision mode have no radius and are left out; NaN if no
    others are there.

    Raises:
        ValueError: if there are no images, or one has no label.
    """
    total, count = _radius_sum(_some(certifications))
    return total / count if count else math.nan


def hard_half_radius(certifications: Iterable[Certification]) -> float:
    """Return the average certified radius of the harder half of the images, in input units.

    The average is dominated by easy images, and so says little about the others (Sun et al. 2024): of m images, these
    are the ceil(m / 2) with the smallest ``radius * correct``, chosen from the same records after the fact. It
    describes a run and is no guarantee. NaN in decision mode.

    Raises:
        ValueError: if there are no images, or one has no label.
    """
    radii = sorted(c.radius * c.correct for c in _labelled(_some(certifications)) if c.has_radius)
    half = radii[: -(-len(radii) // 2)]
    return math.fsum(half) / len(half) if half else math.nan


def abstention_rate(certifications: Iterable[Certification]) -> float:
    """Return the share of images for which nothing could be certified; undecided ones are not among them.

    Raises:
        ValueError: if there are no images.
    """
    records = _some(certifications)
    return sum(c.status == "abstain" for c in records) / len(records)


def undecided_rate(certifications: Iterable[Certification]) -> float:
    """Return the share of images for which decision mode ran out of samples.

    Raises:
        ValueError: if there are no images.
    """
    records = _some(certifications)
    return sum(c.status == "undecided" for c in records) / len(records)


def clean_accuracy(certifications: Iterable[Certification]) -> float:
    """Return the share of images whose majority vote over the estimation samples is the label.

    An estimate of the smoothed classifier's accuracy on clean images, without a guarantee: abstention does not
    matter. Imported records have no votes; there, the issued prediction is taken and abstention counts as wrong.

    Raises:
        ValueError: if there are no images, or one has no label.
    """
    records = _labelled(_some(certifications))
    return sum(_majority(c) == c.label for c in records) / len(records)


def label_probabilities(certifications: Iterable[Certification]) -> FloatArray | None:
    """Return a lower bound on the smoothed probability of each image's label, shape (m,).

    It is the bound that certified the image, at level alpha each; where another class came first nothing is proved of
    the label, and the bound is 0. Its distribution depends on n far less than radii do (Sun et al. 2024, who show what
    the average certified radius hides). None if no record has such a bound: exact votes, imported radii.

    Raises:
        ValueError: if an image has no label.
    """
    records = _labelled(certifications)
    if not any("p_lower" in record.bounds for record in records):
        return None
    return np.array([r.bounds.get("p_lower", 0.0) if _leading(r) == r.label else 0.0 for r in records])


def _leading(record: Certification) -> int:
    return record.top if record.top >= 0 else record.prediction


def _radius_sum(certifications: Iterable[Certification]) -> tuple[float, int]:
    with_radius = [c for c in _labelled(certifications) if c.has_radius]
    # fsum does not depend on the order of the images.
    return math.fsum(c.radius for c in with_radius if c.correct), len(with_radius)


def _majority(record: Certification) -> int:
    return int(np.argmax(record.counts)) if record.counts else record.prediction


def _some(certifications: Iterable[Certification]) -> list[Certification]:
    records = list(certifications)
    if not records:
        raise ValueError("certifications must hold at least one image, got none")
    return records


def _labelled(certifications: Iterable[Certification]) -> list[Certification]:
    records = list(certifications)
    unknown = [c.index for c in records if c.label is None]
    if unknown:
        raise ValueError(f"accuracy needs labels, but image {unknown[0]} has none ({len(unknown)} without one)")
    return records
