"""Routed classifiers and cascades through the engine: one-dimensional systems, coverage, who is asked, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr
from torch import Tensor, nn

from lightning_rs import AtSigma, CascadeClassifier, Certifier, GaussianNoise, RoutedClassifier, SmoothedClassifier
from lightning_rs.budgets import StagedSamples
from lightning_rs.noise import LaplaceNoise
from lightning_rs.records import ABSTAIN, Certification, Certifications


class Intervals(nn.Module):
    """A classifier of the line: one class between any two edges."""

    def __init__(self, edges: Sequence[float], owner: Sequence[int], classes: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(list(edges), dtype=torch.float64))
        self.register_buffer("owner", torch.tensor(list(owner)))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        cell = torch.bucketize(x.flatten(1)[:, 0].double(), self.edges)  # type: ignore[arg-type]
        return nn.functional.one_hot(self.owner[cell], self.classes).float()  # type: ignore[index]

    def probabilities(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """Return those of every class under Gaussian noise, exactly, (len(x), C)."""
        edges = np.concatenate([[-np.inf], self.edges.numpy(), [np.inf]])  # type: ignore[operator]
        cells = np.diff(ndtr((edges[None, :] - x[:, None]) / sigma), axis=1)
        return cells @ np.eye(self.classes)[self.owner.numpy()]  # type: ignore[operator]


def random_intervals(rng: np.random.Generator, classes: int, spread: float) -> Intervals:
    count = int(rng.integers(1, 4))
    owner = [int(c) for c in rng.integers(0, classes, count + 1)]
    return Intervals(np.sort(rng.normal(0, spread, count)).tolist(), owner, classes)


def smoothed(network: nn.Module, sigma: float, n: int = 600, **changes: Any) -> SmoothedClassifier:
    return SmoothedClassifier(network, GaussianNoise(sigma), certifier=Certifier(n0=30, n=n, **changes))


def exact_routed(
    selector: Intervals, experts: Sequence[Intervals], sigmas: Sequence[float], x: np.ndarray
) -> np.ndarray:
    """Return h(x) with exact probabilities; sigmas: of the selector, then of the experts."""
    route = selector.probabilities(x, sigmas[0]).argmax(axis=1)
    answers = np.stack([e.probabilities(x, s).argmax(axis=1) for e, s in zip(experts, sigmas[1:], strict=True)], axis=1)
    return answers[np.arange(len(x)), route]


def around(x: float, radius: float) -> np.ndarray:
    return x + np.linspace(-1, 1, 801) * radius * (1 - 1e-9)


def test_no_random_system_of_the_line_breaks_a_certificate() -> None:
    rng = np.random.default_rng(2)
    certified = deep = 0
    for _ in range(40):
        selector = random_intervals(rng, 3, 1.0)
        experts = [random_intervals(rng, 3, 1.5) for _ in range(3)]
        sigmas = [0.3, 0.3, 0.6, 1.0]
        routed = RoutedClassifier(
            smoothed(selector, sigmas[0]),
            [smoothed(e, s) for e, s in zip(experts, sigmas[1:], strict=True)],
            alpha=1e-5,
        )
        points = rng.uniform(-1.5, 1.5, 6)
        for point, record in zip(points, routed.certify(torch.tensor(points).float()[:, None]), strict=True):
            if record.radius > 0:
                certified += 1
                deep += record.radius > min(r["radius"] for r in record.extra["parts"][1:] if r is not None)
                found = exact_routed(selector, experts, sigmas, around(float(np.float32(point)), record.radius))
                assert (found == record.prediction).all()
    assert certified > 60
    assert deep > 5, "some radii rest on the selector"


def false_statements(records: Sequence[Certification], radius: float, answer: int) -> int:
    """Return how many certify more than the true radius of one image, or another class."""
    return sum(r.radius > radius or (r.radius > 0 and r.prediction != answer) for r in records)


def true_radius(exact: Any, x: float) -> tuple[float, int]:
    grid = x + np.linspace(-3, 3, 60_001)
    found = exact(grid)
    answer = int(exact(np.array([x]))[0])
    return float(np.abs(grid[found != answer] - x).min()), answer


SELECTOR = Intervals([0.0], [1, 0], 2)
EXPERTS = [Intervals([-0.45], [1, 0], 2), Intervals([0.3], [1, 0], 2)]


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_statements_fail_no_more_often_than_alpha(alpha: float) -> None:
    """The selector turns at 0, before the first expert does: that distance is what is certified."""
    images = 3000
    routed = RoutedClassifier(smoothed(SELECTOR, 0.5, n=60), [smoothed(e, 0.5, n=60) for e in EXPERTS], alpha=alpha)
    x = torch.full((images, 1), 0.1)
    radius, answer = true_radius(lambda g: exact_routed(SELECTOR, EXPERTS, [0.5, 0.5, 0.5], g), 0.1)
    assert 0.09 < radius < 0.11
    wrong = false_statements(routed.certify(x), radius, answer)
    assert stats.binomtest(wrong, images, alpha, alternative="greater").pvalue > 1e-6
    if alpha < 0.05:
        return
    planted = RoutedClassifier(smoothed(SELECTOR, 0.5, n=60), [smoothed(e, 0.5, n=60) for e in EXPERTS], alpha=0.9)
    wrong = false_statements(planted.certify(x), radius, answer)
    assert stats.binomtest(wrong, images, alpha, alternative="greater").pvalue < 1e-6


def test_only_experts_that_matter_are_asked_and_the_split_is_fixed() -> None:
    far = Intervals([-9.0], [1, 0], 2)
    experts = [smoothed(EXPERTS[0], 0.25), smoothed(EXPERTS[1], 0.25)]
    (record,) = RoutedClassifier(smoothed(far, 0.5), experts, alpha=0.01).certify(torch.zeros(1, 1))
    selector, first, second = record.extra["parts"]
    assert second is None, "the selector is further away than the first expert certifies"
    assert (selector["alpha"], first["alpha"], record.alpha) == pytest.approx((0.003, 0.005, 0.01))
    assert record.radius == first["radius"] > 0
    near = RoutedClassifier(smoothed(SELECTOR, 0.5), experts, alpha=0.01)
    (record,) = near.certify(torch.full((1, 1), 0.3), labels=[0], indices=[7])
    assert record.extra["parts"][2]["alpha"] == pytest.approx(0.002)
    assert (record.index, record.label, record.certificate, record.norm) == (7, 0, "Routed", "l2")


def test_certifications_are_a_table_like_those_of_one_classifier() -> None:
    x, levels = torch.tensor([[-1.0], [1.0]]), [smoothed(e, s) for e, s in zip(EXPERTS, (0.6, 0.3), strict=True)]
    both = RoutedClassifier(smoothed(SELECTOR, 0.5), levels).certify(x), CascadeClassifier(levels).certify(x)
    for found, name in zip(both, ("Routed", "Cascade"), strict=True):
        assert isinstance(found, Certifications)
        assert found.to_pandas()["certificate"].tolist() == [name, name]
        assert f"radius, {name}" in found._repr_html_()


def test_an_uncertified_expert_is_never_relied_on() -> None:
    accurate = Intervals([5.0], [1, 0], 2)
    routed = RoutedClassifier(smoothed(SELECTOR, 0.5), [smoothed(EXPERTS[0], 0.5), accurate], alpha=0.01)
    left, right = routed.certify(torch.tensor([[-1.0], [1.0]]))
    assert (left.prediction, left.radius) == (ABSTAIN, 0.0)
    assert 0 < right.radius < 1.0, "the selector turns at 0"
    assert right.extra["parts"][1]["alpha"] == pytest.approx(0.007), "nobody else can be asked"
    said = routed.predict(torch.tensor([[-1.0], [1.0]]), n=400, seed=1)
    assert said.prediction.tolist() == [1, 0]
    assert said.route.tolist() == [1, 0]


def test_prediction_abstains_where_selector_or_expert_does() -> None:
    experts = [smoothed(EXPERTS[0], 0.25), smoothed(EXPERTS[1], 0.25)]
    routed = RoutedClassifier(smoothed(SELECTOR, 0.5), experts)
    said = routed.predict(torch.tensor([[0.0], [2.0], [-0.9]]), n=500, seed=3)
    assert said.prediction.tolist() == [ABSTAIN, 0, 1]
    turning = [smoothed(Intervals([2.0], [1, 0], 2), 0.25), experts[1]]
    said = RoutedClassifier(smoothed(SELECTOR, 0.5), turning).predict(torch.tensor([[2.0]]), n=500, seed=3)
    assert (said.prediction.tolist(), said.route.tolist()) == ([ABSTAIN], [0])


def exact_cascade(levels: Sequence[Intervals], sigmas: Sequence[float], p0: float, x: np.ndarray) -> np.ndarray:
    answer = np.full(len(x), ABSTAIN)
    for network, sigma in reversed(list(zip(levels, sigmas, strict=True))):
        p = network.probabilities(x, sigma)
        answer = np.where(p.max(axis=1) > p0, p.argmax(axis=1), answer)
    return answer


def test_no_random_cascade_breaks_a_certificate_or_a_prediction() -> None:
    rng = np.random.default_rng(4)
    certified = later = answered = 0
    for _ in range(40):
        levels, sigmas, p0 = (
            [random_intervals(rng, 3, 1.5) for _ in range(2)],
            [1.0, 0.4],
            float(rng.choice([0.5, 0.7])),
        )
        cascade = CascadeClassifier([smoothed(e, s) for e, s in zip(levels, sigmas, strict=True)], p0, alpha=1e-5)
        points = rng.uniform(-1.5, 1.5, 6)
        x = torch.tensor(points).float()[:, None]
        said = cascade.predict(x, n=600, alpha=1e-5, seed=1).prediction
        exact = exact_cascade(levels, sigmas, p0, x[:, 0].numpy().astype(np.float64))
        assert ((said == ABSTAIN) | (said == exact)).all()
        answered += int((said != ABSTAIN).sum())
        for point, record in zip(x[:, 0].tolist(), cascade.certify(x), strict=True):
            if record.radius > 0:
                certified += 1
                later += record.extra["part"] == 1
                found = exact_cascade(levels, sigmas, p0, around(point, record.radius))
                assert (found == record.prediction).all()
    assert certified > 60
    assert later > 5
    assert answered > 100


def test_one_network_that_is_told_the_noise_serves_several_experts() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return torch.stack([x[:, 0] + sigma, -x[:, 0] - sigma], dim=1) * self.scale

    network = Told()
    experts = [AtSigma(network, 0.25), AtSigma(network, 0.5)]
    x = torch.tensor([[1.0], [2.0]])
    assert experts[1](x)[:, 0].tolist() == [1.5, 2.5]
    routed = RoutedClassifier(
        smoothed(SELECTOR, 0.5), [smoothed(e, s) for e, s in zip(experts, (0.25, 0.5), strict=True)]
    )
    assert all(record.radius > 0 for record in routed.certify(x))


def test_what_cannot_be_combined_is_refused() -> None:
    good, plain = smoothed(SELECTOR, 0.5), EXPERTS[0]
    laplace = SmoothedClassifier(SELECTOR, LaplaceNoise(0.5))
    staged = smoothed(SELECTOR, 0.5, budget=StagedSamples())
    for build, message in (
        (lambda: RoutedClassifier(good, [good]), "experts must be two or more, at least one of them smoothed, got 1"),
        (lambda: RoutedClassifier(good, [plain, plain]), "at least one of them smoothed"),
        (
            lambda: RoutedClassifier(laplace, [good, good]),
            "selector must be smoothed by GaussianNoise, got noise Laplace",
        ),
        (lambda: RoutedClassifier(good, [good, laplace]), r"experts\[1\] must be smoothed by GaussianNoise"),
        (lambda: RoutedClassifier(staged, [good, good]), "selector must take a fixed number of independent samples"),
        (
            lambda: RoutedClassifier(good, [good, good], shares=(0.5, 0.5, 0.5)),
            "shares must be > 0 and sum to at most 1",
        ),
        (lambda: RoutedClassifier(good, [good, good], alpha=0.0), r"alpha must lie in \(0, 1\)"),
        (lambda: CascadeClassifier([good]), "levels must be two or more, got 1"),
        (lambda: CascadeClassifier([good, good], p0=0.3), r"p0 must lie in \[1/2, 1\), got 0.3"),
        (lambda: CascadeClassifier([good, staged]), r"levels\[1\] must take a fixed number"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(ValueError, match="selector must have one class an expert, 3, got 2"):
        RoutedClassifier(good, [good, good, good]).certify(torch.zeros(1, 1))
