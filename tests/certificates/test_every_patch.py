"""Red team of patches and pixels: random classifiers of exactly what the noise shows, every patch, many fillings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
import torch

from lightning_rs.functional import ablation_discrepancy, ablation_l0_radius, patch_size
from lightning_rs.noise import BandNoise, BlockNoise
from lightning_rs.numerics.enumerated_votes import set_votes_distance, topk_votes_distance
from lightning_rs.numerics.kept_pixels import patch_side

MARK = 2.0  # no colour: what shows it was touched


class Hashed:
    """A classifier of nothing but the bytes of a noisy row: one vote, several, or none, mostly for one class."""

    def __init__(self, rng: np.random.Generator, several: bool) -> None:
        self.classes = int(rng.integers(2, 5))
        self.favourite = int(rng.integers(self.classes))
        self.several = several
        self.salt = rng.bytes(8)

    def __call__(self, rows: torch.Tensor) -> np.ndarray:
        """Return the votes of all rows together, (classes,)."""
        total = np.zeros(self.classes, dtype=np.int64)
        for row in rows.numpy():
            own = np.random.default_rng(list(hashlib.sha256(self.salt + row.tobytes()).digest()[:16]))
            if self.several:
                total += own.random(self.classes) < np.where(np.arange(self.classes) == self.favourite, 0.9, 0.2)
            else:
                total[self.favourite if own.random() < 0.85 else own.integers(self.classes)] += 1
        return total


def seen(noise: BandNoise | BlockNoise, x: np.ndarray) -> torch.Tensor:
    rows = torch.empty(noise.size, x.size)
    noise.split(torch.from_numpy(x.flatten()).float(), torch.arange(noise.size), rows)
    return rows


def patches(height: int, width: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pixels of every square, also of those that leave the image at one edge and come back at the other."""
    for top, left in product(range(height), range(width)):
        rows = np.array([(top + i) % height for i in range(min(side, height))])
        yield rows, np.array([(left + j) % width for j in range(min(side, width))])


def attacked(rng: np.random.Generator) -> tuple[int, int]:
    """Attack one random system in every way and return whether it was certified and how many patches were tried."""
    channels, height, width = (int(rng.integers(low, high)) for low, high in ((1, 3), (1, 6), (1, 8)))
    kind = ("band", "block")[int(rng.integers(2))]
    room = width if kind == "band" else min(height, width)
    kept, several = int(rng.integers(1, min(room, 2) + 1)), bool(rng.integers(2))
    law = BandNoise if kind == "band" else BlockNoise
    noise = law(kept, shape=(channels, height, width), threshold=0.3 if several else None)
    classifier = Hashed(rng, several)
    x = rng.integers(0, 2, (channels, height, width)).astype(np.float32)
    votes = classifier(seen(noise, x))
    top, side = (int(value) for value in patch_size(votes, height, width, kept, kind))  # type: ignore[arg-type]
    second = patch_side(topk_votes_distance(votes, top, 1, several=several), kept, room, kind)  # type: ignore[arg-type]
    assert second == side
    places = max(1, classifier.classes - 1)
    wide = int(patch_side(topk_votes_distance(votes, top, places, several=several), kept, room, kind))  # type: ignore[arg-type]
    pair = np.isin(np.arange(classifier.classes), [top, (top + 1) % classifier.classes])
    both = 0
    if not pair.all():
        both = int(patch_side(set_votes_distance(votes, pair, several=several), kept, room, kind))  # type: ignore[arg-type]
    tried = 0
    for size in {side, wide, both} - {0}:
        for rows, columns in patches(height, width, size):
            tried += 1
            marked = x.copy()
            marked[:, rows[:, None], columns] = MARK
            touched = int((seen(noise, marked) == MARK).any(1).sum())
            assert touched <= (size + kept - 1 if kind == "band" else (size + kept - 1) ** 2), "geometry"
            for rival in set(range(classifier.classes)) - {top} if size <= side else ():
                worst = votes.copy()  # whoever owns all touched positions
                worst[top] -= min(touched, votes[top])
                worst[rival] += min(touched, noise.size - votes[rival])
                order = sorted((-worst[c], c) for c in (top, rival))
                assert order[0][1] == top, "votes"
            for fill in (0.0, rng.integers(0, 2, x.shape)):
                found = classifier(seen(noise, np.where(marked == MARK, fill, x).astype(np.float32)))
                rank = sum((-n, c) < (-found[top], top) for c, n in enumerate(found))
                assert rank == 0 or size > side
                assert rank < places or size > wide
                assert pair[int(found.argmax())] or size > both
    return int(side > 0), tried


def test_no_patch_anywhere_with_anything_in_it() -> None:
    rng = np.random.default_rng(5)
    certified, tried = np.sum([attacked(rng) for _ in range(60)], axis=0)
    assert certified > 15
    assert tried > 500


@pytest.mark.slow
def test_no_patch_anywhere_at_length() -> None:
    rng = np.random.default_rng(6)
    certified, tried = np.sum([attacked(rng) for _ in range(1500)], axis=0)
    assert certified > 300
    assert tried > 10_000


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, pytest.param(6, marks=pytest.mark.slow)])
def test_every_subset_every_number_of_changed_pixels(dim: int) -> None:
    """Whatever share of the subsets votes for the class: an adversary flips all that hold a changed pixel."""
    for kept in range(1, dim + 1):
        subsets = [set(each) for each in combinations(range(dim), kept)]
        total = len(subsets)
        for rho in range(dim + 1):
            hit = sum(bool(each & set(range(rho))) for each in subsets)
            assert ablation_discrepancy(rho, kept, dim) >= hit / total
            for good in range(total + 1):
                if 0 < rho <= int(ablation_l0_radius(1 - good / total, kept, dim)):
                    assert 2 * (good - min(good, hit)) > total
