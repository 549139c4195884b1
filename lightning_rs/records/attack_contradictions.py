"""What in a record of an attack contradicts itself or its header: nothing is believed because it was written here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_rs.records.certification import ABSTAIN
from lightning_rs.records.contradictions import theorem
from lightning_rs.statistics.binomial import clopper_pearson_upper, top_class_p_value

if TYPE_CHECKING:
    from lightning_rs.records.attacks import AttackRecord, ValueTest

# Distances are written with a share of 1e-6 added or taken off; other libraries round bounds in the last bits.
_SHARE, _LAST_BITS = 4e-6, 1e-9
# Where a certificate is tested: at its image, and at points of its ball; and where a contradiction is tried again.
_PLACES = ("clean", "random", "adversarial")
_AGAIN = ("clean again", "half way", "again")
_CONFIRMATION = frozenset({"counts", "n", "beta", "seed", "prediction", "tries"})

Claim = tuple[bool, str, str, Any]


def attack_contradiction(record: AttackRecord, binding: Mapping[str, Any]) -> str | None:
    """Return the first thing that another part of a record, or its header, contradicts: field, what is right, value."""
    for holds, field, right, value in _claims(record, binding):
        if not holds:
            return f"{field} must be {right}, got {value!r}"
    return None


def _claims(record: AttackRecord, binding: Mapping[str, Any]) -> Iterator[Claim]:
    # Each yields in this order, because the later ones compute with what the earlier ones have judged.
    yield from _kinds(record)
    yield from _header(record, binding)
    yield from _distances(record)
    attacker = binding.get("attacker", {})
    if record.confirmation is not None:
        yield from _confirmed(record, record.confirmation, attacker)
    for name in ("tests", "repeated"):
        for place, test in enumerate(getattr(record, name)):
            yield from _tested(record, test, f"{name}[{place}]", attacker)
    yield from _consequences(record)


def _kinds(record: AttackRecord) -> Iterator[Claim]:
    yield _whole(record.index), "index", "a whole number >= 0", record.index
    yield record.label is None or _whole(record.label), "label", "a class or null", record.label
    yield _whole(record.prediction, ABSTAIN), "prediction", f"a class, or {ABSTAIN}", record.prediction
    for name in ("stated", "inside", "certain"):
        yield isinstance(getattr(record, name), bool), name, "true or false", getattr(record, name)
    for name in ("norm", "verdict", "failure"):
        yield isinstance(getattr(record, name), str), name, "a text", getattr(record, name)
    yield record.ball in ("open", "closed"), "ball", "open or closed", record.ball
    for name in ("radius", "searched"):
        yield _real(getattr(record, name), 0), name, "finite and >= 0", getattr(record, name)
    yield _real(record.alpha, 0) and record.alpha < 1, "alpha", "in [0, 1)", record.alpha
    yield record.attacked is None or _real(record.attacked, 0), "attacked", "finite and >= 0, or null", record.attacked


def _header(record: AttackRecord, binding: Mapping[str, Any]) -> Iterator[Claim]:
    yield record.norm == binding.get("norm"), "norm", f"the header's {binding.get('norm')!r}", record.norm
    stated = binding.get("alpha")
    yield record.alpha in (0, stated), "alpha", f"the header's {stated!r}, or 0 if exact", record.alpha
    if not record.alpha:  # only then, because theorems load torch
        named = binding.get("certificate")
        yield isinstance(named, str), "alpha", "> 0: the header names no certificate that could be exact", record.alpha
        known = theorem(str(named))
        yield known is None or known.exact, "alpha", f"> 0: {named} was sampled", record.alpha


def _distances(record: AttackRecord) -> Iterator[Claim]:
    yield record.stated or record.radius == 0, "radius", "0.0 where nothing is stated", record.radius
    nobody = record.prediction == ABSTAIN
    untouched = not record.stated and record.attacked is None and not record.tests
    yield not nobody or untouched, "prediction", "a class where one is stated or attacked", record.prediction
    together = (record.attacked is None) == (record.confirmation is None)
    yield together, "confirmation", "there if attacked is, and only then", record.confirmation
    if record.attacked is None or not record.stated:
        yield not record.inside, "inside", "false without a certificate that is broken", record.inside
    elif record.inside:
        reached = record.attacked * (1 - _SHARE) <= record.radius
        yield reached, "attacked", f"in the ball of radius {record.radius!r} that it is inside of", record.attacked
    else:
        yield record.attacked >= record.radius, "attacked", f"beyond the radius {record.radius!r}", record.attacked


def _confirmed(record: AttackRecord, seen: Any, attacker: Mapping[str, Any]) -> Iterator[Claim]:
    named = isinstance(seen, dict) and set(seen) == _CONFIRMATION
    yield named, "confirmation", f"of {', '.join(sorted(_CONFIRMATION))}", seen
    yield _whole(seen["tries"], 1), "confirmation: tries", "a whole number >= 1", seen["tries"]
    yield from _votes(record, seen, "confirmation", attacker)
    left = _whole(seen["prediction"]) and seen["prediction"] != record.prediction
    right = f"another class than {record.prediction}"
    yield left, "confirmation: prediction", right, seen["prediction"]


def _tested(record: AttackRecord, test: ValueTest, where: str, attacker: Mapping[str, Any]) -> Iterator[Claim]:
    exact = not record.alpha
    kinds = _PLACES if where.startswith("tests") else _AGAIN
    yield test.kind in kinds, f"{where}: kind", f"one of {', '.join(kinds)}", test.kind
    yield _real(test.distance, 0), f"{where}: distance", "finite and >= 0", test.distance
    if test.kind in _PLACES:
        reach = 0.0 if test.kind == "clean" else record.radius * (1 + _SHARE) if record.radius else math.inf
        yield test.distance <= reach, f"{where}: distance", f"at most {reach!r} for {test.kind!r}", test.distance
    yield _whole(test.row), f"{where}: row", "a whole number >= 0", test.row
    yield isinstance(test.failed, bool), f"{where}: failed", "true or false", test.failed
    yield from _votes(record, vars(test), where, attacker)
    most = test.n if exact else 1
    fits = test.lower is None or (_real(test.lower, 0) and test.lower <= most)
    yield fits, f"{where}: lower", f"from 0 to {most}, or null", test.lower
    own = test.counts[record.prediction] if 0 <= record.prediction < len(test.counts) else None
    yield test.count == own, f"{where}: count", f"{own}, the votes for class {record.prediction}", test.count
    bound = float(test.count) if exact else float(clopper_pearson_upper(test.count, test.n, test.beta))
    same = _real(test.upper, 0) and math.isclose(test.upper, bound, rel_tol=_LAST_BITS)
    yield same, f"{where}: upper", f"{bound!r}, what its votes allow", test.upper
    below = test.lower is not None and test.upper < test.lower
    flipped = record.stated and test.prediction not in (ABSTAIN, record.prediction)
    surely = flipped and test.distance < record.radius * (1 - _SHARE)
    perhaps = flipped and test.distance <= record.radius * (1 + _SHARE)
    yield test.failed or not (below or surely), f"{where}: failed", "true: the certificate is contradicted", test.failed
    yield not test.failed or below or perhaps, f"{where}: failed", "false: nothing is contradicted", test.failed


def _votes(record: AttackRecord, seen: Mapping[str, Any], where: str, attacker: Mapping[str, Any]) -> Iterator[Claim]:
    """Counts, their number, the level, and the class that they allow to be named at it."""
    counts, n, beta, prediction = (seen[name] for name in ("counts", "n", "beta", "prediction"))
    listed = isinstance(counts, Sequence) and len(counts) > 1 and all(map(_whole, counts))
    yield listed, f"{where}: counts", "votes of each class", counts
    yield _whole(n, 1) and sum(counts) == n, f"{where}: n", f"{sum(counts)}, the sum of its counts", n
    yield _whole(seen["seed"]), f"{where}: seed", "a whole number >= 0", seen["seed"]
    yield _real(beta, 0) and 0 < beta < 1, f"{where}: beta", "in (0, 1)", beta
    allowed = attacker.get("beta")
    if isinstance(allowed, float):
        yield beta <= allowed, f"{where}: beta", f"a share of the header's {allowed!r}", beta
    if record.alpha and attacker.get("n") is not None:  # an exact law takes all its outcomes
        yield n == attacker["n"], f"{where}: n", f"the header's {attacker['n']}", n
    yield _whole(prediction, ABSTAIN), f"{where}: prediction", f"a class, or {ABSTAIN}", prediction
    if prediction != ABSTAIN:
        second, first = sorted(counts)[-2:]
        most = prediction == counts.index(first)
        yield most, f"{where}: prediction", "the class with the most votes", prediction
        lead = not record.alpha or float(top_class_p_value(first, second)) <= beta * (1 + _LAST_BITS)
        yield lead, f"{where}: prediction", f"{ABSTAIN}: its lead is too small at level {beta!r}", prediction


def _consequences(record: AttackRecord) -> Iterator[Claim]:
    kinds = [test.kind for test in record.tests]
    yield len(set(kinds)) == len(kinds), "tests", "one of each kind", kinds
    voted = [test.counts for test in (*record.tests, *record.repeated)]
    classes = {len(counts) for counts in [*voted, *([record.confirmation["counts"]] if record.confirmation else [])]}
    yield len(classes) <= 1, "counts", "of the same classes everywhere", sorted(classes)
    known = record.label is None or not classes or record.label < max(classes)
    yield known, "label", f"one of the {max(classes, default=0)} classes", record.label
    right = "there if something is contradicted, and only then"
    yield bool(record.verdict) == record.contradicted, "verdict", right, record.verdict
    for name in ("certain", "failure", "repeated"):
        value = getattr(record, name)
        yield record.contradicted or not value, name, "left out where nothing is contradicted", value


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= least
