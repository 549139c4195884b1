"""What sampling accumulates, against direct computation from all samples at once, however micro-batches fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rs.evidence import (
    EnumeratedVotes,
    Evidence,
    GradientSums,
    Observation,
    PairGradientSums,
    PairProducts,
    PairVotes,
    Plan,
    RunnerUpGradientSums,
    Segment,
    Votes,
)

CLASSES = 3
DIM = 4
TOP = torch.tensor([1, 0, 2])


class Samples:
    """All labels, variates and margins of a few images, and the micro-batches in which they might be seen."""

    def __init__(self, n: int, images: int = 3, seed: int = 0, antithetic: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.n, self.images = n, images
        self.labels = torch.randint(CLASSES, (images, n), generator=generator)
        self.variates = torch.randn(images, n, DIM, generator=generator)
        self.margins = torch.rand(images, n, generator=generator)
        if antithetic:
            self.variates[:, 1::2] = -self.variates[:, 0::2]

    def plan(self, order: Tensor | None = None, tolerance: float = 0.0) -> Plan:
        return Plan(self.images, CLASSES, DIM, self.n, TOP[: self.images], torch.device("cpu"), order, tolerance)

    def micro_batches(self, size: int) -> Iterator[Observation]:
        where = [(image, k) for image in range(self.images) for k in range(self.n)]
        for start in range(0, len(where), size):
            rows = where[start : start + size]
            segments = []
            for image in dict.fromkeys(image for image, _ in rows):
                own = [row for row, (other, _) in enumerate(rows) if other == image]
                segments.append(Segment(image, own[0], own[-1] + 1, rows[own[0]][1]))
            images, samples = (torch.tensor(column) for column in zip(*rows, strict=True))
            yield Observation(
                tuple(segments),
                images,
                self.labels[images, samples],
                self.variates[images, samples],
                self.margins[images, samples],
            )

    def show(self, evidence: Evidence, size: int) -> None:
        for seen in self.micro_batches(size):
            evidence.update(seen)

    def counts(self) -> NDArray[np.int64]:
        return np.stack([np.bincount(row, minlength=CLASSES) for row in self.labels.numpy()])


@pytest.mark.parametrize("size", [2, 6, 10, 16, 1000])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_votes_are_counts(n: int, size: int) -> None:
    samples = Samples(n)
    votes = Votes.empty(samples.plan())
    assert not votes.counts.any()
    samples.show(votes, size)
    assert (votes.counts == samples.counts()).all()
    assert votes.counts.dtype == np.int64
    assert (Votes.of(votes.counts).counts == votes.counts).all()


def test_votes_merge() -> None:
    first, second = Samples(30, seed=0), Samples(12, seed=1)
    found = []
    for samples in (first, second):
        votes = Votes.empty(samples.plan())
        samples.show(votes, 10)
        found.append(votes)
    found[0].merge(found[1])
    assert (found[0].counts == first.counts() + second.counts()).all()


@pytest.mark.parametrize("size", [4, 10, 1000])
def test_enumerated_votes_count_outcomes_within_the_margin(size: int) -> None:
    samples = Samples(40)
    votes = EnumeratedVotes.empty(samples.plan(tolerance=0.25))
    samples.show(votes, size)
    expected = (samples.margins <= 0.25).sum(1).numpy()
    assert 0 < expected.min() < expected.max()
    assert (votes.doubtful == expected).all()
    assert (votes.counts == samples.counts()).all()
    other = EnumeratedVotes.empty(samples.plan(tolerance=0.25))
    samples.show(other, size)
    votes.merge(other)
    assert (votes.doubtful == 2 * expected).all()
    assert (votes.counts == 2 * samples.counts()).all()


def test_a_margin_equal_to_the_tolerance_is_doubtful() -> None:
    samples = Samples(4, images=1)
    samples.margins = torch.tensor([[0.5, 0.25, 0.0, 0.250001]])
    votes = EnumeratedVotes.empty(samples.plan(tolerance=0.25))
    samples.show(votes, 4)
    assert votes.doubtful.tolist() == [2]


def test_without_tolerance_nothing_is_doubtful() -> None:
    samples = Samples(40)
    votes = EnumeratedVotes.empty(samples.plan())
    samples.show(votes, 16)
    assert votes.doubtful.tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [2, 6, 10, 1000])
def test_pair_votes_tell_both_from_exactly_one(size: int) -> None:
    samples = Samples(40, antithetic=True)
    pairs = PairVotes.empty(samples.plan())
    samples.show(pairs, size)
    plus, minus = samples.labels[:, 0::2], samples.labels[:, 1::2]
    for c in range(CLASSES):
        assert (pairs.both[:, c] == ((plus == c) & (minus == c)).sum(1).numpy()).all()
        assert (pairs.exactly_one[:, c] == ((plus == c) ^ (minus == c)).sum(1).numpy()).all()
    assert (2 * pairs.both + pairs.exactly_one == samples.counts()).all()
    again = PairVotes.of(pairs.both, pairs.exactly_one)
    again.merge(pairs)
    assert (again.both == 2 * pairs.both).all()
    assert (again.exactly_one == 2 * pairs.exactly_one).all()


@pytest.mark.parametrize("size", [2, 6, 10, 16, 1000])
@pytest.mark.parametrize("n", [2, 7, 40])
def test_gradient_means_of_both_halves(n: int, size: int) -> None:
    samples, sigma = Samples(n), 0.5
    sums = GradientSums.empty(samples.plan())
    samples.show(sums, size)
    weighted = (samples.labels == TOP[:, None]).double()[..., None] - 0.5
    z = weighted * samples.variates.double() / sigma
    assert sums.sizes == (n // 2, n - n // 2)
    first, second = sums.means(sigma)
    np.testing.assert_allclose(first, z[:, : n // 2].mean(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(second, z[:, n // 2 :].mean(1), rtol=0, atol=1e-12)
    assert first.dtype == np.float64


@pytest.mark.parametrize("size", [2, 6, 10, 1000])
@pytest.mark.parametrize("n", [4, 10, 40])
def test_pair_gradient_means_of_both_halves(n: int, size: int) -> None:
    samples, sigma = Samples(n, antithetic=True), 0.5
    sums = PairGradientSums.empty(samples.plan())
    samples.show(sums, size)
    hits = (samples.labels == TOP[:, None]).double()
    difference = (hits[:, 0::2] - hits[:, 1::2]) / 2
    z = difference[..., None] * samples.variates[:, 0::2].double() / sigma
    half = n // 4
    assert sums.sizes == (half, n // 2 - half)
    first, second = sums.means(sigma)
    np.testing.assert_allclose(first, z[:, :half].mean(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(second, z[:, half:].mean(1), rtol=0, atol=1e-12)


def test_gradients_are_put_back_into_the_order_of_the_image() -> None:
    samples, order = Samples(10), torch.tensor([2, 0, 3, 1])
    plain, moved = GradientSums.empty(samples.plan()), GradientSums.empty(samples.plan(order=order))
    samples.show(plain, 10)
    samples.variates = samples.variates[..., order]
    samples.show(moved, 10)
    for expected, found in zip(plain.means(1.0), moved.means(1.0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_sums_are_formed_in_float64() -> None:
    # 1 + 2^-30 is not a float32: sums in single precision would lose the second image's small terms.
    samples = Samples(1000, images=1)
    samples.labels.fill_(1)
    samples.variates.fill_(2.0**-30)
    samples.variates[0, 0] = 1.0
    sums = GradientSums.empty(samples.plan())
    samples.show(sums, 50)
    assert sums.means(1.0)[0][0, 0] * 500 == pytest.approx(0.5 + 0.5 * 499 * 2.0**-30, rel=1e-15)


@pytest.mark.parametrize("size", [2, 6, 10, 16, 1000])
@pytest.mark.parametrize("n", [2, 8, 40])
def test_pair_products(n: int, size: int) -> None:
    samples = Samples(n)
    products = PairProducts.empty(samples.plan())
    samples.show(products, size)
    weighted = (samples.labels == TOP[:, None]).double()[..., None] * samples.variates.double()
    direct = (weighted[:, 0::2] * weighted[:, 1::2]).sum(2)
    assert products.pairs == n // 2
    np.testing.assert_allclose(products.mean, direct.mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "n", "message"),
    [
        (GradientSums, 1, "n must leave samples for both halves of GradientSums, got 1"),
        (PairGradientSums, 2, "n must leave samples for both halves of PairGradientSums, got 2"),
        (PairProducts, 1, "n must be even and at least 2 for PairProducts, got 1"),
        (PairProducts, 7, "n must be even and at least 2 for PairProducts, got 7"),
    ],
)
def test_too_few_samples_are_refused(kind: type[Evidence], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.empty(Samples(n).plan())


def test_the_runner_up_has_gradient_sums_of_its_own() -> None:
    samples, others = Samples(13), torch.tensor([0, 2, 1])
    swapped = replace(samples.plan(), top=others)
    plan = replace(samples.plan(), runner_up=others)
    own, expected = RunnerUpGradientSums.empty(plan), GradientSums.empty(swapped)
    for seen in samples.micro_batches(5):
        own.update(seen)
        expected.update(seen)
    assert np.array_equal(own.means(0.5), expected.means(0.5))
    with pytest.raises(ValueError, match="runner_up must be given for RunnerUpGradientSums, got None"):
        RunnerUpGradientSums.empty(samples.plan())


@pytest.mark.parametrize("kind", [Votes, EnumeratedVotes, PairVotes, GradientSums, PairGradientSums, PairProducts])
def test_evidence_of_several_batches_is_joined(kind: type[Evidence]) -> None:
    def numbers(found: Evidence) -> list[NDArray[Any]]:
        if isinstance(found, EnumeratedVotes):
            return [found.counts, found.doubtful]
        if isinstance(found, Votes):
            return [found.counts]
        if isinstance(found, PairVotes):
            return [found.both, found.exactly_one]
        if isinstance(found, GradientSums):
            return list(found.means(0.5))
        assert isinstance(found, PairProducts)
        return [found.mean]

    parts = []
    for seed in (3, 1, 2):
        samples = Samples(40, antithetic=kind.scheme == "antithetic", seed=seed)
        parts.append(kind.empty(samples.plan(order=torch.tensor([2, 0, 3, 1]), tolerance=0.3)))
        samples.show(parts[-1], 16)
    alone = [[values.copy() for values in numbers(part)] for part in parts]
    whole = kind.joined(parts)
    assert type(whole) is kind
    for values, own in zip(numbers(whole), zip(*alone, strict=True), strict=True):
        assert np.array_equal(values, np.concatenate(own))
    for part, own in zip(parts, alone, strict=True):
        assert all(np.array_equal(now, before) for now, before in zip(numbers(part), own, strict=True))


def test_declarations() -> None:
    assert not any(kind.needs_fixed_n for kind in (Votes, EnumeratedVotes, PairVotes))
    assert all(kind.needs_fixed_n for kind in (GradientSums, RunnerUpGradientSums, PairGradientSums, PairProducts))
    assert {kind.scheme for kind in (Votes, GradientSums, RunnerUpGradientSums, PairProducts)} == {"iid"}
    assert PairVotes.scheme == PairGradientSums.scheme == "antithetic"
    assert EnumeratedVotes.scheme == "enumerated"
