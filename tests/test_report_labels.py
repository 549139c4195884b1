"""Top-k, label sets and targets from the votes of finished records: formulas written again, coverage, refusals."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtri
from torch import Tensor, nn

from lightning_rs.certificates import LaplaceL1, PatchBand
from lightning_rs.certifier import Certifier
from lightning_rs.cli.commands import report_main
from lightning_rs.functional import topk_l2_radius
from lightning_rs.noise import (
    AblationNoise,
    BandNoise,
    BlockNoise,
    DeterministicSplittingNoise,
    LaplaceNoise,
    SplittingNoise,
    UniformNoise,
)
from lightning_rs.noise.base import Noise
from lightning_rs.records import ABSTAIN, Certification, Header
from lightning_rs.report import load_runs, recompute, report
from lightning_rs.report.labels import restate
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper
from lightning_rs.statistics.labels import label_bounds
from tests import fakes
from tests.fakes import certification, header
from tests.label_votes import N, save, tail, upper

SIGMA, ALPHA, CLASSES = 0.5, 0.001, 5
RNG = np.random.default_rng(3)
PROBABILITIES = RNG.dirichlet([4, 2, 1, 0.5, 0.3], 30)
COUNTS = np.array([RNG.multinomial(N, p) for p in PROBABILITIES])
LABELS = RNG.integers(0, 3, 30)


def head(**changes: Any) -> Header:
    noise = {"class": "GaussianNoise", "sigma": SIGMA}
    binding = {"n": N, "n0": 10, "alpha": ALPHA, "num_classes": CLASSES, "noise": noise, **changes}
    return header(**binding)


def voted(index: int, counts: np.ndarray, label: int | None, **changes: Any) -> Certification:
    """A record of Cohen's certificate whose selection samples chose class 0."""
    stated = fakes.voted(int(counts[0]), N, ALPHA, SIGMA)
    nothing = {} if stated["radius"] > 0 else {"prediction": ABSTAIN, "status": "abstain"}
    fields: dict[str, Any] = {
        "label": label, "prediction": 0, "top": 0, "runner_up": 1, "counts0": (7, 3, 0, 0, 0), "alpha": ALPHA, "n": N,
        "n_used": N, "counts": tuple(counts.tolist()),
    }  # fmt: skip
    return certification(index, **(fields | stated | nothing | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "r.jsonl", head(), [voted(i, c, int(LABELS[i])) for i, c in enumerate(COUNTS)])


def test_top_k_bounds_the_label_and_every_other_class(path: Path) -> None:
    (run,) = restate(load_runs([path]), ["TopK:2"]).runs
    for record, counts, label in zip(run.records, COUNTS, LABELS, strict=True):
        q = tail(counts[label], ALPHA / 2)
        others = [min(q, upper(c, ALPHA / 2 / (CLASSES - 1))) for i, c in enumerate(counts) if i != label]
        expected = float(topk_l2_radius(q, others, 2, SIGMA))
        assert record.radius == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert record.prediction == (label if expected > 0 else ABSTAIN)
    certified = [record for record in run.records if record.radius > 0]
    assert 5 < len(certified) < len(COUNTS)
    k_2 = repr(next(record for record in certified if record.prediction == 1))
    assert "takes class 1 out of the 2 most probable ones (TopK:2, n = 2000" in k_2


def test_more_places_never_mean_less_and_one_place_is_two_classes(path: Path) -> None:
    one, two, four = restate(load_runs([path]), ["TopK:1", "TopK:2", "TopK:4"]).runs
    for first, second, last, counts, label in zip(one.records, two.records, four.records, COUNTS, LABELS, strict=True):
        assert first.radius <= second.radius <= last.radius
        q, other = tail(counts[label], ALPHA / 2), upper(max(np.delete(counts, label)), ALPHA / 2 / (CLASSES - 1))
        expected = max(0.0, 0.5 * SIGMA * (-ndtri(q) - ndtri(min(q, other))))
        assert first.radius == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert sum(a.radius < b.radius for a, b in zip(one.records, two.records, strict=True)) > 10


def test_label_sets_inline_and_from_a_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "sets.txt").write_text("# superclasses\nanimals: 0, 2\nvehicles: 1,3-4\n")
    inline, filed = restate(load_runs([path]), ["LabelSets:0,2+1,3-4", f"LabelSets:{tmp_path / 'sets.txt'}"]).runs
    member = np.array([0, 1, 0, 1, 1])
    for record, same, counts, label in zip(inline.records, filed.records, COUNTS, LABELS, strict=True):
        q = tail(counts[0], ALPHA / 2)
        outside = max(upper(counts[c], ALPHA / 6) for c in (1, 3, 4))
        expected = max(0.0, 0.5 * SIGMA * (-ndtri(q) - ndtri(min(q, outside))))
        assert record.radius == same.radius == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert record.label == member[label]
        assert record.prediction == (0 if expected > 0 else ABSTAIN)
    assert any(a.radius > b.radius for a, b in zip(inline.records, load_runs([path])[0].records, strict=True))
    (alone,) = restate(load_runs([path]), ["LabelSets:0,2"]).runs
    assert [record.radius for record in alone.records] == [record.radius for record in inline.records]


def test_targets_are_one_radius_a_class(path: Path, tmp_path: Path) -> None:
    (found,) = restate(load_runs([path]), ["Targets"]).targets
    for row, counts in zip(found.radii, COUNTS, strict=True):
        q = tail(counts[0], ALPHA / 2)
        assert np.isnan(row[0])
        for c in range(1, CLASSES):
            other = min(q, upper(counts[c], ALPHA / 2 / (CLASSES - 1)))
            assert row[c] == pytest.approx(max(0.0, 0.5 * SIGMA * (-ndtri(q) - ndtri(other))), rel=1e-8, abs=1e-12)
    asked = {"certificates": ["Targets", "TopK:2"], "formats": ["csv", "md", "tex"], "names": ['mine, "theirs"']}
    made = report([path], tmp_path / "out", **asked)
    with open(tmp_path / "out" / "report_targets.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ['mine, "theirs"'] * len(COUNTS)
    assert [float(row["not 3"]) for row in rows] == found.radii[:, 3].tolist()
    assert "(first 20 of 30 images" in str(made)
    # Another statement is another table, figure and envelope: its radii say less.
    assert [(group.title, len(group.runs)) for group in made.groups] == [("l2", 1), ("l2, TopK:2", 1)]
    assert "l2, TopK:2: certified accuracy at radius r =" in str(made)
    assert {"report.csv", "report_l2-TopK-2.csv"} <= {file.name for file in made.files}
    assert {file.name for file in made.files} >= {f"report_targets.{ending}" for ending in ("csv", "md", "tex")}
    for name in ("report.md", "report_targets.md", "report_targets.tex"):
        assert "must have been fixed before these votes were seen" in (tmp_path / "out" / name).read_text()


def test_another_alpha_and_unknown_labels(path: Path, tmp_path: Path) -> None:
    strict, loose = (report([path], alpha=alpha, certificates=["TopK:2"]).groups[1].runs[0] for alpha in (0.001, 0.05))
    gains = [b.radius - a.radius for a, b in zip(strict.records, loose.records, strict=True)]
    assert min(gains) >= 0
    assert max(gains) > 0
    assert {record.alpha for record in loose.records} == {0.05}
    unknown = save(tmp_path / "u.jsonl", head(), [voted(i, c, None) for i, c in enumerate(COUNTS[:4])])
    (run,) = restate(load_runs([unknown]), ["TopK:1"]).runs
    assert {record.prediction for record in run.records} <= {0, ABSTAIN}, "the selected class"


P = np.array([0.4, 0.25, 0.25, 0.1])


@pytest.mark.parametrize(("alpha", "images"), [(0.05, 4000), (0.001, 20_000)])
def test_coverage_where_the_true_radius_is_zero(alpha: float, images: int) -> None:
    """Label 1 shares the second place with label 2: whatever is certified for k = 2 is false."""
    counts = np.random.default_rng(11).multinomial(300, P, images)
    label = np.ones(images, dtype=np.int64)
    q, others = label_bounds(counts, label, alpha)
    wrong = int((topk_l2_radius(q, others[:, [0, 2, 3]], 2, 1.0) > 0).sum())
    assert stats.binomtest(wrong, images, alpha, alternative="greater").pvalue > 1e-6
    # Planted: bounds each at a level that is not shared.
    q, others = label_bounds(counts, label, 0.9999)
    planted = int((topk_l2_radius(q, others[:, [0, 2, 3]], 2, 1.0) > 0).sum())
    assert stats.binomtest(planted, images, alpha, alternative="greater").pvalue < 1e-6


def test_all_bounds_hold_together() -> None:
    alpha, images = 0.05, 4000
    counts = np.random.default_rng(12).multinomial(200, P, images)
    q, upper = label_bounds(counts, np.zeros(images, dtype=np.int64), alpha)
    failed = (q < 1 - P[0]) | (upper[:, 1:] < P[1:]).any(axis=1)
    assert stats.binomtest(int(failed.sum()), images, alpha, alternative="greater").pvalue > 1e-6
    assert failed.any()


def test_doubtful_votes_may_be_for_anybody(tmp_path: Path) -> None:
    sure, doubted = ([voted(i, c, 1, extra=extra) for i, c in enumerate(COUNTS)] for extra in ({}, {"doubtful": 40}))
    files = [save(tmp_path / f"{i}.jsonl", head(), r) for i, r in enumerate((sure, doubted))]
    for request in ("TopK:2", "LabelSets:0,2+1,3,4"):
        first, second = (restate(load_runs([file]), [request]).runs[0].records for file in files)
        assert all(b.radius <= a.radius for a, b in zip(first, second, strict=True))
        assert any(b.radius < a.radius for a, b in zip(first, second, strict=True))
    moved = np.array([[1000, 960, 40, 0, 0]])
    q, upper = label_bounds(moved, np.array([1]), ALPHA, missing=40, gained=40)
    assert q[0] == pytest.approx(tail(920, ALPHA / 2))
    assert upper[0, 3] == pytest.approx(upper_of(40))


def upper_of(count: int) -> float:
    return upper(count, ALPHA / 2 / (CLASSES - 1))


def test_what_was_given_up_stays_void(tmp_path: Path) -> None:
    void = {"prediction": ABSTAIN, "radius": 0.0, "status": "abstain", "radii": {"GaussianL2": 0.0}}
    note = "GaussianL2: none, since 3 votes are within the logit margin and logits move by 0.2"
    strong = np.array([1990, 5, 5, 0, 0])
    lost = voted(0, strong, 0, extra={"doubtful": 3}, note=note, **void)
    file = save(tmp_path / "r.jsonl", head(), [lost, voted(1, strong, 0)])
    restated = restate(load_runs([file]), ["TopK:2", "Targets"])
    assert [record.radius > 0 for record in restated.runs[0].records] == [False, True]
    assert (restated.targets[0].radii[:, 1] > 0).tolist() == [False, True]
    again = recompute(load_runs([file])[0], 0.05)
    assert [record.radius > 0 for record in again.records] == [False, True]
    assert again.records[0].note == note


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("Top5", "certificate must be one of 'TopK', 'LabelSets', 'Targets', got 'Top5'"),
        ("TopK", r"r: TopK must name a number in 1\.\.4 \(TopK:2\), got 'TopK'"),
        ("TopK:5", r"TopK must name a number in 1\.\.4"),
        ("LabelSets", "LabelSets must name its sets"),
        ("LabelSets:0,1+1,2", "LabelSets must not repeat a label, got 1 twice"),
        ("LabelSets:0-7", r"LabelSets must list labels in 0\.\.4, as 0,1 or 2-7, got '0-7'"),
        ("LabelSets:0-4", "LabelSets must leave a class outside every set"),
        ("Targets:3", "Targets takes no argument, got '3'"),
    ],
)
def test_bad_requests_are_one_error(path: Path, request_: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restate(load_runs([path]), [request_])
    assert report_main([str(path), "--certificate", request_]) == 1


def test_votes_that_say_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = fakes.save(tmp_path / "printed.jsonl", [certification(0, radius=0.3)], header())
    pairs = {"both": [900, 50, 25, 0, 0], "exactly_one": [50, 0, 0, 0, 0]}
    counts = 2 * np.array(pairs["both"]) + np.array(pairs["exactly_one"])
    antithetic = save(tmp_path / "pairs.jsonl", head(), [voted(0, counts, 0, extra=pairs)])
    for file, message in ((printed, "it was imported with radii only"), (antithetic, "antithetic pairs")):
        with pytest.raises(ValueError, match=message):
            restate(load_runs([file]), ["TopK:2"])
    assert report_main([str(printed), "--certificate", "TopK:2"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    run = load_runs([save(tmp_path / "fixed.jsonl", head(), [voted(0, COUNTS[0], 0)])])[0]
    staged = dataclasses.replace(run, records=[dataclasses.replace(run.records[0], mode="staged")])
    with pytest.raises(ValueError, match=r"mode 'staged'.*FixedSamples"):
        restate([staged], ["TopK:2"])
    other = dataclasses.replace(run.header, binding={**run.header.binding, "noise": {"class": "NormPowerNoise"}})
    with pytest.raises(ValueError, match=r"got noise NormPowerNoise \(its radii come from tables of one probability"):
        restate([dataclasses.replace(run, header=other)], ["Targets"])
    decided = dataclasses.replace(run, records=[dataclasses.replace(run.records[0], mode="decision", target=1.0,
                                                                    status="decided", radius=0.0)])  # fmt: skip
    with pytest.raises(ValueError, match="taken in mode 'decision'"):
        restate([decided], ["TopK:2"])


SHAPE = (1, 4, 4)


class Patterns(nn.Module):
    """The brightest of four rows; where none is kept that is a matter of the others."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0).sum(dim=(1, 3)) * 9.0


def certified(path: Path, noise: Noise, n: int = 400, count: int = 6, certificates: Any = None) -> tuple[Path, Tensor]:
    """Certify random grey images, by the usual certificate of a noise unless others are given, and write the file."""
    images = torch.randint(256, (count, *SHAPE), generator=torch.Generator().manual_seed(5)) / 255
    images = (images * 51).round() / 255  # dark, but for the first row
    images[:, :, 0] = 1.0
    certifier = Certifier(certificates, n0=20, n=n, alpha=ALPHA)
    session = certifier.session(Patterns(), noise, SHAPE, domain=(0.0, 1.0), grid=255)
    records = session.certify(images, labels=[0] * count)
    head = Header.create(session.describe(), data={"name": "grey"}, indices=range(count))
    return save(path, head, list(records)), images


class LaplaceL2(LaplaceL1):
    """Somebody's own: an l1 ball holds the l2 ball whose radius is sqrt(d) times smaller."""

    norm = "l2"

    def radius_of_tail(self, q_upper: Any, setting: Any) -> Any:
        return super().radius_of_tail(q_upper, setting) / math.sqrt(math.prod(SHAPE))


def test_a_law_speaks_in_the_norms_in_which_it_is_known_to_move(tmp_path: Path) -> None:
    path, _ = certified(tmp_path / "own.jsonl", LaplaceNoise(0.3), certificates=[LaplaceL2()])
    (run,) = load_runs([path])
    assert run.norm == "l2"
    for request in ("TopK:2", "LabelSets:0,1", "Targets"):
        with pytest.raises(ValueError, match="of LaplaceNoise is known in l1, got records in 'l2' first: certify"):
            restate([run], [request])


class OwnBand(PatchBand):
    """Somebody's own, whose records nobody recomputes."""


def test_that_all_outcomes_are_counted_is_believed_of_our_certificates_only(tmp_path: Path) -> None:
    path, _ = certified(tmp_path / "own.jsonl", BandNoise(1, shape=SHAPE), certificates=[OwnBand()])
    with pytest.raises(ValueError, match=r"all outcomes to be counted, which nobody checks for .*OwnBand"):
        restate(load_runs([path]), ["TopK:2"])


EXACT: dict[str, Noise] = {
    "splitting": DeterministicSplittingNoise(lam=0.25, shape=SHAPE),
    "band": BandNoise(1, shape=SHAPE),
    "band, several votes": BandNoise(1, shape=SHAPE, threshold=0.2),
    "block": BlockNoise(2, shape=SHAPE),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_files_count_votes(tmp_path: Path, name: str) -> None:
    noise = EXACT[name]
    path, _ = certified(tmp_path / "e.jsonl", noise)
    (own,) = load_runs([path])
    restated = restate([own], ["TopK:1", "TopK:2", "LabelSets:0,1+2,3", "LabelSets:0+1+2+3", "Targets"])
    one, two, pair, alone = restated.runs
    certificate = own.records[0]
    assert {(r.alpha, r.ball, r.norm) for run in restated.runs for r in run.records} == {
        (0.0, "closed", certificate.norm)
    }
    for first, second, sets, single, record in zip(
        one.records, two.records, pair.records, alone.records, own.records, strict=True
    ):
        distance = record.bounds["distance"]
        if record.prediction == 0:  # the label: TopK:1 is the certificate, as are sets of single labels
            assert (first.prediction, first.radius, first.bounds["distance"]) == (0, record.radius, distance)
        assert single.bounds["distance"] == distance
        assert second.bounds["distance"] >= first.bounds["distance"]
        assert sets.bounds["distance"] >= distance
        assert sets.radius >= record.radius
    further = [b.bounds["distance"] > a.bounds["distance"] for a, b in zip(one.records, two.records, strict=True)]
    assert noise.threshold is not None or any(further)
    (targets,) = restated.targets
    nearest = np.nanmin(targets.radii, axis=1)
    assert (nearest >= [record.radius for record in own.records]).all()
    assert nearest.max() > 0 or name == "block"
    assert "exactly, no " in repr(two.records[0])
    made = report([path], tmp_path / "out", certificates=["TopK:2", "Targets"], formats=["csv", "md"])
    assert "may be chosen after looking" in (tmp_path / "out" / "report_targets.md").read_text()
    assert "exact" in str(made)


@pytest.mark.parametrize(
    ("noise", "norm"),
    [
        (UniformNoise(lam=0.5), "l1"),
        (SplittingNoise(lam=0.5), "l1"),
        (LaplaceNoise(0.3), "l1"),
        (AblationNoise(4, shape=SHAPE), "l0"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_sampled_laws_in_the_norm_of_their_certificate(tmp_path: Path, noise: Noise, norm: str) -> None:
    path, _ = certified(tmp_path / "s.jsonl", noise)
    (own,) = load_runs([path])
    restated = restate([own], ["TopK:1", "TopK:3", "LabelSets:0,1+2,3", "Targets"])
    one, three, sets = restated.runs
    assert {record.norm for run in restated.runs for record in run.records} == {norm}
    for first, last, inside in zip(one.records, three.records, sets.records, strict=True):
        assert first.radius <= last.radius
        assert first.radius <= inside.radius + 1e-12 or first.prediction != inside.prediction
    assert any(record.radius > 0 for record in one.records)
    assert norm == "l0" or max(record.radius for record in three.records) > max(record.radius for record in one.records)
    record = own.records[0]
    q = clopper_pearson_tail_upper(record.counts[0], record.n, (record.alpha - own.header.alpha_noise) / 2)
    assert one.records[0].bounds["q_upper"] == pytest.approx(float(q))
    assert np.isfinite(restated.targets[0].radii[:, 1:]).all()
    assert report_main([str(path), "--certificate", "TopK:2", "Targets"]) == 0
