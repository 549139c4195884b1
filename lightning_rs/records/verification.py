"""Records against themselves and their header: what is contradictory is refused, what follows from votes is recomputed.

A record file is read again and again long after it was made, and anybody may have edited it. So nothing in it is
believed that can be checked: the fields agree with the header, counts with the numbers of samples, the class with the
selection, bounds with the counts, and radii with the bounds. What cannot be checked without the network or the data is
said in :data:`NOT_CHECKED`.

A radius may be smaller than recomputed only where the record says why: votes within the logit margin (``doubtful``), or
a note that the certificate was given up (``NAME: none, since ...``). Files of version 1 are checked as far as their
header goes, imported ones against what their arguments can certify.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_rs.checks import check_alpha, check_positive
from lightning_rs.records.binding import RECOMPUTED_FROM
from lightning_rs.records.certification import ABSTAIN, Certification
from lightning_rs.records.contradictions import fits_votes
from lightning_rs.records.header import Header
from lightning_rs.records.lowered import may_be_less
from lightning_rs.records.plausibility import check_import, largest_radius
from lightning_rs.records.recomputed import PLAIN, Expected, Plain, Theorem, recompute_all
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper

#: Fields that a record may hold anything in, within its type: facts about the data, remarks for people.
NOT_CHECKED = ("label", "note")
# Recomputation here and there may differ in the last bits, where another release of SciPy does.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
# Version 0.1 rounded at other places.
_RELATIVE_OF_LEGACY = 1e-6
_IMAGE = set("0123456789abcdef")


def theorems_of(path: Path, header: Header) -> list[Theorem]:
    """Return the certificates that a header names; none of an imported file, whose radii nothing recomputes.

    Raises:
        ValueError: naming the file and the header's line, for a certificate that is unknown or has another norm, ball
            or split of alpha.
    """
    try:
        entries = _entries(header)
        return [] if header.imported else [Theorem.of(entry) for entry in entries]
    except ValueError as error:
        raise ValueError(f"{path}:1: {error}") from error


def verify(path: Path, header: Header, theorems: Sequence[Theorem], records: Sequence[Certification]) -> None:
    """Check the records of a file, in its order, against each other and the header.

    Raises:
        ValueError: naming file, line, field, what it must be, and its value.
    """
    expected = None if header.expected is None else set(header.expected)
    most = _largest(path, header, records)
    for line, record in enumerate(records, 2):
        known = _imported(header, record, most) if header.imported else _fields(header, theorems, expected, record)
        for holds, field, right, value in known:
            if not holds:
                raise ValueError(f"{path}:{line}: {field} must be {right}, got {value!r}")
    if not records or header.imported or not all(key in header.binding for key in RECOMPUTED_FROM):
        return
    try:
        expectations = list(recompute_all(header, theorems, records))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: the radii cannot be recomputed from the records: {error}") from error
    for expectation in expectations:
        _compare(path, expectation, records, _RELATIVE_OF_LEGACY if header.legacy else _RELATIVE)


def _entries(header: Header) -> list[Mapping[str, Any]]:
    entries = header.binding.get("certificates")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) and "class" in e for e in entries):
        raise ValueError(f"binding.certificates must list one certificate or more, got {entries!r}")
    if header.imported and len(entries) > 1:
        raise ValueError(f"binding.certificates must list one certificate of an imported file, got {len(entries)}")
    return entries


def _largest(path: Path, header: Header, records: Sequence[Certification]) -> float | None:
    """Return the largest radius that the arguments of an imported file certify, None where they do not fix it."""
    if not header.imported or header.legacy or not records:
        return None
    (entry,), binding = _entries(header), header.binding
    noise, n, alpha, name = binding["noise"], binding["n"], binding["alpha"], str(entry["class"])
    norm, ball, grid = str(entry.get("norm")), entry.get("ball", "open"), records[0].grid
    try:
        if name in PLAIN and noise["class"] == "GaussianNoise" and "GaussianNoise" in PLAIN[name].laws:
            return _largest_gaussian(PLAIN[name], noise, n, alpha, (norm, ball, grid))
        check_import(noise, n, binding["n0"], alpha, norm, name, ball, grid)
        return largest_radius(noise, name, n, alpha)
    except ValueError as error:
        raise ValueError(f"{path}:1: {error}") from error


def _largest_gaussian(
    theorem: Plain, noise: Mapping[str, Any], n: int, alpha: float, stated: tuple[str, str, int | None]
) -> float | None:
    """Check and return the same in numbers: most imports are of Gaussian noise, and torch takes seconds to load."""
    check_positive("sigma", noise.get("sigma", 0.0))
    check_alpha(alpha)
    if stated != (theorem.norm, "open", None):
        raise ValueError(f"norm, ball and grid must be {theorem.norm!r}, 'open' and None, got {stated}")
    if theorem.classes > 1:
        return None
    tail = np.atleast_1d(clopper_pearson_tail_upper(np.array([n]), n, alpha))
    return float(theorem.radius(noise, 1, tail, None)[0])


def _imported(header: Header, record: Certification, most: float | None) -> Iterator[tuple[bool, str, str, Any]]:
    """Yield the same for imported records: nothing but a radius, at most what the arguments can certify."""
    binding, (entry,) = header.binding, _entries(header)
    stated = {**{key: binding[key] for key in ("alpha", "n") if key in binding}, "n_used": record.n, "mode": "fixed"}
    told = {"certificate": entry["class"], **{key: entry[key] for key in ("norm", "ball") if key in entry}}
    for name, right in {**stated, **told}.items():
        value = getattr(record, name)
        yield value == right, name, f"{right!r}, as in the header of the import", value
    for name in ("counts", "counts0", "bounds", "radii"):
        value = getattr(record, name)
        yield not value, name, "empty in an imported record", value
    yield most is None or record.radius <= most, "radius", f"at most {most}, what n votes certify", record.radius


def _fields(
    header: Header, theorems: Sequence[Theorem], expected: set[int] | None, record: Certification
) -> Iterator[tuple[bool, str, str, Any]]:
    """Yield (whether it holds, field, what it must be, what it is) for everything that needs no recomputation."""
    first, binding = theorems[0], header.binding
    yield record.certificate == first.name, "certificate", f"{first.name!r}, as in the header", record.certificate
    yield record.norm == first.norm, "norm", f"{first.norm!r}, that of {first.name}", record.norm
    yield record.ball == first.ball, "ball", f"{first.ball!r}, that of {first.name}", record.ball
    alpha = 0.0 if first.exact else binding.get("alpha")
    if alpha is not None:  # version 1 may leave it out
        yield record.alpha == alpha, "alpha", f"{alpha!r}, as in the header", record.alpha
    lattice = binding.get("lattice")
    grid = lattice.get("grid") if isinstance(lattice, dict) else binding.get("noise", {}).get("q")
    yield record.grid == grid, "grid", f"{grid!r}, that of {first.name} and its noise", record.grid
    yield expected is None or record.index in expected, "index", "one of the header's subset", record.index
    yield from _samples(header, first, record)
    yield from _classes(header, first, record)
    names = {theorem.name for theorem in theorems}
    yield record.radii.keys() == names, "radii", f"those of {', '.join(sorted(names))}", sorted(record.radii)
    if isinstance(lattice, dict) and not header.legacy:
        told, said = lattice["arithmetic"], record.extra.get("arithmetic")
        yield said == told, "extra['arithmetic']", f"{told!r}, as in the header", said
    if header.legacy:
        return
    known = len(record.image) == 64 and set(record.image) <= _IMAGE
    yield known, "image", "the SHA-256 of the image as certified", record.image


def _samples(header: Header, first: Theorem, record: Certification) -> Iterator[tuple[bool, str, str, Any]]:
    binding, budget = header.binding, header.binding.get("budget", {})
    mode = budget.get("mode", "fixed")
    yield record.mode == mode, "mode", f"{mode!r}, as in the header", record.mode
    target = budget.get("radius") if mode == "decision" else None
    yield record.target == target, "target", f"{target!r}, as in the header", record.target
    if not first.exact:
        yield record.n == binding.get("n", record.n), "n", f"{binding.get('n')!r}, as in the header", record.n
    yield record.n >= 1, "n", ">= 1", record.n
    whole = mode in ("fixed", "randomized")
    right = f"n = {record.n}" if whole else f"at most n = {record.n}"
    yield record.n_used == record.n if whole else 0 <= record.n_used <= record.n, "n_used", right, record.n_used
    threshold = binding.get("noise", {}).get("threshold")
    said = record.extra.get("threshold")
    yield said == threshold, "extra['threshold']", f"{threshold!r}, that of the header's noise", said
    fits, right = fits_votes(record)
    yield fits, "counts", right, record.counts
    n0 = 0 if first.exact else binding.get("n0", sum(record.counts0))
    yield sum(record.counts0) == n0, "counts0", f"{n0!r} in all, as in the header", record.counts0


def _classes(header: Header, first: Theorem, record: Certification) -> Iterator[tuple[bool, str, str, Any]]:
    classes = header.binding.get("num_classes")
    if classes is not None:
        yield len(record.counts) == classes, "counts", f"those of {classes} classes", record.counts
        yield record.label is None or record.label < classes, "label", f"below {classes}", record.label
    if first.exact:
        yield record.top == record.runner_up == -1, "top", f"-1: {first.name} selects no class", record.top
        return
    yield len(record.counts0) == len(record.counts), "counts0", f"those of {len(record.counts)} classes", record.counts0
    ranked = np.argsort(-np.array(record.counts0, dtype=np.int64), kind="stable").tolist()
    top, runner_up = ranked[0], ranked[min(1, len(ranked) - 1)]
    yield record.top == top, "top", f"{top}, the class of most selection samples", record.top
    yield record.runner_up == runner_up, "runner_up", f"{runner_up}, the second of the selection", record.runner_up
    yield record.prediction in (top, ABSTAIN), "prediction", f"{top} or {ABSTAIN}", record.prediction


def _compare(path: Path, expected: Expected, records: Sequence[Certification], relative: float) -> None:
    """Refuse the first record whose value is not the recomputed one, unless it says why it claims less."""
    right = expected.values
    found = np.array([expected.read(record) for record in records], dtype=np.float64)
    wrong = ~(np.abs(found - right) <= relative * np.abs(right) + _ABSOLUTE) & ~(found == right)
    for row in np.flatnonzero(wrong).tolist():
        if not may_be_less(records[row], expected.field, float(found[row]), float(right[row])):
            raise ValueError(
                f"{path}:{row + 2}: {expected.field} must be {float(right[row])!r}, {expected.because}, "
                f"got {float(found[row])!r}"
            )
