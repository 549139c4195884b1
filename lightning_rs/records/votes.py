"""Whether the votes of a record file can be read anew: those of a fixed number of independent samples, or of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lightning_rs.records.certification import Certification
from lightning_rs.records.header import Header

#: Laws whose outcomes all vote.
EXACT_LAWS = frozenset({"BandNoise", "BlockNoise", "DeterministicSplittingNoise"})


def votes_flaw(
    header: Header, records: Sequence[Certification], laws: Collection[str] = ("GaussianNoise",)
) -> str | None:
    """Return why the votes of a file are not those of a fixed number of independent samples; None if they are.

    The words go behind "needs the votes of a fixed number of samples".

    Args:
        header: of the file.
        records: its records.
        laws: of which noise the votes may be; of those in :data:`EXACT_LAWS` they must be of all outcomes.
    """
    again = "certify again with a fixed number of samples (--certifier.budget FixedSamples), which records all counts"
    if "combined" in header.binding:
        return "but this file combines others: ask those"
    if header.imported or not all(record.counts for record in records):
        return f"but this file has none: it was imported with radii only; {again}"
    modes = sorted({record.mode for record in records} - {"fixed"})
    if modes:
        return f"but these were taken in mode {modes[0]!r}, where they decided when to stop or were randomized; {again}"
    law = header.binding["noise"].get("class")
    if law not in laws:
        return f"of {' or '.join(sorted(laws))}, got noise {law}"
    if law in EXACT_LAWS:  # reading has checked that all outcomes are counted
        return None
    if any(sum(record.counts) != records[0].n or len(record.counts) != len(records[0].counts) for record in records):
        return f"but the counts of some image are not all {records[0].n}; {again}"
    if all("both" in record.extra and _pairs(record) for record in records):
        return "but these are of antithetic pairs, which are not independent: certify with GaussianL2 as well"
    return None


def _pairs(record: Certification) -> bool:
    both, one = (np.asarray(record.extra[name]) for name in ("both", "exactly_one"))
    return bool((2 * both + one == np.asarray(record.counts)).all())
