"""Gaussian l2 radii from votes: oracles, mpmath, edges, and the certificates that use them."""

import mpmath
import numpy as np
import pytest
from scipy.stats import norm

from lightning_rs.certificates.base import ABSTAIN, Radii, Setting
from lightning_rs.certificates.gaussian_l2 import (
    GaussianL1,
    GaussianL2,
    GaussianLinf,
    GaussianTwoClassL2,
    gaussian_l2_radius,
)
from lightning_rs.certificates.lecuyer import LecuyerL2
from lightning_rs.certificates.renyi import RenyiL2
from lightning_rs.evidence import Votes
from lightning_rs.noise.base import AdditiveNoise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.setting import Selection
from tests.oracles import oracle_cases


def exact_score(q: float) -> mpmath.mpf:
    """-Phi^-1(q), the tail taken at its word."""
    with mpmath.workdps(40):
        target = mpmath.mpf(q)
        return mpmath.findroot(lambda z: mpmath.log(mpmath.ncdf(-z) / target), -norm.ppf(q), tol=1e-60)


@pytest.mark.parametrize("case", oracle_cases("cohen_certify"))
def test_one_sided_radius_agrees_with_oracles(case):
    expected = case["expected"]
    radius = gaussian_l2_radius(q_upper=expected["qA"], sigma=case["inputs"]["sigma"])
    assert radius == pytest.approx(expected["R"], rel=1e-12)
    assert (radius == 0) == expected["abstain"]


@pytest.mark.parametrize("case", oracle_cases("two_class_radius"))
def test_two_class_radius_agrees_with_oracles(case):
    given, expected = case["inputs"], case["expected"]["R"]
    by_tail = gaussian_l2_radius(q_upper=given["qA"], sigma=given["sigma"], p_upper=given["pB"])
    assert by_tail == pytest.approx(expected, rel=1e-11)
    assert gaussian_l2_radius(given["pA"], given["sigma"], given["pB"]) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("q", [0.49, 0.4999999, 0.3, 0.1, 1e-3, 1e-9, 1e-20, 1e-100, 1e-300])
def test_radius_is_rounded_down_and_keeps_its_digits_in_the_tail(q):
    exact = exact_score(q)
    for sigma in (1e-3, 0.25, 1.0, 1e3):
        error = mpmath.mpf(float(gaussian_l2_radius(q_upper=q, sigma=sigma))) / (mpmath.mpf(sigma) * exact) - 1
        assert -1e-14 < error < 0


def test_two_class_radius_is_rounded_down():
    rng = np.random.default_rng(0)
    for q, share in zip(rng.uniform(0.05, 0.7, 40), rng.uniform(0.1, 0.999, 40), strict=True):
        other = min(q, (1 - q)) * share
        exact = (exact_score(float(q)) + exact_score(float(other))) / 2
        radius = float(gaussian_l2_radius(q_upper=q, sigma=1.0, p_upper=other))
        assert -1e-13 < radius - exact <= 0


def test_ways_to_call():
    assert gaussian_l2_radius(0.9, 0.5) == gaussian_l2_radius(p_lower=0.9, sigma=0.5, p_upper=None)
    assert gaussian_l2_radius(0.9, 0.5) == pytest.approx(0.5 * norm.ppf(0.9), rel=1e-12)
    two = gaussian_l2_radius(p_lower=0.9, sigma=0.5, p_upper=0.05)
    assert two == pytest.approx(0.25 * (norm.ppf(0.9) - norm.ppf(0.05)), rel=1e-12)
    assert gaussian_l2_radius(q_upper=1e-20, sigma=0.5) == pytest.approx(-0.5 * norm.ppf(1e-20), rel=1e-12)
    assert isinstance(gaussian_l2_radius(0.9, 0.5), np.float64)
    assert gaussian_l2_radius([[0.9], [0.8]], [0.5, 1.0, 2.0]).shape == (2, 3)


@pytest.mark.parametrize(
    ("p_lower", "p_upper", "radius"),
    [
        (0.5, None, 0.0),
        (0.0, None, 0.0),
        (0.2, None, 0.0),
        (1.0, None, np.inf),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.4, 0.4, 0.0),
        (0.4, 0.5, 0.0),
        (0.5, 0.7, 0.0),
        (0.3, 0.0, np.inf),
    ],
)
def test_edges(p_lower, p_upper, radius):
    assert gaussian_l2_radius(p_lower, 1.0, p_upper) == radius


def test_runner_up_is_clipped_to_the_tail():
    assert gaussian_l2_radius(0.9, 1.0, p_upper=0.7) == gaussian_l2_radius(0.9, 1.0)
    p = np.linspace(0.01, 0.99, 50)
    assert (gaussian_l2_radius(p, 1.0, p_upper=1.0) == gaussian_l2_radius(p, 1.0)).all()


def test_monotone():
    p = np.linspace(0.0, 1.0, 400)
    assert (np.diff(gaussian_l2_radius(p, 1.0)[:-1]) >= 0).all()
    assert (np.diff(gaussian_l2_radius(p, 1.0, 0.3)[:-1]) >= 0).all()
    assert (np.diff(gaussian_l2_radius(0.6, 1.0, p)[1:]) <= 0).all()
    q = np.geomspace(1e-300, 0.5, 1000)
    assert (np.diff(gaussian_l2_radius(q_upper=q, sigma=0.5)) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_lower": 0.9}, "sigma must be given"),
        ({"sigma": 0.5}, "give exactly one of p_lower and q_upper"),
        ({"p_lower": 0.9, "q_upper": 0.1, "sigma": 0.5}, "give exactly one"),
        ({"p_lower": 1.1, "sigma": 0.5}, "p_lower must lie in"),
        ({"p_lower": np.nan, "sigma": 0.5}, "p_lower must not be NaN"),
        ({"q_upper": -0.1, "sigma": 0.5}, "q_upper must lie in"),
        ({"p_lower": 0.9, "sigma": 0.0}, "sigma must be finite and > 0"),
        ({"p_lower": 0.9, "sigma": np.inf}, "sigma must be finite and > 0"),
        ({"p_lower": 0.9, "sigma": 0.5, "p_upper": 2.0}, "p_upper must lie in"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_l2_radius(**arguments)


# --- certificates ----------------------------------------------------------------------------------------------------


def certify(certificate, counts, alpha=0.001, sigma=0.5, top=0, runner_up=1, shape=(1, 8, 8)) -> Radii:
    counts = np.atleast_2d(counts)
    full = np.full(len(counts), 1, dtype=np.int64)
    setting = Setting(
        GaussianNoise(sigma), alpha, int(counts[0].sum()), shape, selection=Selection(top * full, runner_up * full)
    )
    return certificate.certify({Votes: Votes.of(counts)}, setting)


@pytest.mark.parametrize("case", oracle_cases("multiclass_cp"))
def test_certificates_agree_with_oracles(case):
    given, expected = case["inputs"], case["expected"]
    for certificate, key in (
        (GaussianL2(), "R_cohen"),
        (GaussianTwoClassL2(), "R_bonferroni"),
        (GaussianTwoClassL2("grouped"), "R_grouped3"),
    ):
        radii = certify(
            certificate, given["counts"], given["alpha"], given["sigma"], given["top"], given["runner_up_from_n0"]
        )
        assert radii.radius[0] == pytest.approx(expected[key], rel=1e-9, abs=1e-15)
        assert radii.prediction[0] == (given["top"] if expected[key] > 0 else ABSTAIN)


def test_norm_conversions():
    counts = [[990, 10], [600, 400], [100, 900]]
    l2, l1, linf = (certify(c, counts, shape=(3, 32, 32)).radius for c in (GaussianL2(), GaussianL1(), GaussianLinf()))
    assert (l1 == l2).all()
    np.testing.assert_allclose(linf, l2 / np.sqrt(3072), rtol=1e-14)
    # Any l-infinity perturbation inside the ball has an l2 norm inside the l2 ball, in exact arithmetic.
    assert all(mpmath.mpf(float(r)) * mpmath.sqrt(3072) <= float(full) for r, full in zip(linf, l2, strict=True))
    assert (GaussianL2().norm, GaussianL1().norm, GaussianLinf().norm) == ("l2", "l1", "linf")


@pytest.mark.parametrize("kind", [GaussianTwoClassL2, LecuyerL2, RenyiL2])
def test_two_class_certificates(kind):
    counts = [[700, 200, 60, 40], [450, 300, 150, 100], [0, 0, 1000, 0]]
    for method in kind.methods:
        certificate = kind(method)
        assert sum(certificate.alpha_split.values()) == pytest.approx(1)
        assert certificate.spec() == {"method": method}
        radii = certify(certificate, counts)
        assert radii.radius[2] == 0
        assert radii.prediction[2] == ABSTAIN
        assert set(radii.bounds) == {"p_lower", "q_upper", "p_upper"}
        if method == "complement":
            assert (radii.radius <= certify(GaussianL2(), counts).radius).all()
            np.testing.assert_array_equal(radii.bounds["q_upper"], radii.bounds["p_upper"])
        else:
            cohen = certify(GaussianTwoClassL2(method), counts)
            assert (radii.radius <= cohen.radius).all()
            np.testing.assert_array_equal(radii.bounds["p_upper"], cohen.bounds["p_upper"])
    with pytest.raises(ValueError, match="method must be one of"):
        kind("goodman")


def test_two_class_certificate_reaches_below_one_half():
    radii = certify(GaussianTwoClassL2(), [4500, 1000, 1000, 3500], sigma=1.0)
    assert radii.bounds["p_lower"][0] < 0.5
    assert radii.prediction[0] == 0
    assert radii.radius[0] > 0
    assert certify(GaussianL2(), [4500, 1000, 1000, 3500], sigma=1.0).prediction[0] == ABSTAIN


def test_other_noise_is_refused():
    class OtherNoise(AdditiveNoise):
        sigma = 0.5

        def spec(self):
            return {}

        def draw_(self, out, generator=None):
            out.zero_()

    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="GaussianL2 is proved for GaussianNoise, got noise OtherNoise"):
        GaussianL2().certify(
            {Votes: Votes.of(np.array([[5, 5]]))}, Setting(OtherNoise(), 0.1, 10, (1,), selection=Selection(one, one))
        )
