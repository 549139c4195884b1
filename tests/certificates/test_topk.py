"""Top-k and label-set radii: oracles, the attack that attains them, monotonicity, edges."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from lightning_rs.functional import gaussian_l2_radius, label_set_l2_radius, topk_l2_radius
from tests.oracles import oracle_cases

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("case", oracle_cases("topk_radius"), ids=str)
def test_oracles(case: dict) -> None:
    inputs = case["inputs"]
    radius = topk_l2_radius(inputs["q"], inputs["others_upper"], inputs["k"], inputs["sigma"])
    assert radius == pytest.approx(case["expected"], rel=case["rtol"])
    assert radius <= case["expected"]


def test_the_top_label_alone_is_cohen() -> None:
    q = RNG.uniform(0, 0.6, 50)
    others = RNG.uniform(0, 1, (50, 4)) * q[:, None]
    expected = gaussian_l2_radius(q_upper=q, sigma=0.5, p_upper=others.max(1))
    assert topk_l2_radius(q, others, 1, 0.5) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def _probabilities(x: float, edges: np.ndarray, owner: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(owner, np.diff(ndtr(edges - x)), minlength=classes)


def test_no_classifier_of_one_input_puts_k_labels_above_inside_the_radius() -> None:
    """One dimension, random intervals for each label, exact probabilities: every shift inside keeps the label in."""
    certified = 0
    for _ in range(300):
        classes, k = int(RNG.integers(3, 6)), int(RNG.integers(1, 3))
        edges = np.concatenate([[-np.inf], np.sort(RNG.normal(0, 1.2, int(RNG.integers(3, 9)))), [np.inf]])
        owner = RNG.integers(0, classes, len(edges) - 1)

        p = _probabilities(0.0, edges, owner, classes)
        for label in range(classes):
            radius = float(topk_l2_radius(1 - p[label], np.delete(p, label), k, 1.0))
            if radius == 0:
                continue
            certified += 1
            for x in np.linspace(-1, 1, 41) * min(radius, 6.0) * (1 - 1e-9):
                there = _probabilities(float(x), edges, owner, classes)
                assert (np.delete(there, label) >= there[label] + 1e-12).sum() < k
    assert certified > 300


def test_two_half_lines_attain_it() -> None:
    """The worst case for k = 2: label 0 loses on one side what two labels, which share their half line, win."""
    q, shares = 0.7, np.array([0.3, 0.25])
    radius = float(topk_l2_radius(q, [*shares, 0.15], 2, 1.0))
    own = ndtr(-ndtri(q) - radius)
    assert own == pytest.approx(ndtr(ndtri(shares.sum()) + radius) / 2, rel=1e-8) or own == pytest.approx(
        ndtr(ndtri(shares.min()) + radius), rel=1e-8
    )


def test_the_k_largest_others_bind() -> None:
    """Against the definition: for every set of k others there is a t that keeps its least probable members below."""
    for _ in range(40):
        q, k = RNG.uniform(0.1, 0.8), int(RNG.integers(1, 4))
        others = RNG.dirichlet(np.ones(5)) * q
        radius = float(topk_l2_radius(q, others, k, 1.0))
        for r, holds in ((radius * (1 - 1e-6), True), (radius * (1 + 1e-6) + 1e-9, False)):
            own = ndtr(-ndtri(q) - r)
            safe = all(
                any(own > ndtr(ndtri(min(q, sum(sorted(chosen)[:t]))) + r) / t for t in range(1, k + 1))
                for chosen in combinations(others, k)
            )
            assert safe == holds or (radius == 0 and holds)


def test_monotone_and_edges() -> None:
    q = np.linspace(0.01, 0.99, 60)
    radii = topk_l2_radius(q, np.stack([q, q / 2, q / 3], axis=1), 2, 0.25)
    assert (np.diff(radii) <= 0).all()
    assert topk_l2_radius(0.5, [0.2, 0.2, 0.1], 3, 1.0) > topk_l2_radius(0.5, [0.2, 0.2, 0.1], 2, 1.0)
    assert topk_l2_radius(0.0, [0.0, 0.0], 1, 1.0) == np.inf
    assert topk_l2_radius(0.3, [0.3, 0.0], 2, 1.0) == np.inf  # the second of two others never exists
    assert topk_l2_radius(1.0, [0.5, 0.5], 2, 1.0) == 0
    assert topk_l2_radius(1e-300, [1e-300, 1e-300], 2, 1e-6) > 0
    for k in (0, 3):
        with pytest.raises(ValueError, match="k must be"):
            topk_l2_radius(0.1, [0.1, 0.1], k, 1.0)
    with pytest.raises(ValueError, match="others_upper"):
        topk_l2_radius(0.1, [0.1, np.nan], 1, 1.0)


def test_label_sets() -> None:
    assert label_set_l2_radius(0.45, 0.2, 0.5) == pytest.approx(0.25 * (ndtri(0.45) - ndtri(0.2)))
    assert label_set_l2_radius(0.2, 0.45, 0.5) == 0
    assert label_set_l2_radius(0.9, [0.01, 0.1], 1.0)[0] > label_set_l2_radius(0.9, 0.1, 1.0)
