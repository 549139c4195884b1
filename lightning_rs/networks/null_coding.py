"""The first layer behind noise that drops pixels: a dropped pixel looks like no colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NullCoding(nn.Module):
    """Code a channel x as the two channels (x, 1 - x) where the pixel is kept, and as (0, 0) where it was dropped.

    Dropped pixels are negative on input (:data:`lightning_rs.noise.ablation.NULL`); colours lie in [0, 1]. Levine and
    Feizi (2020), section 3. Shapes: ``(N, C, H, W) -> (N, 2 C, H, W)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the coded batch."""
        kept = (x >= 0).to(x.dtype)
        return torch.cat([x * kept, (1 - x) * kept], dim=1)
