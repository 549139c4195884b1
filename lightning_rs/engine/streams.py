"""Random streams addressed by key, so that results do not depend on batches, ranks or order.

A stream is named by (seed, classifier, purpose, planned samples, image, chunk). Selection and estimation, the preview
that ends a training and the final certification never share noise because the purpose is part of the key; so is the
planned number of samples, or 8,192 samples would be the first half of 16,384 of another statement. An image is named by
its index and its content, so that two images under one index see different noise. Variates are drawn in fixed chunks:
one draw of 100 numbers is not two draws of 50.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from lightning_rs.checks import check_choice

Purpose = Literal[
    "epoch-end",
    "epoch-end-selection",
    "preview",
    "preview-selection",
    "selection",
    "estimation",
    "prediction",
    "transfer",
    "attack",
    "probe",
]

# torch's CPU generator: seed (u64), left and seeded (i32 each), next (u64), 624 words, then the cached normal.
_MT_WORDS = 624
_MT_STATE_BYTES = 5056
# One chunk holds about this many numbers: enough to hide the cost of keying, little enough for the cache. Other
# devices have generators of their own, and a kernel to launch for each chunk.
_CHUNK_NUMBERS = {"cpu": 1 << 18}
_CHUNK_NUMBERS_ELSEWHERE = 1 << 22


@dataclass(frozen=True)
class Streams:
    """The streams of one purpose.

    Args:
        seed: the user's seed, any integer.
        classifier: fingerprint of the base classifier; another checkpoint gets other noise.
        purpose: what the noise is used for.
        planned: number of samples that the statement plans with, n.
    """

    seed: int
    classifier: str
    purpose: Purpose
    planned: int = 0

    def __post_init__(self) -> None:
        check_choice("purpose", self.purpose, get_args(Purpose))

    def key(self, image: int | str, part: int, chunk: int) -> bytes:
        """Return the key of one chunk: ``part`` counts separately drawn parts of an image's stream."""
        return repr((self.seed, self.classifier, self.purpose, self.planned, image, part, chunk)).encode()

    def seed_(self, generator: torch.Generator, image: int | str, part: int, chunk: int) -> torch.Generator:
        """Put ``generator`` at the start of a chunk and return it.

        On the CPU the whole state of the Mersenne twister is filled from SHAKE-128 of the key, because
        ``manual_seed`` keeps only 32 bits there and 10^5 streams would collide.
        """
        digest = hashlib.shake_128(self.key(image, part, chunk))
        if generator.device.type == "cpu":
            generator.set_state(_twister_state(digest.digest(4 * _MT_WORDS)))
        else:
            generator.manual_seed(int.from_bytes(digest.digest(8), "little"))
        return generator


def image_sha256(image: torch.Tensor) -> str:
    """Return the fingerprint of one image: SHA-256 over its shape and its float32 numbers in C, H, W order.

    Any other pixel gives another one; dtype, device and memory layout do not, nor does the sign of a zero.
    """
    plain = image.detach().to("cpu", torch.float32).contiguous() + 0.0
    head = repr(tuple(image.shape)).encode()
    return hashlib.sha256(head + plain.numpy().tobytes()).hexdigest()


def image_name(index: int, sha256: str) -> str:
    """Return what names an image in stream keys: its index, and its content."""
    return f"{index}:{sha256}"


def chunk_size(dim: int, device_type: str = "cpu") -> int:
    """Return the number of samples drawn at once for inputs of ``dim`` coordinates, an even power of two."""
    numbers = _CHUNK_NUMBERS.get(device_type, _CHUNK_NUMBERS_ELSEWHERE)
    return 1 << max(4, min(12, (numbers // max(dim, 1)).bit_length() - 1))


def fresh_seed() -> int:
    """Return 64 bits of entropy from the operating system, for predictions that an attacker must not foresee."""
    return int.from_bytes(os.urandom(8), "little")


def _twister_state(words: bytes) -> torch.Tensor:
    state = np.zeros(_MT_STATE_BYTES, dtype=np.uint8)
    view = state.view(np.uint64)
    view[1] = (1 << 32) | 1  # left = 1, seeded = 1: the next draw regenerates the block
    view[3 : 3 + _MT_WORDS] = np.frombuffer(words, dtype=np.uint32)
    return torch.from_numpy(state)
