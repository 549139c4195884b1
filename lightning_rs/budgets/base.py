"""How estimation samples are spent: a fixed number an image, or a sound rule that stops earlier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_rs.certificates.base import Certificate, Radii
from lightning_rs.class_paths import parameters, to_dict
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.streams import Purpose, image_sha256
from lightning_rs.evidence import RAW_VOTES, Evidence, Scheme
from lightning_rs.setting import Selection, Setting

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
class Task:
    """What is certified, by which theorems, from which random streams.

    Attributes:
        sampler: evaluates noisy copies.
        purpose: of the estimation samples, part of the stream keys.
        certificates: the theorems.
        setting: noise, level, samples and shape; no classes yet.
    """

    sampler: Sampler
    purpose: Purpose
    certificates: tuple[Certificate, ...]
    setting: Setting

    def collect(
        self,
        group: Group,
        selection: Selection,
        kinds: Sequence[type[Evidence]],
        n: int | Sequence[int] | None = None,
        part: int | Sequence[int] = 0,
        outcomes: Sequence[range] | None = None,
    ) -> dict[type[Evidence], Evidence]:
        """Sample images: ``n`` copies of each, by default all; see :meth:`Sampler.collect`."""
        planned = self.setting.n if n is None else n
        return self.sampler.collect(
            group.images, group.indices, self.purpose, planned, kinds, selection, part=part, outcomes=outcomes
        )


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
        recomputable: n is fixed and certificates take their own bounds of it, so that another alpha can be tried.
    """

    mode: ClassVar[Mode]
    target: float | None = None
    recomputable: ClassVar[bool] = False

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain values: it binds a record file. Arguments are kept under their own names."""
        return {"mode": self.mode, **parameters(self)}

    def check(self, certificates: Sequence[Certificate]) -> None:  # noqa: B027 (fixed n serves every certificate)
        """Raise ``ValueError`` if a certificate does not allow this rule."""

    def pool(self, wanted: int, per_image: int) -> int:
        """Return how many images to work on at once so that about ``wanted`` samples are in flight."""
        return -(-wanted // per_image)

    def fewest(self, n: int) -> int:
        """Return the fewest samples, of at most ``n``, that may be spent on an image."""
        return n

    @abstractmethod
    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Spend samples on a group of images and certify it."""


def describe_budget(budget: Budget) -> dict[str, Any]:
    """Return what a record file says of a budget: its rule and, for somebody else's, its class.

    Raises:
        ValueError: if values are not plain.
    """
    described = to_dict(budget, budget.describe())
    return described if "." in described["class"] else {k: v for k, v in described.items() if k != "class"}


class FixedSamples(Budget):
    """n samples an image, fixed in advance: serves every certificate and can be recomputed at another alpha."""

    mode: ClassVar[Mode] = "fixed"
    recomputable = True

    def run(self, task: Task, group: Group, selection: Selection) -> Outcome:
        """Collect the union of the evidence in one pass for each scheme, then apply every certificate."""
        evidence: dict[type[Evidence], Evidence] = {}
        for part, kinds in enumerate(_kinds_by_scheme(task.certificates).values()):
            # Sums of floats depend on where micro-batches cut them: there every image starts one of its own.
            apart = any(kind.needs_fixed_n for kind in kinds)
            blocks = [[row] for row in range(len(group.images))] if apart else [list(range(len(group.images)))]
            found = [task.collect(group.take(rows), selection.take(rows), kinds, part=part) for rows in blocks]
            evidence |= {kind: kind.joined([each[kind] for each in found]) for kind in kinds}
        setting = replace(task.setting, selection=selection)
        radii = {c.name: c.certify(evidence, setting) for c in task.certificates}
        used = np.full(len(group.images), setting.n, dtype=np.int64)
        extra = {name: values for found in evidence.values() for name, values in found.facts.items()}
        return Outcome(radii, _raw_counts(evidence), setting.n, used, extra=extra)


def _kinds_by_scheme(certificates: Sequence[Certificate]) -> dict[Scheme, list[type[Evidence]]]:
    kinds: dict[Scheme, list[type[Evidence]]] = {}
    for certificate in certificates:
        for kind in certificate.evidence:
            own = kinds.setdefault(kind.scheme, [RAW_VOTES[kind.scheme]])
            if kind not in own:
                own.append(kind)
    return kinds


def _raw_counts(evidence: Mapping[type[Evidence], Evidence]) -> IntArray:
    """Return the class counts that records keep: those of independent votes, if there are any."""
    kept = [found for found in evidence.values() if found.raw_counts is not None]
    counts = next((found for found in kept if found.scheme == "iid"), kept[0]).raw_counts
    assert counts is not None
    return counts
