"""What happens when certificates are contradicted: what is kept, how many chance explains; and the check of a share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_rs.attacks import Attacker, AttackRecord, Geometry
from lightning_rs.certificates.subspace import FirstOrderSubspaceL2
from lightning_rs.records import Certification, Header, environment
from lightning_rs.records.certification import to_line
from lightning_rs.stages.certification import CertificationStage
from lightning_rs.statistics.attacks import attack_allowed

_CHECKED_AT_ONCE = 8


class ContradictionError(ValueError):
    """More certificates are contradicted than chance explains."""


def keep(
    record: AttackRecord, points: Mapping[str, Tensor], certified: Certification, header: Header, beside: Path
) -> AttackRecord:
    """Write all that repeats a contradiction into a file, and return the record that names it.

    The ``.npz`` file holds the image and the points as they were fed, and as JSON in "record" the attack record (votes,
    keys, bounds, verdict), the certification, and the header that it is bound by (checkpoint, noise, runtime, data).
    :func:`lightning_rs.attacks.revote` takes the votes of a test again.

    Args:
        record: the contradicted certificate.
        points: the image and the points that contradict, by kind of test.
        certified: its certification.
        header: that of the certification's file.
        beside: file whose folder gets ``NAME.failures/imageI.npz``.
    """
    path = beside.with_suffix(".failures") / f"image{record.index}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = dataclasses.replace(record, failure=str(path.relative_to(beside.parent)))
    told = {
        "attack": named.to_json(),
        "certification": certified.to_json(),
        "binding": dict(header.binding),
        "informative": dict(header.informative),
        "environment": environment(),
    }
    arrays = {kind: point.cpu().numpy() for kind, point in points.items()}
    np.savez(path, record=np.array(to_line(told)), **arrays)  # type: ignore[arg-type]
    return named


def allowed_contradictions(records: Sequence[AttackRecord], attacker: Attacker) -> int:
    """Return how many contradicted certificates chance explains; none if they are exact.

    One event that all images share, such as a false table of radii, is not among what it counts: it would explain any
    number, so its probability is added to rho instead, see :func:`refuse_contradictions`.
    """
    alpha = max((record.alpha for record in records), default=0.0)
    if alpha == 0:
        return 0
    return int(attack_allowed(len(records), alpha, attacker.rho, attacker.beta))


def chance_of_alarm(attacker: Attacker, shared: float) -> float:
    """Return the probability with which a sound set of certificates is called contradicted: rho and what is shared."""
    return min(attacker.rho + shared, 1.0)


def refuse_contradictions(records: Sequence[AttackRecord], attacker: Attacker, path: Path, shared: float = 0.0) -> None:
    """Raise :class:`ContradictionError` if more certificates are contradicted than chance explains, or one for certain.

    One is for certain if it survived certification with a new key, or if fresh votes confirm what it says of the image.

    Args:
        records: what attacks found.
        attacker: how they were made.
        path: their file.
        shared: probability of the event that would make all certificates false at once (``shared_failure``). Its images
            are not independent, so no number of contradictions excludes it: the error says rho + shared.
    """
    bad = sorted((record for record in records if record.contradicted), key=lambda record: not record.certain)
    allowed, certain = allowed_contradictions(records, attacker), sum(record.certain for record in bad)
    if len(bad) > allowed or certain:
        others = f"; as well images {', '.join(str(record.index) for record in bad[1:9])}" if bad[1:] else ""
        common = f", {shared:g} of it that all images share" if shared else ""
        raise ContradictionError(
            f"{len(bad)} of {len(records)} certificates are contradicted, at most {allowed} by chance (probability "
            f"{chance_of_alarm(attacker, shared):g}{common}), {certain} for certain; first image {bad[0].index}: "
            f"{bad[0].contradiction}{others}; see {path}"
        )


def check_certificates(
    stage: CertificationStage, records: Sequence[Certification], share: float, attacker: Attacker | None = None
) -> str:
    """Test what a share of the certificates asserts, at random and adversarial points, and return a line for people.

    What contradicts a certificate is kept beside the record file, see :func:`keep`.

    Args:
        stage: the finished certification, with its session, data and files.
        records: its certifications.
        share: share of the images, in (0, 1]; they are spread evenly over the indices.
        attacker: how; None: the usual attacks of the noise.

    Raises:
        ContradictionError: if more certificates are contradicted than chance explains.
    """
    config = attacker or Attacker(bracket=False)
    session, files = stage.session, stage.files
    count = max(1, round(share * len(records)))
    chosen = [records[position] for position in np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))]
    first = session.certifier.certificates[0]
    vectors = first.vectors if isinstance(first, FirstOrderSubspaceL2) else None
    geometry = Geometry.of_certificate(first.norm, stage.model.shape, stage.data.domain, stage.data.grid, vectors)
    victim = config.victim(session, stage.model.network, geometry)
    subset = stage.data.certification_subset()
    positions = {int(index): position for position, index in enumerate(subset.indices)}
    attacked: list[AttackRecord] = []
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(chosen), _CHECKED_AT_ONCE):
            part = chosen[start : start + _CHECKED_AT_ONCE]
            images = subset.__getitems__([positions[record.index] for record in part]).image.to(stage.model.device)
            for claim, (record, points) in zip(part, config.run_with_points(victim, part, images.clone()), strict=True):
                attacked.append(keep(record, points, claim, files.header, files.path) if points else record)
    refuse_contradictions(attacked, config, files.path, first.shared_failure)
    tests = sum(len(record.tests) for record in attacked)
    bad = sum(record.contradicted for record in attacked)
    return f"check: {tests} assertions of {len(attacked)} certificates tested by fresh votes, {bad} contradicted"
