"""Noisy inputs from which the 8-bit grids of a network are chosen: no data, fixed seeds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rs.engine.compile.quantize import synthetic_images
from lightning_rs.engine.runtime import PreparedNetwork
from lightning_rs.noise.base import Noise

_ROWS = 1024


def calibration_rows(prepared: PreparedNetwork, network: nn.Module, noise: Noise) -> Tensor:
    """Return noisy synthetic images, flat float32 (m, d) in the engine's order, m a multiple of the micro-batch.

    They depend on the network's standardisation, the shape and the noise only: not on the certifier's seed, the data or
    the rank, so that every process that runs this network under this noise runs the same classifier.
    """
    count = -(-_ROWS // prepared.micro_batch) * prepared.micro_batch
    rows = prepared.flatten(synthetic_images(network, prepared.shape, count))
    generator = torch.Generator(rows.device).manual_seed(0)
    arranged = noise if prepared.order is None else noise.arranged(prepared.order)
    variates, out = torch.empty_like(rows), torch.empty_like(rows)
    arranged.draw_(variates, generator)
    arranged.apply(rows, variates, out)
    return out
