"""Deterministic splitting: the radius from votes against the oracles and against every pair on small grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_rs.certificates.base import ABSTAIN, Radii, Setting
from lightning_rs.certificates.splitting import (
    DeterministicSplittingL1,
    splitting_target_status,
    splitting_votes_distance,
    splitting_votes_l1_radius,
)
from lightning_rs.certifier import Certifier
from lightning_rs.evidence import EnumeratedVotes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.setting import Selection
from tests.certificates.enumeration import Grid, random_classifier, shared_splits
from tests.oracles import oracle_cases


class TestRadius:
    @pytest.mark.parametrize("case", oracle_cases("dssn_radius"))
    def test_oracle(self, case: dict) -> None:
        votes, q, expected = case["inputs"]["counts"], case["inputs"]["q"], case["expected"]
        prediction, radius = splitting_votes_l1_radius(votes, q=q)
        assert (prediction, splitting_votes_distance(votes)[1]) == (expected["pred"], expected["D"])
        assert radius == expected["D"] / q
        assert radius <= expected["paper_R"] + 1e-15

    def test_shapes_types_and_recovering_the_distance(self) -> None:
        votes = np.random.default_rng(1).multinomial(3091, [0.2, 0.5, 0.3], size=(7, 5))
        prediction, radius = splitting_votes_l1_radius(votes)
        assert prediction.shape == radius.shape == (7, 5)
        assert (prediction.dtype, radius.dtype) == (np.int64, np.float64)
        np.testing.assert_array_equal(np.round(255 * radius), splitting_votes_distance(votes)[1])
        assert isinstance(splitting_votes_l1_radius([3, 1])[1], np.float64)

    def test_all_classes_bind(self) -> None:
        # Class 0 has fewer votes than class 2, but a tie with it is lost.
        assert splitting_votes_distance([4, 9, 5])[1] == 2
        assert splitting_votes_distance([5, 9, 5])[1] == 1
        assert splitting_votes_distance([4, 8, 4])[1] == 1

    def test_doubtful_votes_cost_a_step_each(self) -> None:
        assert splitting_votes_distance([100, 28], doubtful=5)[1] == 31
        prediction, radius = splitting_votes_l1_radius([[51, 49], [51, 49]], doubtful=[0, 2])
        assert prediction.tolist() == [0, 0]
        assert radius.tolist() == [1 / 255, 0.0]
        assert splitting_votes_distance([51, 49], doubtful=2)[1] == -1

    @pytest.mark.parametrize("votes", [[1.5, 2], [-1, 3], [7], 7])
    def test_refusals(self, votes: object) -> None:
        with pytest.raises(ValueError, match="votes must"):
            splitting_votes_l1_radius(votes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="q must"):
            splitting_votes_l1_radius([3, 1], q=0)


# (q, d, K): lam = K / (2 q) below, at and above one half.
SMALL = [(1, 3, 2), (2, 2, 3), (3, 2, 2), (3, 2, 3), (3, 2, 5), (4, 1, 7), (4, 2, 1), (5, 1, 3), (2, 3, 5), (2, 3, 8)]


class TestBruteForce:
    @pytest.mark.parametrize(("q", "dim", "levels"), SMALL)
    def test_never_violated_and_attained(self, q: int, dim: int, levels: int) -> None:
        rng = np.random.default_rng([q, dim, levels])
        attained = ties = 0
        for _ in range(60):
            grid = Grid(q, levels, shared_splits(levels, rng.integers(levels, size=dim)))
            far = grid.distances(1)
            votes = grid.votes(random_classifier(grid, 3, rng), 3)
            prediction, distance = splitting_votes_distance(votes)
            changed = prediction[:, None] != prediction[None]
            assert not (changed & (far <= distance[:, None])).any()
            attained += int((changed & (far == distance[:, None] + 1)).sum())
            best = np.sort(votes, axis=1)
            ties += int((best[:, -1] == best[:, -2]).sum())
        assert attained > 0
        assert ties > 0 or levels == 1

    @pytest.mark.parametrize(("q", "levels"), [(2, 3), (3, 2), (3, 4), (3, 5)])
    def test_every_binary_classifier_in_one_dimension(self, q: int, levels: int) -> None:
        grid = Grid(q, levels, shared_splits(levels, np.array([1])))
        far, tight = grid.distances(1), 0
        for labels in itertools.product([0, 1], repeat=grid.size):
            prediction, distance = splitting_votes_distance(grid.votes(np.array(labels), 2))
            changed = prediction[:, None] != prediction[None]
            assert not (changed & (far <= distance[:, None])).any()
            tight += int((changed & (far == distance[:, None] + 1)).sum())
        assert tight > 0

    def test_one_step_more_would_be_violated(self) -> None:
        """The test can fail: without the term for ties the same enumeration finds a counterexample."""
        rng, broken = np.random.default_rng(5), 0
        for _ in range(60):
            grid = Grid(3, 5, shared_splits(5, rng.integers(5, size=2)))
            votes = grid.votes(random_classifier(grid, 3, rng), 3)
            prediction = votes.argmax(1)
            second = np.sort(votes, axis=1)
            wrong = (second[:, -1] - second[:, -2]) // 2
            changed = prediction[:, None] != prediction[None]
            broken += int((changed & (grid.distances(1) <= wrong[:, None])).sum())
        assert broken > 0


class TestBox:
    """Why the box [0, 1]^d gains nothing for a spread v, and when it would."""

    q, levels = 2, 9

    def _reach(self, v: list[int]) -> tuple[int, int, int]:
        """Return D of the unanimous vote at 0 and the least distance at which the prediction changes."""
        grid = Grid(self.q, self.levels, shared_splits(self.levels, np.array(v)))
        unanimous = np.ones(grid.size, dtype=np.int64)
        unanimous[grid.cells[0]] = 0  # 0 on the representations of x = 0, 1 on all others
        prediction, distance = splitting_votes_distance(grid.votes(unanimous, 2))
        steps = grid.points.sum(1)
        other = prediction != prediction[0]
        return int(distance[0]), int(steps[other].min()) if other.any() else -1, int(steps.max())

    def test_disjoint_arcs_attain_the_radius_inside_the_box(self) -> None:
        # No coordinate can move farther than q = 2 steps, but the arcs of the three coordinates are disjoint.
        assert self._reach([0, 2, 4]) == (4, 5, 6)

    def test_equal_offsets_are_the_case_in_which_it_would_help(self) -> None:
        assert self._reach([3, 3, 3]) == (4, -1, 6)

    @pytest.mark.parametrize(("shape", "sigma"), [((1, 28, 28), 0.5), ((1, 28, 28), 3.5), ((3, 32, 32), 3.5)])
    def test_published_settings_have_disjoint_arcs_at_every_image(self, shape: tuple[int, ...], sigma: float) -> None:
        noise = DeterministicSplittingNoise(sigma=sigma, shape=shape)
        rng = np.random.default_rng(1)
        dim = noise.v.numel()
        for image in (np.zeros(dim, int), np.full(dim, 255), rng.integers(256, size=dim)):
            # Walk around the circle of outcomes; each anchor X - v lets one move up as far as the next anchor.
            up = image < 255
            room = np.zeros(noise.levels, dtype=np.int64)
            move = np.where(up, 255 - image, image)
            anchor = np.where(up, image - noise.v.numpy(), noise.v.numpy() - image) % noise.levels
            if not up.all() and up.any():
                anchor, move = anchor[up], move[up]
            np.maximum.at(room, anchor, move)
            starts = np.flatnonzero(room)
            gaps = np.diff(np.append(starts, starts[0] + noise.levels))
            assert np.minimum(gaps, room[starts]).sum() > noise.levels // 2 + 1


class TestEarlyExit:
    @pytest.mark.parametrize("classes", [2, 3])
    def test_against_all_completions(self, classes: int) -> None:
        rng = np.random.default_rng(classes)
        seen = set()
        for _ in range(150):
            votes, left = rng.integers(5, size=classes), int(rng.integers(6))
            tails = itertools.combinations_with_replacement(range(classes), left)
            ends = np.array([votes + np.bincount(tail, minlength=classes) for tail in tails])
            prediction, distance = splitting_votes_distance(ends)
            for target in range(4):
                sure = bool((distance >= target).all() and (prediction == prediction[0]).all())
                hopeless = bool((distance < target).all())
                status = int(splitting_target_status(votes, left, target))
                assert status == int(sure) - int(hopeless), (votes, left, target)
                if status == 1:
                    assert prediction[0] == votes.argmax()
                seen.add(status)
        assert seen == {-1, 0, 1}

    def test_doubtful_votes_raise_the_bar(self) -> None:
        assert splitting_target_status([60, 10], 10, 20) == 1
        assert splitting_target_status([60, 10], 10, 20, doubtful=1) == 0
        assert splitting_target_status([60, 10], 0, 25, doubtful=1) == -1

    def test_shapes(self) -> None:
        status = splitting_target_status([[9, 0], [5, 4], [1, 0]], [1, 1, 1], [[2], [4]])
        assert status.tolist() == [[1, -1, -1], [1, -1, -1]]
        with pytest.raises(ValueError, match="remaining must be >= 0"):
            splitting_target_status([3, 1], -1, 0)


class TestCertificate:
    noise = DeterministicSplittingNoise(0.5, shape=(2,), q=10, seed=1)

    def _certify(self, counts: list[list[int]], doubtful: list[int] | None = None) -> Radii:
        votes = EnumeratedVotes(torch.tensor(counts), None if doubtful is None else torch.tensor(doubtful))
        none = np.full(len(counts), -1)
        setting = Setting(self.noise, 0.001, self.noise.size, (2,), selection=Selection(none, none))
        return DeterministicSplittingL1().certify({EnumeratedVotes: votes}, setting)

    def test_radius_prediction_and_ties(self) -> None:
        found = self._certify([[10, 0], [0, 10], [5, 5], [4, 6]])
        assert found.prediction.tolist() == [0, 1, 0, 1]
        assert found.radius.tolist() == [0.5, 0.4, 0.0, 0.0]
        assert found.bounds["distance"].tolist() == [5, 4, 0, 0]
        assert (DeterministicSplittingL1.ball, DeterministicSplittingL1.norm) == ("closed", "l1")
        assert DeterministicSplittingL1.exact

    def test_doubt_lowers_the_radius_and_then_abstains(self) -> None:
        found = self._certify([[10, 0], [6, 4], [6, 4]], [2, 1, 2])
        assert found.prediction.tolist() == [0, 0, ABSTAIN]
        assert found.radius.tolist() == [0.3, 0.0, 0.0]
        assert set(found.notes) == {0, 1, 2}

    def test_votes_of_a_part_of_the_outcomes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="votes must count all 10 outcomes"):
            self._certify([[9, 0]])

    @pytest.mark.parametrize("noise", [SplittingNoise(0.5), UniformNoise(0.5)])
    def test_other_noises_are_refused(self, noise: Noise) -> None:
        with pytest.raises(ValueError, match="is proved for DeterministicSplittingNoise, got noise"):
            DeterministicSplittingL1().check_noise(noise)


class TestThroughTheEngine:
    """A real network through noise, sampler and certificate, on every image of a small grid, all pairs."""

    @pytest.mark.parametrize("lam", [0.35, 0.9])
    def test_never_violated_and_attained(self, lam: float) -> None:
        q, shape = 5, (1, 1, 3)
        points = np.array(list(itertools.product(range(q + 1), repeat=3)))
        steps = np.abs(points[:, None] - points[None]).sum(2)
        images = torch.tensor(points / q, dtype=torch.float32).view(-1, *shape)
        attained = 0
        for seed in range(4):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
            with torch.no_grad():  # decide around the gray image, where representations are
                network[1].weight.mul_(8)
                network[1].bias.copy_(-0.5 * network[1].weight.sum(1))
            noise = DeterministicSplittingNoise(lam, shape=shape, q=q, seed=seed)
            certifier = Certifier([DeterministicSplittingL1()])
            records = certifier.certify(network, noise, images)
            prediction = np.array([record.prediction for record in records])
            distance = np.array([round(q * record.radius) for record in records])
            assert all(sum(record.counts) == noise.size and record.alpha == 0 for record in records)
            changed = prediction[:, None] != prediction[None]
            assert not (changed & (steps <= distance[:, None])).any()
            attained += int((changed & (steps == distance[:, None] + 1)).sum())
        assert attained > 0
