"""Uniform radii against the oracles, brute force over all splits on small grids, and worst cases in the box."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from lightning_rs.certificates.base import (
    ABSTAIN,
    Certificate,
    Setting,
    certificate_from_dict,
    certificate_to_dict,
)
from lightning_rs.certificates.laplace import LaplaceL1
from lightning_rs.certificates.splitting import SplittingL1
from lightning_rs.certificates.uniform import (
    UniformBoxL1,
    UniformL1,
    UniformLinf,
    UniformTwoClassL1,
    uniform_box_l1_radius,
    uniform_l1_radius,
    uniform_linf_radius,
)
from lightning_rs.evidence import Votes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.setting import Selection
from lightning_rs.statistics.binomial import simultaneous_bounds
from tests.certificates.enumeration import Grid, independent_splits, random_classifier
from tests.oracles import oracle_cases


class TestOracles:
    @pytest.mark.parametrize("case", oracle_cases("uniform_radius"))
    def test_oracle(self, case: dict) -> None:
        p, lam, dim = (case["inputs"][name] for name in ("pA_low", "lam", "d"))
        expected = {name: pytest.approx(value, rel=case["rtol"]) for name, value in case["expected"].items()}
        assert uniform_l1_radius(p, lam) == expected["R_l1"]
        assert uniform_l1_radius(q_upper=1 - p, lam=lam) == expected["R_l1"]
        assert uniform_linf_radius(p, lam, dim) == expected["R_linf"]

    def test_two_classes(self) -> None:
        assert uniform_l1_radius(0.45, 0.5, p_upper=0.25) == pytest.approx(0.5 * 0.2, rel=1e-12)
        assert uniform_l1_radius(0.45, 0.5, p_upper=0.45) == 0.0
        # No other class can have more than 1 - p_lower, whatever its own bound says.
        assert uniform_l1_radius(0.9, 0.5, p_upper=0.3) == uniform_l1_radius(0.9, 0.5)
        assert uniform_linf_radius(0.6, 2.0, 49, p_upper=0.4) == uniform_linf_radius(0.6, 2.0, 49)
        assert uniform_linf_radius(0.6, 2.0, 1, p_upper=0.2) == pytest.approx(2.0 * 0.4, rel=1e-12)

    def test_rounding_is_down(self) -> None:
        for p, lam in np.random.default_rng(1).random((500, 2)):
            exact = max(Fraction(0), 2 * Fraction(lam) * (Fraction(p) - Fraction(1, 2)))
            assert exact * (1 - Fraction(1, 10**13)) <= Fraction(float(uniform_l1_radius(p, lam))) <= exact


class TestBruteForce:
    """Independent splits: exact probabilities of every input on the grid, all pairs of inputs."""

    @pytest.mark.parametrize(
        ("q", "dim", "levels"), [(2, 1, 3), (4, 1, 3), (5, 1, 9), (2, 2, 2), (2, 2, 3), (3, 2, 5), (1, 3, 3), (2, 2, 5)]
    )
    def test_never_violated_and_attained(self, q: int, dim: int, levels: int) -> None:
        rng, lam = np.random.default_rng([q, dim, levels]), levels / (2 * q)
        grid = Grid(q, levels, independent_splits(levels, dim))
        l1, linf = grid.distances(1), grid.distances("inf")
        attained = dict.fromkeys(("l1", "two", "linf", "box"), 0)
        for _ in range(150):
            votes = grid.votes(random_classifier(grid, 3, rng), 3)
            top = votes.argmax(1)
            p, p_other = np.sort(votes, axis=1)[:, ::-1][:, :2].T / levels**dim
            # At x' another class is at least as probable: the open ball must end before.
            lost = votes[None, :, :].max(2) > np.take_along_axis(votes.T, top[:, None], axis=0)
            lost |= (votes[None] == np.take_along_axis(votes.T, top[:, None], axis=0)[:, :, None]).sum(2) > 1
            box = [uniform_box_l1_radius(pi, lam, dim, x=x / q) for pi, x in zip(p, grid.points, strict=True)]
            for name, steps, radius in (
                ("l1", l1, uniform_l1_radius(p, lam)),
                ("two", l1, uniform_l1_radius(p, lam, p_upper=p_other)),
                ("linf", linf, uniform_linf_radius(p, lam, dim)),
                ("box", l1, np.array(box)),
            ):
                inside = steps / q < radius[:, None]
                assert not (lost & inside).any(), name
                first = np.where(inside, np.iinfo(np.int64).max, steps).min(1)  # next distance on the grid
                attained[name] += int((lost & (steps == first[:, None]) & (radius > 0)[:, None]).sum())
        assert min(attained.values()) > 0, attained


class TestBox:
    def test_never_below_the_plain_radius_and_equal_for_narrow_noise(self) -> None:
        p = np.linspace(0, 1, 41)
        for lam in (0.1, 0.5, 0.7, 2.0, 6.06, 50.0):
            plain, box = uniform_l1_radius(p, lam), uniform_box_l1_radius(p, lam, 3072)
            assert (box >= plain).all()
            assert (box[plain <= 1] == plain[plain <= 1]).all()
            assert (box[plain > 1.01] > plain[plain > 1.01]).all()

    def test_limit_of_wide_noise(self) -> None:
        for p in (0.6, 0.9, 0.999):
            assert uniform_box_l1_radius(p, 1e5, 10**6) == pytest.approx(-2e5 * math.log(1.5 - p), rel=1e-5)

    @pytest.mark.parametrize("lam", [0.3, 0.8, 1.5, 4.0])
    def test_worst_case_over_vertices(self, lam: float) -> None:
        """Independent of the greedy order: the loss is largest at a vertex of {|delta|_1 = r} cut with the box."""
        rng = np.random.default_rng(3)

        def loss(x: np.ndarray, r: float) -> float:
            reach = np.maximum(x, 1 - x)
            worst = 0.0
            for last in range(len(x)):
                others = [i for i in range(len(x)) if i != last]
                for full in itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(len(x))):
                    part = r - reach[list(full)].sum()
                    if 0 <= part <= reach[last] + 1e-12:
                        moves = np.append(reach[list(full)], part)
                        worst = max(worst, 1 - float(np.prod(np.maximum(1 - moves / (2 * lam), 0))))
            return worst

        for _ in range(40):
            x, budget = rng.choice([rng.random(4), np.round(rng.random(4))]), rng.uniform(0.02, 0.5)
            radius = float(uniform_box_l1_radius(0.5 + budget, lam, 4, x=x))
            farthest = float(np.maximum(x, 1 - x).sum())
            if radius < farthest * (1 - 1e-9):
                assert loss(x, radius) == pytest.approx(budget, rel=1e-9)
            else:
                assert radius <= farthest
                assert loss(x, farthest * (1 - 1e-12)) <= budget
            general = float(uniform_box_l1_radius(0.5 + budget, lam, 4))
            assert general <= radius * (1 + 1e-11) or radius >= farthest * (1 - 1e-9)
            for _ in range(50):  # random perturbations inside the box and the ball lose less
                delta = rng.uniform(-x, 1 - x) * (rng.random(4) < 0.7)
                if np.abs(delta).sum() < radius:
                    assert 1 - np.prod(np.maximum(1 - np.abs(delta) / (2 * lam), 0)) <= budget + 1e-12

    def test_gain_is_real_and_the_limit_is_real(self) -> None:
        """Five splits, four binary pixels: plain certifies 2 flips, the box 3, and 4 flips do change the class."""
        dim, levels = 4, 5
        grid = Grid(1, levels, independent_splits(levels, dim))
        black = int(np.flatnonzero(grid.points.sum(1) == 0)[0])
        worst = np.ones(grid.size, dtype=np.int64)
        worst[grid.cells[black]] = 0  # class 0 exactly where black can be seen
        votes = grid.votes(worst, 2)
        assert votes[black].tolist() == [levels**dim, 0]
        flips = grid.points.sum(1)
        for k in range(dim + 1):
            assert (votes[flips == k, 0] == 4**k * 5 ** (dim - k)).all()
        kept = votes.argmax(1) == 0
        box, plain = uniform_box_l1_radius(1.0, levels / 2, dim), uniform_l1_radius(1.0, levels / 2)
        assert 2 < plain < 3
        assert 3 < box < 4
        assert kept[flips < box].all()
        assert not kept[flips == 4].any()

    def test_whole_box(self) -> None:
        assert uniform_box_l1_radius(0.99, 50.0, 4) == pytest.approx(4.0, rel=1e-11)
        assert uniform_box_l1_radius(0.99, 50.0, 2, x=[0.5, 0.25]) == pytest.approx(1.25, rel=1e-11)

    def test_worst_image_and_kinder_ones(self) -> None:
        gray, white = np.full(100, 0.5), np.ones(100)
        worst = uniform_box_l1_radius(0.99, 4.0, 100)
        assert uniform_box_l1_radius(0.99, 4.0, 100, x=white) == worst
        assert uniform_box_l1_radius(0.99, 4.0, 100, x=gray) > worst


@pytest.mark.parametrize(
    "radius",
    [
        lambda **kw: uniform_l1_radius(lam=0.7, **kw),
        lambda **kw: uniform_linf_radius(lam=0.7, dim=10, **kw),
        lambda **kw: uniform_box_l1_radius(lam=0.7, dim=10, **kw),
    ],
    ids=["l1", "linf", "box"],
)
class TestContract:
    def test_monotone_and_zero_at_one_half(self, radius) -> None:
        values = radius(p_lower=np.linspace(0, 1, 201))
        assert (values[:101] == 0).all()
        assert (np.diff(values[100:]) > 0).all()

    def test_shapes_and_types(self, radius) -> None:
        assert isinstance(radius(p_lower=0.9), np.float64)
        assert radius(p_lower=np.full((3, 2), 0.9)).shape == (3, 2)
        assert radius(q_upper=1e-17) == pytest.approx(radius(p_lower=1.0), rel=1e-12)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"p_lower": 1.5}, "p_lower must lie in"),
            ({"p_lower": math.nan}, "p_lower must not be NaN"),
            ({"p_lower": 0.9, "p_upper": -0.1}, "p_upper must lie in"),
            ({}, "exactly one of p_lower and q_upper"),
        ],
    )
    def test_refusals(self, radius, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            radius(**arguments)


def test_refusals_of_single_functions() -> None:
    with pytest.raises(ValueError, match="lam must be finite and > 0, got 0"):
        uniform_l1_radius(0.9, 0)
    with pytest.raises(ValueError, match="lam must be given, got None"):
        uniform_l1_radius(0.9)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        uniform_linf_radius(0.9, 1.0, 0)
    with pytest.raises(ValueError, match="dim must be given, got None"):
        uniform_box_l1_radius(0.9, 1.0)
    with pytest.raises(ValueError, match="x must have dim = 3 entries, got 2"):
        uniform_box_l1_radius(0.9, 1.0, 3, x=[0.1, 0.2])
    with pytest.raises(ValueError, match="x must lie in"):
        uniform_box_l1_radius(0.9, 1.0, 1, x=[1.2])


def _setting(noise: Noise, counts: np.ndarray, alpha: float = 0.001, shape: tuple[int, ...] = (3, 4, 4)) -> Setting:
    ranked = np.argsort(-counts, axis=1, kind="stable")
    return Setting(noise, alpha, int(counts[0].sum()), shape, selection=Selection(ranked[:, 0], ranked[:, 1]))


COUNTS = np.array([[900, 60, 40], [450, 350, 200], [0, 1000, 0], [420, 200, 380], [10, 640, 350]])


class TestCertificates:
    """Classes: bounds from statsmodels, radius from the formula, refusals."""

    @pytest.mark.parametrize(
        ("certificate", "noise", "radius"),
        [
            (UniformL1(), UniformNoise(lam=0.7), lambda p: 2 * 0.7 * (p - 0.5)),
            (SplittingL1(), SplittingNoise(lam=0.7), lambda p: 2 * 0.7 * (p - 0.5)),
            (UniformLinf(), UniformNoise(lam=0.7), lambda p: 2 * 0.7 * (1 - (1.5 - p) ** (1 / 48))),
            (UniformLinf(), SplittingNoise(lam=0.7), lambda p: 2 * 0.7 * (1 - (1.5 - p) ** (1 / 48))),
            (UniformBoxL1(), SplittingNoise(lam=0.7), lambda p: 2 * 0.7 * (p - 0.5)),
            (LaplaceL1(), LaplaceNoise(scale=0.7), lambda p: -0.7 * math.log(2 * (1 - p))),
        ],
        ids=lambda value: repr(value) if not callable(value) else "",
    )
    def test_one_tail(self, certificate: Certificate, noise: Noise, radius) -> None:
        found = certificate.certify({Votes: Votes.of(COUNTS)}, _setting(noise, COUNTS))
        for row, count in enumerate(COUNTS.max(1)):
            lower = proportion_confint(count, 1000, alpha=0.002, method="beta")[0]
            expected = radius(lower) if lower > 0.5 else 0.0
            assert found.radius[row] == pytest.approx(expected, rel=1e-9)
            assert found.radius[row] <= expected
            assert found.prediction[row] == (COUNTS[row].argmax() if lower > 0.5 else ABSTAIN)
        assert certificate_from_dict(certificate_to_dict(certificate)) == certificate

    def test_box_from_counts_is_larger_for_wide_noise(self) -> None:
        noise, evidence = UniformNoise(lam=6.0), {Votes: Votes.of(COUNTS)}
        plain, box = (c.certify(evidence, _setting(noise, COUNTS)).radius for c in (UniformL1(), UniformBoxL1()))
        assert (box >= plain).all()
        assert box[2] > 1.2 * plain[2] > 0
        assert UniformBoxL1.norm != UniformL1.norm

    @pytest.mark.parametrize("method", ["bonferroni", "grouped"])
    @pytest.mark.parametrize("noise", [UniformNoise(lam=0.7), SplittingNoise(lam=0.7)])
    def test_two_classes(self, method: str, noise: Noise) -> None:
        certificate = UniformTwoClassL1(method)  # type: ignore[arg-type]
        setting = _setting(noise, COUNTS)
        found = certificate.certify({Votes: Votes.of(COUNTS)}, setting)
        lower, upper = simultaneous_bounds(COUNTS, setting.top, 0.001, method, setting.runner_up)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.radius, np.maximum(0.7 * (lower - upper), 0), rtol=1e-9, atol=1e-15)
        assert found.prediction.tolist() == [0, ABSTAIN if found.radius[1] == 0 else 0, 1, ABSTAIN, 1]
        # No class has half of the votes, and still:
        wide = np.array([[480, 260, 260]])
        assert certificate.certify({Votes: Votes.of(wide)}, _setting(noise, wide)).radius[0] > 0
        assert sum(certificate.alpha_split.values()) == pytest.approx(1.0)
        assert certificate_from_dict(certificate_to_dict(certificate)) == certificate

    @pytest.mark.parametrize("certificate", [UniformL1(), UniformLinf(), UniformBoxL1(), UniformTwoClassL1()])
    @pytest.mark.parametrize(
        "noise",
        [GaussianNoise(1.0), LaplaceNoise(1.0), DeterministicSplittingNoise(0.5, shape=(3, 4, 4))],
        ids=lambda noise: type(noise).__name__,
    )
    def test_other_noises_are_refused(self, certificate: Certificate, noise: Noise) -> None:
        with pytest.raises(ValueError, match=f"{certificate.name} is proved for .* got noise {type(noise).__name__}"):
            certificate.certify({Votes: Votes.of(COUNTS)}, _setting(noise, COUNTS))

    def test_splitting_and_uniform_certificates_name_their_own_law(self) -> None:
        with pytest.raises(ValueError, match="UniformL1 is proved for UniformNoise, got noise SplittingNoise"):
            UniformL1().check_noise(SplittingNoise(1.0))
        with pytest.raises(ValueError, match="SplittingL1 is proved for SplittingNoise, got noise UniformNoise"):
            SplittingL1().check_noise(UniformNoise(1.0))
        with pytest.raises(ValueError, match="method must be one of"):
            UniformTwoClassL1("goodman")  # type: ignore[arg-type]
