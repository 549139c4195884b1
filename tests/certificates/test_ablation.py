"""Patches and changed pixels: oracles, every attack on tiny images, edges."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from lightning_rs.certificates import AblationL0, PatchBand
from lightning_rs.certifier import Certifier
from lightning_rs.functional import ablation_discrepancy, ablation_l0_radius, patch_size
from lightning_rs.networks.null_coding import NullCoding
from lightning_rs.noise import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.ablation import NULL
from tests.oracles import oracle_cases

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("case", oracle_cases("patch_certificate"), ids=str)
def test_patch_oracles(case: dict) -> None:
    i = case["inputs"]
    prediction, side = patch_size(i["votes"], i["H"], i["W"], i["size"], i["kind"])
    assert prediction == i["top"]
    assert side == case["expected"][1]


@pytest.mark.parametrize("case", oracle_cases("ablation_delta"), ids=str)
def test_discrepancy_oracles(case: dict) -> None:
    i = case["inputs"]
    value = ablation_discrepancy(i["rho"], i["k"], i["d"])
    assert value == pytest.approx(case["expected"], rel=case["rtol"])
    assert value >= 1 - comb(i["d"] - i["rho"], i["k"]) / comb(i["d"], i["k"])


@pytest.mark.parametrize("case", oracle_cases("ablation_radius"), ids=str)
def test_ablation_oracles(case: dict) -> None:
    i = case["inputs"]
    assert ablation_l0_radius(i["q"], i["k"], i["d"]) == case["expected"]


def _kept(kind: str, size: int, width: int) -> list[frozenset[tuple[int, int]]]:
    """Return the pixels that each position keeps, in a square image, wrapping around."""
    if kind == "band":
        return [frozenset((r, (t + j) % width) for r in range(width) for j in range(size)) for t in range(width)]
    return [
        frozenset(((s + i) % width, (t + j) % width) for i in range(size) for j in range(size))
        for s in range(width)
        for t in range(width)
    ]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ["band", "block"])
def test_no_patch_of_the_certified_side_changes_the_answer(kind: str, several: bool) -> None:
    """Whatever the votes of the touched positions become: the worst vote moves all of them to the runner-up.

    Positions vote for one class, or for several or none: then the worst is no vote for the class and one for its rival.
    """
    certified = attained = 0
    for _ in range(60):
        width, size = int(RNG.integers(4, 7)), int(RNG.integers(1, 3))
        kept = _kept(kind, size, width)
        votes = np.array(RNG.multinomial(1, RNG.dirichlet([4, 0.5, 0.5]), len(kept)))  # (positions, classes)
        if several:
            votes = (RNG.random((len(kept), 3)) < RNG.permutation([0.9, 0.3, 0.1])).astype(np.int64)
        prediction, side = (int(v) for v in patch_size(votes.sum(0), width, width, size, kind))  # type: ignore[arg-type]
        for m in (side, side + 1):
            if not 0 < m <= width - size + 1:
                continue
            broken = False
            for top, left in product(range(width - m + 1), repeat=2):
                patch = {(top + i, left + j) for i, j in product(range(m), repeat=2)}
                touched = np.array([bool(patch & pixels) for pixels in kept])
                for rival in set(range(3)) - {prediction}:
                    worst = votes.copy()
                    worst[touched] = 0
                    worst[touched, rival] = 1
                    broken |= int(worst.sum(0).argmax()) != prediction
            if m == side:
                certified += 1
                assert not broken
            attained += m > side and broken
    assert certified > 15
    assert attained > 5


def test_votes_for_several_classes_are_allowed() -> None:
    assert patch_size([20, 9, 9], 28, 28, 2, "band") == (0, 4)
    assert patch_size([0, 0, 0], 28, 28, 2, "band") == (0, 0)


def test_no_change_of_that_many_pixels_turns_the_vote() -> None:
    """All subsets of 6 pixels of which 2 are kept, the worst classifier for each certified number."""
    dim, k = 6, 2
    subsets = list(combinations(range(dim), k))
    for hits in range(len(subsets) + 1):
        rho = int(ablation_l0_radius(1 - hits / len(subsets), k, dim))
        if not rho:
            continue
        for changed in combinations(range(dim), rho):
            touched = sum(bool(set(subset) & set(changed)) for subset in subsets)
            assert 2 * (hits - touched) > len(subsets)


def test_monotone_edges_and_bad_input() -> None:
    radii = ablation_l0_radius(np.linspace(0, 1, 101), 45, 784)
    assert (np.diff(radii) <= 0).all()
    assert radii[-1] == radii[50] == 0
    assert ablation_l0_radius(0.0, 1, 1) == 0
    assert ablation_discrepancy([0, 1, 784, 900], 45, 784).tolist()[::3] == [0.0, 1.0]
    assert ablation_l0_radius(0.0, 45, 784) == next(
        rho - 1 for rho in range(784) if 2 * (comb(784, 45) - comb(784 - rho, 45)) >= comb(784, 45)
    )
    for k in (0, 785):
        with pytest.raises(ValueError, match="k must be"):
            ablation_l0_radius(0.1, k, 784)
    with pytest.raises(ValueError, match="kept must be at most 28"):
        patch_size([1, 2], 28, 28, 29, "band")
    with pytest.raises(ValueError, match="votes must not exceed the 28 positions"):
        patch_size([1, 29], 28, 28, 2, "band")


def test_every_position_is_seen_once_and_wraps_around() -> None:
    noise = BandNoise(2, shape=(2, 3, 4))
    x = torch.rand(24, generator=torch.Generator().manual_seed(0))
    out = torch.empty(4, 24)
    noise.split(x, torch.arange(4), out)
    kept = (out >= 0).view(4, 2, 3, 4)
    assert kept.all(1).all(1).tolist() == [
        [True, True, False, False], [False, True, True, False], [False, False, True, True], [True, False, False, True],
    ]  # fmt: skip
    assert torch.equal(out[out >= 0], x.expand(4, 24)[out >= 0])
    block = torch.empty(12, 24)
    BlockNoise(2, shape=(2, 3, 4)).split(x, torch.arange(12), block)
    assert ((block >= 0).sum(1) == 8).all()
    assert (block >= 0)[11].view(2, 3, 4)[0].tolist() == [
        [True, False, False, True], [False] * 4, [True, False, False, True],
    ]  # fmt: skip


def test_all_subsets_are_equally_likely() -> None:
    noise, draws = AblationNoise(2, shape=(3, 2, 2)), 12_000
    kept = torch.empty(draws, 12)
    noise.draw_(kept, torch.Generator().manual_seed(0))
    pixels = kept.view(draws, 3, 4)
    assert (pixels.sum(2) == 2).all()
    assert (pixels == pixels[:, :1]).all()  # all channels of a pixel together
    _, counts = pixels[:, 0].unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_rows_whose_choice_is_not_unique_draw_again() -> None:
    noise, keys = AblationNoise(2, shape=(1, 2, 2)), torch.tensor([[5, 1, 5, 9], [7, 7, 7, 7], [1, 1, 2, 3]])
    found = noise._smallest(keys, torch.Generator().manual_seed(0))
    assert sorted(found[2].tolist()) == [0, 1]  # kept as it was: the tie is between two that are kept
    assert (keys[:2] > 100).all()
    assert found.tolist() == [row.argsort()[:2].tolist() for row in keys[:2]] + [found[2].tolist()]
    whole = torch.empty(3, 4)
    AblationNoise(4, shape=(1, 2, 2)).draw_(whole)
    assert (whole == 1).all()


def test_a_dropped_pixel_is_no_colour() -> None:
    x = torch.tensor([0.0, 0.25, 1.0, NULL]).view(1, 1, 2, 2)
    assert NullCoding()(x).flatten(2).tolist() == [[[0.0, 0.25, 1.0, 0.0], [1.0, 0.75, 0.0, 0.0]]]


class Bright(nn.Module):
    """Class 1 where more than half of the kept pixels are bright; class 0 otherwise, and on nothing at all."""

    def forward(self, x: Tensor) -> Tensor:
        kept = (x >= 0).flatten(1)
        bright = ((x > 0.5).flatten(1) & kept).sum(1) - 0.5 * kept.sum(1)
        return torch.stack([torch.zeros_like(bright), bright], dim=1)


def test_patches_end_to_end_against_every_patch() -> None:
    """Through the engine: no all-black patch of the certified side turns the answer, anywhere."""
    noise, width = BandNoise(2, shape=(1, 6, 9)), 9
    image = torch.ones(1, 1, 6, 9)
    image[..., 4] = 0.0
    certifier = Certifier([PatchBand()])
    record = certifier.certify(Bright(), noise, image)[0]
    assert (record.prediction, record.norm, record.alpha, record.n_used) == (1, "patch", 0.0, width)
    side = int(record.radius)
    assert side >= 1
    for top, left in product(range(6 - side + 1), range(width - side + 1)):
        attacked = image.clone()
        attacked[..., top : top + side, left : left + side] = 0.0
        assert certifier.certify(Bright(), noise, attacked)[0].prediction == 1
    broken = image.clone()
    broken[..., 0:6, 0:6] = 0.0
    assert certifier.certify(Bright(), noise, broken)[0].prediction == 0


def test_ablation_end_to_end() -> None:
    noise, image = AblationNoise(5, shape=(1, 8, 8)), torch.ones(2, 1, 8, 8)
    image[1, :, :3] = 0.0
    all_bright, mixed = Certifier([AblationL0()], n=2000).certify(Bright(), noise, image)
    assert all_bright.norm == "l0"
    assert all_bright.radius == ablation_l0_radius(1 - 0.001 ** (1 / 2000), 5, 64) > mixed.radius
    # p(x) exactly: at least 3 of 5 kept among the 40 bright of 64.
    p = sum(comb(40, j) * comb(24, 5 - j) for j in range(3, 6)) / comb(64, 5)
    assert mixed.counts[1] / 2000 == pytest.approx(p, abs=0.05)
    assert mixed.bounds["p_lower"] <= p
