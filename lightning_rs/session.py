"""A prepared network, its noise and its streams: select -> estimate -> bound -> radius or ABSTAIN; and predict."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_rs.budgets import Group, Outcome, Task
from lightning_rs.certificates.base import ABSTAIN, Certificate, TopVoteCertificate, at, read
from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.checks import check_alpha, check_choice
from lightning_rs.engine.calibration import calibration_rows
from lightning_rs.engine.recheck import Checked
from lightning_rs.engine.runtime import Probe
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.streams import Purpose, fresh_seed
from lightning_rs.evidence import EnumeratedVotes, Votes
from lightning_rs.networks.behaviour import behaviour
from lightning_rs.networks.checkpoints import state_dict_sha256
from lightning_rs.noise.base import Domain, Noise, noise_to_dict
from lightning_rs.noise.rebuilt import check_rebuilt
from lightning_rs.records import Certification
from lightning_rs.setting import Selection, Setting
from lightning_rs.statistics.binomial import top_class_p_value

if TYPE_CHECKING:
    from lightning_rs.certifier import Certifier

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Stage = Literal["final", "preview", "epoch-end"]
_PURPOSES: dict[Stage, tuple[Purpose, Purpose]] = {
    "final": ("selection", "estimation"),
    "preview": ("preview-selection", "preview"),
    "epoch-end": ("epoch-end-selection", "epoch-end"),
}
# Images are certified in groups of about this many samples: records appear early, micro-batches stay full.
_GROUP_SAMPLES = 1 << 15
# Micro-batches that images handed over together should fill at least: one in 15 runs again, rounded up at the end.
_SHARED_MICRO_BATCHES = 32


@dataclass(frozen=True)
class Predictions:
    """The abstaining smoothed prediction of a batch.

    Attributes:
        prediction: class, (B,), or -1 where the test abstains.
        p_value: of the two-sided Hung-Fithian test, (B,).
        counts: class counts, (B, C).
        seed: the entropy that named the random streams.
        doubtful: votes of each image that rounding could turn, (B,); None if nobody said.
    """

    prediction: IntArray
    p_value: np.ndarray[Any, np.dtype[np.float64]]
    counts: IntArray
    seed: int
    doubtful: IntArray | None = None


class Session:
    """A prepared network, its noise and its random streams: certifies and predicts batch after batch."""

    def __init__(
        self,
        certifier: Certifier,
        network: nn.Module,
        noise: Noise,
        shape: tuple[int, ...],
        device: torch.device | str | None,
        domain: Domain,
        grid: int | None,
        stage: Stage,
        micro_batch: int | None,
        on_samples: Callable[[int], None] | None,
    ) -> None:
        check_choice("stage", stage, _PURPOSES)
        exact = [c.name for c in certifier.certificates if c.exact]
        if exact and certifier.runtime.stochastic_network:
            raise ValueError(f"stochastic_network must be False for the exact certificate {exact[0]}, got True")
        self.certifier = certifier
        self.domain = domain
        self.grid = grid
        self.stage = stage
        self.purposes = _PURPOSES[stage]
        self.classifier = state_dict_sha256(network)
        self._network = network
        where = device if device is not None else _device_of(network)
        self.prepared = certifier.runtime.prepare(network, tuple(shape), where, micro_batch)
        # On a lattice, unless a certificate needs floating point.
        rounds = grid is not None or all(certificate.rounds for certificate in certifier.certificates)
        self.lattice = noise.on_lattice(grid) if rounds else None
        self.setting = Setting(
            noise,
            self._level(certifier.alpha, certifier.n),
            noise.outcomes or certifier.n,
            tuple(shape),
            lattice=None if self.lattice is None else self.lattice.lattice,
        )
        self._engage(on_samples)

    def _engage(self, on_samples: Callable[[int], None] | None) -> None:
        """Provide what the size of a micro-batch decides."""
        certifier, noise = self.certifier, self.noise
        if certifier.runtime.precision == "int8":
            self.prepared.calibrate(calibration_rows(self.prepared, self._network, noise))
        self.sampler = Sampler(
            self.prepared, noise, self.classifier, certifier.seed, on_samples, certifier.n, self.lattice
        )
        self.task = Task(self.sampler, self.purposes[1], certifier.certificates, self.setting)
        self.probed: Probe | None = None

    def resize(self, micro_batch: int) -> None:
        """Run micro-batches of another size from now on: another runtime, to be probed again."""
        self.prepared.resize(self._network, micro_batch)
        self._engage(self.sampler.on_samples)

    def describe(self) -> dict[str, Any]:
        """Return everything that binds the records of this session, as plain values.

        Raises:
            ValueError: for a noise without a usual certificate, if none is named.
        """
        self._check_certificates()
        check_rebuilt(self.noise, self.prepared.shape)
        return {
            **self.certifier.describe(),
            "stage": self.stage,
            "noise": noise_to_dict(self.noise),
            "classifier": self.classifier,
            "function": self.function,
            "num_classes": self.prepared.num_classes,
            "shape": list(self.prepared.shape),
            "runtime": self.prepared.describe(),
            "lattice": self._describe_lattice(),
        }

    @property
    def noise(self) -> Noise:
        """The law of the noisy copies."""
        return self.setting.noise

    @property
    def arithmetic(self) -> str:
        """What is exact in a statement of this session, and which images it speaks of."""
        if self.lattice is None:
            return self.noise.arithmetic
        stated = self.lattice.statement(self.setting.n, self._dim)
        if self.lattice.lattice.grid is not None:
            return stated
        return f"{stated}; images are rounded to a lattice, which is taken off the radius"

    @property
    def _spoken(self) -> dict[str, Any]:
        """What every record repeats, so that its sentence is whole and its counts can be judged by themselves."""
        said = {"arithmetic": self.arithmetic or None, "threshold": self.noise.threshold}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def _dim(self) -> int:
        return int(np.prod(self.prepared.shape))

    def _level(self, alpha: float, n: int) -> float:
        """Return what is left of alpha after the error of the noise law in n samples."""
        return alpha if self.lattice is None else self.lattice.level(alpha, n, self._dim)

    def _describe_lattice(self) -> dict[str, Any] | None:
        if self.lattice is None:
            return None
        spent = self.lattice.spent(self.setting.n, self._dim)
        return {**self.lattice.describe(), "alpha_noise": spent, "arithmetic": self.arithmetic}

    @cached_property
    def function(self) -> dict[str, Any]:
        """What binds the function beyond its weights: its class, and its rounded logits on fixed inputs."""
        kind = type(self._network)
        logits = behaviour(self._network, self.prepared.shape)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "logits": logits}

    def certify(
        self,
        images: Float[Tensor, "B ..."],
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Iterator[Certification]:
        """Yield one record an image, in order; a few images are in flight at once.

        Raises:
            ValueError: for images that are not finite, outside the domain or off the grid, wrong lengths, or a repeated
                index; for a noise without a usual certificate, if none is named.
        """
        self._check_certificates()
        self._check_images(images)
        own_indices = _whole_numbers("indices", indices, len(images), range(len(images)))
        own_labels = None if labels is None else _whole_numbers("labels", labels, len(images), ())
        if min(own_indices, default=0) < 0:
            raise ValueError(f"indices must be >= 0, got {min(own_indices)}")
        if len(set(own_indices)) < len(own_indices):
            twice = next(index for index in own_indices if own_indices.count(index) > 1)
            raise ValueError(f"indices must not repeat, got {twice} more than once")
        if self.probed is None and len(images):
            self.probe(images)
        self.prepared.check_flags()
        size = self._group_size(len(images))
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        groups = [Group(images[p], own_indices[p], None if own_labels is None else own_labels[p]) for p in parts]
        yield from self._certify_groups(groups)

    def _certify_groups(self, groups: Sequence[Group]) -> Iterator[Certification]:
        """Yield the records of groups, each once nothing of it is still to run again: groups share those runs."""
        rechecks, held = self.sampler.rechecks, deque[tuple[Group, list[Certification]]]()
        try:
            for group in groups:
                held.append((group, self._certify_group(group)))
                while held and (rechecks is None or rechecks.finished(held[0][0].indices)):
                    yield from map(self._checked, held.popleft()[1])
            if rechecks is not None:
                rechecks.settle()
            for _, records in held:
                yield from map(self._checked, records)
        finally:
            self.sampler.doubtful.clear()
            if rechecks is not None:
                rechecks.clear()

    @torch.inference_mode()
    def predict(
        self, images: Float[Tensor, "B ..."], n: int = 1000, alpha: float = 0.001, seed: int | None = None
    ) -> Predictions:
        """Return the smoothed prediction or ABSTAIN (Cohen et al. 2019, PREDICT; Hung and Fithian 2019).

        The two largest of n counts are compared by a two-sided binomial test at level ``alpha``; with probability
        at least 1 - alpha the result is ABSTAIN or the smoothed classifier's class. A law that is enumerated
        needs no test: its majority is exact.

        Args:
            images: clean inputs, (B, *shape).
            n: samples an image.
            alpha: failure probability an image.
            seed: names the random streams; None draws fresh entropy, which an adaptive attacker cannot foresee.

        Raises:
            ValueError: for bad images, alpha outside (0, 1), n < 1, or a network with NaN or infinite logits.
        """
        self._check_images(images)
        self.prepared.check_flags()
        level = self._level(float(check_alpha(alpha)), n)
        if self.probed is None and len(images):
            self.probe(images)
        entropy = fresh_seed() if seed is None else int(seed)
        sampler = self.sampler.named(entropy, n)
        votes = read(sampler.collect(images, range(len(images)), "prediction", n, [self._votes]), self._votes)
        self.prepared.check_finite()
        self.prepared.check_unchanged()
        counts, chosen = votes.counts, Selection.of(votes.counts)
        doubt = self._doubt(sampler, votes)
        sure, against = np.maximum(at(counts, chosen.top) - doubt, 0), at(counts, chosen.runner_up) + doubt
        if self.noise.outcomes is not None:
            p_value = np.where((doubt == 0) | (sure > against), 0.0, 1.0)
        else:
            p_value = np.where(sure >= against, top_class_p_value(np.maximum(sure, against), against), 1.0)
        return Predictions(np.where(p_value <= level, chosen.top, ABSTAIN), p_value, counts, entropy, doubt)

    def _doubt(self, sampler: Sampler, evidence: Votes) -> IntArray:
        """Return how many votes of each image, (B,), rounding could turn: all, where more moved than was probed."""
        total, doubt = evidence.counts.sum(axis=1), evidence.doubtful
        if self.noise.outcomes is not None:  # which may vote for several classes
            total[:] = self.noise.outcomes
        if sampler.rechecks is None:
            return doubt
        sampler.rechecks.settle()
        for row, votes in enumerate(total.tolist()):
            moved = 2 * sampler.rechecks.pop(row).moved > sampler.tolerance
            doubt[row] = votes if moved else doubt[row] + sampler.doubtful[row]
        return doubt

    @torch.inference_mode()
    def probe(self, images: Tensor) -> Probe:
        """Compare the prepared network with the fp32 one, and check that it is one function of one row.

        Where rounding moves logits, votes inside the measured margin count against the class.

        Raises:
            ValueError: if a logit is NaN or infinite, or if logits move by more than rounding, with the layer.
        """
        rows = self.sampler.draw_rows(images)
        self.probed = self.prepared.probe(self._network, rows)
        if not self.probed.invariant:
            self.sampler.tolerance = 4 * self.probed.deviation
        if self.sampler.rechecks is not None:
            self.sampler.rechecks.scale = self.probed.scale
        return self.probed

    @property
    def exactness(self) -> str | None:
        """What "exact" means in the records of this session, once it is probed; None if no certificate is exact."""
        if self.probed is None or not any(certificate.exact for certificate in self.certifier.certificates):
            return None
        shape = f"no failure probability, for the network as it ran at one shape of {self.prepared.micro_batch} rows"
        return f"{shape}; {self.purity}"

    @property
    def purity(self) -> str | None:
        """What was checked of the network being one function of one row, once it is probed; a sentence for records."""
        if self.probed is None:
            return None
        if self.certifier.runtime.stochastic_network:
            return (
                "the network draws random numbers of its own: probabilities are over the noise and over them, runs do "
                "not repeat, and that votes are independent is assumed, not checked"
            )
        where = f"with position or companions, calls, memory or threads in a probe of {self.probed.rows} rows"
        again = "samples of every image ran again among others"
        if self.probed.invariant:
            return f"its logits did not move {where}; {again} and moved by no more than records say"
        return (
            f"its logits moved by up to {self.probed.deviation:.3g} {where}, so votes by a margin of at most "
            f"{self.sampler.tolerance:.3g} count as adversarial; {again}"
        )

    def _check_certificates(self) -> None:
        if not self.certifier.certificates:
            natural_certificate(type(self.noise))  # says what to do

    def _check_images(self, images: Tensor) -> None:
        if image_shape(images) != self.prepared.shape:
            raise ValueError(f"each image must have shape {self.prepared.shape}, got {image_shape(images)}")
        self.noise.check_input(images, self.domain, self.grid)
        for certificate in self.certifier.certificates:
            if certificate.domain is not None:
                self.noise.check_input(images, certificate.domain)

    @property
    def samples_per_image(self) -> int:
        """Selection and estimation samples an image, at most."""
        certifier = self.certifier
        selected = 0 if self.noise.outcomes else certifier.n0
        return selected + self.setting.n * len(certifier.schemes)

    @property
    def _votes(self) -> type[Votes]:
        return Votes if self.noise.outcomes is None else EnumeratedVotes

    def measure(self, images: Tensor, seconds: float = 0.5) -> float:
        """Return the samples a second that the engine reaches on these images, timed for about ``seconds``."""
        n, rate, start = self.prepared.micro_batch, 0.0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            votes = read(self.sampler.collect(images[:1], [0], "probe", n, [self._votes]), self._votes)
            taken = (self.noise.outcomes or n) * len(votes.counts)  # counts wait for the device
            rate = max(rate, taken / (time.perf_counter() - begin))
            n *= 2
        return rate

    @property
    def images_at_once(self) -> int:
        """How many images to hand over at once, so that what runs again for each costs few micro-batches for all."""
        fewest = self.certifier.budget.fewest(self.setting.n)
        return -(-_SHARED_MICRO_BATCHES * self.prepared.micro_batch // fewest)

    def _group_size(self, images: int) -> int:
        wanted = max(_GROUP_SAMPLES, 8 * self.prepared.micro_batch)
        return max(1, min(images, self.certifier.budget.pool(wanted, self.samples_per_image)))

    def _certify_group(self, group: Group) -> list[Certification]:
        selection = self._select(group)
        outcome = self._off_radius(group, self.certifier.budget.run(self.task, group, selection))
        self.prepared.check_finite()
        self.prepared.check_unchanged()
        return [self._record(group, selection, outcome, row) for row in range(len(group.images))]

    def _checked(self, record: Certification) -> Certification:
        """Return the record with what running its samples again showed; no certificate where that is too much."""
        rechecks, doubtful = self.sampler.rechecks, self.sampler.doubtful.pop(record.index, 0)
        if rechecks is None:
            return record
        seen = rechecks.pop(record.index)
        extra = {**record.extra, "rechecked": seen.rows, **({"doubtful": doubtful} if doubtful else {})}
        lost = [c for c in self.certifier.certificates if self._lost(c, seen, doubtful)]
        record = replace(record, extra=extra)
        if not lost:
            return record
        radii = {**record.radii, **{c.name: 0.0 for c in lost}}
        names = ", ".join(c.name for c in lost)
        why = f"{names}: none, since {doubtful} votes are within the logit margin and logits move by {seen.moved:.3g}"
        record = replace(record, radii=radii, note="; ".join(filter(None, [record.note, why])))
        if self.certifier.certificates[0] not in lost:
            return record
        return replace(record, prediction=ABSTAIN, radius=0.0, status="abstain")

    def _lost(self, certificate: Certificate, seen: Checked, doubtful: int) -> bool:
        """Say whether rounding voids a certificate of one image.

        Votes inside the margin count against the class already; certificates that read more than votes for one class
        have no such safe side. Nor is any margin safe where logits moved by more than it allows for.
        """
        allows = certificate.exact or isinstance(certificate, TopVoteCertificate)
        return 2 * seen.moved > self.sampler.tolerance or (doubtful > 0 and not allows)

    def _off_radius(self, group: Group, outcome: Outcome) -> Outcome:
        """Take the distance that images are rounded off the radii; nothing on a grid."""
        if self.lattice is None or self.lattice.lattice.grid is not None:
            return outcome
        radii = {}
        for certificate in self.certifier.certificates:
            moved = self.lattice.lattice.rounding(group.images, certificate.norm.partition(":")[0])
            radii[certificate.name] = outcome.radii[certificate.name].less(moved)
        return replace(outcome, radii=radii)

    def _select(self, group: Group) -> Selection:
        needed = [c for c in self.certifier.certificates if not c.exact]
        if not needed:
            return Selection.none(len(group.images))
        found = self.sampler.collect(group.images, group.indices, self.purposes[0], self.certifier.n0, [Votes])
        return Selection.of(read(found, Votes).counts)

    def _record(self, group: Group, selection: Selection, outcome: Outcome, row: int) -> Certification:
        first, *others = self.certifier.certificates
        radii = outcome.radii
        bounds = {name: float(values[row]) for name, values in radii[first.name].bounds.items()}
        for other in others:
            bounds |= {f"{other.name}.{name}": float(v[row]) for name, v in radii[other.name].bounds.items()}
        notes = [f"{name}: {r.notes[row]}" for name, r in radii.items() if row in r.notes]
        prediction = int(radii[first.name].prediction[row])
        status: Any = outcome.status[row] if outcome.status else ("abstain" if prediction == ABSTAIN else "certified")
        return Certification(
            index=group.indices[row],
            image=group.sha256[row],
            label=None if group.labels is None else group.labels[row],
            prediction=prediction,
            radius=float(radii[first.name].radius[row]),
            norm=first.norm,
            certificate=first.name,
            alpha=0.0 if first.exact else self.certifier.alpha,
            n=outcome.planned,
            n_used=int(outcome.used[row]),
            ball=first.ball,
            grid=self.noise.grid if self.lattice is None else self.lattice.lattice.grid,
            top=int(selection.top[row]),
            runner_up=int(selection.runner_up[row]),
            counts=tuple(int(c) for c in outcome.counts[row]),
            counts0=() if selection.counts is None else tuple(int(c) for c in selection.counts[row]),
            bounds=bounds,
            radii={name: float(r.radius[row]) for name, r in radii.items()},
            status=status,
            mode=self.certifier.budget.mode,
            target=self.certifier.budget.target,
            note="; ".join(notes),
            extra={**self._spoken, **{name: values[row] for name, values in outcome.extra.items()}},
        )


def image_shape(images: Tensor) -> tuple[int, ...]:
    """Return the shape of one image of a batch (B, *shape); raise ``ValueError`` if it is none."""
    if not isinstance(images, Tensor) or images.ndim < 2:
        seen = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (B, *shape), got {seen}")
    return tuple(images.shape[1:])


def _device_of(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _whole_numbers(
    name: str, values: Sequence[int] | Tensor | None, length: int, default: Sequence[int] | range
) -> list[int]:
    given = default if values is None else values
    listed = given.tolist() if isinstance(given, Tensor) else list(given)
    if len(listed) != length:
        raise ValueError(f"{name} must have one entry an image ({length}), got {len(listed)}")
    fractional = [value for value in listed if int(value) != value]
    if fractional:
        raise ValueError(f"{name} must be whole numbers, got {fractional[0]!r}")
    return [int(value) for value in listed]
