"""Recomputing radii at another alpha from raw counts, where that is sound."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lightning_rs.checks import check_alpha
from lightning_rs.records import ABSTAIN
from lightning_rs.records.lowered import abandoned
from lightning_rs.report.runs import Run, rebuild_certificate

if TYPE_CHECKING:
    from lightning_rs.certificates.base import Certificate


def recompute(run: Run, alpha: float) -> Run:
    """Return the run at another alpha, from its raw counts, without the network.

    Sound only where the samples were taken regardless of what they showed and the certificate is a function of the
    votes. Exact statements hold at every alpha and are returned as they are.

    Raises:
        ValueError: for alpha outside (0, 1), and wherever it would not be sound: imported files, data-dependent
            stopping, randomized bounds, certificates that read more than votes.
    """
    from lightning_rs.certificates.base import Selection, Setting  # here, because theorems and laws load torch
    from lightning_rs.evidence import Votes
    from lightning_rs.noise import noise_from_dict

    check_alpha(alpha)
    if all(record.alpha == 0 for record in run.records):
        return run
    if run.header.imported:
        if all(record.alpha == alpha for record in run.records):
            return run
        raise ValueError(f"{run.name}: alpha cannot be changed: the file was imported and has no raw counts")
    if "combined" in run.header.binding:
        raise ValueError(f"{run.name}: alpha cannot be changed: it is the sum of those of the files that it combines")
    certificate = rebuild_certificate(run)
    _refuse_unsound(run, certificate)
    records = run.records
    setting = Setting(
        noise=noise_from_dict(run.header.binding["noise"]),
        alpha=float(check_alpha(alpha - run.header.alpha_noise)),
        n=records[0].n,
        shape=tuple(run.header.binding["shape"]),
        selection=Selection.known(
            [record.top for record in records],
            [record.runner_up for record in records],
            [record.counts0 for record in records] if records[0].counts0 else None,
        ),
    )
    counts = np.array([record.counts for record in records], dtype=np.int64)
    radii = certificate.certify({Votes: Votes.of(counts)}, setting)
    # Where images were rounded to a lattice, the same distance as before comes off.
    own = f"{run.certificate}.rounding"
    rounding = [record.bounds.get(own, record.bounds.get("rounding", 0.0)) for record in records]
    if any(rounding):
        radii = radii.less(np.array(rounding))
    # What was given up because logits moved too much is void at every alpha.
    void = [run.certificate in abandoned(record) for record in records]
    changed = [
        replace(
            record,
            prediction=ABSTAIN if void[row] else int(radii.prediction[row]),
            radius=0.0 if void[row] else float(radii.radius[row]),
            status="certified" if radii.prediction[row] >= 0 and not void[row] else "abstain",
            alpha=float(alpha),
            bounds={name: float(values[row]) for name, values in radii.bounds.items()},
            radii={run.certificate: 0.0 if void[row] else float(radii.radius[row])},
            note=record.note if void[row] else radii.notes.get(row, ""),
        )
        for row, record in enumerate(records)
    ]
    return replace(run, records=changed)


def _refuse_unsound(run: Run, certificate: Certificate) -> None:
    from lightning_rs.evidence import Votes

    modes = sorted({record.mode for record in run.records} - {"fixed"})
    if modes:
        raise ValueError(
            f"{run.name}: alpha cannot be changed in mode {modes[0]!r}: the bound depends on how sampling was stopped "
            "or randomized, and a bound for fixed n would be void"
        )
    here = {"norm": certificate.norm, "alpha_split": dict(certificate.alpha_split)}
    recorded = {name: run.entry.get(name) for name in here}
    if here != recorded:
        raise ValueError(
            f"{run.name}: alpha cannot be changed: {certificate.name} was recorded with {recorded}, "
            f"but here it has {here}"
        )
    if not certificate.votes_only or certificate.evidence != (Votes,):
        raise ValueError(f"{run.name}: alpha cannot be changed: {certificate.name} reads more than independent votes")
    for record in run.records:
        if sum(record.counts) != record.n or record.n_used != record.n or record.n != run.records[0].n:
            raise ValueError(
                f"{run.name}: alpha cannot be changed: the counts of image {record.index} are not those of "
                f"{run.records[0].n} independent samples"
            )
