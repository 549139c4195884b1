"""Fast exact draws from an integer law: one look-up in a table for each 16 random bits.

The 16 leading bits of the 63-bit number U decide W unless a threshold lies among the numbers that begin with them. Such
entries of the table are marked; their draws get the 47 bits that are missing, and are compared with the thresholds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_rs.noise._integer_laws import IntegerLaw

_BITS = 47
_MARK = {torch.int16: -(1 << 15), torch.int32: -(1 << 31)}


class Scratch:
    """Buffers that one thread uses again for every chunk."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, count: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return an uninitialised buffer, shape (count,), on the CPU or a device that is the same in every call."""
        held = self._held.get((name, dtype))
        if held is None or len(held) < count:
            held = self._held[name, dtype] = torch.empty(count, dtype=dtype, device=device)
        return held[:count]


class Table:
    """The table of one law, on the CPU: streams are drawn there, so that they are the same for every device."""

    def __init__(self, law: IntegerLaw) -> None:
        self.law = law
        self.dtype = torch.int16 if law.largest < 1 << 15 else torch.int32
        # Entry e stands for all U that begin with the 16 bits e: an interval of numbers. If no threshold falls inside,
        # W is the same for all of them and the entry is W itself.
        starts = np.arange(1 << 16, dtype=np.int64) << _BITS
        self._low = np.searchsorted(law.thresholds, starts, side="right")
        high = np.searchsorted(law.thresholds, starts + ((1 << _BITS) - 1), side="right")
        split = self._low < high
        self._several = bool((high - self._low > 1).any())
        entries = np.where(split, _MARK[self.dtype], law.values[self._low])
        self._entries = torch.from_numpy(entries).to(self.dtype)
        # The threshold that splits an entry; where several do, a search follows.
        self._threshold = np.append(law.thresholds, np.iinfo(np.int64).max)[self._low]
        self._crowded = high - self._low > 1
        self.split_share = float(split.mean())

    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch) -> None:
        """Fill ``out``, contiguous, of :attr:`dtype`, with independent draws."""
        flat = out.view(-1)
        words = scratch.get("words", -(-len(flat) // 4), torch.int64)
        # Four draws of 16 bits from one 64-bit number: the generator is what a draw costs.
        words.random_(-(1 << 63), None, generator=generator)
        index = scratch.get("index", 4 * len(words), torch.int32)
        index.copy_(words.view(torch.uint16))
        index = index[: len(flat)]
        torch.index_select(self._entries, 0, index, out=flat)
        self._refine(flat, index, generator)

    def _refine(self, flat: Tensor, index: Tensor, generator: torch.Generator) -> None:
        # Few are marked (``split_share``), so this part may be slow. Their missing bits come from the stream after the
        # words: how many there are depends on the words alone, so a chunk is still a function of its key.
        drawn = flat.numpy()
        marked = np.flatnonzero(drawn == _MARK[self.dtype])
        more = torch.empty(len(marked), dtype=torch.int64).random_(0, 1 << _BITS, generator=generator).numpy()
        entry = index.numpy()[marked]
        number = (entry.astype(np.int64) << _BITS) | more
        cell = self._low[entry] + (number >= self._threshold[entry])
        if self._several:
            crowded = np.flatnonzero(self._crowded[entry])
            cell[crowded] = np.searchsorted(self.law.thresholds, number[crowded], side="right")
        drawn[marked] = self.law.values[cell]
