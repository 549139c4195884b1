"""Networks that the command line builds for tests of attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rounding(nn.Module):
    """A network that looks at rounded pixels: its input gets no gradient."""

    def __init__(self, num_classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(int(torch.tensor(shape).prod()), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.detach().mul(8).round().flatten(1))
