"""Two-class bounds from buckets of classes: never above one bound a class, alpha held, buckets by the selection."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_rs.certificates import GaussianTwoClassL2, UniformTwoClassL1
from lightning_rs.certificates.base import Certificate
from lightning_rs.evidence import Votes
from lightning_rs.noise import GaussianNoise, UniformNoise
from lightning_rs.setting import Selection, Setting
from lightning_rs.statistics.binomial import simultaneous_tail_bounds
from lightning_rs.statistics.partition import bounded_alone, partition_tail_bounds

N0, N = 100, 2000


def systems(classes: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return class probabilities, selection votes, their top class, and estimation votes."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.r_[5.0, 3.0, np.full(classes - 2, 0.1)], images)
    first, votes = rng.multinomial(N0, p), rng.multinomial(N, p)
    return p, first, first.argmax(axis=1), votes


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_never_above_one_bound_a_class(classes: int) -> None:
    _, first, top, votes = systems(classes, 3000, classes)
    q, upper = simultaneous_tail_bounds(votes, top, 0.001, "partition", None, first)
    old_q, old = simultaneous_tail_bounds(votes, top, 0.001, "bonferroni")
    assert (q == old_q).all()
    assert (upper <= old).all()
    assert ((upper < old).mean() > 0.03) == (classes > 3), "and below it where classes share a bound"


def test_every_set_of_buckets_stays_below_while_the_rest_has_fewer_votes_than_the_second() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        first, votes = rng.multinomial(N0, rng.dirichlet(np.ones(6))), rng.multinomial(N, rng.dirichlet(np.ones(6)))
        top = first.argmax()
        alone = int(bounded_alone(first[None], np.array([top]))[0])
        order = [c for c in np.argsort(-first, kind="stable") if c != top]
        new, old = (
            simultaneous_tail_bounds(votes, int(top), 0.01, method, None, first)[1]  # type: ignore[arg-type]
            for method in ("partition", "bonferroni")
        )
        if votes[order[alone:]].sum() <= votes[order[:alone]].max():
            assert new <= old


def test_buckets_are_chosen_by_the_selection_alone() -> None:
    top = np.zeros(3, dtype=np.int64)
    first = np.array([[60, 40, 0, 0, 0], [100, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert bounded_alone(first, top).tolist() == [1, 4, 4], "nothing seen: every class by itself"
    one, other = np.array([[1200, 700, 50, 30, 20]]), np.array([[1200, 20, 700, 50, 30]])
    level = np.array([0.01])
    bounds = [float(partition_tail_bounds(votes, top[:1], level, first[:1])[1][0]) for votes in (one, other)]
    # Two buckets share a quarter each: the second class, and the other three together.
    expected = [stats.beta.isf(0.0025, count + 1, N - count) for count in (700, 780)]
    assert bounds == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("alpha", "images"), [(0.05, 6000), (0.001, 30_000)])
def test_both_bounds_hold_together(alpha: float, images: int) -> None:
    """The top class must be below, all others above; the second is two classes that come close to the bucket's edge."""
    p = np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    rng = np.random.default_rng(7)
    first, votes = rng.multinomial(N0, p, images), rng.multinomial(N, p, images)
    top = np.zeros(images, dtype=np.int64)
    q, upper = simultaneous_tail_bounds(votes, top, alpha, "partition", None, first)
    failed = int(((q < 1 - p[0]) | (upper < p[1:].max())).sum())
    assert stats.binomtest(failed, images, alpha, alternative="greater").pvalue > 1e-6
    # Planted: every event at the whole of alpha.
    q, upper = simultaneous_tail_bounds(votes, top, min(0.9, 8 * alpha), "partition", None, first)
    planted = int(((q < 1 - p[0]) | (upper < p[1:].max())).sum())
    assert stats.binomtest(planted, images, alpha, alternative="greater").pvalue < 1e-6


@pytest.mark.parametrize(
    ("new", "old", "noise"),
    [
        (GaussianTwoClassL2(), GaussianTwoClassL2("bonferroni"), GaussianNoise(0.5)),
        (UniformTwoClassL1(), UniformTwoClassL1("bonferroni"), UniformNoise(0.5)),
    ],
    ids=["gaussian", "uniform"],
)
def test_the_default_is_the_partition_and_never_below(new: Certificate, old: Certificate, noise: GaussianNoise) -> None:
    _, first, top, votes = systems(10, 400, 5)
    second = np.argsort(-first, axis=1, kind="stable")[:, 1]
    setting = Setting(noise, 0.001, N, (4,), selection=Selection(top, second, first))
    radii = [each.certify({Votes: Votes.of(votes)}, setting).radius for each in (new, old)]
    assert new.spec() == {"method": "partition"}, "which the header says"
    assert (radii[0] >= radii[1]).all()
    assert (radii[0] > radii[1]).any()
    assert sum(new.alpha_split.values()) == 1
