"""Routed classifiers and cascades: oracles, brute force over one-dimensional systems, edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from lightning_rs.functional import cascade_l2_radius, gaussian_l2_radius, routed_radius
from tests.oracles import oracle_cases

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("case", oracle_cases("routed_radius"), ids=str)
def test_routed_oracles(case: dict) -> None:
    i = case["inputs"]
    radius = routed_radius(i["radii"], i["q_top"], i["pi_upper"], i["top"], i["sigma_selector"])
    assert radius == pytest.approx(case["expected"], rel=case["rtol"])
    assert radius <= case["expected"]


@pytest.mark.parametrize("case", oracle_cases("cascade_radius"), ids=str)
def test_cascade_oracles(case: dict) -> None:
    radius = cascade_l2_radius(**case["inputs"])
    assert radius == pytest.approx(case["expected"], rel=case["rtol"])
    assert radius <= case["expected"]


class Steps:
    """A base classifier of one input: a class on each of a few intervals, smoothed exactly."""

    def __init__(self, classes: int, sigma: float) -> None:
        self.edges = np.concatenate([[-np.inf], np.sort(RNG.normal(0, 1, int(RNG.integers(2, 6)))), [np.inf]])
        self.owner = RNG.integers(0, classes, len(self.edges) - 1)
        self.classes, self.sigma = classes, sigma

    def __call__(self, x: float) -> np.ndarray:
        mass = np.diff(ndtr((self.edges - x) / self.sigma))
        return np.bincount(self.owner, mass, minlength=self.classes)


def _radius(p: np.ndarray, label: int, sigma: float) -> float:
    return float(gaussian_l2_radius(p[label], sigma, np.delete(p, label).max()))


def test_no_routed_system_changes_its_answer_inside() -> None:
    certified = 0
    for _ in range(400):
        routes = int(RNG.integers(2, 4))
        selector = Steps(routes, 0.5)
        experts = [Steps(3, float(sigma)) for sigma in RNG.choice([0.25, 0.5, 1.0], routes)]
        pi = selector(0.0)
        route = int(pi.argmax())
        label = int(experts[route](0.0).argmax())
        radii = [_radius(expert(0.0), label, expert.sigma) for expert in experts]
        radius = float(routed_radius(radii, 1 - pi[route], pi, route, 0.5))
        if not 0 < radius < 6:
            continue
        certified += 1
        for x in np.linspace(-1, 1, 61) * radius * (1 - 1e-9):
            taken = int(selector(float(x)).argmax())
            assert int(experts[taken](float(x)).argmax()) == label
    assert certified > 80


def test_no_cascade_changes_its_answer_inside() -> None:
    certified, p0 = 0, 0.6

    def answer(levels: list[Steps], x: float) -> tuple[int, int] | None:
        for number, level in enumerate(levels):
            p = level(x)
            if p.max() > p0:
                return number, int(p.argmax())
        return None

    for _ in range(600):
        levels = [Steps(3, sigma) for sigma in (1.0, 0.5, 0.25)]
        found = answer(levels, 0.0)
        if found is None:
            continue
        at, label = found
        own = [levels[at](0.0)[label] if k == at else None for k in range(3)]
        others = [np.delete(level(0.0), label).max() for level in levels]
        radius = float(cascade_l2_radius([1.0, 0.5, 0.25], p0, own, others))
        if not 0 < radius < 6:
            continue
        certified += 1
        for x in np.linspace(-1, 1, 61) * radius * (1 - 1e-9):
            there = answer(levels, float(x))
            assert there is not None
            assert there[1] == label
    assert certified > 100


def test_it_beats_the_minimum_over_all_parts() -> None:
    """Routes that cannot be reached before their expert fails do not shorten the radius."""
    radius = routed_radius([1.0, 0.9], 0.1, [0.9, 0.1], 0, 0.5)
    assert radius == pytest.approx(0.9)
    assert radius > min(1.0, 0.9, float(gaussian_l2_radius(q_upper=0.1, sigma=0.5)))


def test_edges_and_bad_input() -> None:
    assert routed_radius([0.0, 1.0], 0.1, [0.9, 0.1], 0, 0.5) == 0
    assert routed_radius([[2.0, 0.5]] * 3, [0.1, 0.2, 0.5], [[1, 0.1], [1, 0.2], [1, 0.5]], 0, 1.0).shape == (3,)
    assert cascade_l2_radius([1.0], 0.5, [0.4], [None]) == 0
    with pytest.raises(ValueError, match="selected"):
        routed_radius([1.0, 1.0], 0.1, [0.9, 0.1], 2, 0.5)
    with pytest.raises(ValueError, match="radii must have one entry a route"):
        routed_radius([1.0], 0.1, [0.9, 0.1], 0, 0.5)
    with pytest.raises(ValueError, match="radii must be >= 0"):
        routed_radius([-1.0, 0.0], 0.1, [0.9, 0.1], 0, 0.5)
    with pytest.raises(ValueError, match="p0"):
        cascade_l2_radius([1.0], 0.4, [0.9], [None])
    with pytest.raises(ValueError, match="exactly one"):
        cascade_l2_radius([1.0, 0.5], 0.5, [0.9, 0.9], [None, None])
    with pytest.raises(ValueError, match="before the accepting one"):
        cascade_l2_radius([1.0, 0.5], 0.5, [None, 0.9], [None, None])
