"""Splits and the certification subset, as pure functions."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_rs.data.splits import certification_indices, hold_out, stratified_quota, stratified_sample


@pytest.mark.parametrize("size", [0, 1, 7, 100, 999, 1000])
def test_split_is_exact_disjoint_and_complete(size: int) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    kept, held_out = hold_out(labels, size, seed=3)
    assert len(held_out) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(1000))
    assert (np.diff(held_out) > 0).all()
    assert (np.diff(kept) > 0).all()


def test_split_is_stratified_within_one_image_of_each_class() -> None:
    labels = np.repeat([0, 1, 2, 7], [500, 300, 150, 50])
    chosen = labels[stratified_sample(labels, 97, seed=0)]
    for label, count in [(0, 500), (1, 300), (2, 150), (7, 50)]:
        assert abs((chosen == label).sum() - 97 * count / 1000) < 1


def test_quota_gives_leftovers_to_the_largest_remainders() -> None:
    np.testing.assert_array_equal(stratified_quota(np.array([5, 3, 2]), 3), [1, 1, 1])  # 1.5, 0.9, 0.6
    np.testing.assert_array_equal(stratified_quota(np.array([1, 1, 1]), 2), [1, 1, 0])  # ties to the lower class


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    labels = np.arange(200) % 4
    np.random.seed(0)  # noqa: NPY002 - the global state must stay untouched
    expected = np.random.RandomState(0).randint(1 << 30)
    first, again, other = (stratified_sample(labels, 40, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.random.randint(1 << 30) == expected  # noqa: NPY002


def test_split_is_pinned() -> None:
    """A published run names its split by a seed: the draw must never change."""
    assert stratified_sample(np.arange(20) % 2, 6, seed=0).tolist() == PINNED


PINNED = [3, 4, 7, 8, 11, 16]


def test_sample_draws_every_image_equally_often() -> None:
    labels = np.array([0] * 6 + [1] * 4)
    counts = np.zeros(10)
    for seed in range(2000):
        counts[stratified_sample(labels, 5, seed)] += 1
    # 3 of 6 and 2 of 4: probability 1/2 each; 5 standard deviations of a binomial count
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(500))


@pytest.mark.parametrize("size", [-1, 11])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=r"size must lie in \[0, 10\]"):
        stratified_sample(np.zeros(10, np.int64), size, 0)


@pytest.mark.parametrize("skip", [1, 2, 3, 20, 99, 1000])
@pytest.mark.parametrize("most", [None, 1, 5, 50, 10_000])
def test_max_bounds_the_number_of_images_for_every_skip(skip: int, most: int | None) -> None:
    chosen = certification_indices(np.arange(500), skip, most)
    every = list(range(0, 500, skip))
    assert chosen.tolist() == (every if most is None else every[:most])
    assert len(chosen) == min(len(every), most or 500)


def test_skip_counts_own_indices_not_positions() -> None:
    own = np.array([1, 4, 6, 9, 12, 15])
    assert certification_indices(own, skip=3, max=2).tolist() == [6, 9]


def test_explicit_indices_are_taken_in_order() -> None:
    assert certification_indices(np.arange(10), indices=[7, 2, 9]).tolist() == [2, 7, 9]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 10], r"0 to 9\), got \[10\]"),
        ([-1], r"got \[-1\]"),
        ([3, 5, 3], r"repeat, got \[3\]"),
        ([], "nothing to certify"),
    ],
)
def test_bad_indices(indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certification_indices(np.arange(10), indices=indices)


def test_an_empty_subset_is_an_error() -> None:
    with pytest.raises(ValueError, match="multiple of skip=100"):
        certification_indices(np.array([3, 5]), skip=100)
