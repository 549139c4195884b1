"""Records that claim less than their votes certify: safe, and accepted where they say why."""

from __future__ import annotations

from lightning_rs.records.certification import ABSTAIN, Certification

GIVEN_UP = ": none, since "
#: How status is written as a number: see ``recomputed``.
_ABSTAINED = 2.0


def may_be_less(record: Certification, field: str, found: float, right: float) -> bool:
    """Say whether a record may hold ``found`` where its votes give ``right``.

    Args:
        record: the record.
        field: what was recomputed: ``radii['NAME']``, ``prediction`` or ``status``; nothing else may differ.
        found: the record's value.
        right: the recomputed one.
    """
    given_up, doubtful = abandoned(record), record.extra.get("doubtful", 0)
    doubted = isinstance(doubtful, int) and not isinstance(doubtful, bool) and doubtful > 0
    for name in record.radii:
        if field == f"radii[{name!r}]":
            return found == 0.0 if name in given_up else doubted and 0.0 <= found <= right
    nothing = record.prediction == ABSTAIN and record.radius == 0.0 and record.status == "abstain"
    if not nothing or not (record.certificate in given_up or doubted):
        return False
    return (field == "prediction" and found == ABSTAIN) or (field == "status" and found == _ABSTAINED)


def abandoned(record: Certification) -> set[str]:
    """Return the certificates that a record's note says were given up: ``A, B: none, since ...``."""
    heads = record.note.split(GIVEN_UP)[:-1]
    named = {name.strip() for head in heads for name in head.rpartition("; ")[2].split(",")}
    return named & record.radii.keys()
