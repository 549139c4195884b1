"""Steps and projections of the attacks in training: inside the ball and the box, in l1 at the nearest point of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_rs.classifiers.ascent import ascend, direction, project
from lightning_rs.functional import project_l1_box

NORMS: list[Any] = ["l1", "l2", "linf"]
EPS = {"l1": 3.0, "l2": 0.7, "linf": 0.1}


def batch(shape: tuple[int, ...] = (6, 3, 5, 5)) -> tuple[Tensor, Tensor]:
    """Return images in the box and points far from them."""
    stream = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=stream)
    return images, images + torch.randn(shape, generator=stream)


def lengths(move: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(move.flatten(1), ord={"l1": 1, "l2": 2, "linf": float("inf")}[norm], dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_lie_in_ball_and_box_and_in_the_layout_of_the_images(norm: Any) -> None:
    images, point = batch()
    images = images.contiguous(memory_format=torch.channels_last)
    found = project(point, images, EPS[norm], norm, (0.0, 1.0))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    torch.testing.assert_close(lengths(found - images, norm).clamp(min=EPS[norm]), torch.full((6,), EPS[norm]))


def test_the_l1_projection_is_the_nearest_point_of_ball_and_box() -> None:
    images, point = batch()
    wanted = project_l1_box(point.flatten(1).numpy(), images.flatten(1).numpy(), EPS["l1"])
    found = project(point, images, EPS["l1"], "l1", (0.0, 1.0)).flatten(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # One after the other, ball and box would leave a part of eps unused.
    assert np.abs(found - images.flatten(1).numpy()).sum(1).min() == pytest.approx(EPS["l1"], rel=1e-5)


def test_without_a_box_the_l1_projection_is_soft_thresholding() -> None:
    images = torch.zeros(1, 4)
    found = project(torch.tensor([[3.0, -1.0, 0.5, 0.0]]), images, 2.0, "l1", None)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_raises_a_linear_function_as_far_as_the_ball_allows(norm: Any) -> None:
    images = torch.full((2, 4), 0.5)
    slope = torch.tensor([1.0, -2.0, 0.5, 0.25])
    found = ascend(lambda x: (x * slope).sum(), images, EPS[norm] / 10, 8, norm, (0.0, 1.0))
    best = {"l1": slope.abs().max(), "l2": slope.norm(), "linf": slope.abs().sum()}[norm]
    torch.testing.assert_close(((found - images) * slope).sum(1), (EPS[norm] / 10 * best).expand(2))


@pytest.mark.parametrize("norm", NORMS)
def test_without_gradient_nothing_moves(norm: Any) -> None:
    assert not direction(torch.zeros(2, 1, 4, 4), norm).any()
