"""The hot loop, the only one: noisy copies through the network into evidence.

Samples of several images share micro-batches of one fixed shape; memory does not grow with n; counts stay on
the device and the host never waits for a micro-batch of an accelerator. A sample depends on its stream key and its
image only, so batches, ranks, shards and threads merely schedule micro-batches.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_rs.checks import check_at_least
from lightning_rs.engine.ballots import threshold_votes
from lightning_rs.engine.noisy_rows import FloatRows, LatticeRows, NoisyRows
from lightning_rs.engine.recheck import Kept, Rechecks, kept_rows
from lightning_rs.engine.runtime import PreparedNetwork
from lightning_rs.engine.streams import Purpose, Streams, image_name, image_sha256
from lightning_rs.engine.workers import one_thread
from lightning_rs.evidence import Evidence, Observation, Plan, Scheme, Segment
from lightning_rs.noise._tables import Scratch
from lightning_rs.noise.base import Noise
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.setting import Selection


@dataclass(frozen=True)
class _Piece:
    """Consecutive samples of one image that are drawn at once; part and chunk name their random stream."""

    image: int
    first: int
    count: int
    part: int
    chunk: int


class _Carry:
    """Rows drawn for one micro-batch that belong to the next one, which may be filled by another thread."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._rows: tuple[Tensor, ...] = ()

    def give(self, rows: tuple[Tensor, ...]) -> None:
        """Keep copies of the rows: their buffers will be used again."""
        self._rows = tuple(part.clone() for part in rows)
        self._ready.set()

    def abandon(self) -> None:
        """Let nobody wait for rows that an error prevented."""
        self._ready.set()

    def take(self) -> tuple[Tensor, ...]:
        """Wait for the rows and return them."""
        self._ready.wait()
        return self._rows


@dataclass
class _Batch:
    """What one micro-batch holds: rows carried over from the one before, then pieces, the last perhaps too long."""

    size: int
    before: _Carry | None = None
    after: _Carry | None = None
    pieces: list[tuple[_Piece, slice]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    filled: int = 0

    def add(self, piece: _Piece) -> None:
        """Append a piece."""
        rows = slice(self.filled, self.filled + piece.count)
        self.pieces.append((piece, rows))
        self.segments.append(Segment(piece.image, rows.start, rows.stop, piece.first))
        self.filled = rows.stop

    def next(self) -> _Batch:
        """Return the micro-batch that begins with the rows that this one has too many."""
        if self.filled == self.size:
            return _Batch(self.size)
        last = self.segments[-1]
        left = Segment(last.image, 0, last.stop - self.size, last.first + self.size - last.start)
        self.segments[-1] = Segment(last.image, last.start, self.size, last.first)
        self.filled, self.after = self.size, _Carry()
        return _Batch(self.size, before=self.after, segments=[left], filled=left.stop)


class _Slot:
    """Buffers and generator of one micro-batch at work; the last rows hold what is carried over."""

    def __init__(self, prepared: PreparedNetwork, rows: NoisyRows, chunk: int) -> None:
        self.generator = torch.Generator(device=rows.generator_device)
        self.work = Scratch()
        self.inputs = prepared.buffer(prepared.micro_batch + chunk)
        self.variates: Tensor | None = None
        self._prepared, self._dtype, self._chunk = prepared, rows.variates, chunk
        self.keep_variates(rows.always)

    def keep_variates(self, kept: bool) -> None:
        """Provide a buffer for the variates of this pass, or none."""
        if kept and self.variates is None:
            self.variates = self._prepared.buffer(self._prepared.micro_batch + self._chunk, self._dtype)
        elif not kept:
            self.variates = None

    def rows(self, rows: slice) -> tuple[Tensor, ...]:
        """Return some rows of the inputs and, where they are kept, of the variates."""
        return (self.inputs[rows],) if self.variates is None else (self.inputs[rows], self.variates[rows])


@dataclass(frozen=True)
class _Pass:
    """One call of :meth:`Sampler.collect`."""

    flat: Tensor
    indices: tuple[int, ...]
    names: tuple[str, ...]
    streams: Streams
    scheme: Scheme
    top: Tensor
    recheck: bool


@dataclass(frozen=True)
class _Seen:
    """What the network said of one micro-batch.

    Attributes:
        labels: class of each used row; one inside the margin is not that of the image.
        margin: top-1 minus top-2 logit, or None if nobody asked.
        doubtful: rows inside the margin, or None.
        kept: samples to run again.
        again: logits of the samples that rode along.
        votes: votes of each used row by threshold, or None if a row votes for its label.
    """

    labels: Tensor
    margin: Tensor | None
    doubtful: Tensor | None
    kept: Kept | None
    again: Tensor | None
    votes: Tensor | None = None


_Work = tuple[_Batch, _Slot, Kept | None, Future[_Seen]]


class Sampler:
    """Runs noisy copies of images through a prepared network and feeds evidence.

    Args:
        prepared: the network at its one micro-batch shape.
        noise: the law of the noisy copies.
        classifier: fingerprint of the base classifier, part of every stream key.
        seed: the user's seed.
        lattice: the noise in whole numbers (:meth:`Noise.on_lattice`); None combines in floating point.
        on_samples: called after every micro-batch with the number of samples evaluated; it must not
            synchronise with the device.
        planned: number of samples that the statements plan with, part of every stream key.
    """

    def __init__(
        self,
        prepared: PreparedNetwork,
        noise: Noise,
        classifier: str,
        seed: int,
        on_samples: Callable[[int], None] | None = None,
        planned: int = 0,
        lattice: LatticeNoise | None = None,
    ) -> None:
        noise.check_shape(prepared.shape)
        self.prepared = prepared
        self.noise = noise if prepared.order is None else noise.arranged(prepared.order)
        self.classifier = classifier
        self.seed = seed
        self.on_samples = on_samples
        self.planned = planned
        # Where rounding moves logits: the margin inside which votes count against the class, and how many those were.
        self.tolerance = 0.0
        self.doubtful: Counter[int] = Counter()
        self.rechecks = None if prepared.config.stochastic_network else Rechecks(prepared)
        self.lattice = lattice
        self._rows = FloatRows(prepared, self.noise) if lattice is None else LatticeRows(prepared, lattice)
        self._chunk = min(self._rows.chunk, prepared.micro_batch)
        # Two for each worker: it goes on while its last micro-batch waits to enter the evidence.
        count = prepared.workers.count
        self._slots = [_Slot(prepared, self._rows, self._chunk) for _ in range(2 * count if count > 1 else 1)]
        self._busy = threading.Lock()  # whoever shares the slots waits for them

    def named(self, seed: int, planned: int) -> Sampler:
        """Return this sampler with streams of another name: it shares the buffers, and what it sees is its own."""
        other = copy.copy(self)
        other.seed, other.planned, other.doubtful = seed, planned, Counter()
        other.rechecks = None if self.rechecks is None else Rechecks(self.prepared, self.rechecks.scale)
        return other

    @torch.inference_mode()
    def collect(
        self,
        images: Tensor,
        indices: Sequence[int],
        purpose: Purpose,
        n: int | Sequence[int],
        kinds: Sequence[type[Evidence]],
        selection: Selection | None = None,
        part: int | Sequence[int] = 0,
        outcomes: Sequence[range] | None = None,
    ) -> dict[type[Evidence], Evidence]:
        """Evaluate ``n`` noisy copies of every image and return the evidence by type.

        Args:
            images: clean inputs, (B, *shape).
            indices: the data set's own index of every image: with the image's content it names the random streams.
            purpose: what the samples are used for, part of the stream key.
            n: number of samples an image, one for all or one for each; ignored by enumerated noise, whose outcomes are
                all evaluated.
            kinds: evidence types, all of one scheme.
            selection: classes of each image chosen on other samples; needed by gradient evidence, and by all evidence
                where rounding moves logits, because votes inside the margin count against the first.
            part: number of this draw if one purpose draws an image's samples in several parts, one for all images or
                one for each.
            outcomes: enumerated noise only: the consecutive outcomes of each image that are evaluated; None: all.

        Raises:
            ValueError: for n < 1, for evidence of different schemes, for a scheme the noise cannot give, for different
                n with evidence that needs one, for outcomes that the noise does not have.
        """
        scheme = self._scheme(kinds)
        flat = self._rows.place(images)
        counts = self._counts(n, len(flat), scheme, kinds) if outcomes is None else self._chosen(outcomes, len(flat))
        starts = [0] * len(flat) if outcomes is None else [chosen.start for chosen in outcomes]
        parts = [int(each) for each in part] if isinstance(part, Sequence) else [int(part)] * len(flat)
        chosen = selection or Selection.none(len(flat))
        plan = Plan(
            images=len(flat),
            classes=self.prepared.num_classes,
            dim=flat.shape[1],
            n=max(counts, default=1),
            top=torch.tensor(chosen.top),
            device=self.prepared.device,
            order=self.prepared.order,
            tolerance=self.tolerance,
            runner_up=torch.tensor(chosen.runner_up) if (chosen.runner_up >= 0).all() else None,
        )
        evidence = {kind: kind.empty(plan) for kind in kinds}
        streams = Streams(self.seed, self.classifier, purpose, self.planned)
        own = tuple(int(i) for i in indices)
        names = tuple(image_name(i, image_sha256(x)) for i, x in zip(own, images, strict=True))
        recheck = self.rechecks is not None and purpose != "probe"
        run = _Pass(flat, own, names, streams, scheme, plan.top.to(flat.device), recheck)
        batches = _batches(_pieces(counts, starts, parts, self._chunk), self.prepared.micro_batch)
        # One thread: sums in float64 would otherwise depend on how many there are.
        with self._busy, one_thread() if self.prepared.device.type == "cpu" else nullcontext():
            for slot in self._slots:
                slot.keep_variates(self._rows.always or any(kind.needs_variates for kind in kinds))
            for seen in self._observe(run, batches):
                for each in evidence.values():
                    each.update(seen)
        return evidence

    def draw_rows(self, images: Tensor, purpose: Purpose = "probe") -> Tensor:
        """Return one micro-batch of noisy rows in float32, cycling through the images, for probing."""
        flat = self._rows.place(images)
        rows = flat[torch.arange(self.prepared.micro_batch, device=flat.device) % len(flat)]
        slot = self._slots[0]
        out = self.prepared.buffer(dtype=torch.float32)
        with self._busy:
            generator = Streams(self.seed, self.classifier, purpose, self.planned).seed_(slot.generator, 0, 0, 0)
            self._rows.fill_(rows, out, None, generator, slot.work, paired=False)
        return out

    def _counts(
        self, n: int | Sequence[int], images: int, scheme: Scheme, kinds: Sequence[type[Evidence]]
    ) -> list[int]:
        """Return the number of samples of each image."""
        if self.noise.outcomes is not None:
            return [self.noise.outcomes] * images
        if not isinstance(n, Sequence):
            counts = [check_at_least("n", n, 1)] * images
        else:
            counts = [check_at_least("n", each, 1) for each in n]
        if len(counts) != images:
            raise ValueError(f"n must be one number, or one for each of {images} images, got {len(counts)}")
        if scheme == "antithetic" and any(count % 2 for count in counts):
            odd = next(count for count in counts if count % 2)
            raise ValueError(f"n must be even for antithetic pairs, got {odd}")
        if len(set(counts)) > 1 and any(kind.needs_fixed_n for kind in kinds):
            raise ValueError(f"n must be the same for all images for {', '.join(kind.__name__ for kind in kinds)}")
        return counts

    def _chosen(self, outcomes: Sequence[range], images: int) -> list[int]:
        """Return the number of outcomes of each image."""
        size = self.noise.outcomes
        if size is None:
            raise ValueError(f"outcomes must be left out for noise that is sampled, got them for {self.noise!r}")
        if len(outcomes) != images:
            raise ValueError(f"outcomes must be one range for each of {images} images, got {len(outcomes)}")
        for chosen in outcomes:
            if not chosen or chosen.step != 1 or chosen.start < 0 or chosen.stop > size:
                raise ValueError(f"outcomes must be consecutive, at least one, within 0..{size - 1}, got {chosen}")
        return [len(chosen) for chosen in outcomes]

    def _scheme(self, kinds: Sequence[type[Evidence]]) -> Scheme:
        schemes = {kind.scheme for kind in kinds}
        if len(schemes) != 1:
            names = ", ".join(f"{kind.__name__} ({kind.scheme})" for kind in kinds)
            raise ValueError(f"evidence of one pass must come from one sampling scheme, got {names or 'none'}")
        scheme = schemes.pop()
        if (scheme == "enumerated") != (self.noise.outcomes is not None):
            raise ValueError(f"noise {self.noise!r} cannot give evidence of the scheme {scheme!r}")
        if scheme == "antithetic" and not self.noise.symmetric:
            raise ValueError(f"antithetic pairs need symmetric additive noise, got {self.noise!r}")
        return scheme

    def _observe(self, run: _Pass, batches: Iterable[_Batch]) -> Iterator[Observation]:
        """Yield the micro-batches in order, with as many at work as there are workers."""
        free, running = list(self._slots), deque[_Work]()
        try:
            for batch in batches:
                if not free:
                    yield self._finish(run, *running[0])
                    free.append(running.popleft()[1])
                slot = free.pop()
                room = batch.size - batch.filled
                riders = self.rechecks.take(room) if run.recheck and self.rechecks is not None else None
                work = self.prepared.workers.submit(self._evaluate, run, batch, slot, riders)
                running.append((batch, slot, riders, work))
            while running:
                yield self._finish(run, *running[0])
                running.popleft()
        finally:
            wait([work for *_, work in running])  # after an error: nobody may still write to a slot

    def _finish(self, run: _Pass, batch: _Batch, slot: _Slot, riders: Kept | None, work: Future[_Seen]) -> Observation:
        seen = work.result()
        if self.on_samples is not None:
            self.on_samples(batch.filled)
        segments = _joined(batch.segments)
        owner = self._owner(segments, batch.filled)
        if self.rechecks is not None and seen.kept is not None:
            self.rechecks.add(seen.kept)
        if self.rechecks is not None and riders is not None and seen.again is not None:
            self.rechecks.note(riders, seen.again)
        if seen.doubtful is not None and not run.streams.purpose.endswith("selection"):
            for row in owner[seen.doubtful].tolist():
                self.doubtful[run.indices[row]] += 1
        return Observation(
            segments=segments,
            owner=owner,
            labels=seen.labels,
            variates=None if slot.variates is None else slot.variates[: batch.filled],
            margin=seen.margin,
            votes=seen.votes,
        )

    @torch.inference_mode()
    def _evaluate(self, run: _Pass, batch: _Batch, slot: _Slot, riders: Kept | None) -> _Seen:
        """Draw one micro-batch, and let samples that run again ride in the room that is left."""
        self._fill(run, batch, slot)
        if riders is not None:
            slot.inputs[batch.filled : batch.filled + len(riders)] = riders.rows
        # Before the network runs, which may write over its input.
        chosen = [(segment.image, rows) for segment in batch.segments if run.recheck for rows in kept_rows(segment)]
        rows = [slot.inputs[place].clone() for _, place in chosen]
        logits = self.prepared.logits(slot.inputs[: batch.size])
        kept = None
        if chosen:
            images = [run.indices[image] for (image, _), some in zip(chosen, rows, strict=True) for _ in some]
            kept = Kept(images, torch.cat(rows), torch.cat([logits[place] for _, place in chosen]))
        again = None if riders is None else logits[batch.filled : batch.filled + len(riders)].clone()
        labels, margin, doubtful = self._judge(run, batch, logits[: batch.filled])
        votes = None
        if self.noise.threshold is not None:
            votes, margin = threshold_votes(logits[: batch.filled], self.noise.threshold)
        return _Seen(labels, margin, doubtful, kept, again, votes)

    def _judge(self, run: _Pass, batch: _Batch, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return labels, and where rounding moves logits the margins, and which rows are inside the tolerance.

        A sampled vote inside it for an image's class goes to the next class: fewer votes than the class has are safe.
        Both members of an antithetic pair go together, since "exactly one" is a vote for the class, too.
        """
        labels = logits.argmax(1)
        if self.tolerance <= 0:
            return labels, None, None
        best = logits.topk(2, dim=1).values
        margin = best[:, 0] - best[:, 1]
        if run.scheme == "enumerated":  # this evidence counts them itself
            return labels, margin, None
        doubtful = margin <= self.tolerance
        if run.scheme == "antithetic":
            doubtful = doubtful.view(-1, 2).any(1).repeat_interleave(2)
        owner = self._owner(_joined(batch.segments), batch.filled)
        others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        against = torch.where(doubtful & (labels == run.top[owner]), others, labels)
        return against, margin, doubtful

    def _fill(self, run: _Pass, batch: _Batch, slot: _Slot) -> None:
        try:
            for piece, rows in reversed(batch.pieces):  # what is carried over first: another thread waits for it
                self._draw(run, piece, slot, rows)
                if batch.after is not None and rows.stop > batch.size:
                    batch.after.give(slot.rows(slice(batch.size, rows.stop)))
        finally:
            if batch.after is not None:
                batch.after.abandon()
        if batch.before is not None:
            for own, carried in zip(slot.rows(slice(0, batch.segments[0].stop)), batch.before.take(), strict=True):
                own.copy_(carried)

    def _draw(self, run: _Pass, piece: _Piece, slot: _Slot, rows: slice) -> None:
        inputs, x = slot.inputs[rows], run.flat[piece.image]
        if self.noise.outcomes is not None:
            outcomes = torch.arange(piece.first, piece.first + piece.count, device=x.device)
            self.noise.split(x, outcomes, inputs)
            return
        generator = run.streams.seed_(slot.generator, run.names[piece.image], piece.part, piece.chunk)
        variates = None if slot.variates is None else slot.variates[rows]
        self._rows.fill_(x, inputs, variates, generator, slot.work, run.scheme == "antithetic")

    def _owner(self, segments: Sequence[Segment], used: int) -> Tensor:
        if segments[0].image == segments[-1].image:
            return torch.full((used,), segments[0].image, dtype=torch.int64, device=self.prepared.device)
        images = torch.tensor([s.image for s in segments])
        lengths = torch.tensor([s.stop - s.start for s in segments])
        return torch.repeat_interleave(images, lengths).to(self.prepared.device, non_blocking=True)


def _pieces(counts: Sequence[int], starts: Sequence[int], parts: Sequence[int], chunk: int) -> Iterator[_Piece]:
    for image, (count, start, part) in enumerate(zip(counts, starts, parts, strict=True)):
        for number, first in enumerate(range(0, count, chunk)):
            yield _Piece(image, start + first, min(chunk, count - first), part, number)


def _batches(pieces: Iterable[_Piece], size: int) -> Iterator[_Batch]:
    batch = _Batch(size)
    for piece in pieces:
        batch.add(piece)
        if batch.filled >= size:
            following = batch.next()
            yield batch
            batch = following
    if batch.filled:
        yield batch


def _joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].image == segment.image:
            before = joined.pop()
            segment = Segment(before.image, before.start, segment.stop, before.first)
        joined.append(segment)
    return tuple(joined)
