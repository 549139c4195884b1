"""The hot loop, the only one: noisy copies through the network into evidence.

Samples of several images share micro-batches of one fixed shape; memory does not grow with n; counts stay on
the device and the host never waits for a micro-batch. A sample depends on its stream key and its image only,
so batches, ranks and shards merely schedule micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_rs.checks import check_at_least
from lightning_rs.evidence import Evidence, Observation, Plan, Scheme, Segment
from lightning_rs.noise.base import EnumeratedNoise, Noise
from lightning_rs.runtime import PreparedNetwork
from lightning_rs.streams import Purpose, Streams, chunk_size


@dataclass(frozen=True)
class _Piece:
    """Consecutive samples of one image that are drawn at once."""

    image: int
    first: int
    count: int
    chunk: int


class Sampler:
    """Runs noisy copies of images through a prepared network and feeds evidence.

    Args:
        prepared: the network at its one micro-batch shape.
        noise: the law of the noisy copies.
        classifier: fingerprint of the base classifier, part of every stream key.
        seed: the user's seed.
        on_samples: called after every micro-batch with the number of samples evaluated; it must not
            synchronise with the device.
    """

    def __init__(
        self,
        prepared: PreparedNetwork,
        noise: Noise,
        classifier: str,
        seed: int,
        on_samples: Callable[[int], None] | None = None,
    ) -> None:
        noise.check_shape(prepared.shape)
        self.prepared = prepared
        self.noise = noise if prepared.order is None else noise.arranged(prepared.order)
        self.classifier = classifier
        self.seed = seed
        self.on_samples = on_samples
        self.tolerance = 0.0  # logit margin inside which enumerated votes count as adversarial
        dim = int(torch.Size(prepared.shape).numel())
        self._chunk = min(chunk_size(dim), prepared.micro_batch)
        self._generator = torch.Generator(device=prepared.device)
        rows = prepared.micro_batch + self._chunk
        self._inputs = prepared.buffer(rows)
        self._variates = prepared.buffer(rows, torch.float32)
        self._spare = prepared.buffer(self._chunk, torch.float32)

    @torch.inference_mode()
    def collect(
        self,
        images: Tensor,
        indices: Sequence[int],
        purpose: Purpose,
        n: int,
        kinds: Sequence[type[Evidence]],
        top: Tensor | None = None,
        part: int = 0,
    ) -> dict[type[Evidence], Evidence]:
        """Evaluate ``n`` noisy copies of every image and return the evidence by type.

        Args:
            images: clean inputs, (B, *shape).
            indices: the data set's own index of every image: it names the random streams.
            purpose: what the samples are used for, part of the stream key.
            n: number of samples an image; ignored by enumerated noise, whose outcomes are all evaluated.
            kinds: evidence types, all of one scheme.
            top: class of each image chosen on other samples, (B,); needed by gradient evidence.
            part: number of this draw if one purpose draws an image's samples in several parts.

        Raises:
            ValueError: for n < 1, for evidence of different schemes, for a scheme the noise cannot give.
        """
        scheme = self._scheme(kinds)
        count = self.noise.size if isinstance(self.noise, EnumeratedNoise) else check_at_least("n", n, 1)
        if scheme == "antithetic" and count % 2:
            raise ValueError(f"n must be even for antithetic pairs, got {count}")
        flat = self.prepared.flatten(images)
        plan = Plan(
            images=len(flat),
            classes=self.prepared.num_classes,
            dim=flat.shape[1],
            n=count,
            top=torch.full((len(flat),), -1) if top is None else top,
            device=self.prepared.device,
            order=self.prepared.order,
            tolerance=self.tolerance,
        )
        evidence = {kind: kind.empty(plan) for kind in kinds}
        streams = Streams(self.seed, self.classifier, purpose)
        for seen in self._observe(flat, indices, streams, count, scheme, part, self._measures_margin(kinds)):
            for each in evidence.values():
                each.update(seen)
        return evidence

    def draw_rows(self, images: Tensor, purpose: Purpose = "probe") -> Tensor:
        """Return one micro-batch of noisy rows in float32, cycling through the images, for probing."""
        flat = self.prepared.flatten(images)
        rows = flat[torch.arange(self.prepared.micro_batch, device=flat.device) % len(flat)]
        generator = Streams(self.seed, self.classifier, purpose).seed_(self._generator, 0, 0, 0)
        variates = torch.empty_like(rows)
        self.noise.draw_(variates, generator)
        out = torch.empty_like(rows)
        self.noise.apply(rows, variates, out)
        return out

    def _measures_margin(self, kinds: Sequence[type[Evidence]]) -> bool:
        return self.tolerance > 0 and any(kind.needs_margin for kind in kinds)

    def _scheme(self, kinds: Sequence[type[Evidence]]) -> Scheme:
        schemes = {kind.scheme for kind in kinds}
        if len(schemes) != 1:
            names = ", ".join(f"{kind.__name__} ({kind.scheme})" for kind in kinds)
            raise ValueError(f"evidence of one pass must come from one sampling scheme, got {names or 'none'}")
        scheme = schemes.pop()
        if (scheme == "enumerated") != isinstance(self.noise, EnumeratedNoise):
            raise ValueError(f"noise {self.noise!r} cannot give evidence of the scheme {scheme!r}")
        if scheme == "antithetic" and not self.noise.symmetric:
            raise ValueError(f"antithetic pairs need symmetric additive noise, got {self.noise!r}")
        return scheme

    def _observe(
        self,
        flat: Tensor,
        indices: Sequence[int],
        streams: Streams,
        count: int,
        scheme: Scheme,
        part: int,
        margin: bool,
    ) -> Iterator[Observation]:
        size = self.prepared.micro_batch
        segments: list[Segment] = []
        filled = 0
        for piece in _pieces(len(flat), count, self._chunk):
            rows = slice(filled, filled + piece.count)
            self._fill(rows, flat[piece.image], streams, int(indices[piece.image]), piece, scheme, part)
            segments.append(Segment(piece.image, rows.start, rows.stop, piece.first))
            filled = rows.stop
            if filled >= size:
                yield self._evaluate(segments, size, margin)
                segments = _leftover(segments, size)
                filled -= size
                for buffer in (self._inputs, self._variates):
                    buffer[:filled].copy_(buffer[size : size + filled])
        if filled:
            yield self._evaluate(segments, filled, margin)

    def _fill(
        self, rows: slice, x: Tensor, streams: Streams, index: int, piece: _Piece, scheme: Scheme, part: int
    ) -> None:
        inputs, variates = self._inputs[rows], self._variates[rows]
        if isinstance(self.noise, EnumeratedNoise):
            outcomes = torch.arange(piece.first, piece.first + piece.count, device=x.device)
            self.noise.split(x, outcomes, inputs)
            return
        generator = streams.seed_(self._generator, index, part, piece.chunk)
        if scheme == "antithetic":
            half = self._spare[: piece.count // 2]
            self.noise.draw_(half, generator)
            pairs = variates.view(len(half), 2, -1)
            pairs[:, 0] = half
            torch.neg(half, out=half)
            pairs[:, 1] = half
        else:
            self.noise.draw_(variates, generator)
        self.noise.apply(x, variates, inputs)

    def _evaluate(self, segments: list[Segment], used: int, margin: bool) -> Observation:
        logits = self.prepared.logits(self._inputs[: self.prepared.micro_batch])[:used]
        inside = tuple(s if s.stop <= used else Segment(s.image, s.start, used, s.first) for s in segments)
        gap = None
        if margin:
            best = logits.topk(min(2, logits.shape[1]), dim=1).values
            gap = best[:, 0] - best[:, -1]
        if self.on_samples is not None:
            self.on_samples(used)
        return Observation(
            segments=_joined(inside),
            owner=self._owner(inside, used),
            labels=logits.argmax(1),
            variates=self._variates[:used],
            margin=gap,
        )

    def _owner(self, segments: Sequence[Segment], used: int) -> Tensor:
        if segments[0].image == segments[-1].image:
            return torch.full((used,), segments[0].image, dtype=torch.int64, device=self.prepared.device)
        images = torch.tensor([s.image for s in segments])
        lengths = torch.tensor([s.stop - s.start for s in segments])
        return torch.repeat_interleave(images, lengths).to(self.prepared.device, non_blocking=True)


def _pieces(images: int, count: int, chunk: int) -> Iterator[_Piece]:
    for image in range(images):
        for number, first in enumerate(range(0, count, chunk)):
            yield _Piece(image, first, min(chunk, count - first), number)


def _leftover(segments: list[Segment], size: int) -> list[Segment]:
    last = segments[-1]
    if last.stop <= size:
        return []
    return [Segment(last.image, 0, last.stop - size, last.first + size - last.start)]


def _joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].image == segment.image:
            before = joined.pop()
            segment = Segment(before.image, before.start, segment.stop, before.first)
        joined.append(segment)
    return tuple(joined)
