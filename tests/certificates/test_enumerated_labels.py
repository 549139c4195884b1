"""Ranks and sets of labels under other laws than the Gaussian: every change of exact votes, one-dimensional laws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import comb

import numpy as np
import pytest

from lightning_rs.certificates.splitting import splitting_votes_distance
from lightning_rs.functional import ablation_discrepancy, ablation_l0_radius, laplace_l1_radius
from lightning_rs.numerics.enumerated_votes import set_votes_distance, topk_votes_distance
from lightning_rs.numerics.kept_pixels import ablation_variation_radius
from lightning_rs.numerics.label_radii import topk_laplace_l1_radius, topk_variation

RNG = np.random.default_rng(8)


def rank(votes: tuple[int, ...], label: int) -> int:
    """Return how many classes come before a label; ties go to the lower class."""
    return sum((-n, c) < (-votes[label], label) for c, n in enumerate(votes))


def reachable(votes: list[int], changed: int, outcomes: int, several: bool) -> Iterator[tuple[int, ...]]:
    """Yield the counts after at most so many outcomes voted anew, whatever they vote."""
    every = product(range(outcomes + 1), repeat=len(votes))
    if several:  # a changed outcome moves every class by at most one, each as it likes
        return (n for n in every if max(abs(a - b) for a, b in zip(n, votes, strict=True)) <= changed)
    total = sum(votes)
    return (
        n for n in every if sum(n) == total and sum(max(b - a, 0) for a, b in zip(n, votes, strict=True)) <= changed
    )


def drawn(several: bool) -> tuple[list[int], int]:
    classes, outcomes = int(RNG.integers(2, 5)), int(RNG.integers(1, 8))
    if several:
        return RNG.integers(0, outcomes + 1, classes).tolist(), outcomes
    return RNG.multinomial(outcomes, RNG.dirichlet(np.full(classes, 0.7))).tolist(), outcomes


@pytest.mark.parametrize("several", [False, True])
def test_no_change_of_that_many_outcomes_takes_a_label_out_of_the_top(several: bool) -> None:
    stated = attained = 0
    for _ in range(40):
        votes, outcomes = drawn(several)
        for label, k in product(range(len(votes)), range(1, len(votes))):
            distance = int(topk_votes_distance(votes, label, k, several=several))
            assert (distance >= 0) == (rank(tuple(votes), label) < k)
            if distance >= 0:
                stated += 1
                assert all(rank(n, label) < k for n in reachable(votes, distance, outcomes, several))
                attained += any(rank(n, label) >= k for n in reachable(votes, distance + 1, outcomes, several))
    assert stated > 100
    assert attained > 0.8 * stated, "short only where votes run out"


@pytest.mark.parametrize("several", [False, True])
def test_no_change_of_that_many_outcomes_leaves_a_set(several: bool) -> None:
    stated = attained = 0
    for _ in range(40):
        votes, outcomes = drawn(several)
        for bits in range(1, 2 ** len(votes) - 1):
            inside = np.array([bool(bits >> c & 1) for c in range(len(votes))])
            distance = int(set_votes_distance(votes, inside, several=several))
            assert (distance >= 0) == inside[int(np.argmax(votes))]
            if distance >= 0:
                stated += 1
                assert all(inside[int(np.argmax(n))] for n in reachable(votes, distance, outcomes, several))
                attained += not all(
                    inside[int(np.argmax(n))] for n in reachable(votes, distance + 1, outcomes, several)
                )
    assert stated > 100
    assert attained > 0.8 * stated


def test_one_label_is_the_certificate_itself_and_more_places_never_mean_less() -> None:
    votes = RNG.multinomial(200, RNG.dirichlet(np.ones(5), 50))
    top, distance = splitting_votes_distance(votes, 3)
    for several in (False, True):
        by_rank = [topk_votes_distance(votes, top, k, several=several, doubtful=3) for k in (1, 2, 3, 4)]
        assert (by_rank[0] == distance).all()
        assert (set_votes_distance(votes, np.arange(5) == top[:, None], several=several, doubtful=3) == distance).all()
        assert (np.diff(by_rank, axis=0) >= 0).all()
        wider = set_votes_distance(votes, (np.arange(5) == top[:, None]) | (np.arange(5) == 4), several=several)
        assert (wider[top != 4] >= distance[top != 4] + 3).all()
        rest = set_votes_distance(votes, np.arange(5) != (top[:, None] + 1) % 5, several=several)
        assert (rest >= distance + 3).all()
    # Several votes an outcome can only help the adversary.
    assert (topk_votes_distance(votes, top, 3) >= topk_votes_distance(votes, top, 3, several=True)).all()
    assert topk_votes_distance([0, 0], 0, 1) == 0
    assert topk_votes_distance([0, 0], 1, 1) == -1


def test_bad_votes_and_sets() -> None:
    for k in (0, 3):
        with pytest.raises(ValueError, match="k must be"):
            topk_votes_distance([3, 2, 1], 0, k)
    with pytest.raises(ValueError, match=r"label must hold classes in \[0, 3\), got 3"):
        topk_votes_distance([3, 2, 1], 3, 1)
    for inside in ([False] * 3, [True] * 3):
        with pytest.raises(ValueError, match="inside must hold some classes, and leave some out"):
            set_votes_distance([3, 2, 1], inside)


def test_no_move_of_probability_below_the_variation_puts_k_labels_above() -> None:
    """The worst law: variation V is taken from the label and given to k others, any of them, in any shares."""
    for _ in range(300):
        p, k = RNG.dirichlet(np.ones(5)), int(RNG.integers(1, 5))
        label = int(RNG.integers(5))
        others = np.delete(p, label)
        value = float(topk_variation(1 - p[label], others, k))
        low = np.sort(others)[::-1][:k]

        def passed(v: float, own: float, low: np.ndarray = low) -> bool:
            return float(np.maximum(own - v - low, 0).sum()) <= v

        assert passed(value + 1e-9, p[label])
        assert value == 0 or not passed(value * (1 - 1e-9), p[label])
    assert topk_variation(0.2, [0.2, 0.0], 1) == pytest.approx(0.3)
    assert topk_variation(0.0, [0.0, 0.0], 2) == pytest.approx(2 / 3), "a label of probability 0 may appear elsewhere"
    assert topk_variation(1.0, [0.5, 0.5], 2) == 0.0


def test_ablation_keeps_the_label_among_k_for_every_classifier_of_few_pixels() -> None:
    """All subsets of kept pixels vote; an adversary owns those that hold a changed pixel."""
    dim, kept = 7, 2
    for _ in range(60):
        votes = RNG.multinomial(comb(dim, kept), RNG.dirichlet(np.full(4, 0.6)))
        p = votes / comb(dim, kept)
        for label, k in product(range(4), (1, 2, 3)):
            variation = topk_variation(1 - p[label], np.delete(p, label), k)
            rho = int(ablation_variation_radius(variation, kept, dim))
            if rho:
                touched = round(float(ablation_discrepancy(rho, kept, dim)) * comb(dim, kept))
                assert topk_votes_distance(votes, label, k) >= touched
    assert ablation_variation_radius(0.5, kept, dim) == ablation_l0_radius(0.0, kept, dim)
    assert ablation_variation_radius(0.0, kept, dim) == 0


def laplace_cdf(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, 0.5 * np.exp(-np.abs(x)), 1 - 0.5 * np.exp(-np.abs(x)))


def cells(edges: list[np.ndarray], owner: np.ndarray, x: float, y: float, classes: int) -> np.ndarray:
    """Return the exact probability of each label at (x, y)."""
    mass = np.outer(np.diff(laplace_cdf(edges[0] - x)), np.diff(laplace_cdf(edges[1] - y)))
    return np.bincount(owner, mass.ravel(), minlength=classes)


def test_laplace_keeps_the_label_among_k_for_random_intervals() -> None:
    """Two coordinates, random cells for each label, exact probabilities: moves along one or both of them."""
    certified = 0
    for _ in range(200):
        classes, k = int(RNG.integers(3, 6)), int(RNG.integers(1, 3))
        edges = [np.concatenate([[-np.inf], np.sort(RNG.normal(0, 1.5, 4)), [np.inf]]) for _ in range(2)]
        owner = RNG.integers(0, classes, 25)

        p = cells(edges, owner, 0.0, 0.0, classes)
        for label in range(classes):
            radius = float(topk_laplace_l1_radius(1 - p[label], np.delete(p, label), k, 1.0))
            if radius == 0:
                continue
            certified += 1
            reach = min(radius, 5.0) * (1 - 1e-9)
            for share, sign in product(np.linspace(-1, 1, 9), (-1, 1)):
                there = cells(edges, owner, reach * share, sign * reach * (1 - abs(share)), classes)
                assert (np.delete(there, label) >= there[label] + 1e-12).sum() < k
    assert certified > 100


def test_laplace_with_one_rival_is_teng_and_monotone() -> None:
    q = np.linspace(0.01, 0.99, 40)
    radius = topk_laplace_l1_radius(q, q[:, None], 1, 0.5)
    assert radius == pytest.approx(laplace_l1_radius(q_upper=q, scale=0.5), rel=1e-9, abs=1e-12)
    assert (radius <= laplace_l1_radius(q_upper=q, scale=0.5)).all()
    two = topk_laplace_l1_radius(q, np.stack([q, q / 2], axis=1), 2, 0.5)
    assert (np.diff(two) <= 0).all()
    assert (two >= radius).all()
    assert topk_laplace_l1_radius(0.0, [0.0], 1, 1.0) == np.inf
