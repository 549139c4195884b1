"""Patches and changed pixels: oracles, every attack on tiny images, edges."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from lightning_rs.functional import ablation_discrepancy, ablation_l0_radius, patch_size
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


@pytest.mark.parametrize("kind", ["band", "block"])
def test_no_patch_of_the_certified_side_changes_the_answer(kind: str) -> None:
    """Whatever the votes of the touched positions become: the worst vote moves all of them to the runner-up."""
    certified = attained = 0
    for _ in range(60):
        width, size = int(RNG.integers(4, 7)), int(RNG.integers(1, 3))
        kept = _kept(kind, size, width)
        votes = np.array(RNG.multinomial(1, RNG.dirichlet([4, 0.5, 0.5]), len(kept)))  # (positions, classes)
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
