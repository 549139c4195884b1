"""What sampling accumulates for certificates: votes, antithetic pairs, gradient means, enumerated votes.

The sampling engine shows every evidence one micro-batch at a time, with tensors on the device and without
host synchronisation. After the pass, numbers are read as numpy arrays in float64 or int64.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

Scheme = Literal["iid", "antithetic", "enumerated"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a micro-batch that belong to one image.

    Attributes:
        image: the row of the image in its batch.
        start: first row in the micro-batch.
        stop: one past the last row.
        first: index, within the image's sample stream, of the sample in row ``start``.
    """

    image: int
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Observation:
    """One evaluated micro-batch.

    Attributes:
        segments: which rows belong to which image; rows beyond the last segment are padding.
        owner: image of each used row, shape (m,), int64, on the device.
        labels: predicted class of each used row, shape (m,), int64, on the device.
        variates: noise of each used row, shape (m, d), floating point, in the engine's layout; None if no evidence of
            the pass needs it. On a lattice it is E[w | W], the mean of the real noise given the whole number that was
            drawn: see :class:`GradientSums`. In the antithetic scheme rows 2i and 2i + 1 hold w and -w.
        margin: top-1 minus top-2 logit of each used row, or None if nobody asked for it; where rows vote by threshold,
            how far their nearest score is from it, see :func:`~lightning_rs.engine.ballots.threshold_votes`.
        votes: 0 or 1 for each used row and class, shape (m, C), int64, where rows vote by threshold; else None.
    """

    segments: tuple[Segment, ...]
    owner: Int64[Tensor, " m"]
    labels: Int64[Tensor, " m"]
    variates: Float[Tensor, "m d"] | None
    margin: Float[Tensor, " m"] | None = None
    votes: Int64[Tensor, "m C"] | None = None


@dataclass(frozen=True)
class Plan:
    """What an evidence must know before the first sample.

    Attributes:
        images: number B of images in the batch.
        classes: number C of classes.
        dim: number d of input coordinates.
        n: number of samples an image (fixed in advance).
        top: class of each image, chosen on other samples, shape (B,); -1 where there is none.
        device: where the samples are.
        order: permutation with ``layout = chw.flatten()[order]``, shape (d,), or None if it is the identity.
        tolerance: logit margin within which a label may depend on floating-point companions; 0 if it cannot.
        runner_up: second class of each image, chosen on other samples, shape (B,), or None if nobody asks for it.
    """

    images: int
    classes: int
    dim: int
    n: int
    top: Int64[Tensor, " B"]
    device: torch.device
    order: Int64[Tensor, " d"] | None = None
    tolerance: float = 0.0
    runner_up: Int64[Tensor, " B"] | None = None


class Evidence(ABC):
    """Accumulates observations of one batch of images."""

    scheme: ClassVar[Scheme]
    needs_fixed_n: ClassVar[bool] = False
    needs_margin: ClassVar[bool] = False
    needs_variates: ClassVar[bool] = False
    per_image: ClassVar[tuple[str, ...]] = ()  # names of the tensors that have one row an image

    @final
    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the evidence of one batch from that of its parts, image after image; the same n in all of them."""
        whole = copy.copy(parts[0])
        for name in cls.per_image:
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        return whole

    @classmethod
    @abstractmethod
    def empty(cls, plan: Plan) -> Self:
        """Return an accumulator that has seen nothing."""

    @abstractmethod
    def update(self, seen: Observation) -> None:
        """Add one micro-batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another accumulator saw on other samples of the same images."""

    @property
    def raw_counts(self) -> IntArray | None:
        """How often each class was answered, (B, C), where this evidence knows: records keep it."""
        return None

    @property
    def facts(self) -> dict[str, list[Any]]:
        """What else records keep, by name, one value an image."""
        return {}


class Votes(Evidence):
    """Class counts of independent noisy copies: ``counts`` has shape (B, C)."""

    scheme: ClassVar[Scheme] = "iid"
    per_image: ClassVar[tuple[str, ...]] = ("_counts",)

    def __init__(self, counts: Tensor) -> None:
        self._counts = counts

    @classmethod
    def of(cls, counts: IntArray) -> Self:
        """Return the evidence that these counts, shape (B, C), would have left."""
        return cls(torch.as_tensor(np.asarray(counts, dtype=np.int64)))

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return all-zero counts."""
        return cls(torch.zeros(plan.images, plan.classes, dtype=torch.int64, device=plan.device))

    def update(self, seen: Observation) -> None:
        """Count the labels of each image; no host synchronisation."""
        _count(self._counts, seen.owner, seen.labels)

    def merge(self, other: Self) -> None:
        """Add the other's counts."""
        self._counts = self._counts + other._counts.to(self._counts.device)

    @property
    def counts(self) -> IntArray:
        """Class counts, shape (B, C)."""
        return self._counts.cpu().numpy()

    @property
    def raw_counts(self) -> IntArray:
        """The counts."""
        return self.counts

    @property
    def doubtful(self) -> IntArray:
        """Number of votes that were counted although they lie inside the margin, shape (B,)."""
        return np.zeros(len(self._counts), dtype=np.int64)


class EnumeratedVotes(Votes):
    """Class counts over all outcomes of a finite law, and how many of them lie inside a logit margin.

    ``doubtful[b]`` counts outcomes of image b whose margin is at most ``tolerance``: floating point error could turn
    them, so an exact statement must treat them as adversarial. Outcomes that vote by threshold may vote for several
    classes or for none: then ``counts[b, c]`` is at most their number, and rows need not sum to it.
    """

    scheme: ClassVar[Scheme] = "enumerated"
    needs_margin: ClassVar[bool] = True
    per_image: ClassVar[tuple[str, ...]] = ("_counts", "_doubtful")

    def __init__(self, counts: Tensor, doubtful: Tensor | None = None, tolerance: float = 0.0) -> None:
        super().__init__(counts)
        self.tolerance = tolerance
        self._doubtful = (
            torch.zeros(len(counts), dtype=torch.int64, device=counts.device) if doubtful is None else doubtful
        )

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return all-zero counts at the plan's tolerance."""
        zeros = torch.zeros(plan.images, plan.classes, dtype=torch.int64, device=plan.device)
        return cls(zeros, tolerance=plan.tolerance)

    def update(self, seen: Observation) -> None:
        """Count the votes, and the outcomes inside the margin if one was measured."""
        if seen.votes is None:
            super().update(seen)
        else:
            self._counts.index_add_(0, seen.owner, seen.votes)
        # A score may equal the threshold up to rounding even where logits do not move; equal logits have an order.
        if seen.margin is not None and (self.tolerance > 0 or seen.votes is not None):
            self._doubtful.index_add_(0, seen.owner, (seen.margin <= self.tolerance).long())

    def merge(self, other: Self) -> None:
        """Add the other's counts."""
        super().merge(other)
        self._doubtful = self._doubtful + other._doubtful.to(self._doubtful.device)

    @property
    def doubtful(self) -> IntArray:
        """Number of outcomes inside the margin, shape (B,)."""
        return self._doubtful.cpu().numpy()

    @property
    def facts(self) -> dict[str, list[Any]]:
        """The number of doubtful outcomes."""
        return {"doubtful": self.doubtful.tolist()}


class PairVotes(Evidence):
    """Antithetic pairs f(x + w), f(x - w): per class how many pairs agree on it, or have it exactly once.

    The two evaluations of a pair are not independent: these counts must never enter a bound for
    independent samples as n = 2 * pairs.
    """

    scheme: ClassVar[Scheme] = "antithetic"
    per_image: ClassVar[tuple[str, ...]] = ("_both", "_one")

    def __init__(self, both: Tensor, exactly_one: Tensor) -> None:
        self._both = both
        self._one = exactly_one

    @classmethod
    def of(cls, both: IntArray, exactly_one: IntArray) -> Self:
        """Return the evidence that these counts, each of shape (B, C), would have left."""
        return cls(*(torch.as_tensor(np.asarray(c, dtype=np.int64)) for c in (both, exactly_one)))

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return all-zero counts."""
        zeros = torch.zeros(plan.images, plan.classes, dtype=torch.int64, device=plan.device)
        return cls(zeros, zeros.clone())

    def update(self, seen: Observation) -> None:
        """Count pairs; rows 2i and 2i + 1 form a pair."""
        plus, minus = seen.labels.view(-1, 2).unbind(1)
        owner = seen.owner.view(-1, 2)[:, 0]
        agree = plus == minus
        _count(self._both, owner, plus, agree.long())
        _count(self._one, owner, plus, (~agree).long())
        _count(self._one, owner, minus, (~agree).long())

    def merge(self, other: Self) -> None:
        """Add the other's counts."""
        self._both = self._both + other._both.to(self._both.device)
        self._one = self._one + other._one.to(self._one.device)

    @property
    def both(self) -> IntArray:
        """Pairs in which both members have the class, shape (B, C)."""
        return self._both.cpu().numpy()

    @property
    def exactly_one(self) -> IntArray:
        """Pairs in which exactly one member has the class, shape (B, C)."""
        return self._one.cpu().numpy()

    @property
    def raw_counts(self) -> IntArray:
        """Votes of both members."""
        return 2 * self.both + self.exactly_one

    @property
    def facts(self) -> dict[str, list[Any]]:
        """The counts of pairs."""
        return {"both": self.both.tolist(), "exactly_one": self.exactly_one.tolist()}


#: The votes that are kept from every pass of a scheme: they make records recomputable.
RAW_VOTES: Mapping[Scheme, type[Evidence]] = MappingProxyType(
    {"iid": Votes, "antithetic": PairVotes, "enumerated": EnumeratedVotes}
)


class GradientSums(Evidence):
    """Sums of w (f - 1/2) over the first and the second half of the samples, f = 1{label = top}.

    In float64; the halves are split by sample index, never by outcome, so that they are independent.
    Divided by the half's size and by sigma they estimate the scaled gradient sigma * grad p.

    On a lattice E[w | W] stands for w: W is the whole number that was drawn, f a function of it. That changes neither
    the mean, E[E[w | W] f] = E[w f], nor any bound that rests on exponential moments: z' = (f - 1/2) E[w | W] / sigma
    is the conditional mean of z = w (f - 1/2) / sigma, so by Jensen's inequality E exp(l u.(z' - beta)) is at most
    E exp(l u.(z - beta)) for every u and l. All bounds on gradients rest on these (each is Chernoff's, for sums of
    independent u.z, given the other half where that is u). The same holds for antithetic pairs, because rounding is
    symmetric: w (f(x + w) - f(x - w)) / 2 has the conditional mean E[w | W] (f+ - f-) / 2.
    """

    scheme: ClassVar[Scheme] = "iid"
    needs_fixed_n: ClassVar[bool] = True
    needs_variates: ClassVar[bool] = True
    per_image: ClassVar[tuple[str, ...]] = ("_sums", "_top")

    def __init__(self, sums: Tensor, top: Tensor, boundary: int, sizes: tuple[int, int], order: Tensor | None) -> None:
        self._sums = sums
        self._top = top
        self._boundary = boundary
        self.sizes = sizes
        self._order = order

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return all-zero sums of shape (B, 2, d)."""
        first, sizes = cls._first_half(plan.n), cls._sizes(plan.n)
        if min(sizes) < 1:
            raise ValueError(f"n must leave samples for both halves of {cls.__name__}, got {plan.n}")
        sums = torch.zeros(plan.images, 2, plan.dim, dtype=torch.float64, device=plan.device)
        return cls(sums, cls._classes(plan).to(plan.device), first, sizes, plan.order)

    @classmethod
    def _classes(cls, plan: Plan) -> Tensor:
        return plan.top

    @classmethod
    def _first_half(cls, n: int) -> int:
        return n // 2

    @classmethod
    def _sizes(cls, n: int) -> tuple[int, int]:
        return n // 2, n - n // 2

    def update(self, seen: Observation) -> None:
        """Add the products of one micro-batch, a matrix-vector product for each image and half."""
        assert seen.variates is not None
        hits = seen.labels == self._top[seen.owner]
        weights = hits.double() - 0.5
        for segment in seen.segments:
            # Row `cut` of the micro-batch is the first that falls into the second half.
            cut = min(max(segment.start + self._boundary - segment.first, segment.start), segment.stop)
            for half, rows in enumerate((slice(segment.start, cut), slice(cut, segment.stop))):
                if rows.stop > rows.start:
                    self._add(segment.image, half, weights[rows], seen.variates[rows])

    def _add(self, image: int, half: int, weights: Tensor, variates: Tensor) -> None:
        self._sums[image, half] += weights @ variates.double()

    def merge(self, other: Self) -> None:
        """Add the other's sums and sizes, half by half: the halves stay disjoint."""
        self._sums = self._sums + other._sums.to(self._sums.device)
        self.sizes = (self.sizes[0] + other.sizes[0], self.sizes[1] + other.sizes[1])

    def means(self, sigma: float) -> tuple[FloatArray, FloatArray]:
        """Return the two half-sample means of z = (w / sigma)(f - 1/2), each (B, d), in C, H, W order."""
        sums = self._sums
        if self._order is not None:
            sums = torch.empty_like(sums).index_copy_(2, self._order.to(sums.device), sums)
        halves = sums.cpu().numpy() / sigma
        return halves[:, 0] / self.sizes[0], halves[:, 1] / self.sizes[1]


class RunnerUpGradientSums(GradientSums):
    """The same for f = 1{label = runner-up}, the second class of the selection samples."""

    @classmethod
    def _classes(cls, plan: Plan) -> Tensor:
        if plan.runner_up is None:
            raise ValueError(f"runner_up must be given for {cls.__name__}, got None")
        return plan.runner_up


class PairGradientSums(GradientSums):
    """Sums of w (f(x + w) - f(x - w)) / 2 over the first and second half of the antithetic pairs."""

    scheme: ClassVar[Scheme] = "antithetic"

    @classmethod
    def _first_half(cls, n: int) -> int:
        return 2 * (n // 4)

    @classmethod
    def _sizes(cls, n: int) -> tuple[int, int]:
        return n // 4, n // 2 - n // 4

    def _add(self, image: int, half: int, weights: Tensor, variates: Tensor) -> None:
        # weights are f - 1/2; for row 2i + 1 the variate is already -w, so w (f+ - f-) / 2 is half the sum.
        self._sums[image, half] += 0.5 * (weights @ variates.double())


class PairProducts(Evidence):
    """Sum over independent sample pairs (2i, 2i + 1) of (w f).(w' f'): Levine et al. 2020, Theorem 2.

    On a lattice E[w | W] and E[w' | W'] stand for w and w'. Because the two are independent, the product is the
    conditional mean of (w f).(w' f'), and Theorem 2, which bounds exponential moments of it, holds by Jensen.
    """

    scheme: ClassVar[Scheme] = "iid"
    needs_fixed_n: ClassVar[bool] = True
    needs_variates: ClassVar[bool] = True
    per_image: ClassVar[tuple[str, ...]] = ("_sums", "_top")

    def __init__(self, sums: Tensor, top: Tensor, pairs: int) -> None:
        self._sums = sums
        self._top = top
        self.pairs = pairs

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return zero sums of shape (B,)."""
        if plan.n < 2 or plan.n % 2:
            # With an odd n the images after the first would lose pairs at the ends of micro-batches.
            raise ValueError(f"n must be even and at least 2 for {cls.__name__}, got {plan.n}")
        return cls(
            torch.zeros(plan.images, dtype=torch.float64, device=plan.device), plan.top.to(plan.device), plan.n // 2
        )

    def update(self, seen: Observation) -> None:
        """Add the products of the complete pairs of one micro-batch."""
        assert seen.variates is not None
        for segment in seen.segments:
            stop = segment.stop - (segment.stop - segment.start) % 2
            rows = slice(segment.start, stop)
            hits = (seen.labels[rows] == self._top[segment.image]).view(-1, 2).all(1)
            variates = seen.variates[rows].double()
            dots = torch.einsum("id,id->i", variates[0::2], variates[1::2])
            self._sums[segment.image] += torch.dot(hits.double(), dots)

    def merge(self, other: Self) -> None:
        """Add the other's sums and its number of pairs."""
        self._sums = self._sums + other._sums.to(self._sums.device)
        self.pairs += other.pairs

    @property
    def mean(self) -> FloatArray:
        """Mean product over the pairs, shape (B,), in squared input units."""
        return self._sums.cpu().numpy() / self.pairs


def _count(counts: Tensor, owner: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
    # index_add_ instead of bincount: bincount synchronises with the host to find the largest value.
    cells = owner * counts.shape[1] + labels
    counts.view(-1).index_add_(0, cells, torch.ones_like(cells) if weights is None else weights)
