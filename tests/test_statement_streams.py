"""No two statements share noise: by image, by planned samples, by purpose; an image is named in its record."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_rs.budgets import DecideRadius, FixedSamples, RandomizedBound, StagedSamples
from lightning_rs.budgets.base import Budget
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.streams import image_sha256
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.records import Certification
from lightning_rs.session import Stage
from tests.helpers import HalfSpace

# The network answers by the first coordinate, so that images that differ in the others get the same votes from the
# same noise: six times by chance less often than once in 10^8 runs.
NETWORK = HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]))
NOISE = GaussianNoise(1.0)


def images(other: float) -> Tensor:
    x = torch.full((6, 4), other)
    x[:, 0] = 0.2
    x[:, 1] += torch.arange(6) / 8
    return x


def run(x: Tensor, budget: Budget | None = None, stage: Stage = "final", n: int = 4000) -> list[Certification]:
    certifier = Certifier(n0=10, n=n, runtime=Runtime(micro_batch=64), budget=budget)
    return list(certifier.session(NETWORK, NOISE, (4,), stage=stage).certify(x))


def votes(records: list[Certification]) -> list[tuple[int, ...]]:
    return [record.counts for record in records]


BUDGETS = [FixedSamples(), StagedSamples(), RandomizedBound(), DecideRadius(0.1)]


@pytest.mark.parametrize("budget", BUDGETS, ids=[type(budget).__name__ for budget in BUDGETS])
def test_two_calls_without_indices_give_different_images_different_noise(budget: Budget) -> None:
    first, again, other = run(images(0.0), budget), run(images(0.0), budget), run(images(0.5), budget)
    assert [record.to_json() for record in first] == [record.to_json() for record in again]
    assert [record.index for record in first] == [record.index for record in other]
    assert votes(first) != votes(other)
    assert all(a.counts != b.counts or a.n_used != b.n_used for a, b in zip(first[:1], other[:1], strict=True))


def test_the_randomized_bound_draws_its_number_for_the_image() -> None:
    first, other = run(images(0.0), RandomizedBound()), run(images(0.5), RandomizedBound())
    assert not {record.extra["u"] for record in first} & {record.extra["u"] for record in other}


def test_fewer_samples_are_no_prefix_of_more() -> None:
    # If they were, the votes of 4,000 samples would be among those of 4,001.
    fewer, more = np.array(votes(run(images(0.0)))), np.array(votes(run(images(0.0), n=4001)))
    assert (more - fewer < 0).any()


@pytest.mark.parametrize("stage", ["preview", "epoch-end"])
def test_previews_share_no_noise_with_the_certification(stage: Stage) -> None:
    assert votes(run(images(0.0), stage=stage)) != votes(run(images(0.0)))


def test_the_record_says_which_statement_it_belongs_to() -> None:
    certifier = Certifier(n0=10, n=100, runtime=Runtime(micro_batch=64))
    assert certifier.session(NETWORK, NOISE, (4,), stage="preview").describe()["stage"] == "preview"
    assert certifier.session(NETWORK, NOISE, (4,)).describe()["stage"] == "final"


def test_repeated_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="indices must not repeat, got 3 more than once"):
        Certifier(n=10).certify(NETWORK, NOISE, images(0.0), indices=[0, 3, 1, 3, 1, 2])


def test_the_record_names_the_image() -> None:
    x = images(0.5)
    records = run(x)
    assert [record.image for record in records] == [image_sha256(each) for each in x]
    assert records[0].image == hashlib.sha256(b"(4,)" + x[0].numpy().tobytes()).hexdigest()
    assert len({record.image for record in records}) == 6


def test_the_fingerprint_is_of_the_pixels_only() -> None:
    x = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    name = image_sha256(x)
    assert image_sha256(x.double()) == name
    assert image_sha256(x[None].to(memory_format=torch.channels_last)[0]) == name
    assert image_sha256(x.reshape(3, 4, 5)) != name
    changed = x.clone()
    changed[2, 4, 3] = torch.nextafter(changed[2, 4, 3], torch.tensor(2.0))
    assert image_sha256(changed) != name
    assert image_sha256(torch.tensor([0.0, 1.0])) == image_sha256(torch.tensor([-0.0, 1.0]))
