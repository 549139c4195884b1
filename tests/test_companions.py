"""Solvers leave alone what has converged, so that no bit of a result depends on what is solved together with it.

For whole certificates see ``test_certificate_contract``; here are the solvers, and sums over many coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from lightning_rs.certificates.base import Certificate, Radii, Setting
from lightning_rs.certificates.dipole import dipole_gradient_l2_radius
from lightning_rs.certificates.first_order import first_order_lower_bound, first_order_radius
from lightning_rs.certificates.first_order_norms import FirstOrderL1, FirstOrderLinf
from lightning_rs.certificates.second_order import (
    SecondOrderL2,
    second_order_l2_radius,
    second_order_two_class_l2_radius,
)
from lightning_rs.certificates.subspace import ChannelL2, FirstOrderSubspaceL2
from lightning_rs.evidence import Evidence, GradientSums, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.setting import Selection
from lightning_rs.statistics.binomial import randomized_clopper_pearson_tail
from tests.helpers import bit_equal

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]

GAUSSIAN = GaussianNoise(0.5)
WIDE = (3, 6, 6)  # sums over more coordinates than fit in a register are where the order of additions shows


@pytest.mark.parametrize(
    "build",
    [
        SecondOrderL2,
        FirstOrderL1,
        lambda: FirstOrderL1(region="top"),
        FirstOrderLinf,
        lambda: FirstOrderLinf(region="green"),
        ChannelL2,
        lambda: ChannelL2("left"),
        None,
    ],
)
def test_gradient_sums_of_many_coordinates_are_bit_equal_too(
    build: Callable[[], Certificate] | None, tmp_path: Path
) -> None:
    rng, n = np.random.default_rng(6), 100_000
    dim = int(np.prod(WIDE))
    np.save(tmp_path / "basis.npy", np.linalg.qr(rng.normal(size=(dim, 7)))[0].T)
    certificate = FirstOrderSubspaceL2(str(tmp_path / "basis.npy")) if build is None else build()
    hits = rng.integers(60_000, n, 9)
    sums = torch.from_numpy(rng.normal(size=(9, 2, dim)) * 200 + rng.normal(size=(9, 1, dim)) * 300)

    def certified(rows: Sequence[int]) -> Radii:
        top = torch.zeros(len(rows), dtype=torch.int64)
        counts = np.stack([hits[rows], n - hits[rows]], axis=1)
        found: dict[type[Evidence], Evidence] = {
            Votes: Votes.of(counts),
            GradientSums: GradientSums(sums[rows], top, n // 2, (n // 2, n // 2), None),
        }
        zeros = np.zeros(len(rows), dtype=np.int64)
        return certificate.certify(found, Setting(GAUSSIAN, 0.01, n, WIDE, selection=Selection(zeros, zeros)))

    alone = [certified([row]) for row in range(9)]
    for rows in (list(range(9)), [8, 2, 5], [4, 7]):
        together = certified(rows)
        assert [row for place, row in enumerate(rows) if not bit_equal(together, place, alone[row])] == []


def problems(count: int) -> dict[str, FloatArray]:
    """Return tails from 1e-12 to 0.6 with feasible gradients: easy and hard ones mixed."""
    rng = np.random.default_rng(7)
    tail = np.where(rng.random(count) < 0.2, rng.uniform(0.4, 0.6, count), 10 ** rng.uniform(-12, -0.3, count))
    largest = np.exp(-0.5 * ndtri(tail) ** 2) / np.sqrt(2 * np.pi)
    angle, length = rng.uniform(0, np.pi / 2, count), rng.choice([0.0, 0.02, 0.5, 0.99, 1.2], count)
    return {
        "tail": tail,
        "slope": length * largest,
        "m1": -length * largest * np.cos(angle),
        "m2": length * largest * np.sin(angle),
        "other": tail * rng.uniform(0, 1, count),
        "r": rng.uniform(0, 4, count),
    }


@pytest.mark.parametrize(
    "solve",
    [
        lambda p: second_order_l2_radius(q_upper=p["tail"], scaled_gradient_upper=p["slope"], sigma=1.0),
        lambda p: second_order_two_class_l2_radius(None, p["slope"], p["other"], 0.1, 1.0, q_upper=p["tail"]),
        lambda p: dipole_gradient_l2_radius(1 - 2 * p["tail"].clip(max=0.4), p["tail"].clip(max=0.4), p["slope"], 1.0),
        lambda p: first_order_radius(q_upper=p["tail"], m1=p["m1"], m2=p["m2"], sigma=1.0),
        lambda p: first_order_lower_bound(q_upper=p["tail"], m1=p["m1"], m2=p["m2"], r=p["r"]),
        lambda p: randomized_clopper_pearson_tail(
            np.floor(1000 * (1 - p["tail"])).astype(int), 1000, 0.001, p["other"]
        ),
    ],
    ids=["second_order", "two_class", "dipole_gradient", "first_order", "lower_bound", "randomized"],
)
def test_solvers_are_bit_equal_alone_and_in_any_group(solve: Callable[[dict[str, FloatArray]], FloatArray]) -> None:
    data = problems(40)

    def solved(rows: Rows) -> FloatArray:
        return solve({name: values[rows] for name, values in data.items()})

    alone = np.array([solved(np.array([row]))[0] for row in range(40)])
    assert np.isfinite(alone).all()
    rng = np.random.default_rng(8)
    for rows in (np.arange(40), rng.permutation(40), rng.permutation(40)[:11], rng.permutation(40)[:2]):
        assert (solved(rows) == alone[rows]).all()
