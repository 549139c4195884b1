"""Metrics: by hand, against brute force on random records, merged over processes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_rs.metrics import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_counts,
    clean_accuracy,
    label_probabilities,
    undecided_rate,
)
from tests.fakes import ABSTAINED, DECIDED, FIVE, certification, random_records


def test_five_images_by_hand() -> None:
    assert certified_accuracy(FIVE, [0, 0.5, 0.51, 1.0, 1.5, math.inf]).tolist() == [0.4, 0.4, 0.2, 0.2, 0.0, 0.0]
    assert average_certified_radius(FIVE) == pytest.approx(1.5 / 5)
    assert abstention_rate(FIVE) == 0.4
    assert undecided_rate(FIVE) == 0.0
    assert clean_accuracy(FIVE) == 0.6, "the abstained image 3 has its majority right"


def test_decision_mode_has_no_radius_and_undecided_images_are_their_own_category() -> None:
    assert certified_accuracy(DECIDED, [0.0, 0.5, 0.6]).tolist() == [0.25, 0.25, 0.0]
    assert math.isnan(average_certified_radius(DECIDED))
    assert abstention_rate(DECIDED) == 0.25
    assert undecided_rate(DECIDED) == 0.25
    assert average_certified_radius([*FIVE, *DECIDED]) == average_certified_radius(FIVE)


def test_clean_accuracy_of_imported_records_is_that_of_the_issued_predictions() -> None:
    bare = [certification(0, counts=()), certification(1, **{**ABSTAINED, "counts": ()})]
    assert clean_accuracy(bare) == 0.5


def test_nothing_is_proved_of_the_label_where_another_class_came_first() -> None:
    bounds = [certification(i, label=label, bounds={"p_lower": p}) for i, (label, p) in enumerate([(7, 0.9), (3, 0.8)])]
    below = certification(2, label=7, **{**ABSTAINED, "top": 7, "bounds": {"p_lower": 0.4}})
    found = label_probabilities([*bounds, below])
    assert found is not None
    assert found.tolist() == [0.9, 0.0, 0.4]
    assert label_probabilities([certification(0, bounds={})]) is None


def test_against_brute_force_on_random_records() -> None:
    rng = np.random.default_rng(0)
    records = random_records(rng, 300)
    radii = np.linspace(0, 3, 13)
    correct = np.array([c.prediction == c.label for c in records])
    radius = np.array([c.radius for c in records])
    expected = (correct[:, None] & (radius[:, None] >= radii)).mean(0)
    assert certified_accuracy(records, radii.tolist()) == pytest.approx(expected, abs=1e-15)
    assert average_certified_radius(records) == pytest.approx((correct * radius).mean(), rel=1e-13)
    assert (np.diff(certified_accuracy(records, radii.tolist())) <= 0).all()
    # The area under the curve is the average radius.
    fine = np.linspace(0, 3.0, 30_001)
    area = np.trapezoid(certified_accuracy(records[:40], fine.tolist()), fine)
    assert area == pytest.approx(average_certified_radius(records[:40]), abs=1e-3)


def test_the_average_does_not_depend_on_the_order() -> None:
    records = random_records(np.random.default_rng(1), 200)
    assert average_certified_radius(records) == average_certified_radius(records[::-1])


def test_metrics_of_decision_records() -> None:
    assert math.isnan(average_certified_radius(DECIDED))


def test_refusals() -> None:
    for function in (average_certified_radius, abstention_rate, undecided_rate, clean_accuracy):
        with pytest.raises(ValueError, match="at least one image"):
            function([])
    with pytest.raises(ValueError, match="at least one image"):
        certified_accuracy([], [0.0])
    for function in (average_certified_radius, clean_accuracy):
        with pytest.raises(ValueError, match="image 5 has none"):
            function([certification(5, label=None)])
    with pytest.raises(ValueError, match="image 5 has none"):
        certified_counts([certification(5, label=None)], [0.0])
    with pytest.raises(ValueError, match=r"radii must be >= 0, got \[-1.0\]"):
        certified_counts([], [-1.0])
