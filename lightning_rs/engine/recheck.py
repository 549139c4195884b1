"""Some samples of every image are run again: at other positions, among other samples, on any thread.

About one sample in 17 of an image's first 256, and one in 127 of the rest, is kept with its logits. Kept samples of all
images ride in micro-batches that are not full, or fill micro-batches of their own with an eighth of foreign rows. What
moves by more than rounding is refused; what rounding moves is reported image by image.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_rs.engine.purity import foreign, rounding
from lightning_rs.engine.runtime import PreparedNetwork
from lightning_rs.evidence import Segment

# Of an image's first samples more are kept: a decision may take no others.
_FIRST, _OFTEN, _SELDOM = 256, 17, 127


def kept_rows(segment: Segment) -> Iterator[slice]:
    """Yield the rows of a segment that are kept; they depend on the samples' numbers alone."""
    stop = segment.first + segment.stop - segment.start
    # By the sample's own number and not by its place: which samples are checked must not depend on the schedule.
    for begin, end, step in ((0, _FIRST, _OFTEN), (_FIRST, stop, _SELDOM)):
        first = max(begin, segment.first)
        first += -first % step
        if first < min(end, stop):
            offset = segment.start - segment.first
            yield slice(offset + first, offset + min(end, stop), step)


@dataclass(frozen=True)
class Kept:
    """Samples that were evaluated: the image of each, rows (m, d) in the input dtype, logits (m, C)."""

    images: list[int]
    rows: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def split(self, count: int) -> tuple[Self, Self]:
        """Return the first ``count`` samples, and the others."""
        parts = (slice(count), slice(count, None))
        one, two = (type(self)(self.images[part], self.rows[part], self.logits[part]) for part in parts)
        return one, two


@dataclass
class Checked:
    """What was seen of one image: samples that ran again, and how far their logits moved at most."""

    rows: int = 0
    moved: float = 0.0


class Rechecks:
    """Samples waiting to run again, and what running them again showed.

    Args:
        prepared: the network.
        scale: the largest logit that is known of it: rounding is relative to that.
    """

    def __init__(self, prepared: PreparedNetwork, scale: float = 0.0) -> None:
        self._prepared = prepared
        self.scale = scale
        self._waiting: deque[Kept] = deque()
        self._open: Counter[int] = Counter()
        self._running: deque[tuple[Kept, Future[Tensor]]] = deque()
        self._seen: dict[int, Checked] = {}
        self._number = 0
        # The rest are foreign rows, so that even the samples of a single image get other company.
        self._share = prepared.micro_batch - max(1, prepared.micro_batch // 8)

    def add(self, kept: Kept) -> None:
        """Keep samples; enough of them run at once."""
        if not len(kept):
            return
        self._waiting.append(kept)
        self._open.update(kept.images)
        while sum(map(len, self._waiting)) >= self._share:
            self._submit()

    def take(self, count: int) -> Kept | None:
        """Return up to ``count`` waiting samples, to ride in a micro-batch that has room for them."""
        taken: list[Kept] = []
        while count and self._waiting:
            first = self._waiting.popleft()
            if len(first) > count:
                first, rest = first.split(count)
                self._waiting.appendleft(rest)
            taken.append(first)
            count -= len(first)
        if not taken:
            return None
        images = [image for each in taken for image in each.images]
        return Kept(images, torch.cat([k.rows for k in taken]), torch.cat([k.logits for k in taken]))

    def note(self, kept: Kept, again: Tensor) -> None:
        """Take the logits that riding samples got when they ran again."""
        done: Future[Tensor] = Future()
        done.set_result(again)
        self._running.append((kept, done))

    def finished(self, images: Sequence[int]) -> bool:
        """Say whether nothing of these images is waiting or running, as far as is known without waiting for it."""
        self._look([pair for pair in self._running if pair[1].done()])
        return not any(self._open[image] for image in images)

    def settle(self) -> None:
        """Run all that is waiting and look at it.

        Raises:
            ValueError: if logits moved by more than rounding.
        """
        while self._waiting:
            self._submit()
        self._look(list(self._running))

    def pop(self, image: int) -> Checked:
        """Return what was seen of an image since it was asked for last."""
        return self._seen.pop(image, Checked())

    def clear(self) -> None:
        """Forget everything."""
        wait([future for _, future in self._running])
        for held in (self._waiting, self._running, self._open, self._seen):
            held.clear()

    def _submit(self) -> None:
        kept = self.take(self._share)
        assert kept is not None
        self._number += 1
        self._running.append((kept, self._prepared.workers.submit(self._run_again, kept, self._number)))

    @torch.inference_mode()
    def _run_again(self, kept: Kept, number: int) -> Tensor:
        # Other companions (rows no image has), other places (a permutation of this number), and whichever thread is
        # free.
        size = self._prepared.micro_batch
        repeats = -(-size // len(kept))
        rows = foreign(kept.rows, bool(number % 2)).repeat(repeats, 1)[:size].to(self._prepared.dtype)
        places = torch.randperm(size, generator=torch.Generator().manual_seed(number))[: len(kept)].to(rows.device)
        rows[places] = kept.rows
        return self._prepared.logits(rows)[places].clone()

    def _look(self, finished: list[tuple[Kept, Future[Tensor]]]) -> None:
        for pair in finished:
            self._running.remove(pair)
            kept, future = pair
            again = future.result()
            moved = (again - kept.logits).abs().amax(1)
            # Relative to the largest logit seen: rounding of a sum is as large as its largest terms, which logits near
            # 0 hide.
            largest, scale = float(moved.max()), max(self.scale, float(kept.logits.abs().max()))
            if largest > rounding(self._prepared.config.precision) * scale:
                raise ValueError(_refusal(kept, again, moved, largest, scale))
            for image, distance in zip(kept.images, moved.tolist(), strict=True):
                seen = self._seen.setdefault(image, Checked())
                seen.rows, seen.moved = seen.rows + 1, max(seen.moved, distance)
            self._open.subtract(kept.images)


def _refusal(kept: Kept, again: Tensor, moved: Tensor, largest: float, scale: float) -> str:
    image = kept.images[int(moved.argmax())]
    changed = int((again.argmax(1) != kept.logits.argmax(1)).sum())
    return (
        f"the network must be one fixed function of one row, but logits of image {image} move by {largest:.3g} (the "
        f"largest is {scale:.3g}) when its samples run again at other positions among others: {changed} of "
        f"{len(kept)} labels change"
    )
