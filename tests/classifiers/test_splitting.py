"""Training under deterministic splitting noise: the v of certification, fresh offsets, images on the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rs.classifiers.base import CHECKPOINT_KEY
from lightning_rs.data import Digits
from lightning_rs.noise import DeterministicSplittingNoise
from tests.training import classifier, trainer

LAW = DeterministicSplittingNoise(0.8, shape=(1, 8, 8), q=16, seed=5)


def batch(size: int = 64) -> torch.Tensor:
    return torch.randint(17, (size, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 16


def outcomes(noisy: torch.Tensor, images: torch.Tensor) -> list[int]:
    """Return which outcome of the law each noisy image is."""
    found = []
    rows = torch.empty(LAW.size, 64)
    for copy, image in zip(noisy, images, strict=True):
        LAW.split(image.flatten(), torch.arange(LAW.size), rows)
        (hits,) = torch.where((rows == copy.flatten()).all(1))
        assert len(hits) == 1
        found.append(int(hits[0]))
    return found


def test_every_image_and_step_gets_a_fresh_offset_of_the_same_v(tmp_path: Path) -> None:
    model = classifier("mlp", noise=LAW, grid=16)
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(model, datamodule=Digits(batch_size=64))
    images = batch()
    first, second = (outcomes(model.noisy(images, step), images) for step in (0, 1))
    assert first != second
    # 25 equally likely offsets: 64 draws leave out 10 of them or more once in 10^5 times.
    assert LAW.size == 25
    assert min(len(set(first)), len(set(second))) > 15


def test_the_checkpoint_names_v() -> None:
    model = classifier("mlp", noise=LAW, grid=16)
    held: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(held)
    said = held[CHECKPOINT_KEY]["noise"]
    assert (said["seed"], said["shape"], said["q"], said["v_sha256"]) == (5, [1, 8, 8], 16, LAW.v_sha256)


def test_another_grid_than_the_data_is_refused() -> None:
    law = DeterministicSplittingNoise(0.8, shape=(1, 8, 8), q=255)
    with pytest.raises(ValueError, match="q of the noise must be the grid of the data, 16, got 255"):
        classifier("mlp", noise=law, grid=16)


def test_images_off_the_grid_are_not_rounded_in_training() -> None:
    model = classifier("mlp", noise=LAW)
    off = batch()
    off[3, 0, 2, 1] = 0.3
    with pytest.raises(ValueError, match=r"multiples of 1/16, got 0.3\d* at coordinate 17 of image 3 of the batch"):
        model.noisy(off, 0)
