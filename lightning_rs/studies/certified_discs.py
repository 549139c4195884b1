"""Points of the Swiss roll with their certified discs, by two certificates (Levine et al. 2020, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_rs.checks import FloatArray, check_at_least
from lightning_rs.engine.streams import image_sha256
from lightning_rs.plots import plane_figure
from lightning_rs.records import Certification, read_records
from lightning_rs.studies.base import Row, Say, Study, StudyResult


class CertifiedDiscs(Study):
    """Certified points of the plane; around some of them the disc of the file's certificate and that of another one.

    Args:
        records: record file of the test points of ``lightning_rs.data.SwissRoll`` with its usual arguments, in l2.
        certificate: what is compared with the file's first certificate.
        discs: how many points get discs: of those that are right and certified, evenly spread.
    """

    def __init__(self, records: str, certificate: str = "SecondOrderL2", discs: int = 20) -> None:
        self.records, self.certificate = str(records), str(certificate)
        self.discs = check_at_least("discs", discs, 1)

    def run(self, say: Say) -> StudyResult:
        """Tabulate the radii of both certificates, and draw them.

        Raises:
            ValueError: if the records are of other points, or have no l2 radius by the certificate.
        """
        _, records = read_records(self.records)
        points = _points(self.records, records)
        right = [record for record in records if record.correct]
        chosen = np.unique(np.linspace(0, len(right) - 1, min(self.discs, len(right))).round().astype(int))
        drawn = [right[place] for place in chosen]
        figure = plane_figure(points, records, drawn, self.certificate)
        rows: list[Row] = [
            {
                "index": record.index, "label": int(record.label or 0), "radius": record.radius,
                self.certificate: record.radii[self.certificate],
                "gain": record.radii[self.certificate] / record.radius - 1 if record.radius else 0.0,
            } for record in right
        ]  # fmt: skip
        notes = [f"{len(right)} of {len(records)} points are right and certified.", *_gains(rows)]
        return StudyResult({"certified_discs": rows}, {"certified_discs": figure}, notes)


def _gains(rows: Sequence[Row]) -> list[str]:
    notes = []
    for label in sorted({int(row["label"]) for row in rows}):
        gains = np.array([float(row["gain"]) for row in rows if row["label"] == label])
        notes.append(
            f"class {label}: {(gains > 0).mean():.1%} of {len(gains)} radii larger, by {np.median(gains):+.2%} in the "
            f"median, {gains.max():+.2%} at most."
        )
    return notes


def _points(path: str, records: Sequence[Certification]) -> FloatArray:
    """Return all test points, (N, 2), each certified one checked to be that of its record."""
    from lightning_rs.data.toy import SwissRoll  # here, because data load Lightning

    source = SwissRoll().source("test")
    points = source.images(np.arange(len(source)))
    for record in records:
        if record.index >= len(source) or image_sha256(points[record.index]) != record.image:
            raise ValueError(
                f"records must be of the Swiss roll's test points, got another point {record.index}: {path}"
            )
    return points.numpy().astype(np.float64)
