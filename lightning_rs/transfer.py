"""From the records of one classifier to a certificate of another: paired samples count how often they part.

f was certified with many samples in a quick runtime; f' is the same network in another runtime, or a fine-tuned or
pruned one. Few *paired* samples, both classifiers on the same noisy copies, bound how much of f's probability f' loses:
``p'_A >= p_A - P(f = A, f' != A)`` (:func:`~lightning_rs.functional.transfer_lower`), whatever the law and the norm:
the file's own theorem makes a radius of it. Worth it for p up to about .99; above, the pairs alone say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rs.certificates.base import TopVoteCertificate, certificate_from_dict
from lightning_rs.checks import check_alpha, check_at_least
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.streams import image_sha256
from lightning_rs.evidence import Evidence, Observation, Plan, Scheme
from lightning_rs.noise.base import noise_to_dict
from lightning_rs.records import Certification, Certifications, Header, environment
from lightning_rs.records.combination import NAMES, Part, Transfer, transfer_records
from lightning_rs.records.header import same_logits
from lightning_rs.session import Session

IntArray = NDArray[np.int64]


class Answers(Evidence):
    """The label of every sample by its number, whether it lies within the logit margin, and a mark of its noise.

    ``labels``, ``doubtful`` and ``marks`` have shape (B, n). Equal marks mean equal noise, in the coordinates of the
    image whatever the layout of the engine.
    """

    scheme: ClassVar[Scheme] = "iid"
    needs_fixed_n: ClassVar[bool] = True
    needs_margin: ClassVar[bool] = True
    needs_variates: ClassVar[bool] = True
    per_image: ClassVar[tuple[str, ...]] = ("labels", "doubtful", "marks")

    def __init__(self, labels: Tensor, doubtful: Tensor, marks: Tensor, weights: Tensor, tolerance: float) -> None:
        self.labels, self.doubtful, self.marks = labels, doubtful, marks
        self._weights, self._tolerance = weights, tolerance

    @classmethod
    def empty(cls, plan: Plan) -> Self:
        """Return an accumulator that has seen nothing: labels of -1."""
        shape, device = (plan.images, plan.n), plan.device
        weights = torch.cos(torch.arange(1.0, plan.dim + 1, dtype=torch.float64)).to(device)
        labels = torch.full(shape, -1, dtype=torch.int64, device=device)
        doubtful = torch.zeros(shape, dtype=torch.bool, device=device)
        marks = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        own = weights if plan.order is None else weights[plan.order.to(device)]
        return cls(labels, doubtful, marks, own, plan.tolerance)

    def update(self, seen: Observation) -> None:
        """Keep the answers of one micro-batch."""
        assert seen.variates is not None
        for part in seen.segments:
            rows, numbers = slice(part.start, part.stop), slice(part.first, part.first + part.stop - part.start)
            self.labels[part.image, numbers] = seen.labels[rows]
            self.marks[part.image, numbers] = seen.variates[rows].double() @ self._weights
            if seen.margin is not None and self._tolerance > 0:
                self.doubtful[part.image, numbers] = seen.margin[rows] <= self._tolerance

    def merge(self, other: Self) -> None:
        """Add what the other saw."""
        known = other.labels >= 0
        for name in self.per_image:
            setattr(self, name, torch.where(known, getattr(other, name), getattr(self, name)))


@dataclass(frozen=True)
class Pairs:
    """What two classifiers answered on the same noisy copies.

    Attributes:
        harmful: pairs of each image in which the first answers its class and the second does not, (B,); doubtful
            answers count as the worse case.
        void: images on which logits moved by more than the margin allows for, (B,).
    """

    harmful: IntArray
    void: NDArray[np.bool_]


def paired_answers(
    source: Session, target: Session, images: Tensor, indices: Sequence[int], top: IntArray, pairs: int, seed: int
) -> Pairs:
    """Run two prepared classifiers on the same noise and count harmful pairs.

    Args:
        source: the classifier that was certified, probed.
        target: the other one, probed, with the same micro-batch.
        images: clean inputs, (B, *shape).
        indices: the data set's own indices.
        top: class A of each image, (B,), chosen without these samples.
        pairs: samples an image.
        seed: names the random streams, together with the source's fingerprint.

    Raises:
        ValueError: for another noise, lattice, shape, number of classes, micro-batch or layout: samples would differ;
            and if the noise that ran is seen to differ.
    """
    _refuse_other_samples(source, target)
    first, moved = _answers(source, source, images, indices, pairs, seed)
    second, moved_too = _answers(source, target, images, indices, pairs, seed)
    return count_harmful(first, second, top, moved | moved_too)


def count_harmful(first: Answers, second: Answers, top: IntArray, void: NDArray[np.bool_]) -> Pairs:
    """Return how many pairs are harmful; doubtful answers of the first may be A, those of the second may not.

    Raises:
        ValueError: if the two saw different noise.
    """
    marks = torch.isclose(first.marks, second.marks, rtol=1e-9, atol=1e-9)
    if not bool(marks.all()):
        missing = int((~marks).sum())
        raise ValueError(f"both classifiers must see the same noise: {missing} of {marks.numel()} samples differ")
    label = torch.from_numpy(np.asarray(top))[:, None].to(first.labels.device)
    could_be = (first.labels == label) | first.doubtful
    surely = (second.labels == label) & ~second.doubtful
    return Pairs((could_be & ~surely).sum(dim=1).cpu().numpy(), void)


def transfer(
    header: Header,
    records: Sequence[Certification],
    source: Session,
    target: Session,
    images: Tensor,
    pairs: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> Certifications:
    """Return certificates of another classifier, one for each record, without certifying it anew.

    Args:
        header: of the record file of the first classifier; its certificate is a function of one tail.
        records: its records.
        source: the first classifier, prepared as the header says.
        target: the other one.
        images: the images of the records, in their order, (B, *shape).
        pairs: paired samples an image.
        alpha: failure probability of the paired bound; a certificate holds at its sum with that of the records.
        seed: names the noise of the pairs.

    Raises:
        ValueError: if the source is not what made the records, the samples would differ, the images are not the
            recorded ones, or the records cannot be transferred.
    """
    refuse_records(header, records)
    refuse_other_source(header, source)
    check_at_least("pairs", pairs, 1)
    check_alpha(alpha)
    for session in (source, target):
        if session.probed is None:
            session.probe(images)
    for record, image in zip(records, images, strict=True):
        if image_sha256(image) != record.image:
            raise ValueError(f"image {record.index} is not the recorded one: its SHA-256 differs")
    indices = [record.index for record in records]
    top = np.array([record.top for record in records], dtype=np.int64)
    found = paired_answers(source, target, images, indices, top, pairs, seed)
    extra = describe_transfer(source, target, pairs, alpha, seed)
    return Certifications(transfer_records(Part.of(header, records), found.harmful, found.void, Transfer.of(extra)))


def describe_transfer(source: Session, target: Session, pairs: int, alpha: float, seed: int) -> dict[str, Any]:
    """Return what binds the second classifier and the pairs, as plain values."""
    dim = int(np.prod(target.prepared.shape))
    spent = 0.0 if target.lattice is None else target.lattice.spent(pairs, dim)
    bound = target.describe()
    keys = ("classifier", "function", "runtime", "noise")
    return {
        **{key: bound[key] for key in keys}, "lattice": _lattice(target), "pairs": pairs, "alpha": float(alpha),
        "alpha_noise": spent, "seed": seed, "streams_of": source.classifier,
    }  # fmt: skip


def transfer_header(header: Header, told: Mapping[str, Any]) -> Header:
    """Return the header of the second classifier's records."""
    binding = dict(header.binding)
    total = Transfer.of(told).total(float(binding["alpha"]))
    shares = {"p_lower": float(binding["alpha"]) / total, "harmful_upper": float(told["alpha"]) / total}
    first = binding["certificates"][0]
    ball = {"norm": first["norm"], "ball": first["ball"]}
    own = {
        "noise": binding["noise"],
        "certificates": [{"class": NAMES["transfer"], **ball, "alpha_split": shares}],
        **{key: binding[key] for key in ("n0", "n", "data", "num_classes", "shape", "subset", "shared_noise")},
        "alpha": total,
        "budget": {"mode": "fixed"},
        "combined": {"rule": "transfer", "p0": None, "parts": [{**binding, "subset": None}], "target": dict(told)},
    }
    return Header(own, environment())


def refuse_records(header: Header, records: Sequence[Certification]) -> None:
    """Raise ``ValueError`` unless the records hold a bound of the tail that another classifier can inherit.

    Sound for every theorem that reads nothing but an upper bound of the tail of one class: harmful pairs bound what
    that tail gains. Not for theorems that also read bounds of rivals, gradients or antithetic pairs, which would need
    pairs of their own; pointless for exact ones, whose outcomes all have to be evaluated again.
    """
    for holds, wrong in (
        (bool(records), "no image is recorded yet"),
        (not header.imported and not header.legacy, "they were imported, or are of version 1"),
        ("combined" not in header.binding, "they combine others"),
        (all(record.has_radius for record in records), "decisions have no bound"),
    ):
        if not holds:
            raise ValueError(f"records cannot be transferred: {wrong}")
    certificate = certificate_from_dict(header.binding["certificates"][0])
    name = certificate.name
    for holds, wrong in (
        (
            not certificate.exact,
            f"{name} evaluates all outcomes, as certify would for the other classifier",
        ),
        (isinstance(certificate, TopVoteCertificate), f"{name} reads more than the tail of one class"),
        (not certificate.shared_failure, f"{name} rests on a table that fails for all images at once: certify"),
    ):
        if not holds:
            raise ValueError(f"records cannot be transferred: {wrong}")


def refuse_other_source(header: Header, source: Session) -> None:
    """Raise ``ValueError`` unless a prepared classifier is the one that made the records."""
    bound, theirs = source.describe(), header.binding
    function, known = bound["function"], theirs["function"]
    for key in ("classifier", "noise", "lattice", "runtime"):
        if bound[key] != theirs[key]:
            raise ValueError(
                f"records are of another {key} than the classifier they are transferred from: {theirs[key]!r} != "
                f"{bound[key]!r}"
            )
    if function["class"] != known["class"] or not same_logits(function["logits"], known["logits"]):
        raise ValueError("records are of another function than the classifier they are transferred from")


def _answers(
    source: Session, runs: Session, images: Tensor, indices: Sequence[int], pairs: int, seed: int
) -> tuple[Answers, NDArray[np.bool_]]:
    """Return the answers of one classifier on the streams of the source, and which images' logits moved too much."""
    runs.prepared.check_flags()
    sampler = Sampler(runs.prepared, runs.noise, source.classifier, seed, None, pairs, runs.lattice)
    sampler.tolerance = runs.sampler.tolerance
    if sampler.rechecks is not None and runs.probed is not None:
        sampler.rechecks.scale = runs.probed.scale
    with torch.inference_mode():
        found = sampler.collect(images, indices, "transfer", pairs, [Answers])[Answers]
        runs.prepared.check_finite()
        runs.prepared.check_unchanged()
        moved = np.zeros(len(images), dtype=bool)
        if sampler.rechecks is not None:
            sampler.rechecks.settle()
            moved = np.array([2 * sampler.rechecks.pop(index).moved > sampler.tolerance for index in indices])
    assert isinstance(found, Answers)
    return found, moved


def _lattice(session: Session) -> dict[str, Any] | None:
    return None if session.lattice is None else session.lattice.describe()


def _refuse_other_samples(source: Session, target: Session) -> None:
    for name, mine, theirs in (
        ("noise", noise_to_dict(source.noise), noise_to_dict(target.noise)),
        ("lattice", _lattice(source), _lattice(target)),
        ("shape", source.prepared.shape, target.prepared.shape),
        ("number of classes", source.prepared.num_classes, target.prepared.num_classes),
        ("micro-batch", source.prepared.micro_batch, target.prepared.micro_batch),
        ("layout", source.prepared.order is None, target.prepared.order is None),
        ("device", source.prepared.device, target.prepared.device),
    ):
        if mine != theirs:
            raise ValueError(
                f"both classifiers must see the same samples, but their {name} differs: {mine!r} != {theirs!r}"
            )
