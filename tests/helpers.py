"""Classifiers whose smoothed behaviour is known in closed form, small builders, and what can be wrong in a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rs.certificates.base import Radii


class HalfSpace(nn.Module):
    """f(x) = 1{w.x > b} as two logits: under N(0, s^2 I), p_1 = Phi((w.x - b) / (s |w|)), exactly."""

    def __init__(self, weight: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten().clone())
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight.to(x.dtype) - self.offset
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Counting(nn.Module):
    """Counts its rows; predicts the sign of the first coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0] * self.scale.to(x.dtype)
        return torch.stack([-first, first], dim=1)


def tiny_cnn(classes: int = 3, channels: int = 2) -> nn.Module:
    """A seeded convolutional network with BatchNorm for inputs (channels, 6, 6)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, classes),
        )
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def bit_equal(group: Radii, row: int, alone: Radii) -> bool:
    """Return whether a row of a group equals the result for that image alone, to the last bit."""
    pairs = [(group.radius[row], alone.radius[0]), (group.prediction[row], alone.prediction[0])]
    pairs += [(group.bounds[name][row], alone.bounds[name][0]) for name in alone.bounds]
    return all(a == b for a, b in pairs) and group.notes.get(row) == alone.notes.get(0)


def every_change(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the record with each field changed, each number and text, inside lists and mappings too."""
    for name, value in record.items():
        for other in _others(value):
            yield name, {**record, name: other}


def _others(value: Any) -> Iterator[Any]:
    if isinstance(value, bool) or value is None:
        yield 1
    elif isinstance(value, int | float):
        yield from (value + 1, value * 2 + 3, -7)
        if isinstance(value, float):
            yield value * 1.001 + 1e-6
    elif isinstance(value, str):
        yield from ("l7" if value != "l7" else "l1", value + "x")
    elif isinstance(value, list):
        yield from ([*value, 1], value[:-1])
        for place, item in enumerate(value):
            for other in _others(item):
                yield [*value[:place], other, *value[place + 1 :]]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in _others(item):
                yield {**value, key: other}


ODD: tuple[Any, ...] = (None, [], 3, "x", {}, True, [1], [{}], {"counts": 3}, ["a", 2], float("nan"))


def odd(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield objects in which something is of another kind than it must be, or missing."""
    for name, value in record.items():
        yield {k: v for k, v in record.items() if k != name}
        for other in ODD:
            yield {**record, name: other}
        if isinstance(value, dict):
            for inner in odd(value):
                yield {**record, name: inner}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for inner in odd(value[0]):
                yield {**record, name: [inner, *value[1:]]}
