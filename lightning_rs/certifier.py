"""Select -> estimate -> bound -> radius or ABSTAIN; and the abstaining prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_rs.budgets import Budget, FixedSamples, Group, Outcome, Selection, Task
from lightning_rs.calibration import calibration_rows
from lightning_rs.certificates.base import ABSTAIN, Certificate, certificate_to_dict
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.checks import check_alpha, check_at_least, check_choice
from lightning_rs.evidence import EnumeratedVotes, Scheme, Votes
from lightning_rs.networks.checkpoints import state_dict_sha256
from lightning_rs.noise.base import Domain, EnumeratedNoise, Noise, noise_to_dict
from lightning_rs.records import Certification
from lightning_rs.runtime import Probe, Runtime
from lightning_rs.sampling import Sampler
from lightning_rs.statistics.binomial import top_class_p_value
from lightning_rs.streams import Purpose, fresh_seed

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Stage = Literal["final", "epoch-end"]
_PURPOSES: dict[Stage, tuple[Purpose, Purpose]] = {
    "final": ("selection", "estimation"),
    "epoch-end": ("epoch-end-selection", "epoch-end"),
}
# Images are certified in groups of about this many samples: records appear early, micro-batches stay full.
_GROUP_SAMPLES = 1 << 15


class Certifier:
    """Certifies a smoothed classifier: for each image a class, a radius, a norm and a probability.

    Args:
        certificates: theorems to apply to one sampling pass; the first is the record's own, the others are listed
            beside it, each at level ``alpha`` by itself. Default: Cohen's l2 certificate.
        n0: selection samples an image, from which only the class (and the runner-up) is taken.
        n: estimation samples an image, disjoint from the selection samples.
        alpha: failure probability of each image's statement.
        seed: names the random streams; the same seed, checkpoint and runtime give the same records.
        runtime: how the network is run.
        budget: how samples are spent: fixed n, or a sound rule that stops earlier.
        noise: smooths with this noise; None takes the checkpoint's.
        allow_noise_mismatch: allow a noise whose parameters belong to the classifier (a fixed v) to differ from the
            checkpoint's.
        separate_passes: certificates that need different sampling schemes (independent and antithetic) get a pass of n
            samples each, instead of an error.

    Raises:
        ValueError: for alpha outside (0, 1), n0 < 1, n < 1, no certificate or two of one name.
    """

    def __init__(
        self,
        certificates: Sequence[Certificate] | None = None,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        runtime: Runtime | None = None,
        budget: Budget | None = None,
        noise: Noise | None = None,
        allow_noise_mismatch: bool = False,
        separate_passes: bool = False,
    ) -> None:
        self.certificates = tuple(certificates) if certificates is not None else (GaussianL2(),)
        self.n0 = check_at_least("n0", n0, 1)
        self.n = check_at_least("n", n, 1)
        self.alpha = float(check_alpha(alpha))
        self.seed = int(seed)
        self.runtime = runtime or Runtime()
        self.budget = budget or FixedSamples()
        self.noise = noise
        self.allow_noise_mismatch = allow_noise_mismatch
        self.separate_passes = separate_passes
        self._check_certificates()

    def certify(
        self,
        network: nn.Module,
        noise: Noise | None,
        images: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
        device: torch.device | str | None = None,
        domain: Domain = None,
        grid: int | None = None,
    ) -> list[Certification]:
        """Certify a batch of images without Lightning.

        Args:
            network: maps (m, *shape) to logits (m, C).
            noise: the law of the noisy copies; None takes the certifier's own.
            images: clean inputs, (B, *shape), in the units of the noise.
            labels: true classes, (B,), if known.
            indices: the data set's own indices, (B,); default 0, 1, ...
            device: where to run; default: where the network's parameters are.
            domain: interval that the inputs must lie in.
            grid: number q of steps if the inputs are multiples of 1/q.

        Raises:
            ValueError: for bad images, or a noise that a certificate is not proved for.
        """
        chosen = noise or self.noise
        if chosen is None:
            raise ValueError("noise must be given to certify() or to the Certifier, got None")
        session = self.session(network, chosen, _image_shape(images), device=device, domain=domain, grid=grid)
        return list(session.certify(images, labels, indices))

    def session(
        self,
        network: nn.Module,
        noise: Noise,
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        domain: Domain = None,
        grid: int | None = None,
        stage: Stage = "final",
        micro_batch: int | None = None,
        on_samples: Callable[[int], None] | None = None,
    ) -> Session:
        """Prepare the network once, for certifying or predicting many batches. Arguments as in :meth:`certify`."""
        for certificate in self.certificates:
            certificate.check_noise(noise)
        return Session(self, network, noise, shape, device, domain, grid, stage, micro_batch, on_samples)

    def describe(self) -> dict[str, Any]:
        """Return the configuration as plain values: what binds a record file."""
        return {
            "certificates": [_described(c) for c in self.certificates],
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "seed": self.seed,
            "budget": self.budget.describe(),
            "separate_passes": self.separate_passes,
        }

    @property
    def schemes(self) -> dict[Scheme, list[Certificate]]:
        """The certificates by the sampling scheme that their evidence comes from."""
        grouped: dict[Scheme, list[Certificate]] = {}
        for certificate in self.certificates:
            grouped.setdefault(certificate.evidence[0].scheme, []).append(certificate)
        return grouped

    def _check_certificates(self) -> None:
        names = [certificate.name for certificate in self.certificates]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"certificates must be one or more, of different names, got {names}")
        if "antithetic" in self.schemes and self.n % 2:
            listed = ", ".join(c.name for c in self.schemes["antithetic"])
            raise ValueError(f"n must be even for the antithetic pairs of {listed}, got {self.n}")
        if len(self.schemes) > 1 and not self.separate_passes:
            listed = "; ".join(
                f"{scheme}: {', '.join(c.name for c in group)}" for scheme, group in self.schemes.items()
            )
            raise ValueError(
                "certificates of one pass must read samples of one scheme, because votes of antithetic pairs are not "
                f"independent; got {listed}. Certify them apart, or set separate_passes: n samples for each scheme"
            )
        self.budget.check(self.certificates)

    def __repr__(self) -> str:
        return f"Certifier(certificates={list(self.certificates)}, n0={self.n0}, n={self.n}, alpha={self.alpha})"


@dataclass(frozen=True)
class Predictions:
    """The abstaining smoothed prediction of a batch.

    Attributes:
        prediction: class, (B,), or -1 where the test abstains.
        p_value: of the two-sided Hung-Fithian test, (B,).
        counts: class counts, (B, C).
        seed: the entropy that named the random streams.
    """

    prediction: IntArray
    p_value: np.ndarray[Any, np.dtype[np.float64]]
    counts: IntArray
    seed: int


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
        self.certifier = certifier
        self.noise = noise
        self.domain = domain
        self.grid = grid
        self.purposes = _PURPOSES[stage]
        self.classifier = state_dict_sha256(network)
        self.probed: Probe | None = None
        self._network = network
        where = device if device is not None else _device_of(network)
        self.prepared = certifier.runtime.prepare(network, tuple(shape), where, micro_batch)
        if certifier.runtime.precision == "int8":
            self.prepared.calibrate(calibration_rows(self.prepared, network, noise))
        self.sampler = Sampler(self.prepared, noise, self.classifier, certifier.seed, on_samples)
        self.task = Task(
            self.sampler, self.purposes[1], certifier.certificates, noise, certifier.n, certifier.alpha, tuple(shape)
        )

    def describe(self) -> dict[str, Any]:
        """Return everything that binds the records of this session, as plain values."""
        return {
            **self.certifier.describe(),
            "noise": noise_to_dict(self.noise),
            "classifier": self.classifier,
            "num_classes": self.prepared.num_classes,
            "shape": list(self.prepared.shape),
            "runtime": self.prepared.describe(),
        }

    def certify(
        self,
        images: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Iterator[Certification]:
        """Yield one record an image, in order; a few images are in flight at once.

        Raises:
            ValueError: for images that are not finite, outside the domain or off the grid, or wrong lengths.
        """
        self._check_images(images)
        own_indices = _whole_numbers("indices", indices, len(images), range(len(images)))
        own_labels = None if labels is None else _whole_numbers("labels", labels, len(images), ())
        if min(own_indices, default=0) < 0:
            raise ValueError(f"indices must be >= 0, got {min(own_indices)}")
        if self.probed is None and len(images):
            self.probe(images)
        size = self._group_size(len(images))
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            group = Group(images[rows], own_indices[rows], None if own_labels is None else own_labels[rows])
            yield from self._certify_group(group)

    @torch.inference_mode()
    def predict(self, images: Tensor, n: int = 1000, alpha: float = 0.001, seed: int | None = None) -> Predictions:
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
        level = float(check_alpha(alpha))
        if self.probed is None and len(images):
            self.probe(images)
        entropy = fresh_seed() if seed is None else int(seed)
        sampler = Sampler(self.prepared, self.noise, self.classifier, entropy, self.sampler.on_samples)
        exact = isinstance(self.noise, EnumeratedNoise)
        kind: type[Votes] = EnumeratedVotes if exact else Votes
        evidence = sampler.collect(images, range(len(images)), "prediction", n, [kind])[kind]
        assert isinstance(evidence, Votes)
        self.prepared.check_finite()
        counts = evidence.counts
        top, second = _top_two(counts)
        rows = np.arange(len(counts))
        runner = counts[rows, second] if counts.shape[1] > 1 else np.zeros(len(counts), dtype=np.int64)
        p_value = np.zeros(len(counts)) if exact else np.asarray(top_class_p_value(counts[rows, top], runner))
        return Predictions(np.where(p_value <= level, top, ABSTAIN), p_value, counts, entropy)

    @torch.inference_mode()
    def probe(self, images: Tensor) -> Probe:
        """Compare the prepared network with the fp32 one, and check that companions do not matter.

        Where they do, votes of enumerated noise inside the measured logit margin count as adversarial.

        Raises:
            ValueError: if a logit is NaN or infinite.
        """
        rows = self.sampler.draw_rows(images)
        self.probed = self.prepared.probe(self._network, rows)
        if not self.probed.invariant:
            self.sampler.tolerance = 4 * self.probed.deviation
        return self.probed

    @property
    def exactness(self) -> str | None:
        """What "exact" means in the records of this session, once it is probed; None if no certificate is exact."""
        if self.probed is None or not any(certificate.exact for certificate in self.certifier.certificates):
            return None
        shape = f"no failure probability, for the network as it ran at one shape of {self.prepared.micro_batch} rows"
        if self.probed.invariant:
            return f"{shape}; its logits did not depend on position or companions in a probe of {self.probed.rows} rows"
        return (
            f"{shape}; its logits moved by up to {self.probed.deviation:.3g} with position and companions in a probe "
            f"of {self.probed.rows} rows, so votes by a margin of at most {self.sampler.tolerance:.3g} count as "
            "adversarial"
        )

    def _check_images(self, images: Tensor) -> None:
        if _image_shape(images) != self.prepared.shape:
            raise ValueError(f"each image must have shape {self.prepared.shape}, got {_image_shape(images)}")
        self.noise.check_input(images, self.domain, self.grid)
        for certificate in self.certifier.certificates:
            if certificate.domain is not None:
                self.noise.check_input(images, certificate.domain)

    @property
    def samples_per_image(self) -> int:
        """Selection and estimation samples an image, at most."""
        if isinstance(self.noise, EnumeratedNoise):
            return self.noise.size
        certifier = self.certifier
        return certifier.n0 + certifier.n * len(certifier.schemes)

    def measure(self, images: Tensor, seconds: float = 0.5) -> float:
        """Return the samples a second that the engine reaches on these images, timed for about ``seconds``."""
        kind: type[Votes] = EnumeratedVotes if isinstance(self.noise, EnumeratedNoise) else Votes
        n, rate, start = self.prepared.micro_batch, 0.0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            votes = self.sampler.collect(images[:1], [0], "probe", n, [kind])[kind]
            assert isinstance(votes, Votes)
            rate = max(rate, int(votes.counts.sum()) / (time.perf_counter() - begin))
            n *= 2
        return rate

    def _group_size(self, images: int) -> int:
        wanted = max(_GROUP_SAMPLES, 8 * self.prepared.micro_batch)
        return max(1, min(images, self.certifier.budget.pool(wanted, self.samples_per_image)))

    def _certify_group(self, group: Group) -> Iterator[Certification]:
        selection = self._select(group)
        outcome = self.certifier.budget.run(self.task, group, selection)
        self.prepared.check_finite()
        for row in range(len(group.images)):
            yield self._record(group, selection, outcome, row)

    def _select(self, group: Group) -> Selection:
        needed = [c for c in self.certifier.certificates if not c.exact]
        if not needed:
            none = np.full(len(group.images), ABSTAIN, dtype=np.int64)
            return Selection(none, none, None)
        votes = self.sampler.collect(group.images, group.indices, self.purposes[0], self.certifier.n0, [Votes])[Votes]
        assert isinstance(votes, Votes)
        top, runner_up = _top_two(votes.counts)
        return Selection(top, runner_up, votes.counts)

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
            label=None if group.labels is None else group.labels[row],
            prediction=prediction,
            radius=float(radii[first.name].radius[row]),
            norm=first.norm,
            certificate=first.name,
            alpha=0.0 if first.exact else self.certifier.alpha,
            n=outcome.planned,
            n_used=int(outcome.used[row]),
            ball=first.ball,
            grid=self.noise.grid,
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
            extra={name: values[row] for name, values in outcome.extra.items()},
        )


def _described(certificate: Certificate) -> dict[str, Any]:
    """Return what a record file says of a certificate."""
    parts = {"name": certificate.name, "norm": certificate.norm, "alpha_split": dict(certificate.alpha_split)}
    # A table that all images share: a statement about the whole set pays for it (Theorem 5: off rho).
    spent = {"shared_failure": certificate.shared_failure} if certificate.shared_failure else {}
    return {**certificate_to_dict(certificate), **parts, **spent}


def _image_shape(images: Tensor) -> tuple[int, ...]:
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


def _top_two(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the classes of the largest and second largest count; ties go to the lower index."""
    ranked = np.argsort(-counts, axis=1, kind="stable")
    return ranked[:, 0], ranked[:, min(1, counts.shape[1] - 1)]
