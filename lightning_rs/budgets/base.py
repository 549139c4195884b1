"""How estimation samples are spent: a fixed number an image, or a sound rule that stops earlier."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rs.certificates.base import Certificate, Radii, Setting
from lightning_rs.class_paths import class_path, parameters
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.streams import Purpose, image_sha256
from lightning_rs.evidence import EnumeratedVotes, Evidence, PairVotes, Scheme, Votes
from lightning_rs.noise.base import EnumeratedNoise, Noise
from lightning_rs.noise.lattice import Lattice

IntArray = NDArray[np.int64]
Mode = Literal["fixed", "staged", "decision", "randomized"]


@dataclass(frozen=True)
class Group:
    """Images that are certified together: clean inputs (B, *shape), the data set's indices, labels if known."""

    images: Tensor
    indices: list[int]
    labels: list[int] | None = None

    @cached_property
    def sha256(self) -> list[str]:
        """The fingerprint of every image, as it is certified."""
        return [image_sha256(image) for image in self.images]

    def take(self, rows: Sequence[int] | IntArray) -> Group:
        """Return the group of some rows."""
        chosen = [int(row) for row in rows]
        labels = None if self.labels is None else [self.labels[row] for row in chosen]
        return Group(self.images[chosen], [self.indices[row] for row in chosen], labels)


@dataclass(frozen=True)
class Selection:
    """What the selection samples may tell the estimation: two classes an image, nothing else.

    Attributes:
        top: class of the largest count, (B,); -1 for exact laws, which need no selection.
        runner_up: class of the second largest count, (B,).
        counts: the selection counts, (B, C), for the record only.
    """

    top: IntArray
    runner_up: IntArray
    counts: IntArray | None


@dataclass(frozen=True)
class Task:
    """What is certified, by which theorems, at which level, with how many samples an image.

    ``alpha`` is what the noise law leaves of it; ``lattice`` is where images are rounded to, None if they are not.
    """

    sampler: Sampler
    purpose: Purpose
    certificates: tuple[Certificate, ...]
    noise: Noise
    n: int
    alpha: float
    shape: tuple[int, ...]
    lattice: Lattice | None = None

    def rounding(self, norm: str) -> float:
        """Return the most that rounding can take off a radius."""
        return 0.0 if self.lattice is None else 2.0 * self.lattice.worst(norm.partition(":")[0], math.prod(self.shape))

    def setting(self, selection: Selection, n: int | None = None, alpha: float | None = None) -> Setting:
        """Return what certificates may know beside the evidence."""
        return Setting(self.noise, alpha or self.alpha, n or self.n, selection.top, selection.runner_up, self.shape)


@dataclass(frozen=True)
class Outcome:
    """The result for a group.

    Attributes:
        radii: by certificate name.
        counts: raw class counts from the estimation samples, (B, C).
        planned: samples an image that were planned.
        used: samples an image that were taken, (B,).
        status: status of each record if the budget decides it, else empty.
        extra: facts of the budget for the records, by name, one value an image.
    """

    radii: Mapping[str, Radii]
    counts: IntArray
    planned: int
    used: IntArray
    status: Sequence[Any] = ()
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Budget(ABC):
    """A rule for spending estimation samples.

    Attributes:
        mode: how records call it.
        target: the radius that is asked about, or None.
    """

    mode: ClassVar[Mode]
    target: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values: it binds a record file. Arguments are kept under their own names."""
        return {"mode": self.mode, **parameters(self)}

    def check(self, certificates: Sequence[Certificate]) -> None:  # noqa: B027 (fixed n serves every certificate)
        """Raise ``ValueError`` if a certificate does not allow this rule."""

    def pool(self, wanted: int, per_image: int) -> int:
        """Return how many images to work on at once so that about ``wanted`` samples are in flight."""
        return -(-wanted // per_image)

    @abstractmethod
    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Spend samples on a group of images and certify it."""


def describe_budget(budget: Budget) -> dict[str, Any]:
    """Return what a record file says of a budget: its rule and, for somebody else's, its class."""
    path = class_path(type(budget))
    return {**budget.describe(), **({"class": path} if "." in path else {})}


class FixedSamples(Budget):
    """n samples an image, fixed in advance: serves every certificate and can be recomputed at another alpha."""

    mode: ClassVar[Mode] = "fixed"

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Collect the union of the evidence in one pass for each scheme, then apply every certificate."""
        evidence: dict[type[Evidence], Evidence] = {}
        for part, kinds in enumerate(_kinds_by_scheme(task.certificates).values()):
            # Sums of floats depend on where micro-batches cut them: there every image starts one of its own.
            apart = any(kind.needs_fixed_n for kind in kinds)
            blocks = [slice(row, row + 1) for row in range(len(group.images))] if apart else [slice(None)]
            found = [_collect(task, group, selection, rows, kinds, part) for rows in blocks]
            evidence |= {kind: kind.joined([each[kind] for each in found]) for kind in kinds}
        n = task.noise.size if isinstance(task.noise, EnumeratedNoise) else task.n
        setting = task.setting(selection, n=n)
        radii = {c.name: c.certify(evidence, setting) for c in task.certificates}
        counts, extra = _raw_counts(evidence)
        used = np.full(len(group.images), n, dtype=np.int64)
        return Outcome(radii, counts, n, used, extra=extra)


def _collect(
    task: Task, group: Group, selection: Selection, rows: slice, kinds: Sequence[type[Evidence]], part: int
) -> dict[type[Evidence], Evidence]:
    """Sample some images of the group."""
    top, runner_up = torch.from_numpy(selection.top[rows]), torch.from_numpy(selection.runner_up[rows])
    return task.sampler.collect(
        group.images[rows], group.indices[rows], task.purpose, task.n, kinds, top=top, part=part, runner_up=runner_up
    )


def _kinds_by_scheme(certificates: Sequence[Certificate]) -> dict[Scheme, list[type[Evidence]]]:
    raw: dict[Scheme, type[Evidence]] = {"iid": Votes, "antithetic": PairVotes, "enumerated": EnumeratedVotes}
    kinds: dict[Scheme, list[type[Evidence]]] = {}
    for certificate in certificates:
        for kind in certificate.evidence:
            # Raw counts are always kept: they make records recomputable.
            own = kinds.setdefault(kind.scheme, [raw[kind.scheme]])
            if kind not in own:
                own.append(kind)
    return kinds


def _raw_counts(evidence: Mapping[type[Evidence], Evidence]) -> tuple[IntArray, dict[str, list[Any]]]:
    extra: dict[str, list[Any]] = {}
    counts: IntArray | None = None
    for kind, found in evidence.items():
        if kind is EnumeratedVotes and isinstance(found, EnumeratedVotes):
            extra["doubtful"] = found.doubtful.tolist()
        if isinstance(found, Votes):
            counts = found.counts
        if isinstance(found, PairVotes):
            extra["both"], extra["exactly_one"] = found.both.tolist(), found.exactly_one.tolist()
    if counts is None:
        pairs = next(found for found in evidence.values() if isinstance(found, PairVotes))
        counts = 2 * pairs.both + pairs.exactly_one
    return counts, extra
