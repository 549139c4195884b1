"""Abstaining predictions by number of samples (Cohen et al. 2019, Table 4)."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from lightning_rs.checks import naming
from lightning_rs.records import read_records
from lightning_rs.studies.base import Row, Say, Study, StudyResult


class PredictionQuality(Study):
    """Shares of the images on which a prediction is correct (the label) and accurate (the smoothed class), or abstains.

    The smoothed class is taken from records of many samples, as in the paper: the class with most votes.

    Args:
        predictions: files of ``predict``, one row each.
        records: record file of the same images, with votes.
    """

    def __init__(self, predictions: Sequence[str], records: str) -> None:
        if not predictions:
            raise ValueError("predictions must name at least one predictions.csv")
        self.predictions, self.records = [str(path) for path in predictions], str(records)

    def run(self, say: Say) -> StudyResult:
        """Tabulate the five shares of Table 4."""
        _, records = read_records(self.records)
        smoothed = {}
        for record in records:
            if not record.counts:
                raise ValueError(f"records must hold votes, got {self.records} without")
            smoothed[record.index] = max(range(len(record.counts)), key=record.counts.__getitem__)
        return StudyResult({"prediction_quality": [self._row(path, smoothed) for path in self.predictions]})

    def _row(self, path: str, smoothed: dict[int, int]) -> Row:
        with naming(path), open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        missing = [row["index"] for row in rows if int(row["index"]) not in smoothed]
        if missing or not rows:
            lacks = f"image {missing[0]} is not there" if missing else "it has no images"
            raise ValueError(f"records must hold every image of {path}: {lacks}")
        shares = dict.fromkeys(("correct, accurate", "correct, inaccurate", "incorrect, accurate",
                                "incorrect, inaccurate", "abstain"), 0)  # fmt: skip
        for row in rows:
            if row["abstain"] == "1":
                shares["abstain"] += 1
                continue
            correct = "correct" if row["prediction"] == row["label"] else "incorrect"
            accurate = "accurate" if int(row["prediction"]) == smoothed[int(row["index"])] else "inaccurate"
            shares[f"{correct}, {accurate}"] += 1
        return {"n": int(rows[0]["n"]), "images": len(rows), **{k: v / len(rows) for k, v in shares.items()}}
