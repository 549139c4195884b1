"""Record files that combine others: written from finished ones, and checked against what they combine.

The header holds what every part bound, each record those of all parts, so that reading checks the parts as if they were
files of their own, and then computes the combination again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_rs.records.certification import Certification, to_line
from lightning_rs.records.combination import NAMES, Part, Transfer, combine_records, total_alpha, transfer_records
from lightning_rs.records.header import Header, environment
from lightning_rs.records.reading import is_sidecar, load
from lightning_rs.records.verification import theorems_of, verify
from lightning_rs.records.votes import votes_flaw
from lightning_rs.records.writing import write_whole

#: What stands for an expert without a record file.
UNCERTIFIED = "uncertified"
# What makes two files be about one classifier; the runtime too: int8 and fp32 weights answer differently.
_ONE_CLASSIFIER = ("classifier", "function", "noise", "lattice", "runtime")
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12


def combine(
    paths: Sequence[str | Path],
    out: str | Path,
    selector: str | Path | None = None,
    p0: float | None = None,
) -> int:
    """Combine the record files of several classifiers on the same images into one file, and return its length.

    With ``selector``: the routed classifier that asks the expert whom the smoothed selector names; the selector's class
    k is the k-th of ``paths``, and "uncertified" stands for an expert without certificate (R = 0). With ``p0``: the
    cascade that tries the files in their order. With neither: the largest of several radii of one classifier and noise.
    Every file holds at its own alpha, which was fixed before it was sampled; the combination holds at their sum.

    Args:
        paths: finished record files of the experts, in the order of the routes or levels; l2, Gaussian noise.
        out: the file that is written; an existing one is never overwritten.
        selector: record file of the selector, on the same images; its classes are the routes.
        p0: acceptance threshold of a cascade, in [1/2, 1).

    Returns:
        The number of images.

    Raises:
        ValueError: for files of other images, data, shapes, classes, labels, n or stage; files without a radius in l2,
            of decisions, imported ones or ones of version 1; a selector or cascade without independent votes of a fixed
            number; another number of experts than routes; the largest of files of different classifiers, or of files
            that saw the same noise; alphas that sum to one or more; an existing ``out`` that says something else.
        FileNotFoundError: if one of the files does not exist.
    """
    rule = _rule(paths, selector, p0)
    files = [None if str(path) == UNCERTIFIED else Path(path) for path in paths if not is_sidecar(path)]
    asked = files if selector is None else [Path(selector), *files]
    loaded = {path: _load(path) for path in asked if path is not None}
    if len(loaded) < sum(path is not None for path in asked):
        raise ValueError(f"paths must not repeat a record file, got {', '.join(map(str, asked))}")
    experts = {path: loaded[path] for path in files if path is not None}
    if not experts:
        raise ValueError("paths must name at least one record file beside uncertified experts, got none")
    _refuse_strangers(loaded, experts)
    if rule != "best":
        for path in [asked[0]] if rule == "routed" else list(loaded):
            assert path is not None
            _refuse_votes(path, *loaded[path])
    _refuse_rule(rule, loaded, experts, asked, selector)
    first, images = next(iter(experts.values()))
    parts = [Part.uncertified(len(images)) if path is None else Part.of(*loaded[path]) for path in asked]
    if not total_alpha(parts) < 1:
        raise ValueError(f"the alphas of all parts must sum to less than 1, got {total_alpha(parts)!r}")
    header = _header(rule, p0, parts, first, [str(path) for path in asked if path])
    records = combine_records(rule, p0, parts, total_alpha(parts))
    write_whole(out, header, [record.to_json() for record in records])
    return len(records)


def is_combined(header: Header) -> bool:
    """Return whether a file combines others."""
    return "combined" in header.binding


def verify_combined(path: Path, header: Header, records: Sequence[Certification]) -> None:
    """Check the parts of a combination as files of their own, then every field of the combination.

    Raises:
        ValueError: naming file, line, field, what it must be, and its value.
    """
    combined = header.binding["combined"]
    rule, p0 = str(combined.get("rule")), combined.get("p0")
    entry = {"class": NAMES.get(rule), "norm": "l2", "ball": "open"}
    known = [{key: each.get(key) for key in entry} for each in header.binding["certificates"]]
    if rule == "transfer":
        own = [{**entry, **{key: each["certificates"][0].get(key) for key in ("norm", "ball")}} for each in
               combined["parts"] if each is not None]  # fmt: skip
        _verify_transfer(path, header, records, known == own)
        return
    proper = isinstance(p0, int | float) and 0.5 <= p0 < 1 if rule == "cascade" else p0 is None
    if rule not in NAMES or known != [entry] or not proper:
        raise ValueError(f"{path}:1: binding.combined.rule must be one of {', '.join(NAMES)} and fit the certificate")
    told = combined["parts"]
    if rule == "best" and any(
        (each or {}).get(key) != (told[0] or {}).get(key) for each in told for key in _ONE_CLASSIFIER
    ):
        raise ValueError(f"{path}:1: binding.combined.parts must be of one classifier, noise and runtime")
    parts = [_part(path, header, number, bound, records) for number, bound in enumerate(told)]
    if not records:
        return
    if header.binding["alpha"] != total_alpha(parts):
        right, found = total_alpha(parts), header.binding["alpha"]
        raise ValueError(f"{path}:1: binding.alpha must be {right!r}, the sum of the parts, got {found!r}")
    _compare(path, combine_records(rule, p0, parts, total_alpha(parts)), records)


def _verify_transfer(path: Path, header: Header, records: Sequence[Certification], proper: bool) -> None:
    """Check the records of the first classifier, and what harmful pairs leave of them."""
    combined = header.binding["combined"]
    parts, target = combined["parts"], combined.get("target")
    if not proper or len(parts) != 1 or parts[0] is None or not isinstance(target, Mapping):
        raise ValueError(f"{path}:1: binding.combined of a transfer must have one part and a target")
    for key in ("classifier", "function", "runtime", "lattice", "noise", "seed", "streams_of"):
        if key not in target:
            raise ValueError(f"{path}:1: binding.combined.target.{key} is missing, which transfers bind")
    try:
        told = Transfer.of(target)
        total = told.total(float(parts[0]["alpha"]))
    except ValueError as error:
        raise ValueError(f"{path}:1: binding.combined.target: {error}") from error
    lattice, theirs = parts[0]["lattice"] or {}, target["lattice"] or {}
    same = header.binding["noise"] == target["noise"] == parts[0]["noise"]
    on_one = bool(lattice) == bool(theirs) and all(lattice.get(key) == value for key, value in theirs.items())
    if not (same and on_one and target["streams_of"] == parts[0]["classifier"]):
        raise ValueError(f"{path}:1: both classifiers of a transfer must see the same noise, that of the first")
    if header.binding["alpha"] != total:
        raise ValueError(f"{path}:1: binding.alpha must be {total!r}, got {header.binding['alpha']!r}")
    part = _part(path, header, 0, parts[0], records)
    for line, record in enumerate(records, 2):
        harmful, void = record.extra.get("harmful"), record.extra.get("void")
        counted = isinstance(harmful, int) and not isinstance(harmful, bool) and 0 <= harmful <= told.pairs
        if not counted or not isinstance(void, bool):
            raise ValueError(
                f"{path}:{line}: extra['harmful'] must be a number of the {told.pairs} pairs, got {harmful!r}"
            )
    if records:
        numbers = np.array([record.extra["harmful"] for record in records], dtype=np.int64)
        moved = np.array([record.extra["void"] for record in records])
        _compare(path, transfer_records(part, numbers, moved, told), records)


def _compare(path: Path, made: Sequence[Certification], records: Sequence[Certification]) -> None:
    """Refuse the first field that is not what the parts make it."""
    for line, (right, record) in enumerate(zip(made, records, strict=True), 2):
        for field in dataclasses.fields(Certification):
            wanted, found = getattr(right, field.name), getattr(record, field.name)
            if not _same(wanted, found):
                raise ValueError(f"{path}:{line}: {field.name} must be {wanted!r}, from its parts, got {found!r}")


def _rule(paths: Sequence[str | Path], selector: str | Path | None, p0: float | None) -> str:
    if selector is not None and p0 is not None:
        raise ValueError(f"give a selector or p0 of a cascade, not both, got {selector!s} and {p0!r}")
    if p0 is not None and not 0.5 <= p0 < 1:
        raise ValueError(f"p0 must lie in [1/2, 1), got {p0!r}")
    if len(paths) < 2:
        raise ValueError(f"paths must name at least two classifiers, got {len(paths)}")
    if selector is None and UNCERTIFIED in map(str, paths):
        raise ValueError("an uncertified expert needs a selector, got none")
    return "routed" if selector is not None else "best" if p0 is None else "cascade"


def _load(path: Path) -> tuple[Header, list[Certification]]:
    contents = load(path)
    assert contents.header is not None
    header, records = contents.header, sorted(contents.records, key=lambda record: record.index)
    told = header.binding["certificates"][0]
    for holds, wrong in (
        (not contents.torn, "its last line is unfinished: rerun its certification first"),
        (bool(records), "no image is recorded yet"),
        (not header.legacy and not header.imported, "it does not name its images: it was imported, or is of version 1"),
        (not is_combined(header), "it combines others already"),
        (all(r.has_radius for r in records), "decisions have no radius"),
        (all(r.norm == "l2" and r.ball == "open" for r in records), f"its radii are in {told.get('norm')}, not in l2"),
        (header.binding["noise"].get("class") == "GaussianNoise", f"its noise is {header.binding['noise']['class']}"),
    ):
        if not holds:
            raise ValueError(f"{path} cannot be combined: {wrong}")
    return header, records


def _refuse_strangers(
    loaded: Mapping[Path, tuple[Header, list[Certification]]],
    experts: Mapping[Path, tuple[Header, list[Certification]]],
) -> None:
    """Raise ``ValueError`` unless all files are about the same images, and the experts about the same data."""
    first_path, (first, records) = next(iter(experts.items()))
    images = {record.index: record for record in records}
    for path, (header, others) in loaded.items():
        keys = ("n", "stage", "shape", *(("num_classes", "data") if path in experts else ()))
        for key in keys:
            if header.binding[key] != first.binding[key]:
                raise ValueError(
                    f"{path} and {first_path} must have the same {key} to be combined, got "
                    f"{header.binding[key]!r} and {first.binding[key]!r}"
                )
        missing = sorted(images.keys() ^ {record.index for record in others})
        if missing:
            raise ValueError(f"{path} and {first_path} must hold the same images, but only one has {missing[:5]}")
        for record in others:
            own = images[record.index]
            for key in ("image", "grid", *(("label",) if path in experts else ())):
                if getattr(record, key) != getattr(own, key):
                    raise ValueError(
                        f"image {record.index} must be the same in {path} and {first_path}, but {key} differs: "
                        f"{getattr(record, key)!r} and {getattr(own, key)!r}"
                    )


def _refuse_votes(path: Path, header: Header, records: Sequence[Certification]) -> None:
    wrong = votes_flaw(header, records)
    if wrong is not None:
        raise ValueError(f"{path}: a selector or cascade needs the votes of a fixed number of samples, {wrong}")


def _refuse_rule(
    rule: str,
    loaded: Mapping[Path, tuple[Header, list[Certification]]],
    experts: Mapping[Path, tuple[Header, list[Certification]]],
    asked: Sequence[Path | None],
    selector: str | Path | None,
) -> None:
    """Raise ``ValueError`` where the rule's own conditions do not hold."""
    if rule == "routed":
        assert selector is not None
        routes = int(loaded[Path(selector)][0].binding["num_classes"])
        if routes != len(asked) - 1:
            raise ValueError(f"{selector} chooses among {routes} routes, but {len(asked) - 1} experts are given")
    if rule != "best":
        return
    (first_path, (first, _)), *others = experts.items()
    runs = {first_path: first}
    for path, (header, _) in others:
        for key in _ONE_CLASSIFIER:
            if header.binding[key] != first.binding[key]:
                raise ValueError(
                    f"{path} and {first_path} certify different classifiers ({key} differs): the larger radius would "
                    "be about no classifier at all. Combine them by a selector (--selector) or a cascade (--cascade)"
                )
        for other, known in runs.items():
            if all(header.binding[key] == known.binding[key] for key in ("seed", "certificates", "budget")):
                raise ValueError(
                    f"{path} and {other} saw the same samples (seed {header.binding['seed']!r}): the second adds "
                    "nothing and costs its alpha; certify with another --certifier.seed"
                )
        runs[path] = header


def _header(rule: str, p0: float | None, parts: Sequence[Part], first: Header, names: Sequence[str]) -> Header:
    bound = [None if part.header is None else _bound(part.header) for part in parts]
    sigmas = [part.sigma for part in (parts[1:] if rule == "routed" else parts) if part.header is not None]
    shares = {f"part_{k}": part.alpha / total_alpha(parts) for k, part in enumerate(parts) if part.header is not None}
    binding = {
        "noise": {"class": "Combined"},
        "certificates": [{"class": NAMES[rule], "norm": "l2", "ball": "open", "alpha_split": shares}],
        **{key: first.binding[key] for key in ("n0", "n", "data", "num_classes", "shape", "subset")},
        "alpha": total_alpha(parts),
        "budget": {"mode": "fixed"},
        "shared_noise": any(part.header.binding["shared_noise"] for part in parts if part.header is not None),
        "combined": {"rule": rule, "p0": p0, "parts": bound},
    }
    return Header(binding, {**environment(), "sigma": max(sigmas), "combined": list(names)})


def _bound(header: Header) -> dict[str, Any]:
    """Return what a part binds; which images is said once, for all of them."""
    return {**header.binding, "subset": None}


def _part(
    path: Path, header: Header, number: int, bound: Mapping[str, Any] | None, records: Sequence[Certification]
) -> Part:
    """Return a part of a file, checked as if it were a file of its own."""
    told: list[list[Any]] = []
    for line, record in enumerate(records, 2):
        each = record.extra.get("parts")
        if isinstance(each, list) and len(each) == len(header.binding["combined"]["parts"]):
            told.append(each)
        else:
            raise ValueError(f"{path}:{line}: extra['parts'] must hold one record of every part")
    if bound is None:
        if any(each[number] is not None for each in told):
            raise ValueError(f"{path}: part {number} must have no records: its expert is uncertified")
        return Part.uncertified(len(records))
    own = Header({**bound, "subset": header.binding["subset"]})
    try:
        theorems = theorems_of(path, own)
        inner = [Certification.from_json(to_line(each[number]), f"{path}:{i}") for i, each in enumerate(told, 2)]
        verify(path, own, theorems, inner)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: part {number}: {error}") from error
    for line, (part, record) in enumerate(zip(inner, records, strict=True), 2):
        if (part.index, part.image) != (record.index, record.image):
            raise ValueError(f"{path}:{line}: part {number} must be about image {record.index}, got {part.index}")
    return Part.of(own, inner)


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, numbers up to the last bits."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if numbers and math.isfinite(one) and math.isfinite(other):
        return abs(one - other) <= _RELATIVE * abs(one) + _ABSOLUTE
    return bool(one == other)
