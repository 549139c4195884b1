"""Networks as a user would write them, for the tests; and things a class path may lead to instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OwnNet(nn.Module):
    """A network that asks for the number of classes and has an argument of its own."""

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.features = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Normalising(nn.Module):
    """A network that normalises by itself."""

    def __init__(self, num_classes: int, shape: tuple[int, ...], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.head = nn.Linear(int(torch.tensor(shape).prod()), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(((x - self.mean[0]) / self.std[0]).flatten(1))


class Wrapped(nn.Module):
    """A network around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class NoLogits(nn.Module):
    """What returns something else than logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def make_own(num_classes: int, width: int = 4) -> OwnNet:
    """A factory that says what it returns."""
    return OwnNet(num_classes, width)


def says_nothing(num_classes):
    """A factory that does not."""
    return OwnNet(num_classes)
