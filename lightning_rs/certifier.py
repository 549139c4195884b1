"""What is certified and how: certificates, samples, alpha, seed, runtime, budget, noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_rs.budgets import Budget, FixedSamples
from lightning_rs.budgets.base import describe_budget
from lightning_rs.certificates.base import Certificate, describe_certificate
from lightning_rs.certificates.natural import find_natural_certificate
from lightning_rs.checks import check_alpha, check_at_least
from lightning_rs.engine.runtime import Runtime
from lightning_rs.evidence import Scheme
from lightning_rs.noise.base import Domain, Noise
from lightning_rs.records import Certifications
from lightning_rs.session import Session, Stage, image_shape


class Certifier:
    """Certifies a smoothed classifier: for each image a class, a radius, a norm and a probability.

    Args:
        certificates: theorems to apply to one sampling pass; the first is the record's own, the others are listed
            beside it, each at level ``alpha`` by itself. Default: the usual one of the noise, see ``usual_for``.
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
        certificates: Sequence[Certificate] | Certificate | None = None,
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
        # Empty until the noise is known, see for_noise.
        chosen = () if certificates is None else certificates
        self.certificates = (chosen,) if isinstance(chosen, Certificate) else tuple(chosen)
        self.n0 = check_at_least("n0", n0, 1)
        self.n = check_at_least("n", n, 1)
        self.alpha = float(check_alpha(alpha))
        self.seed = int(seed)
        self.runtime = runtime or Runtime()
        self.budget = budget or FixedSamples()
        self.noise = noise
        self.allow_noise_mismatch = allow_noise_mismatch
        self.separate_passes = separate_passes
        if certificates is not None:
            self._check_certificates()

    def certify(
        self,
        network: nn.Module,
        noise: Noise | None,
        images: Float[Tensor, "B ..."],
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
        device: torch.device | str | None = None,
        domain: Domain = None,
        grid: int | None = None,
    ) -> Certifications:
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
        session = self.session(network, chosen, image_shape(images), device=device, domain=domain, grid=grid)
        return Certifications(session.certify(images, labels, indices))

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
        certifier = self.for_noise(noise)
        for certificate in certifier.certificates:
            certificate.check_noise(noise)
        return Session(certifier, network, noise, shape, device, domain, grid, stage, micro_batch, on_samples)

    def for_noise(self, noise: Noise) -> Certifier:
        """Return this certifier with certificates: its own or, where none is named, the usual one of the noise.

        For a noise that has no usual certificate it stays without one: then it can predict, but not certify.

        Raises:
            ValueError: if the budget does not serve the usual certificate.
        """
        usual = find_natural_certificate(type(noise))
        if self.certificates or usual is None:
            return self
        chosen = copy.copy(self)
        chosen.certificates = (usual(),)
        chosen._check_certificates()
        return chosen

    def describe(self) -> dict[str, Any]:
        """Return the configuration as plain values: what binds a record file."""
        return {
            "certificates": [describe_certificate(c) for c in self.certificates],
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "seed": self.seed,
            "budget": describe_budget(self.budget),
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
        named = f"certificates={list(self.certificates)}, " if self.certificates else ""
        return f"Certifier({named}n0={self.n0}, n={self.n}, alpha={self.alpha})"
