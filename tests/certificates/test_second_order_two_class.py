"""Second-order smoothing of several classes: its bounds, closed forms, edges, and through the sampling loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import beta, norm
from torch import Tensor, nn

from lightning_rs.certificates.base import ABSTAIN, Radii, Setting
from lightning_rs.certificates.gaussian_l2 import GaussianTwoClassL2, gaussian_l2_radius
from lightning_rs.certificates.second_order import (
    SecondOrderL2,
    second_order_l2_radius,
    second_order_two_class_l2_radius,
)
from lightning_rs.certificates.second_order_two_class import TOO_LARGE, SecondOrderTwoClassL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.evidence import Evidence, GradientSums, RunnerUpGradientSums, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.setting import Selection
from lightning_rs.statistics.gradient import scaled_gradient_l2_interval

SIGMA, ALPHA, DIM = 0.5, 0.001, 6
N = 10**8
Array = NDArray[np.float64]


def certify(p: list[float], gradients: tuple[float, float], n: int = N, alpha: float = ALPHA) -> Radii:
    """Certify class 0 against class 1 and the rest, from evidence that shows exactly these numbers."""
    counts = np.round(np.array(p) * n).astype(np.int64)[None]
    halves = torch.zeros(2, 1, 2, DIM, dtype=torch.float64)
    for which, slope in enumerate(gradients):
        halves[which, 0, :, 0] = slope * SIGMA * (n // 2)
    found: dict[type[Evidence], Evidence] = {Votes: Votes.of(counts)}
    for which, kind in enumerate((GradientSums, RunnerUpGradientSums)):
        found[kind] = kind(halves[which], torch.tensor([which]), n // 2, (n // 2, n // 2), None)
    zero = np.zeros(1, dtype=np.int64)
    setting = Setting(GaussianNoise(SIGMA), alpha, int(counts.sum()), (DIM,), selection=Selection(zero, zero + 1))
    return SecondOrderTwoClassL2().certify(found, setting)


def test_its_five_bounds_and_its_radius() -> None:
    n, p, slopes = 40_000, [0.46, 0.3, 0.18, 0.06], (0.2, 0.1)
    found = certify(p, slopes, n)
    hits = [round(share * n) for share in p]
    upper = {"tail": beta.ppf(1 - 0.4 * ALPHA, n - hits[0] + 1, hits[0])}
    upper["runner_up"] = beta.ppf(1 - 0.4 * ALPHA, hits[1] + 1, n - hits[1])
    upper["others"] = beta.ppf(1 - 0.1 * ALPHA / 2, hits[2] + 1, n - hits[2])
    steep = [scaled_gradient_l2_interval(g * g, g, n // 2, n // 2, 0.05 * ALPHA).upper for g in slopes]
    expected = {
        "p_lower": 1 - upper["tail"],
        "q_upper": upper["tail"],
        "gradient_upper": steep[0],
        "runner_up_upper": upper["runner_up"],
        "runner_up_gradient_upper": steep[1],
        "others_upper": upper["others"],
    }
    assert {name: float(value[0]) for name, value in found.bounds.items()} == pytest.approx(expected, rel=1e-9)
    against = second_order_two_class_l2_radius(
        1 - upper["tail"], steep[0], [upper["runner_up"], upper["others"]], [steep[1], np.inf], SIGMA
    )
    assert found.radius[0] == pytest.approx(against.min(), rel=1e-9)
    assert found.prediction[0] == 0


class Bands:
    """Classes on a line, class of each band by its number: all probabilities at distance r in closed form."""

    def __init__(self, cuts: Array, owners: Array) -> None:
        self.low, self.high = np.append(-np.inf, cuts), np.append(cuts, np.inf)
        self.owners = owners

    def p(self, shift: Array | float = 0.0) -> Array:
        """Smoothed probabilities (classes, shifts)."""
        mass = ndtr(self.high[:, None] - shift) - ndtr(self.low[:, None] - shift)
        return np.stack([mass[self.owners == c].sum(axis=0) for c in range(4)])

    def gradient(self, c: int) -> float:
        return abs(float((norm.pdf(self.low) - norm.pdf(self.high))[self.owners == c].sum()))

    def truth(self) -> float:
        """Distance, in units of sigma, at which class 0 ceases to be the most likely: from above, to 1e-3."""
        shifts = np.arange(0.0, 12.0, 1e-3)
        ends = []
        for sign in (1.0, -1.0):
            p = self.p(sign * shifts)
            lost = p[0] <= p[1:].max(axis=0)
            ends.append(shifts[lost.argmax()] if lost.any() else np.inf)
        return min(ends)


def random_bands(rng: np.random.Generator) -> Bands:
    """Seven bands of four classes; class 0 is the top, class 1 the runner-up."""
    while True:
        bands = Bands(np.sort(rng.normal(scale=1.5, size=6)), rng.permutation([0, 0, 1, 1, 2, 3, rng.integers(4)]))
        order = np.argsort(-bands.p()[:, 0])
        if bands.p()[order[0], 0] > bands.p()[order[1], 0] + 0.02:
            names = np.empty(4, dtype=np.int64)
            names[order] = np.arange(4)
            return Bands(bands.high[:-1], names[bands.owners])


def test_never_above_the_truth_on_random_bands() -> None:
    rng = np.random.default_rng(0)
    below_half = 0
    for _ in range(60):
        bands = random_bands(rng)
        p = bands.p()[:, 0]
        found = certify(list(p), (bands.gradient(0), bands.gradient(1)))
        assert found.radius[0] <= SIGMA * bands.truth()
        below_half += p[0] < 0.5 and found.radius[0] > 0
    assert below_half > 10


def test_a_smaller_class_with_a_larger_gradient_binds() -> None:
    """Class 1 is |z_2| > b, without gradient; inside, class 0 is z_1 < c and class 2, the smallest, is beyond."""
    outside, c = 0.3, 0.3
    p = [(1 - outside) * ndtr(c), outside, (1 - outside) * ndtr(-c)]
    assert p[2] < p[1]
    slope = (1 - outside) * float(norm.pdf(c))
    truth = c * SIGMA  # towards class 2
    without = second_order_two_class_l2_radius(p[0], slope, p[1], 0.0, SIGMA)
    assert without > 1.1 * truth
    assert 0 < certify(p, (slope, 0.0)).radius[0] < truth


def test_gains_over_the_votes_alone_and_never_below_its_own_second_order() -> None:
    p, n = [0.48, 0.32, 0.1, 0.1], 10**6
    counts = {Votes: Votes.of(np.round(np.array([p]) * n).astype(np.int64))}
    zero = np.zeros(1, dtype=np.int64)
    votes = GaussianTwoClassL2().certify(
        counts, Setting(GaussianNoise(SIGMA), ALPHA, n, (DIM,), selection=Selection(zero, zero + 1))
    )
    assert certify(p, (0.05, 0.05), n).radius[0] > 1.5 * votes.radius[0]
    # Nearly all mass in two classes: the bounds of the top class alone say more than the two together.
    found = certify([0.9, 0.1, 0.0], (0.05, 0.17), n)
    bounds = {name: found.bounds[name] for name in ("q_upper", "gradient_upper")}
    alone = second_order_l2_radius(
        q_upper=bounds["q_upper"], scaled_gradient_upper=bounds["gradient_upper"], sigma=SIGMA
    )
    assert found.radius[0] >= alone[0] > 0


def test_monotone_in_every_bound() -> None:
    start = certify([0.5, 0.3, 0.2], (0.1, 0.1), 10**6).radius[0]
    assert certify([0.51, 0.3, 0.19], (0.1, 0.1), 10**6).radius[0] > start
    assert certify([0.5, 0.31, 0.19], (0.1, 0.1), 10**6).radius[0] < start
    assert certify([0.5, 0.3, 0.2], (0.15, 0.1), 10**6).radius[0] < start
    assert certify([0.5, 0.3, 0.2], (0.1, 0.15), 10**6).radius[0] < start
    assert certify([0.5, 0.3, 0.2], (0.1, 0.1), 10**6, alpha=0.05).radius[0] > start


def test_edges() -> None:
    assert certify([0.5, 0.5], (0.0, 0.0)).prediction[0] == ABSTAIN
    assert certify([0.3, 0.4, 0.3], (0.0, 0.0)).radius[0] == 0.0
    two = certify([0.7, 0.3], (0.1, 0.1), 10**6)
    assert two.bounds["others_upper"][0] == 0.0
    assert two.radius[0] > 0
    sure = certify([1.0, 0.0, 0.0], (0.0, 0.0), 1000)
    assert math.isfinite(sure.radius[0])
    assert sure.radius[0] > SIGMA


def test_gradient_bounds_that_say_nothing_are_noted() -> None:
    p, n = [0.45, 0.3, 0.25], 10**6
    assert certify(p, (0.1, 0.1), n).notes == {}
    steep_top, steep_other, both = (certify(p, slopes, n) for slopes in ((9.0, 0.1), (0.1, 9.0), (9.0, 9.0)))
    assert steep_top.notes == {0: f"upper gradient bound of the top class {TOO_LARGE}"}
    assert steep_other.notes == {0: f"upper gradient bound of the runner-up {TOO_LARGE}"}
    assert both.notes == {0: f"upper gradient bound of the top class and of the runner-up {TOO_LARGE}"}
    # As if the bounds were infinite: the two-class radius of the votes at these shares of alpha.
    bounds = {name: float(both.bounds[name][0]) for name in ("q_upper", "runner_up_upper")}
    votes = gaussian_l2_radius(q_upper=bounds["q_upper"], sigma=SIGMA, p_upper=bounds["runner_up_upper"])
    assert both.radius[0] == pytest.approx(float(votes), rel=1e-9)
    assert certify([0.3, 0.4, 0.3], (9.0, 9.0), n).notes == {}, "no radius, no remark"


class FirstCoordinate(nn.Module):
    """Bands of the first coordinate, in units of sigma around 1/2."""

    def __init__(self, cuts: list[float], owners: list[int]) -> None:
        super().__init__()
        self.cuts = nn.Parameter(0.5 + SIGMA * torch.tensor(cuts))
        self.owners = owners

    def forward(self, x: Tensor) -> Tensor:
        owner = torch.tensor(self.owners)[torch.bucketize(x.flatten(1)[:, 0].contiguous(), self.cuts)]
        return nn.functional.one_hot(owner, 4).float()


def test_through_the_loop_it_certifies_where_the_vote_is_below_one_half() -> None:
    cuts, owners = [-1.6, -0.62, 0.62, 1.6], [1, 2, 0, 3, 1]  # symmetric: class 0 has no gradient
    bands = Bands(np.array(cuts), np.array(owners))
    certifier = Certifier(
        [SecondOrderTwoClassL2(), SecondOrderL2(), GaussianTwoClassL2()],
        n0=200,
        n=100_000,
        runtime=Runtime(micro_batch=1000),
    )
    record = certifier.certify(FirstCoordinate(cuts, owners), GaussianNoise(SIGMA), torch.full((1, DIM), 0.5))[0]
    assert (record.prediction, record.radii["SecondOrderL2"]) == (0, 0.0)
    assert 1.1 * record.radii["GaussianTwoClassL2"] < record.radius < SIGMA * bands.truth()
    assert record.bounds["gradient_upper"] < 0.05 < bands.gradient(2)
