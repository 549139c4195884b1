"""Early stopping: exact coverage by dynamic programming, simulation with planted mistakes, cost in samples."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

from lightning_rs.statistics.binomial import clopper_pearson_tail_upper
from lightning_rs.statistics.sequential import (
    DecisionRule,
    StagedClopperPearson,
    Verdict,
    log_wealth_above,
    log_wealth_below,
)


def ever(event: Callable[[np.ndarray, int], np.ndarray], p: float, looks: list[int]) -> float:
    """Probability, exact, that the event on (counts, n) happens at one of the looks."""
    alive, before, hit = np.ones(1), 0, 0.0
    for n in looks:
        alive = np.convolve(alive, binom.pmf(np.arange(n - before + 1), n - before, p))
        before = n
        now = event(np.arange(n + 1), n)
        hit += alive[now].sum()
        alive = np.where(now, 0.0, alive)
    return float(hit)


# --- staged Clopper-Pearson ------------------------------------------------------------------------------------------

STAGES = StagedClopperPearson.split([20, 60, 150, 300], 0.05)


def staged_miss(stages: StagedClopperPearson, p: float) -> float:
    """Probability that the bound of some stage excludes the true tail: the worst stopping rule there is."""
    bounds = {size: stages.tail_upper(stage, np.arange(size + 1)) for stage, size in enumerate(stages.sizes)}
    return ever(lambda k, n: bounds[n] < 1 - p, p, list(stages.sizes))


def unlucky(stages: StagedClopperPearson) -> np.ndarray:
    """Probabilities just below attainable lower bounds, where a bound is missed most often."""
    bounds = [1 - stages.tail_upper(j, np.arange(0, size + 1, 1 + size // 20)) for j, size in enumerate(stages.sizes)]
    p = np.concatenate(bounds) * (1 - 1e-9)
    return p[p > 0]


def test_staged_bounds_hold_together():
    assert max(staged_miss(STAGES, p) for p in unlucky(STAGES)) <= 0.05


def test_staged_check_notices_an_alpha_that_is_not_split():
    greedy = StagedClopperPearson(STAGES.sizes, (0.05,) * 4)
    assert max(staged_miss(greedy, p) for p in unlucky(greedy)) > 0.05


def test_stages_and_split():
    stages = StagedClopperPearson.geometric(100_000, 0.001)
    assert stages.sizes == (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
    assert 0.001 * (1 - 1e-12) < stages.alpha <= 0.001
    np.testing.assert_allclose(np.square(stages.alphas), stages.alphas[0] ** 2 * np.array(stages.sizes) / 100)
    assert StagedClopperPearson.geometric(50, 0.01).sizes == (50,)
    assert StagedClopperPearson.split([10, 20], 0.1, weights=[1, 3]).alphas == pytest.approx((0.025, 0.075))
    assert stages.tail_upper(6, 99_000) == clopper_pearson_tail_upper(99_000, 100_000, stages.alphas[6])


def test_stop_rule():
    stages = StagedClopperPearson.geometric(100_000, 0.001)
    radius = lambda q: np.maximum(-ndtri(q), 0)  # noqa: E731
    hopeless, excellent, clear = 10, 100, 90
    assert stages.stop(0, [hopeless, excellent, clear], radius, 0.03).tolist() == [True, False, False]
    # At 31,623 samples with p = 0.9 the last stage gains about 0.02.
    assert stages.stop(5, 28_460, radius, 0.03)
    assert not stages.stop(5, 28_460, radius, 0.005)
    assert stages.stop(6, [100_000, 0], radius, 0.0).all()
    # What the projection promises is not exceeded by images whose probability is the observed frequency.
    for k in (60, 80, 95):
        gain = max(radius(stages.tail_upper(j, round(k / 100 * stages.sizes[j]))) for j in range(7))
        now = radius(stages.tail_upper(0, k))
        assert not stages.stop(0, k, radius, gain - now - 1e-9)


def test_stop_rule_saves_samples_at_little_loss():
    rng = np.random.default_rng(0)
    stages, p = StagedClopperPearson.geometric(100_000, 0.001), rng.beta(2, 0.5, 400)
    radius = lambda q: np.maximum(-ndtri(q), 0)  # noqa: E731
    count, used, final = np.zeros(400, int), np.zeros(400), np.zeros(400)
    running, before = np.ones(400, bool), 0
    for stage, size in enumerate(stages.sizes):
        count, before = count + rng.binomial(size - before, p), size
        leaves = running & stages.stop(stage, count, radius, 0.03)
        used[leaves], final[leaves] = size, radius(stages.tail_upper(stage, count))[leaves]
        running &= ~leaves
    assert not running.any()
    assert used.mean() < 55_000
    assert final.mean() > 0.98 * radius(clopper_pearson_tail_upper(count, 100_000, 0.001)).mean()


@pytest.mark.parametrize(
    ("sizes", "alphas", "message"),
    [
        ((), (), "sizes must be >= 1 and increasing"),
        ((5, 5), (0.1, 0.1), "sizes must be >= 1 and increasing"),
        ((5, 9), (0.1,), "alphas must have one entry a stage"),
        ((5, 9), (0.1, 0.0), "alphas must lie in"),
        ((5, 9), (0.6, 0.6), "sum of alphas must lie in"),
    ],
)
def test_bad_stages_are_refused(sizes, alphas, message):
    with pytest.raises(ValueError, match=message):
        StagedClopperPearson(sizes, alphas)
    with pytest.raises(ValueError, match="factor must be > 1"):
        StagedClopperPearson.geometric(100, 0.1, factor=1.0)


# --- the wealth ------------------------------------------------------------------------------------------------------


def incomplete_beta(a: mpmath.mpf, b: mpmath.mpf, x: mpmath.mpf) -> mpmath.mpf:
    """Integral of w^(a-1) (1-w)^(b-1) over [0, x], by a series of positive terms."""
    term = total = mpmath.mpf(1)
    i = 0
    while term > total * mpmath.mpf(10) ** -(mpmath.mp.dps - 5) or (a + b + i) * x > a + 1 + i:
        term *= (a + b + i) / (a + 1 + i) * x
        total += term
        i += 1
    return x**a * (1 - x) ** b / a * total


def exact_log_wealth(k: int, n: int, t: float, below: bool) -> mpmath.mpf:
    """The mixture integral with enough digits for the difference of two beta functions."""
    with mpmath.workdps(60 if not below else 400):
        x, a, b = mpmath.mpf(t), mpmath.mpf(n - k) + 0.5, mpmath.mpf(k) + 0.5
        mixed, angle = incomplete_beta(a, b, x), 2 * mpmath.asin(mpmath.sqrt(x))
        if below:
            mixed, angle = mpmath.beta(a, b) - mixed, mpmath.pi - angle
        return mpmath.log(mixed / angle) - (n - k) * mpmath.log(x) - k * mpmath.log1p(-x)


@pytest.mark.parametrize(
    ("k", "n", "t"),
    [(0, 0, 0.3), (1, 1, 0.08), (22, 22, 0.3085), (700, 1000, 0.3085), (650, 1000, 0.3085), (990, 1000, 1e-6),
     (1000, 1000, 1e-6), (0, 50, 0.3), (4990, 5000, 0.02), (4800, 5000, 0.02), (49_990, 50_000, 2e-4)],
)  # fmt: skip
def test_wealth_agrees_with_the_exact_integral_and_is_rounded_down(k, n, t):
    for wealth, below in ((log_wealth_above, False), (log_wealth_below, True)):
        exact = exact_log_wealth(k, n, t, below)
        assert 0 < float(exact - mpmath.mpf(float(wealth(k, n, t)))) < 1e-7


@pytest.mark.parametrize("t", [0.3085, 0.01, 0.6])
def test_wealth_is_a_supermartingale_under_its_hypothesis(t):
    n = 60
    k = np.arange(n + 1)
    for wealth, side in ((log_wealth_above, 1), (log_wealth_below, -1)):
        now, success, failure = (np.exp(wealth(k + i, n + j, t)) for i, j in ((0, 0), (1, 1), (0, 1)))
        np.testing.assert_allclose((1 - t) * success + t * failure, now, rtol=1e-8)
        tail = t + side * 0.3 * min(t, 1 - t)
        assert ((1 - tail) * success + tail * failure <= now).all()
        assert ((1 - tail) * success + tail * failure < now * (1 - 1e-6)).any()


# --- decisions -------------------------------------------------------------------------------------------------------

EVERY = list(range(1, 201))
BATCHES = list(range(32, 1025, 32))


@pytest.mark.parametrize("looks", [EVERY, BATCHES], ids=["every trial", "batches"])
@pytest.mark.parametrize(("t", "alpha"), [(0.3085, 0.05), (0.3085, 0.001), (0.02, 0.05), (0.45, 0.05)])
def test_false_decisions_are_rare_exactly(looks, t, alpha):
    rule = DecisionRule(t, alpha, n_max=10**6)
    certified = ever(lambda k, n: rule.decide(k, n) == Verdict.CERTIFIED, 1 - t, looks)
    rejected = ever(lambda k, n: rule.decide(k, n) == Verdict.REJECTED, 1 - t, looks)
    assert certified <= alpha
    assert rejected <= alpha
    if looks is EVERY:
        assert certified > 0.1 * alpha or t == 0.02  # the bet is not wasteful either


def test_exact_check_notices_peeking():
    t, alpha = 0.3085, 0.05
    assert ever(lambda k, n: clopper_pearson_tail_upper(k, n, alpha) < t, 1 - t, BATCHES) > alpha
    # Planted: the bet against the other side of the threshold.
    assert ever(lambda k, n: log_wealth_below(k, n, 0.2) >= -np.log(alpha), 1 - t, BATCHES) > alpha


def simulated(decide: Callable[[np.ndarray, int], np.ndarray], p: float, looks: list[int], runs: int) -> int:
    """Number of runs in which ``decide`` ever said yes."""
    rng = np.random.default_rng(20)
    count, before, yes = np.zeros(runs, dtype=int), 0, np.zeros(runs, dtype=bool)
    for n in looks:
        count, before = count + rng.binomial(n - before, p, runs), n
        yes |= decide(count, n)
    return int(yes.sum())


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_coverage_near_the_threshold_by_simulation(alpha):
    t, runs = float(ndtr(-0.5)), 4000
    looks = [64 * 2**i for i in range(11)]
    rule = DecisionRule(t, alpha, n_max=looks[-1])
    p = 1 - t - 1e-6
    wrong = simulated(lambda k, n: rule.decide(k, n) == Verdict.CERTIFIED, p, looks, runs)
    # This check itself fails with probability 1e-6 if the statement is true.
    assert binomtest(wrong, runs, alpha, alternative="greater").pvalue > 1e-6
    peeking = simulated(lambda k, n: clopper_pearson_tail_upper(k, n, alpha) < t, p, looks, runs)
    assert binomtest(peeking, runs, alpha, alternative="greater").pvalue < 1e-6


def test_decisions_take_few_samples():
    rng = np.random.default_rng(1)
    rule, runs = DecisionRule(float(ndtr(-0.5)), 0.001, n_max=20_000), 300
    for p, most in ((0.758, 900), (0.841, 150), (0.933, 45), (0.994, 25)):
        trials = (rng.random((runs, most)) < p).cumsum(axis=1)
        decided = rule.decide(trials, np.arange(1, most + 1)) == Verdict.CERTIFIED
        assert decided.any(axis=1).mean() > 0.5  # the median is at most `most`; fixed n takes 100,000


def test_verdicts():
    rule = DecisionRule(0.3085, 0.001, n_max=1000, alpha_reject=0.05)
    verdict = rule.decide([0, 30, 5, 700, 690, 900], [0, 30, 30, 999, 1000, 1000])
    expected = [Verdict.CONTINUE, Verdict.CERTIFIED, Verdict.REJECTED, Verdict.CONTINUE, Verdict.UNDECIDED]
    assert verdict.tolist() == [*expected, Verdict.CERTIFIED]
    # 12 of 30 is doubtful at alpha_reject = 0.05 but not at the default, alpha = 0.001.
    assert rule.decide(12, 30) == Verdict.REJECTED
    assert DecisionRule(0.3085, 0.001, 1000).decide(12, 30) == Verdict.CONTINUE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.1, 10), "threshold must lie in"),
        ((0.3, 1.0, 10), "alpha must lie in"),
        ((0.3, 0.1, 0), "n_max must be a whole number >= 1"),
        ((0.3, 0.1, 10, 2.0), "alpha_reject must lie in"),
    ],
)
def test_bad_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecisionRule(*arguments)
    with pytest.raises(ValueError, match="count must not exceed n, got 3 > 2"):
        log_wealth_above(3, 2, 0.5)
