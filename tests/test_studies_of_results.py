"""Studies of the papers' figures: what they say against closed forms, and those that read results."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.special import gamma

from lightning_rs.cli import main
from lightning_rs.data import SwissRoll
from lightning_rs.engine.streams import image_sha256
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import RecordFile, read_records
from lightning_rs.studies import (
    CertifiedDiscs,
    NoisyImages,
    NormBalls,
    OlderBounds,
    PredictionQuality,
    SafetyRegions,
    SecondOrderRadii,
    SetBound,
    SplittingPictures,
    WorstCases,
    certified_discs,
)
from tests.fakes import certification, header


def quiet(line: str) -> None:
    """Takes progress and drops it."""


def test_no_parameter_beats_the_supremum_and_nothing_beats_cohen() -> None:
    for row in OlderBounds().run(quiet).tables["older_bounds"]:
        betas = [float(value) for name, value in row.items() if name.startswith("beta")]
        orders = [float(value) for name, value in row.items() if name.startswith("order")]
        assert max(betas) - 1e-12 <= float(row["lecuyer"]) <= float(row["cohen"])
        assert max(orders) - 1e-12 <= float(row["renyi"]) <= float(row["cohen"])


def test_the_largest_gradient_says_nothing_and_estimates_cost() -> None:
    known = SecondOrderRadii().run(quiet).tables["second_order_radii"]
    estimated = SecondOrderRadii(n=10**6).run(quiet).tables["second_order_radii"]
    for row, other in zip(known, estimated, strict=True):
        assert float(row["share=1"]) == pytest.approx(float(row["cohen"]), abs=1e-6)
        assert float(row["share=0"]) > float(row["cohen"])
        assert all(float(other[name]) < float(row[name]) for name in row if name != "p")


def test_worst_cases_have_the_probability_and_the_gradient() -> None:
    for row in WorstCases(p=0.8).run(quiet).tables["worst_cases"]:
        assert float(row["p"]) == pytest.approx(0.8, abs=1e-9)
        assert float(row["gradient"]) == pytest.approx(float(row["share"]) * 0.27996, abs=1e-4)
    with pytest.raises(ValueError, match="p must lie between"):
        WorstCases(p=0.3)


def test_regions_hold_the_ball_and_grow_towards_the_gradient() -> None:
    for row in SafetyRegions(directions=9).run(quiet).tables["safety_regions"]:
        assert float(row["without"]) < float(row["against"]) <= float(row["across"]) <= float(row["along"])


def test_the_volume_of_the_ball_is_known() -> None:
    rows = NormBalls(dims=[2, 3, 6]).run(quiet).tables["norm_balls"]
    for row in rows:
        d = float(row["dim"])
        assert float(row["log10_share"]) == pytest.approx(np.log10(np.pi ** (d / 2) / gamma(d / 2 + 1) / 2**d))


def test_splits_agree_as_often_as_the_theorem_says() -> None:
    one, two = SplittingPictures(draws=20_000).run(quiet).tables["splitting_pictures"]
    assert float(one["equal"]) == pytest.approx(0.6, abs=0.02)  # 1 - (0.2 + 0.2) / (2 lam), one draw
    assert float(two["equal"]) == pytest.approx(0.64, abs=0.02)  # (1 - 0.2)^2, independent


def test_discs_are_of_the_points_that_were_certified(tmp_path: Path) -> None:
    source = SwissRoll().source("test")
    points, labels = source.images(np.arange(6)), source.labels[:6]
    found = [
        certification(
            i, label=int(label), prediction=int(label), top=int(label), runner_up=1 - int(label), radius=0.5,
            image=image_sha256(point), radii={"GaussianL2": 0.5, "SecondOrderL2": 0.5 + 0.05 * i},
        ) for i, (point, label) in enumerate(zip(points, labels, strict=True))
    ]  # fmt: skip
    study = CertifiedDiscs("r.jsonl", discs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified_discs, "read_records", lambda path: (None, found))
        made = study.run(quiet)
        assert [row["gain"] for row in made.tables["certified_discs"]] == pytest.approx([0.1 * i for i in range(6)])
        assert "6 of 6 points are right and certified." in made.notes
        assert len(made.figures["certified_discs"].axes[0].patches) == 2 + 2 + 1, "the first disc gains nothing"
        found[2] = dataclasses.replace(found[2], image="5a" * 32)
        with pytest.raises(ValueError, match=r"another point 2: r\.jsonl"):
            study.run(quiet)


def test_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        NoisyImages([])
    missing = NoisyImages([GaussianNoise(0.5)], images=[str(tmp_path / "none.png")], sizes=[4])
    with pytest.raises(OSError, match=r"none\.png"):
        missing.run(quiet)


def test_predictions_are_counted_as_in_the_paper(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with RecordFile(path, header(range(30))) as file:
        for index in range(30):
            file.append([certification(index)])
    _, found = read_records(path)
    smoothed = [int(np.argmax(record.counts)) for record in found]
    other = [(c + 1) % 3 for c in smoothed]
    table = tmp_path / "predictions.csv"
    rows = [
        (0, smoothed[0], smoothed[0], 0),  # correct, accurate
        (1, other[1], smoothed[1], 0),  # incorrect, accurate
        (2, other[2], other[2], 0),  # correct, inaccurate
        (3, smoothed[3], -1, 1),
    ]
    with open(table, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["index", "label", "prediction", "abstain", "n"])
        writer.writerows((*row, 100) for row in rows)
    folder = tmp_path / "out"
    words = ["study", "--study", "PredictionQuality", f"--study.init_args.predictions=[{table}]"]
    assert main([*words, f"--study.init_args.records={path}", "--out", str(folder)]) == 0
    (row,) = PredictionQuality([str(table)], str(path)).run(quiet).tables["prediction_quality"]
    assert row == {
        "n": 100, "images": 4, "correct, accurate": 0.25, "correct, inaccurate": 0.25, "incorrect, accurate": 0.25,
        "incorrect, inaccurate": 0.0, "abstain": 0.25,
    }  # fmt: skip
    table.write_text("index,label,prediction,abstain,n\n99,0,0,0,100\n")
    with pytest.raises(ValueError, match="image 99 is not there"):
        PredictionQuality([str(table)], str(path)).run(quiet)


def test_the_bound_of_the_set_lies_below_its_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with RecordFile(path, header(range(30))) as file:
        for index in range(30):
            file.append([certification(index)])
    rows = SetBound(str(path), points=3).run(quiet).tables["set_bound"]
    for row in rows:
        assert float(row["printed"]) <= float(row["exact"]) <= float(row["accuracy"])
