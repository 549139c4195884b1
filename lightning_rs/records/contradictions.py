"""What in a record contradicts itself, seen without its header: nobody's file, and nothing recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from lightning_rs.records.plausibility import certificate_class, known_norm

if TYPE_CHECKING:
    from lightning_rs.certificates.base import Certificate
    from lightning_rs.records.certification import Certification

#: Norms of the certificates here; what stands behind a colon is a variant of one of them.
NORMS = ("l0", "l1", "l2", "linf", "patch")
# A bound may be the frequency itself, computed another way.
_SLACK = 1e-12
# Where a confidence bound fails with at most this probability, it lies on its own side of the frequency.
_MEDIAN = 0.5


def contradiction(record: Certification) -> str | None:
    """Return the first thing in a record that another part of it contradicts: field, what it must be, its value."""
    for holds, field, right, value in _claims(record):
        if not holds:
            return f"{field} must be {right}, got {value!r}"
    return None


def fits_votes(record: Certification) -> tuple[bool, str]:
    """Return whether the counts of a record can be what its estimation samples cast, and what is right.

    A sample casts one vote. Where it votes by threshold it casts several or none: one at most for each class, and all
    together no more than scores that sum to one can reach.
    """
    threshold, used = record.extra.get("threshold"), record.n_used
    if threshold is None:
        return sum(record.counts) == used, f"{used} in all, as n_used says"
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        return False, f"those of votes by a threshold in (0, 1), not {threshold!r}"
    most = used * math.floor(1 / threshold + _SLACK)
    fits = max(record.counts, default=0) <= used and sum(record.counts) <= most
    return fits, f"at most {used} for a class and {most} in all, as n_used and the threshold {threshold!r} say"


def _claims(record: Certification) -> Iterator[tuple[bool, str, str, Any]]:
    """Yield (whether it holds, field, what it must be, what it is)."""
    yield 0 <= record.n_used <= record.n, "n_used", f"at most n = {record.n}", record.n_used
    for name, counts in (("counts", record.counts), ("counts0", record.counts0)):
        yield min(counts, default=0) >= 0, name, ">= 0", counts
    if record.counts:  # imported records have none
        classes, (fits, right) = len(record.counts), fits_votes(record)
        yield fits, "counts", right, record.counts
        for name in ("prediction", "top", "runner_up"):
            yield getattr(record, name) < classes, name, f"one of the {classes} classes counted", getattr(record, name)
    for name, radius in record.radii.items():
        yield math.isfinite(radius) and radius >= 0, f"radii[{name!r}]", "finite and >= 0", radius
    if record.radii or record.counts:
        own = record.radii.get(record.certificate)
        yield own == record.radius, "radius", f"radii[{record.certificate!r}] = {own!r}", record.radius
    known = record.norm.partition(":")[0] in NORMS or known_norm(record.norm)
    right = f"one of {', '.join(NORMS)}, or that of a certificate of yours"
    yield known, "norm", right, record.norm
    yield from _level(record)
    yield from _bounds(record)


def _level(record: Certification) -> Iterator[tuple[bool, str, str, Any]]:
    """A statement without a failure probability has sampled nothing: no selection, no confidence bound."""
    if record.alpha > 0:
        return
    known = theorem(record.certificate)
    sampled = record.top >= 0 or bool(record.counts0) or (known is not None and not known.exact)
    yield not sampled, "alpha", f"> 0: {record.certificate} was sampled", record.alpha


def _bounds(record: Certification) -> Iterator[tuple[bool, str, str, Any]]:
    """Confidence bounds of the class: probabilities, and on the safe side of what was seen."""
    # Pairs and their bounds are votes of another scheme than the counts may be.
    seen = bool(record.counts) and record.top >= 0 and "both" not in record.extra and 0 < record.alpha <= _MEDIAN
    for name, value in record.bounds.items():
        kind = name.rpartition(".")[2]
        if kind not in ("p_lower", "q_upper"):
            continue
        yield 0 <= value <= 1, f"bounds[{name!r}]", "a probability", value
        if seen and kind == "p_lower":
            # A randomized bound lies below that of one more vote.
            hits = record.counts[record.top] + (record.mode == "randomized")
            most = min(1.0, hits / max(1, sum(record.counts)))
            yield value <= most + _SLACK, f"bounds[{name!r}]", f"at most the share {most!r} of the votes", value


@cache
def theorem(name: str) -> type[Certificate] | None:
    """Return the theorem of a name, None if it is somebody else's: then the header says what it is."""
    try:
        return certificate_class(name)
    except ValueError:
        return None
