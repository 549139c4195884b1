"""Smoothing by dropping pixels: a band or a block of the image is kept at every position, or k random pixels.

A dropped pixel becomes ``NULL``, outside the domain [0, 1], in all channels; the network's first layer,
:class:`~lightning_rs.networks.null_coding.NullCoding`, tells it from any colour. No arithmetic touches what is kept, so
that the law of what the network sees depends on the kept pixels alone, exactly.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lightning_rs.checks import check_alpha, check_at_least
from lightning_rs.noise.base import EnumeratedNoise, Noise

NULL = -1.0


class _Pixels:
    """Row and column of every coordinate of an image (C, H, W), in the engine's order, on any device."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(check_at_least("shape", size, 1) for size in shape)
        if len(self.shape) != 3:
            raise ValueError(f"shape must be (C, H, W), got {self.shape}")
        channels, self.height, self.width = self.shape
        place = torch.arange(self.height * self.width, dtype=torch.int64).repeat(channels)
        self._place = {torch.device("cpu"): place}

    @property
    def count(self) -> int:
        """Number of pixels; all channels of one count once."""
        return self.height * self.width

    def place(self, device: torch.device) -> Tensor:
        """Return the pixel H W numbers ``row * W + column`` of all coordinates, (d,)."""
        if device not in self._place:
            self._place[device] = self._place[torch.device("cpu")].to(device)
        return self._place[device]

    def arranged(self, order: Tensor) -> Self:
        """Return the same for permuted coordinates."""
        other = copy.copy(self)
        other._place = {torch.device("cpu"): self._place[torch.device("cpu")][order.cpu()]}
        return other

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` for another shape of input."""
        if tuple(shape) != self.shape:
            raise ValueError(f"images must have the shape {self.shape} of the noise, got {tuple(shape)}")


class _KeptPart(EnumeratedNoise):
    """A part of fixed form is kept, at each of its positions once; it wraps around the image's edges."""

    domain = (0.0, 1.0)
    exchangeable = False

    def __init__(self, kept: int, *, shape: Sequence[int], threshold: float | None = None) -> None:
        self._pixels = _Pixels(shape)
        self.shape = self._pixels.shape
        self.threshold = None if threshold is None else float(check_alpha(threshold, "threshold"))
        self.kept = check_at_least("kept", kept, 1)
        if self.kept > self._room:
            raise ValueError(f"kept must be at most {self._room} for images of shape {self.shape}, got {kept}")

    @property
    @abstractmethod
    def _room(self) -> int:
        """Largest size of the part."""

    @abstractmethod
    def _keeps(self, place: Tensor, outcomes: Tensor) -> Tensor:
        """Return which coordinates, (d,), each outcome, (m, 1), keeps: (m, d)."""

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        voting = {} if self.threshold is None else {"threshold": self.threshold}
        return {"kept": self.kept, "shape": list(self.shape), **voting}

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless the input has the shape of the noise."""
        self._pixels.check_shape(shape)

    def arranged(self, order: Tensor) -> Self:
        """Return the same law for inputs whose coordinates were permuted by ``order``, shape (d,)."""
        other = copy.copy(self)
        other._pixels = self._pixels.arranged(order)
        return other

    def split(self, x: Tensor, outcomes: Tensor, out: Tensor) -> None:
        """Write ``x``, shape (d,) or (m, d), with all but the part at ``outcomes[i]`` dropped, into ``out[i]``."""
        keeps = self._keeps(self._pixels.place(x.device), outcomes[:, None])
        out.copy_(torch.where(keeps, x, NULL))


class BandNoise(_KeptPart):
    """Keeps ``kept`` neighbouring columns, at each of the W positions (Levine and Feizi 2020, column smoothing).

    Args:
        kept: number b of columns.
        shape: shape of one input, (C, H, W).
        threshold: a band votes for every class whose softmax score is at least this, for several or for none, which
            certifies more where bands alone say little; None: for its most probable class. Training does not use it.

    Raises:
        ValueError: for a shape of no image, ``kept`` outside 1..W, or a threshold outside (0, 1).
    """

    @property
    def _room(self) -> int:
        return self._pixels.width

    @property
    def size(self) -> int:
        """The number W of positions."""
        return self._pixels.width

    @property
    def sigma(self) -> float:
        """The scale by which tables list the law: the share of the image that is kept."""
        return self.kept / self._pixels.width

    def _keeps(self, place: Tensor, outcomes: Tensor) -> Tensor:
        return torch.remainder(place % self._pixels.width - outcomes, self._pixels.width) < self.kept


class BlockNoise(_KeptPart):
    """Keeps a square of ``kept`` x ``kept`` pixels, at each of the H W positions (Levine and Feizi 2020).

    Args:
        kept: side b of the square.
        shape: shape of one input, (C, H, W).
        threshold: as for :class:`BandNoise`.

    Raises:
        ValueError: for a shape of no image, ``kept`` outside 1..min(H, W), or a threshold outside (0, 1).
    """

    @property
    def _room(self) -> int:
        return min(self._pixels.height, self._pixels.width)

    @property
    def size(self) -> int:
        """The number H W of positions."""
        return self._pixels.count

    @property
    def sigma(self) -> float:
        """The scale by which tables list the law: the share of the image that is kept."""
        return self.kept * self.kept / self._pixels.count

    def _keeps(self, place: Tensor, outcomes: Tensor) -> Tensor:
        height, width = self._pixels.height, self._pixels.width
        rows = torch.remainder(place // width - outcomes // width, height) < self.kept
        return rows & (torch.remainder(place % width - outcomes % width, width) < self.kept)


class AblationNoise(Noise):
    """Keeps k of the H W pixels, all subsets of k equally likely (randomized ablation; Levine and Feizi 2020).

    Every pixel draws a 63-bit number and the k smallest are kept. Where the k-th and the next agree, the row draws
    again: by symmetry all subsets are then equally likely, exactly.

    Args:
        k: number of pixels that are kept, all channels of one together.
        shape: shape of one input, (C, H, W).

    Raises:
        ValueError: for a shape of no image, or k outside 1..H W.
    """

    domain = (0.0, 1.0)
    exchangeable = False
    arithmetic = "pixels are kept or dropped without arithmetic, the law is exact to (H W)^2 / 2^64 a sample"

    def __init__(self, k: int, *, shape: Sequence[int]) -> None:
        self._pixels = _Pixels(shape)
        self.shape = self._pixels.shape
        self.k = check_at_least("k", k, 1)
        if self.k > self._pixels.count:
            raise ValueError(f"k must be at most the number of pixels, {self._pixels.count}, got {k}")

    @property
    def pixels(self) -> int:
        """Number H W of pixels."""
        return self._pixels.count

    @property
    def sigma(self) -> float:
        """The scale by which tables list the law: the share of the image that is kept."""
        return self.k / self._pixels.count

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"k": self.k, "shape": list(self.shape)}

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless the input has the shape of the noise."""
        self._pixels.check_shape(shape)

    def arranged(self, order: Tensor) -> Self:
        """Return the same law for inputs whose coordinates were permuted by ``order``, shape (d,)."""
        other = copy.copy(self)
        other._pixels = self._pixels.arranged(order)
        return other

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with 1 at the coordinates of kept pixels and 0 elsewhere."""
        keys = torch.empty(len(out), self._pixels.count, dtype=torch.int64, device=out.device)
        keys.random_(generator=generator)  # 0 .. 2^63 - 1
        kept = torch.zeros(keys.shape, dtype=out.dtype, device=out.device)
        kept.scatter_(1, self._smallest(keys, generator), 1.0)
        torch.index_select(kept, 1, self._pixels.place(out.device), out=out)

    def _smallest(self, keys: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the places of the k smallest keys of each row, (m, k); rows where they are not unique draw again."""
        if self.k == self._pixels.count:
            return torch.arange(self.k, device=keys.device).expand(len(keys), -1)
        while True:
            found = keys.topk(self.k + 1, dim=1, largest=False)
            tied = found.values[:, -2] == found.values[:, -1]
            if not tied.any():
                return found.indices[:, :-1]
            keys[tied] = torch.empty_like(keys[tied]).random_(generator=generator)

    def apply(self, x: Tensor, variates: Tensor, out: Tensor) -> None:
        """Write ``x`` with the dropped pixels set to ``NULL`` into ``out``."""
        out.copy_(torch.where(variates > 0, x, NULL))
