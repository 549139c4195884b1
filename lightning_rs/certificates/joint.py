"""The largest of several radii as one statement, paying the union bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_rs.certificates.base import (
    ABSTAIN,
    Certificate,
    Radii,
    Setting,
    certificate_from_dict,
    certificate_to_dict,
)
from lightning_rs.evidence import Evidence
from lightning_rs.noise.base import Noise


class LargestRadius(Certificate):
    """The largest radius of several certificates, at level alpha for all of them together.

    Each of the k certificates gets alpha / k: then all of their statements hold together with probability at least
    1 - alpha (union bound), and the largest may be reported. Listing certificates beside each other instead gives
    each its own alpha, and reporting the largest of those would cost k alpha.

    Args:
        certificates: two or more certificates of one norm, one kind of ball and one sampling scheme; or their plain
            descriptions, as record headers hold them.

    Raises:
        ValueError: if they differ in norm, ball, domain or sampling scheme, or share no noise.
    """

    noises: tuple[type[Noise], ...] = (Noise,)  # of the class; those of an instance are what its theorems share

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        self.certificates = tuple(
            certificate_from_dict(each) if isinstance(each, Mapping) else each for each in certificates
        )
        if len({repr(each) for each in self.certificates}) != len(self.certificates) or len(self.certificates) < 2:
            raise ValueError(f"certificates must be two or more different ones, got {list(self.certificates)}")
        for name, values in (
            ("norm", {each.norm for each in self.certificates}),
            ("ball", {each.ball for each in self.certificates}),
            ("sampling scheme", {kind.scheme for each in self.certificates for kind in each.evidence}),
        ):
            if len(values) > 1:
                raise ValueError(f"certificates must share one {name}, got {', '.join(sorted(values))}")
        first, *others = self.certificates
        self.noises = tuple(law for law in first.noises if all(issubclass(law, each.noises) for each in others))
        if not self.noises:
            raise ValueError(f"certificates must share a noise, got {list(self.certificates)}")
        self.norm, self.ball = first.norm, first.ball
        self.evidence = tuple(dict.fromkeys(kind for each in self.certificates for kind in each.evidence))
        self.shared_failure = sum(each.shared_failure for each in self.certificates)
        self.alpha_split = {
            f"{label}.{event}": share / len(self.certificates)
            for label, each in zip(self._labels, self.certificates, strict=True)
            for event, share in each.alpha_split.items()
        }
        domains = {each.domain for each in self.certificates if each.domain is not None}
        if len(domains) > 1:
            raise ValueError(f"certificates must share one domain, got {', '.join(map(str, sorted(domains)))}")
        self.domain = next(iter(domains), None)

    def spec(self) -> dict[str, Any]:
        """Return the certificates as plain values."""
        return {"certificates": [certificate_to_dict(each) for each in self.certificates]}

    @property
    def _labels(self) -> list[str]:
        names = [each.name for each in self.certificates]
        return [
            name if names.count(name) == 1 else repr(each) for name, each in zip(names, self.certificates, strict=True)
        ]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        share = setting.alpha / len(self.certificates)
        part = replace(setting, alpha=share)
        found = [each.certify(evidence, part) for each in self.certificates]
        radius = np.stack([radii.radius for radii in found])
        best = radius.argmax(0)
        columns = np.arange(radius.shape[1])
        prediction = np.stack([radii.prediction for radii in found])[best, columns]
        bounds = {
            f"{label}.{name}": values
            for label, radii in zip(self._labels, found, strict=True)
            for name, values in radii.bounds.items()
        }
        largest = radius[best, columns]
        notes = {int(row): f"by {self._labels[best[row]]}" for row in columns if prediction[row] != ABSTAIN}
        return Radii(prediction, largest, bounds, notes)
