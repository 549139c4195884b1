"""Certificates of the norm-power families: the radii that they take, and coverage through the Certifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_rs.certificates.base import Certificate, Setting
from lightning_rs.certificates.norm_power_l2 import (
    NormPowerL2,
    NormPowerLinf,
    NormPowerTwoClassL2,
    norm_power_l2_radius,
)
from lightning_rs.certificates.norm_power_linf import (
    MixedNormLinf,
    PureLinf,
    mixed_norm_linf_radius,
    mixed_norm_log_ratio,
    pure_linf_radius,
)
from lightning_rs.certifier import Certifier
from lightning_rs.evidence import Votes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerFamily, NormPowerNoise, PureLinfNoise
from lightning_rs.numerics.linf_statistics import (
    CornerFamily,
    MixedCorner,
    PureCorner,
    sign_patterns,
)
from lightning_rs.numerics.linf_table import (
    linf_table,
)
from lightning_rs.numerics.norm_power_quadrature import LogRatioLaw, converged_law
from lightning_rs.records import Header, RecordFile
from lightning_rs.report import load_runs
from lightning_rs.setting import Selection
from lightning_rs.statistics.accuracy import certified_accuracy_lower_bound
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, simultaneous_tail_bounds
from tests.certificates.norm_power import one, small


def setting(noise: Noise, n: int, top: int = 0, alpha: float = 0.001, dim: int | None = None) -> Setting:
    dim = dim or noise.dim
    return Setting(noise, alpha, n, (dim,), selection=Selection(np.array([top]), np.array([1 - top])))


def test_l2_and_linf_certificates_use_the_exact_radius():
    noise = NormPowerNoise(0.25, 3.0, 12)
    evidence = {Votes: Votes.of(np.array([[990, 10]]))}
    q = clopper_pearson_tail_upper(990, 1000, 0.001)
    l2 = NormPowerL2().certify(evidence, setting(noise, 1000))
    assert l2.prediction.tolist() == [0]
    assert l2.radius[0] == norm_power_l2_radius(q_upper=q, sigma=noise.scale, k=3.0, dim=12)
    linf = NormPowerLinf().certify(evidence, setting(noise, 1000))
    assert linf.radius[0] == pytest.approx(l2.radius[0] / math.sqrt(12), rel=1e-14)
    assert linf.radius[0] < l2.radius[0] / math.sqrt(12)
    assert NormPowerL2().certify(evidence, setting(noise, 1000, top=1)).prediction.tolist() == [-1]
    with pytest.raises(ValueError, match=r"NormPowerL2 is proved for NormPowerNoise, got noise GaussianNoise"):
        NormPowerL2().certify(evidence, setting(GaussianNoise(0.25), 1000, dim=12))


@pytest.mark.parametrize("method", ["bonferroni", "grouped"])
def test_two_class_certificate(method):
    noise = NormPowerNoise(0.25, 5.0, 60)
    counts = np.array([[480, 260, 160, 100], [480, 260, 160, 100], [300, 290, 210, 200]])
    which = Setting(
        noise, 0.001, 1000, (60,), selection=Selection(np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.int64))
    )
    got = NormPowerTwoClassL2(method).certify({Votes: Votes.of(counts)}, which)
    q, p = simultaneous_tail_bounds(counts, which.top, 0.001, method, which.runner_up)
    assert got.prediction.tolist() == [0, 0, -1]
    assert got.radius[0] == got.radius[1]
    assert got.radius[0] == norm_power_l2_radius(q_upper=q[0], sigma=noise.scale, k=5.0, dim=60, p_upper=p[0])
    assert sum(NormPowerTwoClassL2(method).alpha_split.values()) <= 1.0


def test_linf_certificates_use_their_tables():
    evidence = {Votes: Votes.of(np.array([[995, 5]]))}
    q = clopper_pearson_tail_upper(995, 1000, 0.001)
    mixed, pure = MixedNormNoise(0.25, 4.0, 12, 1.0), PureLinfNoise(0.25, 4.0, 12)
    got = MixedNormLinf(draws=1000).certify(evidence, setting(mixed, 1000))
    assert got.radius[0] == mixed_norm_linf_radius(q_upper=q, sigma=mixed.scale, k_inf=4.0, dim=12, k_2=1.0, draws=1000)
    got = PureLinf(draws=1000).certify(evidence, setting(pure, 1000))
    assert got.radius[0] == pure_linf_radius(q_upper=q, sigma=pure.scale, k=4.0, dim=12, draws=1000)
    assert got.radius[0] > 0
    assert MixedNormLinf(beta=1e-6, draws=2000, seed=3).spec() == {
        "beta": 1e-6,
        "draws": 2000,
        "seed": 3,
        "device": "cpu",
    }
    for wrong in ({"beta": 0.0}, {"draws": 10}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MixedNormLinf(**wrong)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("family", ["l2", "mixed"])
def test_coverage_on_the_worst_case_classifier(family, alpha):
    """5,000 certifications of the Neyman-Pearson classifier of one shift, whose true radius is exactly r.

    f = 1{L <= -median(L)} has probability p*(r) at the centre and one half at distance r, so a certificate is wrong
    iff it claims more than r. The test rejects a correct certificate with probability 1e-6; it must catch a bound
    at twice the level (where alpha = 0.05 leaves something to see) and the bare frequency.
    """
    dim, n, images = 6, 200, 5000
    noise = (
        NormPowerNoise(1.0, 3.0, dim, match="none") if family == "l2" else MixedNormNoise(1.0, 2.0, dim, match="none")
    )
    if family == "l2":
        r, delta = 0.4, np.eye(dim)[0] * 0.4
        cut = -LogRatioLaw(dim, 3.0).median(one(r))[0]
        powers = (0.0, 3.0)
    else:
        table = linf_table(small("mixed", dim, 2.0, draws=20_000))
        r = table.radii[150]
        delta, powers = np.full(dim, r), (2.0, 0.0)
        cut = -float(MixedCorner(dim, 2.0, 0.0).log_ratio(*_many(dim), r).median())
    generator = torch.Generator().manual_seed(5)
    votes = np.empty(images, dtype=np.int64)
    for start in range(0, images, 1000):
        z = torch.empty(1000 * n, dim)
        noise.draw_(z, generator)
        hit = mixed_norm_log_ratio(z.numpy(), delta, 1.0, *powers) <= cut
        votes[start : start + 1000] = hit.reshape(1000, n).sum(1)

    def failures(q: np.ndarray) -> int:
        if family == "l2":
            return int((norm_power_l2_radius(q_upper=q, sigma=1.0, k=3.0, dim=dim) > r * (1 + 1e-9)).sum())
        return int((table.radius(q) > r * (1 + 1e-9)).sum())

    limit = stats.binom(images, alpha).isf(1e-6)
    assert failures(np.asarray(clopper_pearson_tail_upper(votes, n, alpha))) <= limit
    assert failures(1 - np.minimum(votes / n, 1 - 1e-9)) > limit
    if family == "l2" and alpha == 0.05:
        assert failures(np.asarray(clopper_pearson_tail_upper(votes, n, 2 * alpha))) > limit


def _many(dim: int):
    generator = torch.Generator().manual_seed(77)
    return (MixedCorner(dim, 2.0, 0.0).draw(100_000, sign_patterns(dim, 4, generator), generator),)


class WorstCase(torch.nn.Module):
    """f(x) = class 0 where L(x) <= cut: for images at the origin, the Neyman-Pearson set of one shift."""

    def __init__(self, noise: NormPowerFamily, norm: str, radius: float, cut: float) -> None:
        super().__init__()
        self.noise, self.cut = noise, cut
        self.delta = noise.worst_shift(norm, radius)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1).double()
        log_ratio = self.noise.log_density(z - self.delta) - self.noise.log_density(z)
        score = (self.cut - log_ratio).clamp(-1e6, 1e6).to(x.dtype) * self.scale  # infinite at the origin
        return torch.stack([score, -score], dim=1)


def worst_cases() -> dict[str, tuple[NormPowerFamily, Certificate, str, float, float]]:
    """Noise, certificate, norm, radius r and cut such that the class has probability one half at distance r."""
    law = converged_law(6, 3.0)
    l2, linf = ("l2", 0.4), ("linf", 0.4 / math.sqrt(6))
    plain = NormPowerNoise(1.0, 3.0, 6, match="none")
    cut = -float(law.median(one(0.4))[0])
    mixed, pure = MixedNormNoise(1.0, 2.0, 6, match="none"), PureLinfNoise(1.0, 2.0, 6, match="none")
    # Radii of the tables' own grids, so that rounding down hides no failure.
    r_mixed = float(mixed_norm_linf_radius(0.7, 1.0, 2.0, 6, draws=20_000))
    r_pure = float(pure_linf_radius(0.7, 1.0, 2.0, 6, draws=20_000))
    return {
        "l2": (plain, NormPowerL2(), *l2, cut),
        "l2 read in linf": (plain, NormPowerLinf(), *linf, cut),
        "mixed": (mixed, MixedNormLinf(draws=20_000), "linf", r_mixed, -median_at(MixedCorner(6, 2.0, 0.0), r_mixed)),
        "pure": (pure, PureLinf(draws=20_000), "linf", r_pure, -median_at(PureCorner(6, 2.0), r_pure)),
    }


def median_at(law: CornerFamily, r: float) -> float:
    """Return the median of L at the corner from 800,000 values: it moves a probability of one half by 0.001."""
    generator = torch.Generator().manual_seed(77)
    seen = law.draw(100_000, sign_patterns(6, 8, generator), generator)
    return float(law.log_ratio(seen, r).median())


@pytest.mark.parametrize("images", [1000, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("name", ["l2", "l2 read in linf", "mixed", "pure"])
def test_coverage_through_the_certifier(name, alpha, images):
    """Certifier, sampling loop and noise together; rejects correct code once in 10^6."""
    noise, certificate, norm, r, cut = worst_cases()[name]
    n = 200
    certifier = Certifier([certificate], n0=10, n=n, alpha=alpha)
    records = certifier.certify(WorstCase(noise, norm, r, cut), noise, torch.zeros(images, 1, 2, 3))
    wrong = sum(record.prediction == 0 and record.radius > r * (1 + 1e-9) for record in records)
    limit = stats.binom(images, alpha).isf(1e-6)
    assert wrong <= limit
    # On the same votes, a bound at a much larger level is caught.
    votes = np.array([record.counts[0] for record in records])
    evidence = {Votes: Votes.of(np.stack([votes, n - votes], axis=1))}
    zeros = np.zeros(images, dtype=np.int64)
    planted = certificate.certify(evidence, Setting(noise, 0.3, n, (6,), selection=Selection(zeros, zeros + 1)))
    assert (planted.radius > r * (1 + 1e-9)).sum() > limit


def test_the_budget_of_a_table_is_recorded_and_comes_off_rho(tmp_path):
    """From the certifier to the bound on the set: rho - beta is what Theorem 5 has left."""
    noise, beta, rho = MixedNormNoise(1.0, 2.0, 6, match="none"), 9e-4, 1e-3
    certifier = Certifier([MixedNormLinf(beta=beta, draws=1000)], n0=10, n=100, alpha=0.01)
    session = certifier.session(WorstCase(noise, "linf", 0.5, 1.0), noise, (1, 2, 3))
    (entry,) = session.describe()["certificates"]
    assert entry["shared_failure"] == beta
    header = Header.create(session.describe(), data={"name": "none"}, indices=range(40))
    with RecordFile(tmp_path / "run.jsonl", header) as file:
        file.append(list(session.certify(torch.zeros(40, 1, 2, 3), [0] * 40)))
    (run,) = load_runs([tmp_path / "run.jsonl"])
    left, whole = (
        float(certified_accuracy_lower_bound(run.hits([0.0]), 40, 0.01, r, "bernstein")[0]) for r in (rho - beta, rho)
    )
    assert 0.0 < left < whole
    assert float(run.lower_bound([0.0], rho, "bernstein")[0]) == pytest.approx(left, rel=1e-12)
    with pytest.raises(ValueError, match="rho must exceed the failure probability"):
        run.lower_bound([0.0], beta, "bernstein")
    assert "shared_failure" not in Certifier([NormPowerL2()]).describe()["certificates"][0]
