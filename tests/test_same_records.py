"""The records of small configurations, one of each budget and evidence scheme, against values kept in a file.

What a statement says may only change on purpose. The networks add and compare a few numbers and call no library whose
order of additions differs between machines, so that counts are the same everywhere; floats agree to 1e-12, those from
gradient evidence to 1e-9. ``python -m tests.test_same_records`` writes the file anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rs.budgets import DecideGridRadius, DecideRadius, RandomizedBound, StagedSamples
from lightning_rs.certificates import (
    DeterministicSplittingL1,
    DipoleGradientL2,
    DipoleL2,
    GaussianL1,
    GaussianL2,
    GaussianTwoClassL2,
    LargestRadius,
    SecondOrderL2,
    SecondOrderTwoClassL2,
    SplittingL1,
    UniformL1,
    UniformTwoClassL1,
)
from lightning_rs.certificates.base import Certificate
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise.ablation import BandNoise
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.session import Session

KEPT = Path(__file__).with_suffix(".json")
SHAPE = (2, 2, 2)
GAUSSIAN = GaussianNoise(0.25)
DSSN = DeterministicSplittingNoise(0.75, shape=SHAPE, q=255, seed=3)


class Sums(nn.Module):
    """Three classes by the sums of pairs of coordinates, one addition each; a parameter, so that it has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) * self.scale
        return torch.stack([flat[:, 0] + flat[:, 1], flat[:, 2] + flat[:, 3] - 0.25, flat[:, 4] - 0.125], dim=1)


class Doubtful(Sums):
    """Steps of 1/16, so that many logits tie, and a rounding that depends on the position of the row."""

    def forward(self, x: Tensor) -> Tensor:
        moved = 2e-5 * (torch.arange(len(x)) % 2)[:, None] * torch.tensor([1.0, -1.0, 0.0])
        return torch.floor(16 * super().forward(x)) / 16 + moved


def images() -> Tensor:
    """Return four images on the grid: sure, less sure, the second class, and dark."""
    x = torch.zeros(4, 8)
    x[0, :2], x[1, 0], x[1, 2:4], x[2, 2:5] = 1.0, 160 / 255, 96 / 255, 128 / 255
    return x.view(4, *SHAPE)


def certifier(*certificates: Certificate, n: int = 400, **more: Any) -> Certifier:
    chosen = certificates or None
    return Certifier(chosen, n0=32, n=n, alpha=0.01, seed=5, runtime=Runtime(micro_batch=64, threads=1), **more)


Case = tuple[Callable[[], Certifier], Noise, type[nn.Module]]
CASES: dict[str, Case] = {
    "fixed": (lambda: certifier(GaussianL2(), GaussianL1()), GAUSSIAN, Sums),
    "staged": (lambda: certifier(GaussianL2(), budget=StagedSamples(), n=1000), GAUSSIAN, Sums),
    "decide": (lambda: certifier(GaussianL2(), budget=DecideRadius(0.1)), GAUSSIAN, Sums),
    "randomized": (lambda: certifier(GaussianL2(), budget=RandomizedBound()), GAUSSIAN, Sums),
    "two classes": (lambda: certifier(GaussianTwoClassL2("grouped")), GAUSSIAN, Sums),
    "gradients": (
        lambda: certifier(SecondOrderL2(), SecondOrderL2("levine"), SecondOrderTwoClassL2()),
        GAUSSIAN,
        Sums,
    ),
    "largest": (lambda: certifier(LargestRadius([GaussianL2(), SecondOrderL2()])), GAUSSIAN, Sums),
    "antithetic": (lambda: certifier(DipoleL2(), DipoleGradientL2()), GAUSSIAN, Sums),
    "two schemes": (lambda: certifier(DipoleL2(), GaussianL2(), separate_passes=True), GAUSSIAN, Sums),
    "uniform": (lambda: certifier(UniformL1(), UniformTwoClassL1("grouped")), UniformNoise(0.75), Sums),
    "splitting": (lambda: certifier(SplittingL1()), SplittingNoise(0.75), Sums),
    "enumerated": (lambda: certifier(DeterministicSplittingL1()), DSSN, Sums),
    "decide on the grid": (lambda: certifier(DeterministicSplittingL1(), budget=DecideGridRadius(0.1)), DSSN, Sums),
    "bands": (lambda: certifier(), BandNoise(1, shape=SHAPE), Sums),
    "doubtful": (lambda: certifier(GaussianL2(), DipoleL2(), separate_passes=True), GAUSSIAN, Doubtful),
    "doubtful outcomes": (lambda: certifier(DeterministicSplittingL1()), DSSN, Doubtful),
}
COARSE = {"gradients": 1e-9, "largest": 1e-9, "antithetic": 1e-9}
PREDICTED = ("fixed", "doubtful", "enumerated", "doubtful outcomes")


def session(name: str) -> Session:
    build, noise, network = CASES[name]
    return build().session(network(), noise, SHAPE, domain=(0.0, 1.0), grid=255)


def records(name: str) -> list[dict[str, Any]]:
    """Return the numbers of the records of a case, as plain values; no sentences."""
    found = []
    for record in session(name).certify(images(), [0, 1, 1, 2]):
        body = json.loads(record.to_json())
        body["extra"].pop("arithmetic", None)
        found.append({key: value for key, value in body.items() if key != "note"})
    return found


def predictions(at: Session, n: int) -> dict[str, Any]:
    found = at.predict(images(), n=n, alpha=0.05, seed=7)
    return {
        "prediction": found.prediction.tolist(), "counts": found.counts.tolist(), "p_value": found.p_value.tolist()
    }  # fmt: skip


def same(seen: Any, kept: Any, tolerance: float) -> bool:
    """Say whether two plain values are equal, floats up to a tolerance, relative above 1."""
    if isinstance(kept, dict):
        return (
            isinstance(seen, dict)
            and seen.keys() == kept.keys()
            and all(same(seen[k], kept[k], tolerance) for k in kept)
        )
    if isinstance(kept, list):
        return len(seen) == len(kept) and all(same(*pair, tolerance) for pair in zip(seen, kept, strict=True))
    if isinstance(kept, float):
        return math.isclose(seen, kept, rel_tol=tolerance, abs_tol=tolerance)
    return bool(seen == kept)


@pytest.mark.parametrize("name", CASES)
def test_records_are_the_same_as_ever(name: str) -> None:
    kept = json.loads(KEPT.read_text())["records"][name]
    for seen, wanted in zip(records(name), kept, strict=True):
        wrong = {
            k: (seen.get(k), wanted[k]) for k in wanted if not same(seen.get(k), wanted[k], COARSE.get(name, 1e-12))
        }
        assert not wrong
        assert seen.keys() == wanted.keys()


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_are_the_same_as_ever_from_a_session_that_was_used(name: str) -> None:
    kept = json.loads(KEPT.read_text())["predictions"][name]
    used = session(name)
    assert same(predictions(used, 300), kept, 1e-12)
    other = predictions(used, 200)
    assert other["counts"] != kept["counts"] or used.noise == DSSN
    list(used.certify(images()[:1]))
    assert same(predictions(used, 300), kept, 1e-12)


def test_the_cases_show_what_they_are_for() -> None:
    """Where every image abstains, or no vote is doubtful, equality would say little."""
    kept = json.loads(KEPT.read_text())["records"]
    assert kept.keys() == CASES.keys()
    assert {name for name, bodies in kept.items() if all(body["prediction"] < 0 for body in bodies)} == set()
    assert all(any("doubtful" in body["extra"] for body in kept[name]) for name in ("doubtful", "doubtful outcomes"))
    assert len({body["n_used"] for body in kept["decide"]}) > 1


if __name__ == "__main__":
    found = {
        "records": {name: records(name) for name in CASES},
        "predictions": {name: predictions(session(name), 300) for name in PREDICTED},
    }
    KEPT.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace('{"index"', '\n{"index"') + "\n")
