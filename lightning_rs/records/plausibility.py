"""What an imported table can be: its arguments against each other, against the theorems, and against its radii."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lightning_rs.checks import check_alpha, check_at_least, check_positive
from lightning_rs.class_paths import class_named, known_classes
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper

if TYPE_CHECKING:
    from lightning_rs.certificates.base import Certificate
    from lightning_rs.noise.base import Noise

T = TypeVar("T")
NORMS = ("l1", "l2", "linf")
# The dimension is unknown: one coordinate gives the largest l-infinity radius, many the largest l1 radius in a box.
_SHAPES = ((1,), (1_000_000,))


def check_import(
    noise: Mapping[str, Any], n: int, n0: int, alpha: float, norm: str, certificate: str, ball: str, grid: int | None
) -> None:
    """Raise ``ValueError`` for the first argument that is impossible, or contradicts the theorem that is named."""
    check_at_least("n", n, 1)
    check_at_least("n0", n0, 0)
    if "sigma" in noise:
        check_positive("sigma", noise["sigma"])
    base = norm.partition(":")[0]
    if base not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}{_near(norm, NORMS)}")
    theorem, law = certificate_class(certificate), noise_class(str(noise.get("class")))
    if isinstance(theorem.noises, tuple) and not issubclass(law, theorem.noises):
        proved = " or ".join(each.__name__ for each in theorem.noises)
        raise ValueError(f"certificate {certificate} is proved for {proved}, got noise {law.__name__}")
    own = getattr(theorem, "norm", None)
    if isinstance(own, str) and base != own.partition(":")[0]:
        raise ValueError(f"norm of certificate {certificate} is {own}, got {norm!r}: did you mean {own}?")
    if isinstance(theorem.ball, str) and ball != theorem.ball:
        raise ValueError(f"ball of certificate {certificate} is {theorem.ball}, got {ball!r}")
    if theorem.exact:
        if alpha != 0:
            raise ValueError(f"alpha must be 0 for certificate {certificate}, which is exact, got {alpha!r}")
        if grid is None:
            raise ValueError(f"grid must be given for certificate {certificate}, which holds between grid points only")
        check_at_least("grid", grid, 1)
    else:
        check_alpha(alpha)
        if grid is not None:
            raise ValueError(f"grid must be left out for certificate {certificate}, which needs none, got {grid!r}")


def certificate_class(name: str) -> type[Certificate]:
    """Return the theorem that records call ``name``, its variant behind a colon left out.

    Raises:
        ValueError: if there is none, with near names.
    """
    import lightning_rs.certificates  # noqa: F401  (registers every theorem by its name)
    from lightning_rs.certificates.base import Certificate

    return _named(name.partition(":")[0], Certificate, "certificate")  # type: ignore[type-abstract]


def known_norm(norm: str) -> bool:
    """Return whether a certificate defined so far, somebody's own too, states radii in this norm."""
    from lightning_rs.certificates.base import Certificate

    return any(getattr(kind, "norm", None) == norm for kind in known_classes(Certificate).values())  # type: ignore[type-abstract]


def noise_class(name: str) -> type[Noise]:
    """Return the law of a name.

    Raises:
        ValueError: if there is none, with near names.
    """
    import lightning_rs.noise  # noqa: F401  (registers every law by its name)
    from lightning_rs.noise.base import Noise

    return _named(name, Noise, "noise")  # type: ignore[type-abstract]


def largest_radius(noise: Mapping[str, Any], certificate: str, n: int, alpha: float) -> float | None:
    """Return the radius that n unanimous votes certify, or None where the arguments do not fix it."""
    from lightning_rs.certificates.base import Setting, TopVoteCertificate

    theorem, law = certificate_class(certificate), _law(noise)
    if law is None or not issubclass(theorem, TopVoteCertificate):
        return None
    try:
        made = theorem()
    except TypeError:
        return None
    tail = np.asarray(clopper_pearson_tail_upper(np.array([n]), n, alpha))
    settings = [Setting(law, alpha, n, shape) for shape in _SHAPES]
    return max(float(np.asarray(made.radius_of_tail(tail, setting))[0]) for setting in settings)


def _law(noise: Mapping[str, Any]) -> Noise | None:
    from lightning_rs.noise.base import noise_from_dict

    specs: list[dict[str, Any]] = [dict(noise)]
    if "sigma" in noise:  # Laplace noise is made from its scale
        specs.append({"class": noise["class"], "scale": float(noise["sigma"]) / math.sqrt(2.0)})
    for spec in specs:
        try:
            return noise_from_dict(spec)
        except ValueError:
            continue
    return None


def _named(name: str, base: type[T], what: str) -> type[T]:
    try:
        return class_named(name, base, what)
    except ValueError as error:
        raise ValueError(f"{error}{_near(name, known_classes(base))}") from error


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f": did you mean {found[0]}?" if found else ""
