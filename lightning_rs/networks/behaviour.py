"""What a network answers on fixed inputs: it binds the function, where weights alone would bind only its numbers.

The same weights behind another pooling, another normalisation argument or another forward are another function. Its
logits on fixed pseudo-random inputs tell them apart. They are stored rounded, and compared with a tolerance rather than
by a hash, so that another processor, whose last bits differ, is not refused at a rounding edge.
"""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

_ROWS = 8
_MOST_NUMBERS = 16


def fixed_inputs(shape: tuple[int, ...]) -> Tensor:
    """Return the inputs, (8, *shape) float32: pseudo-random bytes, half of them over [0, 1], half over [-1/2, 3/2].

    From SHAKE-128, so that no release of a library changes them.
    """
    dim = math.prod(shape)
    stream = hashlib.shake_128(repr(("behaviour", tuple(shape))).encode()).digest(_ROWS * dim)
    values = torch.from_numpy(np.frombuffer(stream, dtype=np.uint8).astype(np.float32) / 255.0)
    inputs = values.view(_ROWS, *shape)
    inputs[_ROWS // 2 :] = 2 * inputs[_ROWS // 2 :] - 0.5
    return inputs


def behaviour(network: nn.Module, shape: tuple[int, ...]) -> list[list[float]] | None:
    """Return rounded fp32 logits of a network on :func:`fixed_inputs`; of many classes, 16 fixed signed sums of them.

    A copy runs on the CPU in evaluation mode, without autocast: the network and the random state stay untouched.

    Args:
        network: maps (m, *shape) to logits (m, C).
        shape: shape of one input.

    Returns:
        8 rows of at most 16 numbers, rounded to a thousandth of the largest; None where two runs differ by more than
        that: a network with randomness of its own has no such fingerprint.
    """
    private = copy.deepcopy(network).to("cpu", torch.float32).eval()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        first, again = (private(fixed_inputs(shape)).float() for _ in range(2))
    if not torch.allclose(first, again, rtol=0, atol=1e-3 * float(first.abs().max())):
        return None
    return _rounded(_few(first.numpy().astype(np.float64)))


def _few(logits: np.ndarray) -> np.ndarray:
    classes = logits.shape[1]
    if classes <= _MOST_NUMBERS:
        return logits
    bits = np.frombuffer(hashlib.shake_128(b"signs").digest(classes * _MOST_NUMBERS), dtype=np.uint8)
    signs = np.where(bits.reshape(classes, _MOST_NUMBERS) % 2, 1.0, -1.0)
    return logits @ signs


def _rounded(values: np.ndarray) -> list[list[float]]:
    largest = float(np.abs(values).max())
    if not 0 < largest < math.inf:
        return values.tolist()
    decimals = 3 - math.floor(math.log10(largest))
    return [[round(value, decimals) for value in row] for row in values.tolist()]
