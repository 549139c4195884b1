"""Attacks on classifiers whose smoothed boundary is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_rs import (
    Certifier,
    DeterministicSplittingNoise,
    GaussianNoise,
    LaplaceNoise,
    NormPowerNoise,
    SmoothedClassifier,
    SplittingNoise,
    UniformNoise,
)
from lightning_rs.attacks import (
    DDN,
    L1APGD,
    PGD,
    Attack,
    External,
    Geometry,
    Margin,
    PlugIn,
    Reinforce,
    SplittingMoves,
    VoteSearch,
)
from lightning_rs.attacks.directions import uphill_of_evidence
from lightning_rs.attacks.splitting import Outcomes, lost, single_step_attack
from lightning_rs.certificates import DipoleGradientL2, FirstOrderL1, GaussianL2, SecondOrderL2
from lightning_rs.certificates.splitting import splitting_votes_distance
from tests.helpers import HalfSpace

SHAPE = (1, 6, 6)
DIM = 36


def half_space(seed: int = 0) -> tuple[HalfSpace, torch.Tensor]:
    """Return a linear classifier with unequal weights and an image of class 1."""
    weight = torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
    x = torch.full((1, *SHAPE), 0.5)
    return HalfSpace(weight, offset=float(0.5 * weight.sum()) - 0.25 * float(weight.norm())).eval(), x


def boundary(network: HalfSpace, x: torch.Tensor, norm: str) -> float:
    """Return the distance of the smoothed boundary, which is the base classifier's: the noise is symmetric."""
    weight = network.weight.detach().double()
    margin = float(x.flatten().double() @ weight - network.offset)
    dual = {"l1": weight.abs().max(), "l2": weight.norm(), "linf": weight.abs().sum()}[norm]
    return margin / float(dual)


CASES = [
    (PGD(steps=20), "l2", 1.05),
    (PGD(steps=20), "linf", 1.05),
    (PGD(steps=30), "l1", 2.0),  # the largest weight alone would have to leave the box
    (PGD(steps=20, objective=PlugIn()), "l2", 1.05),
    (PGD(steps=20, objective=Reinforce()), "l2", 1.6),
    (PGD(steps=20, restarts=2), "l2", 1.05),
    (L1APGD(steps=30), "l1", 2.0),
    (L1APGD(steps=30, restarts=2), "l1", 2.0),
    (DDN(steps=60), "l2", 2.0),
    (VoteSearch(steps=300), "l2", 2.0),
    (VoteSearch(steps=300), "linf", 2.0),
    (VoteSearch(steps=300), "l1", 3.0),
]


@pytest.mark.parametrize(
    ("attack", "norm", "factor"), CASES, ids=lambda v: type(v).__name__ if isinstance(v, Attack) else v
)
def test_attacks_cross_the_boundary_a_little_beyond_it_and_never_before(
    attack: Attack, norm: str, factor: float
) -> None:
    network, x = half_space()
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25), copies=64, domain=(0.0, 1.0))
    geometry = Geometry(norm, (0.0, 1.0))
    for share, crosses in ((factor, True), (0.98, False)):
        eps = torch.tensor([share * boundary(network, x, norm)])
        found = attack(smoothed, x, torch.tensor([1]), eps, geometry, seed=1)
        assert geometry.distance(x.flatten(1), found.flatten(1))[0] <= float(eps)
        # DDN's shortest of many noisy successes tends to lie a hair inside.
        reached = x + (1.15 if isinstance(attack, DDN) and crosses else 1.0) * (found - x)
        assert bool(network(reached).argmax() == 0) == crosses


def test_ddn_finds_a_short_perturbation_without_a_tight_radius() -> None:
    network, x = half_space()
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25), copies=64, domain=(0.0, 1.0))
    found = DDN(steps=80)(smoothed, x, torch.tensor([1]), torch.tensor([3.0]), Geometry("l2", (0.0, 1.0)))
    assert network(x + 1.15 * (found - x)).argmax() == 0
    assert 0.9 < float((found - x).norm()) / boundary(network, x, "l2") < 1.3


def test_objectives_and_the_gradient_from_votes() -> None:
    network, x = half_space()
    network.requires_grad_(False)
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25), copies=4000)
    classes = torch.tensor([1])
    vote = smoothed(x)[0].double()
    scores = smoothed.copy_logits(x)
    assert float(PlugIn().value(scores, classes)) == pytest.approx(-float(vote[1]), rel=1e-5)
    assert float(Margin().value(scores, classes)) == pytest.approx(float(vote[0] - vote[1]), rel=1e-5)
    # P(wrong) = Phi(-m / (sigma |w|)): its gradient is -phi(.) w / (sigma |w|).
    weight = network.weight.detach()
    margin = boundary(network, x, "l2") / 0.25
    expected = -math.exp(-(margin**2) / 2) / math.sqrt(2 * math.pi) / 0.25 * weight / weight.norm()
    found = Reinforce().gradient(smoothed, x, classes)[0]
    assert float((found - expected).norm()) < 0.3 * float(expected.norm())
    laplace = SmoothedClassifier(network, LaplaceNoise(0.2), copies=4000)
    power = SmoothedClassifier(network, NormPowerNoise(0.25, k=4.0, dim=DIM), copies=4000)
    for other in (laplace, power):
        cosine = torch.cosine_similarity(Reinforce().gradient(other, x, classes)[0], -weight, dim=0)
        assert float(cosine) > 0.9
    splitting = SmoothedClassifier(network, SplittingNoise(lam=0.5))
    with pytest.raises(
        ValueError, match=r"uniform or a power of norms, .*got SplittingNoise.*VoteSearch works for every"
    ):
        Reinforce().gradient(splitting, x, classes)


def test_the_derivative_of_a_uniform_law_lies_on_the_faces_of_its_cube() -> None:
    # With e_1 + e_2 triangular on [-2 lam, 2 lam], d/dx_i P(x_1 + x_2 + e_1 + e_2 > c) is its density at the margin.
    lam, margins = 0.5, torch.tensor([0.0, 0.3, -0.7])
    network = HalfSpace(torch.ones(2), offset=1.0)
    smoothed = SmoothedClassifier(network, UniformNoise(lam=lam), copies=40_000)
    x = torch.full((3, 2), 0.5) + margins[:, None] / 2
    expected = (2 * lam - margins.abs()) / (4 * lam**2)
    for own, sign in ((1, -1.0), (0, 1.0)):
        found = Reinforce().gradient(smoothed, x, torch.full((3,), own))
        torch.testing.assert_close(found, sign * expected[:, None].expand(3, 2), rtol=0, atol=0.04)
    # More coordinates than copies: each is faced once, and of a classifier of one pixel that is the exact derivative.
    weight = torch.zeros(DIM)
    weight[5] = 1.0
    few = SmoothedClassifier(HalfSpace(weight, offset=0.3), UniformNoise(lam=lam), copies=7)
    exact = Reinforce().gradient(few, torch.full((1, *SHAPE), 0.5), torch.tensor([1]))[0]
    torch.testing.assert_close(exact, -weight / (2 * lam))


def test_votes_alone_attack_through_uniform_noise() -> None:
    network, x = half_space()
    smoothed = SmoothedClassifier(Steps().requires_grad_(False), UniformNoise(lam=0.4), copies=64)
    eps = torch.tensor([2.0 * boundary(network, x, "l1")])
    found = PGD(steps=30, objective=Reinforce())(smoothed, x, torch.tensor([1]), eps, Geometry("l1", (0.0, 1.0)))
    assert network(found).argmax() == 0


class Steps(nn.Module):
    """A linear classifier that looks at rounded pixels: no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = half_space()[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.round(decimals=2).detach())


def test_networks_without_gradient_are_told_what_to_use() -> None:
    x = half_space()[1]
    smoothed = SmoothedClassifier(Steps().requires_grad_(False), GaussianNoise(0.25))
    arguments = (smoothed, x, torch.tensor([1]), torch.tensor([2.0]), Geometry("l2", (0.0, 1.0)))
    for attack in (PGD(), DDN()):
        with pytest.raises(ValueError, match=r"use lightning_rs\.attacks\.VoteSearch, or PGD with .*Reinforce"):
            attack(*arguments)
    assert smoothed.network(VoteSearch(400)(*arguments)).argmax() == 0
    assert smoothed.network(PGD(objective=Reinforce())(*arguments)).argmax() == 0


def test_sparse_steps_come_near_the_best_perturbation_of_ball_and_box() -> None:
    # Of a linear classifier the best one is known: the largest weights get all the room that the box leaves them.
    network, x = half_space()
    x = torch.rand(x.shape, generator=torch.Generator().manual_seed(5))
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25), copies=16, domain=(0.0, 1.0))
    geometry, eps = Geometry("l1", (0.0, 1.0)), torch.tensor([2.5])
    weight = network.weight.detach()
    best = geometry.furthest(x.flatten(1), -weight[None], eps)
    gain = float((x.flatten() - best) @ weight)
    for attack in (L1APGD(steps=40), PGD(steps=40)):
        found = attack(smoothed, x, torch.tensor([1]), eps, geometry)
        assert float(geometry.distance(x.flatten(1), found.flatten(1))[0]) <= 2.5
        assert 0.95 * gain < float((x - found).flatten() @ weight) <= gain * (1 + 1e-5)
    clipped = (x.flatten() - 2.5 * weight / weight.abs().sum()).clamp(0, 1)  # a step in all coordinates wastes it
    assert float((x.flatten() - clipped) @ weight) < 0.7 * gain


class Walls(nn.Module):
    """Class 0 far along either of two directions; at the image only the first has a gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
        lure = 0.5 * torch.relu(first).clamp(max=0.2)
        return torch.stack([lure + 10 * torch.relu(second - 0.5), torch.full_like(first, 0.5)], 1)


def test_runs_begin_where_gradient_evidence_points_as_well() -> None:
    smoothed = SmoothedClassifier(Walls(), GaussianNoise(1e-3), copies=4)
    x, classes, eps = torch.zeros(1, 3), torch.tensor([1]), torch.tensor([0.8])
    uphill = torch.tensor([[0.0, 5.0, 0.0]])
    for norm in ("l2", "l1", "linf"):
        attacks: list[Attack] = [PGD(steps=5), *([L1APGD(steps=6)] if norm == "l1" else [])]
        for attack in attacks:
            lured = attack(smoothed, x, classes, eps, Geometry(norm))
            assert Walls()(lured).argmax() == 1
            assert Walls()(attack(smoothed, x, classes, eps, Geometry(norm), uphill=uphill)).argmax() == 0


@pytest.mark.parametrize("noise_sigma", [0.25, 0.5])
def test_gradient_evidence_points_downhill_without_a_gradient_of_the_network(noise_sigma: float) -> None:
    network, x = half_space()
    weight = network.weight.detach()
    classes = torch.tensor([1])
    for certificates in ([SecondOrderL2()], [DipoleGradientL2()], [GaussianL2(), FirstOrderL1()]):
        certifier = Certifier(certificates, n=400, separate_passes=True)
        session = certifier.session(Steps(), GaussianNoise(noise_sigma), SHAPE)
        uphill = uphill_of_evidence(session, x, classes, 4001, seed=3)
        assert uphill is not None
        assert float(torch.cosine_similarity(uphill[0], -weight, dim=0)) > 0.7
    plain = Certifier([GaussianL2()], n=400).session(Steps(), GaussianNoise(noise_sigma), SHAPE)
    assert uphill_of_evidence(plain, x, classes, 4001, seed=3) is None


@pytest.mark.parametrize("attack", [PGD, DDN, L1APGD, VoteSearch, SplittingMoves])
def test_steps_below_one_are_refused(attack: type[Attack]) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number >= 1, got 0"):
        attack(steps=0)  # type: ignore[call-arg]


def test_norms_that_an_attack_cannot_search_are_refused() -> None:
    network, x = half_space()
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25))
    with pytest.raises(ValueError, match="DDN attacks in l2, got norm 'linf'"):
        DDN()(smoothed, x, torch.tensor([1]), torch.tensor([1.0]), Geometry("linf"))
    with pytest.raises(ValueError, match="L1APGD attacks in l1, got norm 'l2'"):
        L1APGD()(smoothed, x, torch.tensor([1]), torch.tensor([1.0]), Geometry("l2"))
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\), got 1.5"):
        DDN(gamma=1.5)
    with pytest.raises(ValueError, match="cannot be imported"):
        External("no_such_library.PGD")
    with pytest.raises(ValueError, match="has no Nothing"):
        External("torch.Nothing")


class TestDeterministicSplitting:
    NOISE = DeterministicSplittingNoise(lam=0.6, shape=(2, 6, 6), q=15, seed=3)

    def victims(self) -> tuple[SmoothedClassifier, torch.Tensor, torch.Tensor, np.ndarray]:
        """Return images with their exact classes and certified distances in grid steps."""
        weight = torch.randn(72, generator=torch.Generator().manual_seed(4))
        network = HalfSpace(weight, offset=float(0.5 * weight.sum()))
        smoothed = SmoothedClassifier(network, self.NOISE, domain=(0.0, 1.0), grid=15, copies=18)
        x = torch.randint(16, (30, 2, 6, 6), generator=torch.Generator().manual_seed(5)).float() / 15
        counts = smoothed.predict(x).counts
        top, distance = splitting_votes_distance(counts)
        return smoothed, x, torch.from_numpy(np.asarray(top)), np.asarray(distance)

    def test_votes_add_up_and_the_single_step_attack_is_exact(self) -> None:
        smoothed, x, classes, distance = self.victims()
        session = smoothed.session((2, 6, 6))
        outcomes, order = Outcomes(session), session.prepared.order
        tight = 0
        for image, own, far in zip(x, classes.tolist(), distance.tolist(), strict=True):
            whole = (image.flatten() * 15).round().int()
            whole = whole if order is None else whole[order]
            found = single_step_attack(outcomes, whole, own, 2)
            if found is None:
                continue
            steps = int((found - whole).abs().sum())
            assert lost(outcomes.all_labels(found), own, 2)  # by enumeration, not by adding up
            assert steps > far  # inside the certified ball nothing flips
            tight += steps == far + 1
        assert tight >= 5  # and the certificate is tight: one step more is enough for some

    def test_what_is_remembered_is_of_this_noise(self) -> None:
        smoothed, x, classes, _ = self.victims()
        law = DeterministicSplittingNoise(lam=self.NOISE.lam, shape=(2, 6, 6), q=15, seed=7)
        other = SmoothedClassifier(smoothed.network, law, domain=(0.0, 1.0), grid=15, copies=18)
        geometry, far = Geometry("l1", (0.0, 1.0), 15), torch.full((30,), 8.0)
        attack = SplittingMoves(steps=1)
        first = attack(smoothed, x, classes, far, geometry)
        second = attack(other, x, classes, far, geometry)
        assert torch.equal(second, SplittingMoves(steps=1)(other, x, classes, far, geometry))
        assert not torch.equal(first, second)

    def test_long_moves_flip_exactly_and_never_inside(self) -> None:
        smoothed, x, classes, distance = self.victims()
        geometry = Geometry("l1", (0.0, 1.0), 15)
        far = torch.full((30,), 8.0)
        found = SplittingMoves(steps=6)(smoothed, x, classes, far, geometry)
        flipped = smoothed.predict(found).prediction != classes.numpy()
        reach = np.round(geometry.distance(x.flatten(1), found.flatten(1)) * 15)
        assert flipped.mean() > 0.8
        assert (reach[flipped] > distance[flipped]).all()
        inside = torch.from_numpy(distance / 15).float() + 1e-4
        tried = SplittingMoves(steps=6)(smoothed, x, classes, inside, geometry)
        assert (smoothed.predict(tried).prediction == classes.numpy()).all()

    def test_other_noise_is_refused(self) -> None:
        network, x = half_space()
        with pytest.raises(ValueError, match="noise of SplittingMoves must be DeterministicSplittingNoise"):
            SplittingMoves()(
                SmoothedClassifier(network, UniformNoise(lam=0.5)), x, torch.tensor([1]), torch.tensor([1.0]),
                Geometry("l1"),
            )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("class_path", "arguments"),
    [
        ("foolbox.attacks.L2PGD", {"steps": 20, "rel_stepsize": 0.2}),
        ("torchattacks.PGDL2", {"alpha": 0.3, "steps": 20}),
    ],
)
def test_attacks_of_other_libraries_plug_in(class_path: str, arguments: dict[str, float]) -> None:
    library = class_path.partition(".")[0]
    pytest.importorskip(library, reason=f"{library} is not installed")
    network, x = half_space()
    smoothed = SmoothedClassifier(network, GaussianNoise(0.25), copies=64, domain=(0.0, 1.0))
    eps = torch.tensor([1.3 * boundary(network, x, "l2")])
    found = External(class_path, arguments)(smoothed, x, torch.tensor([1]), eps, Geometry("l2", (0.0, 1.0)))
    assert network(found).argmax() == 0
    assert float((found - x).norm()) <= float(eps)
