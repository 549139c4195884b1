"""The interface of every certificate: evidence -> bounds -> radius."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from lightning_rs.checks import check_alpha
from lightning_rs.class_paths import check_rebuilds, class_named, from_dict, parameters, to_dict
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.noise.base import Domain, Noise
from lightning_rs.setting import NO_CLASS
from lightning_rs.setting import Selection as Selection
from lightning_rs.setting import Setting as Setting
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Ball = Literal["open", "closed"]
ABSTAIN = NO_CLASS
# What a record file says of a certificate beside its parameters.
_SAID = ("name", "norm", "ball", "alpha_split", "shared_failure")
E = TypeVar("E", bound=Evidence)


@dataclass(frozen=True)
class Radii:
    """What a certificate says of a batch of images.

    Attributes:
        prediction: certified class, shape (B,), or ``ABSTAIN`` = -1.
        radius: in input units, shape (B,), 0 where it abstains, float64, rounded down.
        bounds: the confidence bounds that were used, by name, each of shape (B,); for the record.
        notes: remarks for single images, by row ("gradient bound infeasible: radius without it").
    """

    prediction: IntArray
    radius: FloatArray
    bounds: Mapping[str, FloatArray] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)

    def less(self, distance: FloatArray) -> Radii:
        """Return the radii after ``distance``, shape (B,), is taken off each; where nothing is left it abstains.

        The distance is listed among the bounds as "rounding".
        """
        left = np.nextafter(self.radius - distance, -np.inf)
        radius = np.where((self.radius > 0) & (left > 0), left, 0.0)
        lost = (self.radius > 0) & (radius == 0)
        prediction = np.where(lost, ABSTAIN, self.prediction)
        return replace(self, prediction=prediction, radius=radius, bounds={**self.bounds, "rounding": distance})


class Certificate(ABC):
    """A theorem made executable: from the evidence of one sampling pass to a radius for each image.

    A subclass declares its norm, the noises it is proved for, the evidence it needs and how it shares
    alpha among its confidence events, and implements :meth:`_radii`. :meth:`certify` checks and sequences.
    A parameter of the theorem is a keyword of ``__init__``, stored under its own name; an attribute below that depends
    on one is set there.

    Attributes:
        norm: norm of the certified ball: "l1", "l2", "linf", or a named variant such as "l2:red".
        ball: whether the ball contains its boundary.
        noises: laws for which the theorem holds.
        evidence: evidence types that it reads.
        alpha_split: share of alpha for each confidence event; the shares sum to 1.
        shared_failure: failure probability that all images share, for instance of a table computed once for a noise;
            it is not part of alpha, and a statement about a set of images takes it off its own budget.
        domain: interval that inputs must lie in for the theorem, None for R^d.
        exact: the statement has no failure probability (alpha is 0), and needs no selected class.
        rounds: the ball stays one of its kind when both of its ends are rounded coordinate by coordinate: true unless
            it lies in a subspace that is askew to the axes.
        votes_only: the radius is a function of the recorded counts, so records can be recomputed.
    """

    norm: str
    ball: Ball = "open"
    noises: tuple[type[Noise], ...]
    evidence: tuple[type[Evidence], ...]
    alpha_split: Mapping[str, float]
    shared_failure: float = 0.0
    domain: Domain = None
    exact: ClassVar[bool] = False
    votes_only: ClassVar[bool] = False
    rounds: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name under which records list this certificate."""
        return type(self).__name__

    @final
    def check_noise(self, noise: Noise) -> None:
        """Raise ``ValueError`` if the theorem does not hold for this noise."""
        if not isinstance(noise, self.noises):
            proved = " or ".join(law.__name__ for law in self.noises)
            raise ValueError(f"certificate {self.name} is proved for {proved}, got noise {noise!r}")

    @final
    def certify(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        """Return the certified radii of a batch.

        Args:
            evidence: accumulated evidence by type; it must contain all types in ``self.evidence``.
            setting: noise, alpha, n, selected classes, input shape.

        Raises:
            ValueError: for a noise the theorem is not proved for, alpha outside (0, 1) or missing evidence.
        """
        self.check_noise(setting.noise)
        check_alpha(setting.alpha)
        missing = [kind.__name__ for kind in self.evidence if kind not in evidence]
        if missing:
            got = ", ".join(kind.__name__ for kind in evidence) or "none"
            raise ValueError(f"certificate {self.name} needs the evidence {', '.join(missing)}, got {got}")
        radii = self._radii(evidence, setting)
        if not np.isfinite(radii.radius).all() or (radii.radius < 0).any():
            raise AssertionError(f"{self.name} produced a radius that is not a finite number >= 0")
        return radii

    @abstractmethod
    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        """Bound and solve; inputs are already checked.

        No bit of a row may depend on the other rows, because records must not depend on how images are grouped: solvers
        leave converged rows alone, and sums run along rows that lie in one piece.
        """

    def spec(self) -> dict[str, Any]:
        """Return the parameters of the theorem as plain values."""
        return parameters(self)

    def __eq__(self, other: object) -> bool:
        """Two certificates are equal if they are the same theorem with the same parameters."""
        return type(self) is type(other) and isinstance(other, Certificate) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash((type(self).__name__, repr(sorted(self.spec().items()))))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.spec().items())})"


class TopVoteCertificate(Certificate):
    """A certificate that is a function of one number: an upper bound of the tail q = 1 - p of the top class.

    The bound is one-sided Clopper-Pearson on the votes for the class chosen from the selection samples, at the
    whole alpha. A subclass gives :meth:`radius_of_tail`; because it depends on q alone, the same theorem serves
    fixed, staged, randomized and anytime-valid sampling.
    """

    evidence: tuple[type[Evidence], ...] = (Votes,)
    alpha_split: Mapping[str, float] = MappingProxyType({"p_lower": 1.0})
    votes_only: ClassVar[bool] = True

    @abstractmethod
    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius certified by ``q_upper`` >= 1 - p, non-increasing in it, 0 where there is none."""

    @final
    def from_tail(self, q_upper: FloatArray, setting: Setting) -> Radii:
        """Return the radii that upper bounds of the tail, shape (B,), certify."""
        radius = np.asarray(self.radius_of_tail(q_upper, setting), dtype=np.float64)
        bounds = {"p_lower": 1.0 - q_upper, "q_upper": q_upper}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)

    @final
    def threshold(self, radius: float, setting: Setting) -> float:
        """Return a tail such that every tail up to it certifies ``radius``: the largest up to 1e-12, rounded down.

        0 if no tail does. Bisection, because :meth:`radius_of_tail` is non-increasing.
        """
        enough, too_much = 0.0, 1.0
        for _ in range(200):
            # Geometric once a positive tail is known, so that tiny tails keep their digits.
            middle = math.sqrt(enough * too_much) if enough else too_much * 1e-3
            if middle in (enough, too_much) or too_much < 1e-300 or too_much - enough < 1e-12 * enough:
                break
            if float(self.radius_of_tail(np.array([middle]), setting)[0]) >= radius:
                enough = middle
            else:
                too_much = middle
        return enough

    @final
    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        count = at(read(evidence, Votes).counts, setting.top)
        # The radius is a function of the count: solve once for each count that occurs.
        distinct, where = np.unique(count, return_inverse=True)
        tail = np.asarray(clopper_pearson_tail_upper(distinct, setting.n, setting.alpha), dtype=np.float64)
        radius = np.asarray(self.radius_of_tail(tail, setting), dtype=np.float64)[where]
        bounds = {"p_lower": 1.0 - tail[where], "q_upper": tail[where]}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)


def read(evidence: Mapping[type[Evidence], Evidence], kind: type[E]) -> E:
    """Return the evidence of one type, typed."""
    found = evidence[kind]
    assert isinstance(found, kind)
    return found


def at(values: NDArray[Any], classes: IntArray) -> NDArray[Any]:
    """Return ``values[b, classes[b]]`` for every row b."""
    return np.take_along_axis(values, classes[:, None], axis=1)[:, 0]


def abstain_at_zero(radius: FloatArray, top: IntArray) -> IntArray:
    """Return the class where the radius is positive, ``ABSTAIN`` elsewhere."""
    return np.where(radius > 0, top, ABSTAIN)


def certificate_to_dict(certificate: Certificate) -> dict[str, Any]:
    """Return ``{"class": class path, **parameters}``, plain values for record headers.

    Raises:
        ValueError: if values are not plain, or do not give the certificate back.
    """
    spec = to_dict(certificate, certificate.spec())
    check_rebuilds(certificate, spec, Certificate, "certificate")  # type: ignore[type-abstract]
    return spec


def describe_certificate(certificate: Certificate) -> dict[str, Any]:
    """Return what a record file says of a certificate: how to rebuild it, and what its statements rest on."""
    shares = dict(certificate.alpha_split)
    said = {"name": certificate.name, "norm": certificate.norm, "ball": certificate.ball, "alpha_split": shares}
    # A table that all images share: a statement about the whole set pays for it (Theorem 5: off rho).
    spent = {"shared_failure": certificate.shared_failure} if certificate.shared_failure else {}
    return {**certificate_to_dict(certificate), **said, **spent}


def certificate_from_dict(spec: Mapping[str, Any]) -> Certificate:
    """Rebuild a certificate from :func:`certificate_to_dict` or :func:`describe_certificate`.

    Raises:
        ValueError: if the class is unknown, cannot be imported, or its parameters are not accepted.
    """
    kind = class_named(spec.get("class"), Certificate, "certificate")  # type: ignore[type-abstract]
    own = inspect.signature(kind).parameters
    arguments = {key: value for key, value in spec.items() if key in own or key not in _SAID}
    return from_dict(arguments | {"class": spec["class"]}, Certificate, "certificate")  # type: ignore[type-abstract]
