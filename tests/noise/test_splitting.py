"""Splitting noise against its definition in exact fractions, the oracles, and enumeration of all splits."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_rs.noise.base import noise_from_dict, noise_to_dict
from lightning_rs.noise.splitting import (
    DeterministicSplittingNoise,
    SplittingNoise,
    splitting_codes,
    splitting_noise,
)
from tests.oracles import oracle_cases


def centre(x: Fraction, s: Fraction, width: Fraction) -> Fraction:
    """Centre of the cell that holds x, found by walking from split to split, without any formula for n."""
    low = s
    while low >= x:
        low -= width
    while low + width < x:
        low += width
    return (max(low, Fraction(0)) + min(low + width, Fraction(1))) / 2


def codes(x: int, split: int, levels: int, q: int) -> int:
    return int(splitting_codes(torch.tensor([x]), torch.tensor([split]), torch.tensor([0]), levels, q))


class TestFunction:
    @pytest.mark.parametrize("case", oracle_cases("ssn_noise"))
    def test_oracle(self, case: dict) -> None:
        inputs = case["inputs"]
        expected = pytest.approx(case["expected"]["xtilde"], rel=case["rtol"])
        assert splitting_noise(inputs["x"], inputs["s"], inputs["lam"]) == expected
        tensors = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("x", "s"))
        assert float(splitting_noise(*tensors, inputs["lam"])) == expected

    @pytest.mark.parametrize("width", ["3/20", "2/5", "1", "13/10", "5"])
    def test_against_the_definition_in_fractions(self, width: str) -> None:
        # Splits at odd multiples of 1/80 of the width never meet x: rounding cannot choose the other cell.
        step = Fraction(width)
        xs = [Fraction(i, 7) for i in range(8)]
        splits = [step * Fraction(2 * i + 1, 80) for i in range(40)]
        got = splitting_noise(
            np.array([[float(x)] for x in xs]), np.array([float(s) for s in splits]), lam=float(step) / 2
        )
        expected = np.array([[float(centre(x, s, step)) for s in splits] for x in xs])
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)

    def test_one_comparison_suffices_from_one_half_on(self) -> None:
        rng = np.random.default_rng(1)
        x, s = rng.random(1000), 3 * rng.random(1000)
        np.testing.assert_allclose(splitting_noise(x, s, 1.5), (np.minimum(s, 1) + (x > s)) / 2, atol=1e-15)

    def test_scalars_arrays_and_tensors(self) -> None:
        assert isinstance(splitting_noise(0.3, 0.2, 0.5), np.float64)
        assert splitting_noise(np.zeros((4, 1)), np.zeros(3), 0.5).shape == (4, 3)
        assert splitting_noise(torch.zeros(4, 1), torch.zeros(3), 0.5).dtype == torch.float32

    @pytest.mark.parametrize(
        ("x", "s", "lam", "message"),
        [
            (1.1, 0.1, 0.5, "x must lie in"),
            (math.nan, 0.1, 0.5, "x must not be NaN"),
            (0.5, 1.1, 0.5, r"s / \(2 lam\) must lie in"),
            (0.5, 0.1, 0.0, "lam must be finite and > 0"),
        ],
    )
    def test_refusals(self, x: float, s: float, lam: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            splitting_noise(x, s, lam)
        with pytest.raises(ValueError, match=message):
            splitting_noise(torch.tensor(x), torch.tensor(s), lam)


class TestCodes:
    @pytest.mark.parametrize("case", oracle_cases("dssn_noise"))
    def test_oracle(self, case: dict) -> None:
        inputs = case["inputs"]
        got = codes(inputs["X"], inputs["S"], inputs["K"], inputs["q"])
        assert got == case["expected"]["num_4q"]
        assert got / (4 * inputs["q"]) == pytest.approx(case["expected"]["xtilde"], rel=case["rtol"])

    @pytest.mark.parametrize(("q", "levels"), list(itertools.product([1, 2, 3, 5], [1, 2, 3, 4, 5, 7, 11])))
    def test_every_pixel_offset_and_outcome_against_the_definition(self, q: int, levels: int) -> None:
        x, v = (t.flatten() for t in torch.meshgrid(torch.arange(q + 1), torch.arange(levels), indexing="ij"))
        got = splitting_codes(x, v, torch.arange(levels), levels, q)
        for b, i in itertools.product(range(levels), range(len(x))):
            split = Fraction(2 * ((b + int(v[i])) % levels) + 1, 2 * q)
            assert int(got[b, i]) == 4 * q * centre(Fraction(int(x[i]), q), split, Fraction(levels, q))

    @pytest.mark.parametrize(("levels", "kind"), [(16128, torch.int16), (16129, torch.int32), (40_000, torch.int32)])
    def test_integers_are_wide_enough_at_8_bit_images(self, levels: int, kind: torch.dtype) -> None:
        x, v = torch.tensor([0, 255, 0, 255, 100]), torch.tensor([0, 0, levels - 1, levels - 1, 254])
        outcomes = torch.tensor([0, 1, 255, levels // 2, levels - 2, levels - 1])
        got = splitting_codes(x, v, outcomes, levels, 255)
        splits = (outcomes[:, None] + v) % levels  # levels > q: min(2 S + 1, 2 q) + 2 q 1{X > S}
        expected = (2 * splits + 1).clamp(max=510) + 510 * (x > splits)
        assert got.dtype == kind
        assert torch.equal(got.long(), expected)

    def test_one_image_a_row(self) -> None:
        generator = torch.Generator().manual_seed(1)
        x = torch.randint(0, 256, (9, 20), generator=generator)
        v = torch.randint(0, 77, (20,), generator=generator)
        b = torch.arange(9)
        rows = [splitting_codes(x[i], v, b[i : i + 1], 77, 255) for i in range(9)]
        assert torch.equal(splitting_codes(x, v, b, 77, 255), torch.cat(rows))

    def test_a_grid_step_changes_one_outcome_a_coordinate(self) -> None:
        """The lemma behind the certificate: q |x - x'| = k changes min(k, K) of the K representations."""
        q, v = 6, torch.tensor([2])
        for levels in (1, 3, 4, 6, 7, 13):
            table = splitting_codes(
                torch.arange(q + 1)[:, None].repeat(1, levels).view(-1, 1),
                v,
                torch.arange(levels).repeat(q + 1),
                levels,
                q,
            ).view(q + 1, levels)
            for near, far in itertools.combinations(range(q + 1), 2):
                assert int((table[near] != table[far]).sum()) == min(far - near, levels)


class TestSplittingNoise:
    @pytest.mark.parametrize("lam", [0.1, 0.26, 0.5, 1.3])
    def test_copies_are_splitting_noise_of_the_variates(self, lam: float) -> None:
        noise, x, variates, out = SplittingNoise(lam), torch.rand(6), torch.empty(50, 6), torch.empty(50, 6)
        noise.draw_(variates, torch.Generator().manual_seed(1))
        kept = variates.clone()
        noise.apply(x, variates, out)
        assert torch.equal(variates, kept)
        assert float(variates.min()) >= 0
        assert 1.5 * lam < float(variates.max()) < 2 * lam
        expected = splitting_noise(x.double().numpy(), variates.double().numpy(), lam)
        np.testing.assert_allclose(out.double().numpy(), expected, atol=2e-7)

    @pytest.mark.parametrize("lam", [0.15, 0.8])
    def test_probability_of_a_change_is_the_distance(self, lam: float) -> None:
        noise, n = SplittingNoise(lam), 40_000
        variates, near, far = (torch.empty(n, 1) for _ in range(3))
        noise.draw_(variates, torch.Generator().manual_seed(2))
        noise.apply(torch.tensor([0.37]), variates, near)
        noise.apply(torch.tensor([0.47]), variates, far)
        p = 0.1 / (2 * lam)
        assert abs(float((near != far).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)

    def test_half_precision_output(self) -> None:
        noise, x, variates = SplittingNoise(0.8), torch.rand(6), torch.empty(50, 6)
        noise.draw_(variates, torch.Generator().manual_seed(1))
        full, half = torch.empty(50, 6), torch.empty(50, 6, dtype=torch.bfloat16)
        noise.apply(x, variates, full)
        noise.apply(x, variates, half)
        assert torch.equal(full.bfloat16(), half)

    def test_parameters_and_domain(self) -> None:
        noise = SplittingNoise(sigma=0.25)
        assert noise.lam == pytest.approx(0.25 * math.sqrt(3))
        assert noise.sigma == pytest.approx(0.25)
        assert noise_from_dict(noise_to_dict(noise)) == noise
        assert not noise.symmetric
        with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
            noise.check_input(torch.tensor([[1.5]]))


class TestDeterministicSplittingNoise:
    def noise(self, lam: float = 0.3, **others: object) -> DeterministicSplittingNoise:
        return DeterministicSplittingNoise(lam, shape=(2, 3), q=10, **others)  # type: ignore[arg-type]

    def test_v_is_that_of_the_published_recipe(self) -> None:
        noise = DeterministicSplittingNoise(sigma=3.5, shape=(3, 32, 32))
        assert (noise.levels, noise.size, noise.grid) == (3091, 3091, 255)
        v = np.random.RandomState(0).randint(3091, size=3072)
        assert v[:3].tolist() == [2732, 2607, 1653]
        np.testing.assert_array_equal(noise.v.numpy(), v)

    @pytest.mark.parametrize("levels", [1, 2, 43, 127, 128, 255, 256, 3091])
    def test_lam_written_as_levels_over_2q_gives_those_levels(self, levels: int) -> None:
        assert DeterministicSplittingNoise(levels / 510, shape=(1,)).levels == levels
        assert DeterministicSplittingNoise((levels + 0.999) / 510, shape=(1,)).levels == levels

    def test_rounding_of_sigma_does_not_lose_a_level(self) -> None:
        for levels in range(1, 400):
            assert DeterministicSplittingNoise(sigma=levels / 510 / math.sqrt(3), shape=(1,)).levels == levels

    def test_rounding_of_pixels_does_not_lose_a_step(self) -> None:
        whole = torch.arange(256, dtype=torch.float32)
        noise = DeterministicSplittingNoise(0.3, shape=(256,))
        exact, lower = torch.empty(noise.size, 256), torch.empty(noise.size, 256)
        pixels = torch.nextafter(whole / 255, torch.tensor(0.0))
        assert (pixels * 255 < whole).any()
        noise.check_input(pixels[None])
        noise.split(whole / 255, torch.arange(noise.size), exact)
        noise.split(pixels, torch.arange(noise.size), lower)
        assert torch.equal(exact, lower)

    @pytest.mark.parametrize("lam", [0.05, 0.3, 0.5, 0.85])
    def test_outcomes_are_the_splitting_representation_of_each_split(self, lam: float) -> None:
        noise = self.noise(lam)
        x = torch.tensor([0, 3, 5, 6, 9, 10]) / 10
        out = torch.empty(noise.size, 6)
        noise.split(x, torch.arange(noise.size), out)
        splits = ((torch.arange(noise.size)[:, None] + noise.v) % noise.levels + 0.5) / 10
        expected = splitting_noise(x.double().numpy(), splits.double().numpy(), noise.levels / 20)
        np.testing.assert_allclose(out.double().numpy(), expected, atol=1e-7)
        assert torch.equal(out, (out.double() * 40).round().float() / 40)  # nearest float32 to code / (4 q)

    def test_training_draws_an_outcome_for_each_image(self) -> None:
        noise = self.noise(0.5)
        x = torch.full((400, 2, 3), 0.4)
        copies = noise(x, torch.Generator().manual_seed(1)).flatten(1)
        table = torch.empty(noise.size, 6)
        noise.split(x[0].flatten(), torch.arange(noise.size), table)
        matches = (copies[:, None] == table).all(2)
        assert matches.any(1).all()
        drawn = matches.float().argmax(1).bincount(minlength=noise.size)
        assert (drawn > 0).sum() == len(table.unique(dim=0))

    def test_permuted_coordinates(self) -> None:
        noise, order = self.noise(), torch.tensor([4, 2, 0, 5, 1, 3])
        x, outcomes = torch.tensor([0, 3, 5, 6, 9, 10]) / 10, torch.arange(6)
        plain, moved = torch.empty(6, 6), torch.empty(6, 6)
        noise.split(x, outcomes, plain)
        noise.arranged(order).split(x[order], outcomes, moved)
        assert torch.equal(plain[:, order], moved)
        assert not torch.equal(noise.v, noise.arranged(order).v)

    def test_half_precision_output_is_the_rounded_float32_one(self) -> None:
        noise = DeterministicSplittingNoise(0.9, shape=(6,))
        x, outcomes = torch.tensor([0, 30, 55, 61, 199, 255]) / 255, torch.arange(459)
        full, half = torch.empty(459, 6), torch.empty(459, 6, dtype=torch.bfloat16)
        noise.split(x, outcomes, full)
        noise.split(x, outcomes, half)
        assert torch.equal(full.bfloat16(), half)

    def test_round_trip_and_what_belongs_to_the_classifier(self) -> None:
        noise = self.noise(seed=3)
        assert noise_from_dict(noise_to_dict(noise)) == noise
        for other in (self.noise(seed=4), self.noise(0.4, seed=3)):
            assert other != noise
        with pytest.raises(ValueError, match="v_sha256 must be"):
            self.noise(seed=4, v_sha256=noise.v_sha256)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.full((1, 2, 3), 0.55), r"multiples of 1/10, got 0\.55"),
            (torch.full((1, 2, 3), 1.1), r"images must lie in \[0, 1\]"),
            (torch.full((1, 3, 2), 0.5), r"shape \(2, 3\) of v, got \(3, 2\)"),
        ],
    )
    def test_images_off_the_grid_the_domain_or_the_shape_are_refused(self, image: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.noise().check_input(image)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"lam": 0.04}, r"lam must be at least 1/\(2q\) = 0.05"),
            ({"lam": 0.3, "q": 0}, "q must be a whole number"),
            ({"lam": 0.3, "seed": -1}, "seed must be a whole number"),
            ({"lam": 0.3, "shape": (2, 0)}, "shape must be a whole number"),
            ({"lam": 0.3, "sigma": 0.3}, "exactly one of lam and sigma"),
        ],
    )
    def test_refusals(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DeterministicSplittingNoise(**{"shape": (2, 3), "q": 10, **arguments})
