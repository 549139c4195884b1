"""Reports: tables, files, Theorem 5 from records, recomputation, and other people's published logs."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_rs.certificates.base import Setting, certificate_from_dict
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.cli.commands import export_main, import_main, merge_main, report_main
from lightning_rs.evidence import Votes
from lightning_rs.metrics import average_certified_radius, certified_accuracy, clean_accuracy
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import ABSTAIN, Certification, RecordFile, nearest_decimals, read_records
from lightning_rs.report import load_runs, report
from lightning_rs.report.changes import change_columns, changes
from lightning_rs.report.groups import default_radii
from lightning_rs.report.tables import Table
from lightning_rs.setting import Selection
from lightning_rs.statistics.accuracy import paired_difference_interval
from tests.fakes import ABSTAINED, DECISION, certification, header, random_records
from tests.oracles import oracle_cases
from tests.reported import (
    CERTIFICATES,
    EXACT,
    SIGMA,
    SPLITTING,
    N,
    noise,
    read_csv,
    save,
    voted_records,
)

BESIDE: list[dict[str, Any]] = [
    {"class": "GaussianLinf", "norm": "linf", "alpha_split": {"p_lower": 1.0}},
    {"class": "GaussianTwoClassL2", "method": "grouped", "norm": "l2",
     "alpha_split": {"p_lower": 1 / 3, "runner_up_upper": 1 / 3, "others_upper": 1 / 3}},
]  # fmt: skip


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_report_csv_has_one_row_a_run_at_full_precision(tmp_path: Path) -> None:
    runs = {name: random_records(np.random.default_rng(seed), 70) for seed, name in enumerate(("a", "b"))}
    paths = [save(tmp_path / f"{name}.jsonl", runs[name]) for name in runs]
    made = report(paths, tmp_path / "out", radii=[0, 0.1, 0.25, 1.5])
    rows = read_csv(tmp_path / "out" / "report.csv")
    assert list(rows[0])[:8] == ["run", "sigma", "n_images", "acr", "abstain", "undecided", "clean", "hard_half_acr"]
    for row, (name, records) in zip(rows, runs.items(), strict=True):
        assert (row["run"], float(row["sigma"]), row["n_images"]) == (name, SIGMA, "70")
        assert float(row["acr"]) == average_certified_radius(records), "no digit is lost"
        expected = certified_accuracy(records, [0, 0.1, 0.25, 1.5])
        assert [float(row[f"acc@{r}"]) for r in ("0", "0.1", "0.25", "1.5")] == expected.tolist()
    # Beside the tables: what a paper takes of them; no p is known of these imported radii, and one sigma has one scale.
    assert [file.name for file in made.files] == [
        "report.csv", "report.md", "report.tex", "report_tables.tex", "report_curves.pdf", "report.png", "report.svg",
    ]  # fmt: skip
    assert all(file.stat().st_size > 200 for file in made.files)


def test_report_csv_says_all_that_the_text_says(tmp_path: Path) -> None:
    records = voted_records()
    path = save(tmp_path / "run.jsonl", records)
    made = report([path], tmp_path / "out", radii=[0, 4], formats=["csv"], rho=0.01, method="exact")
    [row] = read_csv(tmp_path / "out" / "report.csv")
    [run] = load_runs([path])
    assert float(row["clean"]) == clean_accuracy(records)
    assert (row["certificate"], row["noise"]) == ("GaussianL2", "GaussianNoise(sigma=8.0)")
    assert (float(row["alpha"]), row["n"], row["n0"], row["mode"]) == (0.001, "1000", "10", "fixed")
    assert (row["norm"], row["ball"], row["grid"], row["data"]) == ("l2", "open", "", "digits")
    assert (float(row["rho"]), row["theorem_5"], float(row["confidence"])) == (0.01, "exact", 0.95)
    assert row["classifier"] == "ab" * 32
    for r in (0, 4):
        hits = int(run.hits([r])[0])
        assert float(row[f"bound@{r}"]) == float(run.lower_bound([r], 0.01, "exact")[0])
        low, high = stats.binomtest(hits, 40).proportion_ci(0.95, "exact")
        assert float(row[f"acc_low@{r}"]) == pytest.approx(low, abs=1e-9)
        assert float(row[f"acc_high@{r}"]) == pytest.approx(high, abs=1e-9)
    assert float(row["acc@0.5*sigma"]) == certified_accuracy(records, [4])[0]
    right = [r.top == r.label and r.bounds["q_upper"] <= 0.1 for r in records]
    assert float(row["p@0.9"]) == sum(right) / 40
    halves = sorted(r.radius * r.correct for r in records)[:20]
    assert float(row["hard_half_acr"]) == pytest.approx(math.fsum(halves) / 20)
    assert "GaussianL2, alpha = 0.001, n = 1000" in row["notes"]
    text = str(made)
    for key in ("clean", "hard_half_acr", "acr"):
        assert nearest_decimals(float(row[key]), 3 if key == "clean" else 4) in text


def test_what_an_image_took_is_said_by_text_and_csv(tmp_path: Path) -> None:
    records = [certification(0), certification(20), certification(40)]
    with RecordFile(tmp_path / "run.jsonl", header()) as file:
        file.append(records, seconds=[4.0, 1.0, 1.0])
    made = report([tmp_path / "run.jsonl"], tmp_path / "out", formats=["csv"])
    assert "- run: an image took 2 s in the mean, 1 s in the median (3 timed)." in str(made)
    [row] = read_csv(tmp_path / "out" / "report.csv")
    assert (row["seconds_mean"], row["seconds_median"]) == ("2.0", "1.0")
    assert "an image took 2 s in the mean" in row["notes"]
    untimed = report([save(tmp_path / "other.jsonl", records)], tmp_path / "csv", formats=["csv"])
    assert "an image took" not in str(untimed)
    assert read_csv(tmp_path / "csv" / "report.csv")[0]["seconds_mean"] == ""


def test_the_distribution_of_p_has_its_figure_and_its_cap(tmp_path: Path) -> None:
    path = save(tmp_path / "run.jsonl", voted_records())
    [run] = load_runs([path])
    assert run.smallest_tail == pytest.approx(1 - 0.001 ** (1 / N))
    assert run.tails is not None
    assert run.tails.tolist() == [r.bounds["q_upper"] if r.top == r.label else 1.0 for r in run.records]
    made = report([path], tmp_path / "out", formats=["svg", "md"])
    assert [file.name for file in made.files] == ["report.svg", "report_p.svg", "report.md"]
    assert "](report_p.svg)" in (tmp_path / "out" / "report.md").read_text()
    assert "whose lower bound of p >=" in str(made)
    [decided] = load_runs([save(tmp_path / "d.jsonl", [certification(0, status="decided", **DECISION)])])
    [bare] = load_runs([save(tmp_path / "i.jsonl", [certification(0, radius=0.1)])])
    assert decided.tails is None is bare.tails


def test_noise_levels_are_also_compared_at_r_over_sigma(tmp_path: Path) -> None:
    weak = [certification(i, radius=0.25) for i in range(4)]
    paths = [save(tmp_path / "a.jsonl", weak, noise=noise(0.5)), save(tmp_path / "b.jsonl", weak, noise=noise(0.25))]
    made = report(paths, tmp_path / "out", formats=["png"])
    assert [file.name for file in made.files] == ["report.png", "report_sigma.png"]
    [table] = [table for table in made.groups[0].tables() if table.title == "l2: certified accuracy at r / sigma ="]
    assert table.columns == ["run", "0", "0.25", "0.5", "0.75", "1"]
    assert table.rows == [["a", "1.000", "1.000", "1.000", "0.000", "0.000"], ["b", *["1.000"] * 5]]


def test_the_table_for_people(tmp_path: Path) -> None:
    records = [certification(i, radius=r) for i, r in enumerate((0.9, 0.6, 0.3))]
    records += [certification(3, radius=0.9, label=1), certification(4, **ABSTAINED)]
    text = str(report([save(tmp_path / "run.jsonl", records)], radii=[0, 0.5]))
    lines = text.splitlines()
    assert lines[2].split() == ["run", "sigma", "images", "abstain", "clean", "0", "0.5"]
    assert lines[4].split() == ["run", "8", "5", "0.200", "0.600", "0.600", "0.400"]
    # Averages come by themselves and last: easy images dominate them.
    start = lines.index("l2: average certified radius, in input units")
    assert lines[start + 2].split() == ["run", "ACR", "hard", "half"]
    assert lines[start + 4].split() == ["run", "0.3600", "0.1000"]
    assert "- run: GaussianL2, alpha = 0.001, n = 1000, fixed sampling." in lines
    assert "envelope" not in text, "one run has no envelope"


def test_bounds_are_rounded_down_and_intervals_outward(tmp_path: Path) -> None:
    records = [certification(i, radius=0.5, label=7 if i < 331 else 3) for i in range(500)]
    path = save(tmp_path / "run.jsonl", records)
    lines = str(report([path], radii=[0.25], method="exact")).splitlines()
    [run] = load_runs([path])
    exact = float(run.lower_bound([0.25], 0.001, "exact")[0])
    shown = lines[lines.index(next(line for line in lines if "true certified accuracy" in line)) + 4].split()[1]
    assert float(shown) <= exact < float(shown) + 0.001
    low, high = stats.binomtest(331, 500).proportion_ci(0.95, "exact")
    shown_low, shown_high = lines[-lines[::-1].index("") - 2].split()[1].split("-")
    assert low - 0.001 < float(shown_low) <= low
    assert high <= float(shown_high) < high + 0.001


def test_several_runs_have_an_envelope_that_is_called_descriptive(tmp_path: Path) -> None:
    strong = [certification(i, radius=2.0, label=7 if i < 3 else 1) for i in range(10)]
    weak = [certification(i, radius=0.3, label=7 if i < 8 else 1) for i in range(10)]
    made = report([save(tmp_path / "strong.jsonl", strong), save(tmp_path / "weak.jsonl", weak)], radii=[0, 0.5, 2.5])
    text = str(made)
    row = next(line for line in text.splitlines() if line.startswith("envelope"))
    assert row.split() == ["envelope", "(descriptive)", "0.800", "0.300", "0.000"]
    assert "it is not a guarantee" in text
    assert "different images" not in text
    other = save(tmp_path / "other.jsonl", [certification(99)])
    assert "The runs cover different images" in str(report([tmp_path / "weak.jsonl", other]))


def test_runs_are_paired_image_by_image(tmp_path: Path) -> None:
    # At r = 0.5 only the first has images 0-2 and only the second 10-19; image 50 is in one run only.
    first = [certification(i, radius=0.6 if i < 3 or i >= 20 else 0.1) for i in range(40)]
    second = [certification(i, radius=0.1 if i < 10 else 0.9) for i in range(40)] + [certification(50)]
    paths = [save(tmp_path / "first.jsonl", first), save(tmp_path / "second.jsonl", second)]
    made = report(paths, tmp_path / "out", radii=[0, 0.5, 2.0], paired=True)
    lines = str(made).splitlines()
    start = lines.index("l2: second (second) less first (first), certified accuracy on the same 40 images")
    low, high = paired_difference_interval(3, 10, 40)
    p_value = stats.binomtest(3, 13).pvalue
    rows = [line.split() for line in lines[start + 4 : start + 7]]
    assert rows[0] == ["0", "0.000", "-0.088", "to", "+0.088", "0", "0", "1"]
    assert rows[1] == ["0.5", "+0.175", f"{low:+.3f}", "to", f"{high:+.3f}", "10", "3", f"{p_value:.2g}"]
    gains = np.array([b.radius - a.radius for a, b in zip(first, second[:40], strict=True)])
    half = stats.t.ppf(0.975, 39) * gains.std(ddof=1) / math.sqrt(40)
    ends = f"{gains.mean() - half:+.4f} to {gains.mean() + half:+.4f}"
    note = f"second less first: average certified radius {gains.mean():+.4f} (95% Student interval {ends})."
    assert f"- {note}" in lines
    assert "| 0.5 | +0.175 |" in (tmp_path / "out" / "report.md").read_text()
    assert "less" not in str(report(paths))


def test_pairs_must_share_images_and_labels(tmp_path: Path) -> None:
    one = save(tmp_path / "one.jsonl", [certification(0), certification(1)])
    apart = save(tmp_path / "apart.jsonl", [certification(2)])
    relabelled = save(tmp_path / "relabelled.jsonl", [certification(1, label=3)])
    with pytest.raises(ValueError, match="runs one and apart must share images to be paired, they share none"):
        report([one, apart], paired=True)
    with pytest.raises(ValueError, match="image 1 must have one label to be paired, got 7 in one and 3 in relabelled"):
        report([one, relabelled], paired=True)


def test_decisions_are_paired_up_to_their_target(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.jsonl", [certification(i, radius=0.9) for i in range(4)])
    decided = save(tmp_path / "decided.jsonl", [certification(i, status="decided", **DECISION) for i in range(4)])
    text = str(report([plain, decided], radii=[0.0, 0.1, 5.0], paired=True))
    table = text[text.index("decided (second) less plain (first)") :].split("\n\n")[0]
    assert "\n5 " not in table
    assert "\n0.1 " in table
    assert "decided less plain: decisions have no radii to average." in text


def test_norms_are_not_mixed(tmp_path: Path) -> None:
    one = save(tmp_path / "one.jsonl", [certification(0)])
    two = save(tmp_path / "two.jsonl", [certification(0, norm="l1", certificate="GaussianL1", radius=0.3)])
    made = report([one, two], tmp_path / "out")
    assert [(group.norm, [run.name for run in group.runs]) for group in made.groups] == [
        ("l2", ["one"]),
        ("l1", ["two"]),
    ]
    assert [row["run"] for row in read_csv(tmp_path / "out" / "report.csv")] == ["one"]
    assert [row["run"] for row in read_csv(tmp_path / "out" / "report_l1.csv")] == ["two"]
    assert (tmp_path / "out" / "report_l1.png").is_file()


def test_decision_mode_has_no_average_and_nothing_beyond_its_target(tmp_path: Path) -> None:
    records = [certification(i, status="decided", **DECISION) for i in range(6)]
    records += [certification(i, status="undecided", prediction=ABSTAIN, **DECISION) for i in range(6, 8)]
    records += [certification(i, status="abstain", prediction=ABSTAIN, **DECISION) for i in range(8, 10)]
    path = save(tmp_path / "run.jsonl", records)
    made = report([path], tmp_path / "out", radii=[0, 0.5, 0.75])
    [row] = read_csv(tmp_path / "out" / "report.csv")
    assert (row["acr"], row["abstain"], row["acc@0.5"], row["acc@0.75"]) == ("", "0.2", "0.6", "")
    table = str(made).splitlines()
    assert "undecided" in table[2]
    assert table[4].split() == ["run", "8", "10", "0.200", "0.200", "0.800", "0.600", "0.600", "-"]
    assert "only decided whether the radius reaches 0.5" in str(made)
    assert 0.5 in report([path]).groups[0].radii


def test_a_closed_grid_run_counts_steps(tmp_path: Path) -> None:
    exact: dict[str, Any] = {**EXACT, "grid": 255}
    records = [certification(i, radius=d / 255, **exact) for i, d in enumerate((126, 127, 128, 0))]
    made = report([save(tmp_path / "run.jsonl", records, noise=SPLITTING)], tmp_path / "out", radii=[0.5])
    assert read_csv(tmp_path / "out" / "report.csv")[0]["acc@0.5"] == "0.5"
    assert "multiples of 1/255" in str(made)
    assert "DeterministicSplittingL1, exact, n = 1000" in str(made)
    [run] = load_runs([tmp_path / "run.jsonl"])
    assert run.lower_bound([0.5], 0.001, "uniform").tolist() == [0.5], "exact statements need no bound"


def test_default_radii_are_round(tmp_path: Path) -> None:
    def radii(largest: float) -> list[float]:
        path = tmp_path / f"{largest}.jsonl"
        return list(report([save(path, [certification(0, radius=largest)])]).groups[0].radii)

    # At most nine, because the intervals of more do not fit on a page.
    assert radii(0.9) == [0, 0.25, 0.5, 0.75]
    assert radii(3.81) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert radii(0.457) == [0, 0.1, 0.2, 0.3, 0.4]
    assert radii(0.015)[1] == 0.002
    assert radii(12.0)[:3] == [0, 2, 4]
    assert radii(0.5)[-1] == 0.5, "the largest radius itself is included"
    wrong = save(tmp_path / "wrong.jsonl", [certification(0, label=1)])
    assert list(report([wrong]).groups[0].radii) == [0.0]


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0, [0]), (3, [0, 1, 2, 3]), (8, list(range(9))), (9, [0, 1, 2, 3, 5]), (17, [0, 1, 2, 3, 5, 10, 15]),
        (24, [0, 1, 2, 3, 5, 10, 20]), (110, [0, 1, 2, 3, 5, 50, 100]), (2000, [0, 1, 2, 3, 5, 500, 1000, 1500, 2000]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("norm", ["l0", "patch"])
def test_default_radii_of_pixels_are_the_usual_ones(
    tmp_path: Path, norm: str, largest: int, expected: list[int]
) -> None:
    [run] = load_runs([save(tmp_path / "run.jsonl", [certification(0)])])
    counted = dataclasses.replace(run.records[0], norm=norm, radius=float(largest))
    assert default_radii([dataclasses.replace(run, records=[counted])]) == expected


def test_an_unfinished_file_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with RecordFile(path, header()) as file:
        file.append([certification(0), certification(20)])
    assert "run is unfinished: 2 of 3 images." in str(report([path]))


# --- Theorem 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", oracle_cases("theorem5"), ids=lambda case: str(sorted(case["inputs"].items())))
def test_theorem_5_from_records_agrees_with_the_oracles(tmp_path: Path, case: dict[str, Any]) -> None:
    given = case["inputs"]
    total, alpha = given["m"], given["alpha"]
    hits = given["Y"]
    records = [certification(i, radius=0.5, alpha=alpha, label=7 if i < hits else 1) for i in range(total)]
    [run] = load_runs([save(tmp_path / "run.jsonl", records, alpha=alpha)])
    assert case["expected"].keys() >= {"bernstein", "exact_binomial", "uniform_in_r"}
    for method, name in (("bernstein", "bernstein"), ("exact", "exact_binomial"), ("uniform", "uniform_in_r")):
        bound = run.lower_bound([0.25, 0.75], given["rho"], method)  # type: ignore[arg-type]
        assert bound[0] == pytest.approx(case["expected"][name], rel=case["rtol"], abs=1e-13)
        assert bound[1] == 0.0, "no radius is that large"


def test_the_forms_of_theorem_5_are_ordered(tmp_path: Path) -> None:
    records = [certification(i, radius=0.5, label=7 if i < 245 else 1) for i in range(500)]
    [run] = load_runs([save(tmp_path / "run.jsonl", records)])
    bernstein, exact, uniform = (
        float(run.lower_bound([0.25], 0.001, method)[0]) for method in ("bernstein", "exact", "uniform")
    )
    assert bernstein == pytest.approx(0.4796, abs=5e-5)  # math.md A5
    assert exact == pytest.approx(0.4840, abs=5e-5)
    assert uniform <= exact < 245 / 500


def test_theorem_5_is_refused_without_independent_noise_or_with_several_alphas(tmp_path: Path) -> None:
    shared = save(tmp_path / "shared.jsonl", [certification(0)], shared_noise=True)
    [run] = load_runs([shared])
    with pytest.raises(ValueError, match="shared: the images shared their noise"):
        run.lower_bound([0.0], 0.001, "exact")
    text = str(report([shared]))
    assert "refused" in text
    assert "No bound on the whole set: shared: the images shared their noise" in text
    [run] = load_runs([save(tmp_path / "mixed.jsonl", voted_records(images=2))])
    mixed = dataclasses.replace(run, records=[run.records[0], dataclasses.replace(run.records[1], alpha=0.01)])
    with pytest.raises(ValueError, match="mixed: alpha differs between"):
        mixed.lower_bound([0.0], 0.001, "exact")


def test_what_all_images_share_comes_off_rho(tmp_path: Path) -> None:
    def bound(shared: float, rho: float) -> float:
        entry = {**CERTIFICATES[0], "shared_failure": shared}
        path = tmp_path / f"{shared}-{rho}.jsonl"
        path.unlink(missing_ok=True)
        save(path, voted_records(0.05), certificates=[entry])
        return float(load_runs([path])[0].lower_bound([0.0], rho, "bernstein")[0])

    assert bound(9e-4, 1e-3) == pytest.approx(bound(0.0, 1e-4))
    assert bound(9e-4, 1e-3) < bound(0.0, 1e-3)
    with pytest.raises(ValueError, match=r"rho must exceed the failure probability 0.001 of the table .* got 0.001"):
        bound(1e-3, 1e-3)


def test_theorem_5_holds_on_simulated_records(tmp_path: Path) -> None:
    """Certificates that lie with probability alpha: the bound may exceed the truth in a share rho of the runs."""
    alpha, rho, images, truth, repetitions = 0.2, 0.1, 60, 40, 300
    rng = np.random.default_rng(11)
    [run] = load_runs([save(tmp_path / "run.jsonl", [certification(i, alpha=alpha) for i in range(images)])])
    failures = {"bernstein": 0, "exact": 0, "uniform": 0}
    naive = 0
    for _ in range(repetitions):
        # The truth certifies the first 40 images; the others are certified by mistake with probability alpha.
        lies = rng.random(images) < alpha
        records = [
            certification(i, alpha=alpha, radius=0.5, label=7 if i < truth or lies[i] else 1) for i in range(images)
        ]
        trial = dataclasses.replace(run, records=records)
        for method in failures:
            failures[method] += trial.lower_bound([0.25], rho, method)[0] > truth / images  # type: ignore[arg-type]
        naive += trial.accuracy([0.25])[0] > truth / images
    for method, count in failures.items():
        assert stats.binomtest(count, repetitions, rho, alternative="greater").pvalue > 1e-4, method
    assert stats.binomtest(naive, repetitions, rho, alternative="greater").pvalue < 1e-4, "the plain share is no bound"


# --- several certificates ---------------------------------------------------------------------------------------------


def beside(records: Sequence[Certification], *entries: dict[str, Any]) -> list[Certification]:
    """Return records of voted images with what further certificates of votes give at the same alpha."""
    counts = np.array([record.counts for record in records])
    ones = np.ones(len(records), dtype=np.int64)
    setting = Setting(
        GaussianNoise(SIGMA), records[0].alpha, records[0].n, (1, 8, 8), selection=Selection(ones, 0 * ones)
    )
    found = list(records)
    for entry in entries:
        certificate = certificate_from_dict(entry)
        radii = certificate.certify({Votes: Votes.of(counts)}, setting)
        for row, record in enumerate(found):
            bounds = {f"{certificate.name}.{name}": float(values[row]) for name, values in radii.bounds.items()}
            found[row] = dataclasses.replace(
                record, bounds=record.bounds | bounds,
                radii=record.radii | {certificate.name: float(radii.radius[row])},
            )  # fmt: skip
    return found


def several(path: Path) -> Path:
    return save(path, beside(voted_records(), *BESIDE), certificates=[*CERTIFICATES, *BESIDE])


def test_every_certificate_of_a_file_is_a_run(tmp_path: Path) -> None:
    made = report([several(tmp_path / "run.jsonl")])
    assert [(g.norm, [run.name for run in g.runs]) for g in made.groups] == [
        ("l2", ["run:GaussianL2", "run:GaussianTwoClassL2"]),
        ("linf", ["run:GaussianLinf"]),
    ]
    first, other = made.groups[0].runs[0], made.groups[1].runs[0]
    assert average_certified_radius(other.records) == pytest.approx(average_certified_radius(first.records) / 8)
    assert {record.certificate for record in other.records} == {"GaussianLinf"}
    assert "each at its own alpha" in str(made)


def test_changes_of_radius_within_a_file(tmp_path: Path) -> None:
    made = report([several(tmp_path / "run.jsonl")], out=tmp_path / "out")
    (change,) = made.groups[0].changes
    records = read_records(tmp_path / "run.jsonl")[1]
    both = [(r.radius, r.radii["GaussianTwoClassL2"]) for r in records]
    expected = [100 * (new / old - 1) for old, new in both if old > 0 and new > 0]
    assert 0 < len(expected) < len(records)
    assert sorted(change.percent) == pytest.approx(sorted(expected))
    assert not made.groups[1].changes, "another norm has nothing to compare with"
    [row] = made.groups[0].tables()[-1].rows
    gained, lost = sum(old == 0 < new for old, new in both), sum(new == 0 < old for old, new in both)
    assert (row[:2], row[-2:]) == (["run:GaussianTwoClassL2", str(len(expected))], [str(gained), str(lost)])
    names = [file.name for file in made.files]
    endings = [name.removeprefix("report_changes.") for name in names if "changes" in name]
    assert endings == ["csv", "pdf", "png", "svg"]
    assert "report_changes.svg" in (tmp_path / "out" / "report.md").read_text()
    assert "Changes of radius" in str(made)


def test_changes_are_counted_where_only_one_certificate_has_a_radius(tmp_path: Path) -> None:
    def altered(record: Certification, radius: float) -> Certification:
        stated = {"prediction": 1, "status": "certified"} if radius else {"prediction": ABSTAIN, "status": "abstain"}
        return dataclasses.replace(record, radius=radius, **stated)

    records = voted_records()
    first = next(i for i, record in enumerate(records) if record.radius > 0)
    described, runs = [CERTIFICATES[0], BESIDE[1]], []
    for name in ("big", "small"):
        path = save(tmp_path / f"{name}.jsonl", beside(records, BESIDE[1]), certificates=described)
        cohen, other = load_runs([path])
        # Another radius where Cohen abstains as well, and none at one image where it certifies.
        radii = [0.0 if i == first else 0.01 for i in range(len(records))]
        runs += [cohen, dataclasses.replace(other, records=list(map(altered, other.records, radii)))]
    found = changes(runs)
    assert [change.second.name for change in found] == ["big:GaussianTwoClassL2", "small:GaussianTwoClassL2"]
    abstained = sum(record.radius == 0 for record in records)
    assert [(change.gained, change.lost) for change in found] == [(abstained, 1)] * 2
    assert len(found[0].percent) == len(records) - abstained - 1
    assert list(change_columns(found)["GaussianTwoClassL2"]) == ["big", "small"], "one n: told apart by name"


def test_every_certificate_of_votes_is_recomputed(tmp_path: Path) -> None:
    made = report([several(tmp_path / "run.jsonl")], alpha=0.01)
    l2, two_class = made.groups[0].runs
    linf = made.groups[1].runs[0]
    for plain, small in zip(l2.records, linf.records, strict=True):
        assert small.radius == pytest.approx(plain.radius / 8, rel=1e-12), "d = 64"
        assert plain.alpha == small.alpha == 0.01
    assert two_class.records != l2.records
    assert not made.remarks


def test_a_second_certificate_that_cannot_be_recomputed_is_left_out_with_a_remark(tmp_path: Path) -> None:
    records = read_records(several(tmp_path / "run.jsonl"))[1]
    other_split = BESIDE[0] | {"alpha_split": {"p_lower": 0.5, "gradient": 0.5}}
    path = save(tmp_path / "old.jsonl", records, certificates=[*CERTIFICATES, other_split, BESIDE[1]])
    assert [group.norm for group in report([path]).groups] == ["l2", "linf"]
    made = report([path], alpha=0.01)
    assert [group.norm for group in made.groups] == ["l2"]
    assert len(made.remarks) == 1
    assert made.remarks[0] in str(made)
    assert made.remarks[0].startswith("Left out: old:GaussianLinf: alpha cannot be changed: GaussianLinf was recorded")


def test_certificates_that_read_more_than_votes_are_not_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "run.jsonl", voted_records())
    monkeypatch.setattr(GaussianL2, "votes_only", False)
    with pytest.raises(ValueError, match="GaussianL2 reads more than independent votes"):
        report([path], alpha=0.01)


# --- files and commands -----------------------------------------------------------------------------------------------


def test_names_are_the_shortest_that_tell_files_apart(tmp_path: Path) -> None:
    paths = []
    for folder in ("sigma25", "sigma50"):
        (tmp_path / folder).mkdir()
        paths.append(save(tmp_path / folder / "run.jsonl", [certification(0)]))
    assert [run.name for run in load_runs(paths)] == ["sigma25/run", "sigma50/run"]
    assert [run.name for run in load_runs(paths[:1])] == ["run"]
    with pytest.raises(ValueError, match="must not repeat"):
        load_runs([paths[0], paths[0]])


def test_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, files in (("one", ["r-0123abcd"]), ("two", ["x", "y"])):
        (tmp_path / folder).mkdir()
        for file in files:
            save(tmp_path / folder / f"{file}.jsonl", [certification(0)])
    one, two = tmp_path / "one", tmp_path / "two"

    def called(*names: str) -> list[str]:
        return [run.name for run in load_runs([one, two], names)]

    assert called() == ["r", "x", "y"], "without the hash that a stage appends"
    assert called("A", "sigma=0.5") == ["A", "sigma=0.5/x", "sigma=0.5/y"]
    assert called(f"{one}=A") == ["A", "x", "y"]
    assert called(f"{two / 'y.jsonl'}=Y", f"{two}/x.jsonl=a=b".replace("=a=b", "=ab")) == ["r", "ab", "Y"]
    assert [run.name for run in load_runs([one, two], {str(one): "A"})] == ["A", "x", "y"]
    for names, message in (
        (["A"], r"names must be one a path \(2\), or each PATH=NAME with a PATH that is given, got 'A'"),
        ([f"{one}=x"], "names must differ, got 'x' for"),
        (["A", "\n"], "names must be one line of text"),
        ([f"{one}=", "B"], r"names must be one a path"),
    ):
        with pytest.raises(ValueError, match=message):
            called(*names)
    with pytest.raises(ValueError, match="names must belong to paths that are given, got 'nowhere'"):
        load_runs([one], {"nowhere": "A"})
    assert report_main([str(one), str(two / "x.jsonl"), "--name", "first run", "--name", "second"]) == 0
    assert "\nfirst run " in capsys.readouterr().out
    assert report([one, two], names=["A", "B"]).groups[0].runs[2].name == "B/y"


def test_a_wildcard_may_match_sidecars(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [certification(0)])
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert [run.name for run in load_runs(sorted(tmp_path.glob("*.jsonl")))] == ["a"]


def test_bad_input_is_one_error(tmp_path: Path) -> None:
    path = save(tmp_path / "run.jsonl", [certification(0)])
    empty = tmp_path / "empty.jsonl"
    RecordFile(empty, header()).close()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: report([]), "at least one record file"),
        (lambda: report([empty]), "no image is recorded yet"),
        (lambda: report([path], radii=[-1.0]), "radii must be >= 0"),
        (lambda: report([path], rho=0.0), r"rho must lie in \(0, 1\)"),
        (lambda: report([path], formats=["jpg"]), "formats must be one of 'csv'"),
        (lambda: report([path], method="guess"), "method must be one of"),  # type: ignore[arg-type]
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError):
        report([tmp_path / "none.jsonl"])


def test_the_files_are_well_formed(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"run_{i}%.jsonl", voted_records()) for i in range(2)]
    report(paths, tmp_path / "out", radii=[0, 0.5])
    tex = (tmp_path / "out" / "report.tex").read_text()
    # Accuracy at r and at r / sigma, bounds of p, averages, Theorem 5, intervals.
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 6
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert r"run\_0\%" in tex
    assert {line.count("&") for line in body[:4]} == {6}
    assert all("_" not in line.replace(r"\_", "") for line in body)
    assert r"probability $\geq$ 0.999" in tex
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "](report.svg)" in markdown
    for block in markdown.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "out" / "report.svg").getroot().tag.endswith("svg")


NASTY = [
    r"a_b%c&d#e$f^g~h\i{j}",
    "[x]*|<script>",
    "\u00e9 \u00d8 \u4e2d --",
    "runs/resnet110_noise_0.25_lambda_20_eta_0.5/test",
]


def test_the_latex_document_compiles_as_it_is(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.jsonl", voted_records()) for i in range(3)] + [several(tmp_path / "several.jsonl")]
    report(paths, tmp_path / "out", formats=["tex", "pdf"], paired=True, names=NASTY)
    document = (tmp_path / "out" / "report.tex").read_text()
    assert_sound_latex(document)
    assert document.count(r"\documentclass") == document.count(r"\end{document}") == 1
    part = (tmp_path / "out" / "report_tables.tex").read_text()
    assert_sound_latex(part)
    assert "documentclass" not in part
    assert r"\ell_2" in part
    assert r"\label{tab:report-accuracy}" in part
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed; the structure was checked")
    words = [program, "-halt-on-error", "-interaction=nonstopmode", "report.tex"]
    done = subprocess.run(words, cwd=tmp_path / "out", capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


def assert_sound_latex(text: str) -> None:
    """Fail unless groups, environments and maths are closed, rows fit their layout and labels differ."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii() or all(character in "\u00e9\u00d8" for character in body if not character.isascii())
    plain = re.sub(r"\\[\\%&#$_{}]", "", body.replace("\\\\\n", "\n"))
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert "%" not in plain
    assert "#" not in plain
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    labels = re.findall(r"\\label\{([^}]*)\}", body)
    assert len(set(labels)) == len(labels) > 3
    for layout, rows in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", body, flags=re.DOTALL):
        columns = len(re.sub(r">\{[^}]*\}|p\{[^}]*\}", "l", layout).replace("ll", "l"))
        for row in (line for line in rows.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, (layout, row)


def test_markdown_cells_do_not_break_the_table() -> None:
    assert Table("t", ["a|b"], [["c"]]).markdown() == "**t**\n\n| a\\|b |\n| :-- |\n| c |"


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "run.jsonl", voted_records())
    out = tmp_path / "out"
    assert report_main([str(path), "--out", str(out), "--radii", "0", "0.25", "--formats", "csv", "md"]) == 0
    printed = capsys.readouterr().out
    assert "l2: certified accuracy at radius r =" in printed
    assert f"wrote {out / 'report.csv'}" in printed
    assert sorted(file.name for file in out.iterdir()) == ["report.csv", "report.md"]
    twin = save(tmp_path / "twin.jsonl", voted_records())
    assert report_main([str(path), str(twin), "--paired", "--radii", "0"]) == 0
    assert "twin (second) less run (first)" in capsys.readouterr().out
    assert report_main([str(path), "--alpha", "0.05"]) == 0
    assert "alpha = 0.05" in capsys.readouterr().out
    assert report_main([str(tmp_path / "none.jsonl")]) == 1
    assert capsys.readouterr().err == f"lightning_rs report: error: no record file at {tmp_path / 'none.jsonl'}\n"


def test_merge_import_and_export_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = []
    for i, indices in enumerate(([0, 40], [20])):
        parts.append(str(tmp_path / f"{i}.jsonl"))
        with RecordFile(parts[-1], header()) as file:
            file.append([certification(index) for index in indices], seconds=[0.5] * len(indices))
    merged, table, back = (str(tmp_path / name) for name in ("all.jsonl", "all.tsv", "back.jsonl"))
    assert merge_main([*parts, "--out", merged]) == 0
    assert merge_main([parts[0], "--out", str(tmp_path / "part.jsonl")]) == 1
    assert "1 images are missing: 20" in capsys.readouterr().err
    assert export_main([merged, "--out", table]) == 0
    assert Path(table).read_text().splitlines()[1].endswith("\t0:00:00.500000"), "timings survive the merge"
    assert import_main([table, "--out", back, "--sigma", "0.25", "--n", "1000", "--alpha", "0.001"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{table}: 3 images", f"{back}: 3 images"]
    head, records = read_records(back)
    assert head.imported
    assert [record.index for record in records] == [0, 20, 40]
    assert export_main([merged, "--out", table]) == 1, "an existing table is kept"
    with pytest.raises(SystemExit, match="2"):
        import_main([table, "--out", back])  # sigma, n and alpha are part of the statement: no defaults
    assert "--sigma" in capsys.readouterr().err
