"""Studies: every configuration runs, what they say is right, existing results are kept, errors are one line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import integrate, stats

from lightning_rs.certificates.dual import gaussian_discrepancy
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy, radius_ratio_to_gaussian
from lightning_rs.cli import main
from lightning_rs.numerics import linf_table
from lightning_rs.numerics.linf_statistics import MixedCorner, PureCorner
from lightning_rs.records import import_tsv
from lightning_rs.studies import (
    AlgorithmTwo,
    DistanceTerms,
    ImageDimensions,
    KAblation,
    NormAngleCheck,
    ParetoFrontier,
    RadiusDistributions,
    Study,
    StudyResult,
)
from lightning_rs.studies._corner import CornerSample
from lightning_rs.studies.radius_distributions import norm_density, norm_moments

# These read records and predictions: tests/test_studies_of_results.py.
OF_RESULTS = ("cohen_prediction_quality", "cohen_set_bound", "levine_swiss_roll")
CONFIGS = sorted(
    path for path in (Path(__file__).parents[1] / "configs" / "study").glob("*.yaml") if path.stem not in OF_RESULTS
)
# The published configurations take up to a minute; these sizes take a second.
TINY = {
    "cohen_noisy_images": ["--study.init_args.sizes=[4]"],
    "cohen_older_bounds": [],
    "cohen_resolution": ["--study.init_args.sizes=[4]"],
    "levine_second_order_radii": ["--study.init_args.n=100000"],
    "levine_worst_cases": [],
    "mohapatra_safety_regions": ["--study.init_args.probabilities=[0.75]", "--study.init_args.shares=[0.5]"],
    "splitting_noisy_images": [
        "--study.init_args.sizes=[4]",
        "--study.init_args.noises=[{class_path: UniformNoise, init_args: {sigma: 3.5}}]",
    ],
    "splitting_pictures": ["--study.init_args.draws=1000"],
    "zhang_norm_balls": [],
    "zhang_algorithm_two": [
        "--study.init_args.dim=9",
        "--study.init_args.k=2",
        "--study.init_args.n=1000",
        "--study.init_args.counts=[990,1000]",
        "--study.init_args.step=0.4",
    ],
    "zhang_distance_terms": [
        "--study.init_args.dims=[2,9]",
        "--study.init_args.powers=[1,3]",
        "--study.init_args.draws=200",
    ],
    "zhang_image_dimensions": [
        "--study.init_args.l2_dims=[60]",
        "--study.init_args.l2_powers=[20]",
        "--study.init_args.linf_dims=[9]",
        "--study.init_args.linf_powers=[2]",
        "--study.init_args.draws=1000",
    ],
    "zhang_k_ablation": ["--study.init_args.dim=60", "--study.init_args.powers=[0,20]"],
    "zhang_norm_angle_check": ["--study.init_args.draws=2000"],
    "zhang_pareto_frontier": ["--study.init_args.powers=[0,3]", "--study.init_args.draws=200"],
    "zhang_radius_distributions": [],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv(linf_table.CACHE, str(tmp_path_factory.getbasetemp() / "tables"))


def quiet(line: str) -> None:
    """Takes progress and drops it."""


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", "-c", str(config), *TINY[config.stem], "--out", str(out)]) == 0
    said = capsys.readouterr().out
    stored = json.loads((out / "study.json").read_text())
    for name, rows in stored["tables"].items():
        with open(out / f"{name}.csv") as file:
            assert len(list(csv.DictReader(file))) == len(rows) > 0
        assert name.replace("_", " ") in said
    assert all(note in said for note in stored["notes"])
    assert f"wrote {out / 'study.yaml'}" in said


def test_the_settings_of_a_result_give_it_again(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    config = next(path for path in CONFIGS if path.stem == "zhang_pareto_frontier")
    assert main(["study", "-c", str(config), *TINY[config.stem], "--out", str(out)]) == 0
    assert main(["study", "-c", str(out / "study.yaml"), "--out", str(again)]) == 0
    for name in ("study.json", "pareto_frontier.csv", "pareto_frontier.png", "study.yaml"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_tables_of_configurations_are_complete():
    assert set(TINY) == {path.stem for path in CONFIGS}
    for path in CONFIGS:
        assert set(yaml.safe_load(path.read_text())) == {"study"}


def test_existing_results_are_kept(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert main(["study", "-c", str(CONFIGS[-1]), "--out", str(out)]) == 2
    assert "out must be a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    assert main(["study", "-c", str(CONFIGS[-1]), "--out", str(tmp_path / "file")]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--study=Nope"], "Nope"),
        (["--study=RadiusDistributions", "--study.init_args.powers=[100]"], "powers must hold powers of at most"),
        (["--study=RadiusDistributions", "--study.init_args.powers=[]"], "powers must hold powers of at most"),
        (["--study=RadiusDistributions", "--study.init_args.sigma=0"], "sigma must be finite and > 0"),
        (["--study=RadiusDistributions", "--study.init_args.width=1"], "width"),
        (["--study=DistanceTerms", "--study.init_args.dims=[2,3]"], "powers must hold one k for each of dims"),
        (["--study=ParetoFrontier", "--study.init_args.accuracies=[1.5]"], "accuracies must lie in (0, 1)"),
        (["--study=ImageDimensions", "--study.init_args.draws=10"], "draws must be a whole number >= 1000, got 10"),
        (["--study=ImageDimensions", "--study.init_args.l2_powers=[1]"], "l2_powers must hold one k for each"),
        (["--study=NormAngleCheck", "--study.init_args.k=0"], "k must be > 0"),
        (["--study=AlgorithmTwo", "--study.init_args.counts=[7]", "--study.init_args.n=5"], "n must be a whole number"),
        (["--study=AlgorithmTwo", "--study.init_args.counts=[700]", "--study.init_args.n=500"], "counts must hold"),
        (["--study=AlgorithmTwo", "--study.init_args.k=784"], "k must be at most dim - 0.25"),
        (["--study=KAblation", "--study.init_args.rule=median"], "rule must be one of"),
        (["--study=KAblation", "--study.init_args.records=[no.jsonl]"], "no.jsonl"),
        ([], "study"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    assert main(["study", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_help_names_the_options(capsys):
    assert main(["study", "--help"]) == 0
    assert "--out" in capsys.readouterr().out


# ---------------------------------------------------------------- results


class Half(Study):
    def run(self, say):
        say("half")
        return StudyResult({"halves": [{"name": "a", "value": 0.5}]}, notes=["Half is 0.5."])


def test_results_are_written_as_they_are(tmp_path):
    heard = []
    files = Half().run(heard.append).write(tmp_path / "new" / "folder")
    assert heard == ["half"]
    assert [file.name for file in files] == ["halves.csv", "study.md", "study.json"]
    assert files[0].read_text().splitlines() == ["name,value", "a,0.5"]
    assert "| a | 0.5 |" in files[1].read_text()
    with pytest.raises(ValueError, match="what is there is kept"):
        Half().run(quiet).write(tmp_path / "new" / "folder")


def test_norm_density_and_moments_agree():
    for dim, k, sigma in ((100, 0.0, 1.0), (100, 95.0, 0.7), (5, 4.5, 2.0)):
        law = stats.gamma(0.5 * (dim - k))

        def of_norm(f, law=law, sigma=sigma):
            return law.expect(lambda g: f(sigma * math.sqrt(2.0 * g)), epsabs=1e-10)

        mean, variance = norm_moments(dim, k, sigma)
        assert mean == pytest.approx(of_norm(lambda r: r), rel=1e-6)
        assert variance == pytest.approx(of_norm(lambda r, m=mean: (r - m) ** 2), rel=1e-5)
        part = integrate.quad(lambda r, d=dim, k=k, s=sigma: float(norm_density(np.array(r), d, k, s)), 0.5, mean)[0]
        wanted = np.diff(law.cdf(np.array([0.5, mean]) ** 2 / (2 * sigma**2)))[0]
        assert part == pytest.approx(wanted, rel=1e-6)


def test_radius_distributions_say_what_the_figure_is_about():
    """k moves the mean and leaves the variance; sigma shrinks both."""
    rows = RadiusDistributions().run(quiet).tables["radius_distributions"]
    by_k, by_sigma = ([r for r in rows if r["changed"] == kind] for kind in ("k", "sigma"))
    assert by_k[-1]["mean"] < 0.25 * by_k[0]["mean"]
    assert by_k[-1]["variance"] > 0.9 * by_k[0]["variance"]
    assert by_sigma[-1]["variance"] == pytest.approx(0.04 * by_sigma[0]["variance"])


def test_corner_sample_against_quadrature():
    """k_inf = 0 with an l2 power is the l2 family, whose discrepancy at the corner is exact; within six errors."""
    sample = CornerSample(MixedCorner(6, 0.0, 2.0), 4000, 0)
    for lam, r in ((1.0, 0.1), (1.0, 0.8), (0.3, 0.5), (4.0, 0.5)):
        value, error = sample.discrepancy(lam, r)
        assert abs(value - norm_power_discrepancy(lam, r * math.sqrt(6), 1.0, 2.0, 6)) < 6 * error
    gaussian = CornerSample(MixedCorner(6, 0.0, 0.0), 4000, 1).discrepancy(1.0, 0.4)
    assert abs(gaussian[0] - gaussian_discrepancy(1.0, 0.4 * math.sqrt(6), 1.0)) < 6 * gaussian[1]


def test_distance_terms_order_the_laws():
    """In image dimensions the mixed norm separates more than the l2 family, against Figure 3 of the paper."""
    rows = DistanceTerms([5, 400], [3, 33], [0.25, 1.0, 2.0], draws=1000).run(quiet).tables["distance_terms"]
    for row in rows:
        slack = 5 * row["standard_error"]
        assert row["gaussian"] == pytest.approx(2 * stats.norm.cdf(row["fraction"] / 2) - 1)
        assert row["gaussian"] < row["l2"] < row["mixed"] + slack
        assert row["mixed"] < row["pure"] + slack
    assert rows[-2]["l2"] == pytest.approx(rows[-2]["gaussian"], abs=1e-4)
    assert rows[-2]["mixed"] > rows[-2]["l2"] + 0.05


def test_pareto_frontier_by_brute_force():
    """Accuracy and distance at one (k, sigma) of the pure family, by counting; the frontier is never above it."""
    study = ParetoFrontier(radius=0.2, powers=[0, 2], draws=4000)
    curve = study._pure(2.0)
    i = int(np.abs(curve.accuracy - 0.7).argmin())
    rows = study.run(quiet).tables["pareto_frontier"]
    at = {row["accuracy"]: row["distance"] for row in rows if row["family"] == "pure"}
    assert at[0.7] <= curve.distance_at(np.array(0.7)) + 1e-12
    value, error = CornerSample(PureCorner(5, 2.0), 20_000, 9).discrepancy(1.0, 0.2 / study._sigma[i])
    assert abs(value - curve.distance[i]) < 6 * math.hypot(error, curve.error)
    rng = np.random.default_rng(0)
    m = np.sqrt(2 * rng.gamma(1.5, size=100_000)) * study._sigma[i]
    s = rng.uniform(-1, 1, size=(100_000, 5))
    norm = m * np.linalg.norm(s, axis=1) / np.abs(s).max(axis=1)
    assert abs((norm <= 0.65).mean() - curve.accuracy[i]) < 0.01


def test_pareto_frontiers_meet_the_gaussian_where_a_certificate_is_possible():
    """At lambda = 1 the bound exceeds one half only for p above one half, and there k = 0 is best in each family."""
    rows = ParetoFrontier(powers=[0, 2, 4.5], draws=4000).run(quiet).tables["pareto_frontier"]
    for row in rows:
        if row["family"] != "pure" and row["accuracy"] >= 0.5:
            assert row["best_k"] == 0.0
    l2 = {row["accuracy"]: row for row in rows if row["family"] == "l2"}
    assert l2[0.3]["best_k"] == 4.5


def test_k_ablation_of_records(tmp_path):
    table = tmp_path / "run.tsv"
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    lines += [
        f"{i}\t1\t{p}\t{r}\t{int(p == 1)}\t0:00:01"
        for i, (p, r) in enumerate([(1, 0.502), (1, 0.902), (2, 1.102), (-1, 0.0)])
    ]
    table.write_text("\n".join(lines) + "\n")
    import_tsv(
        table, tmp_path / "run.jsonl", noise={"class": "GaussianNoise", "sigma": 0.5}, n=1000, n0=100, alpha=0.001
    )
    study = KAblation(60, [0, 59], records=[str(tmp_path / "run.jsonl")], radii=[0.1, 0.5, 0.9, 1.0], rule="rms")
    rows = study.run(quiet).tables["certified_accuracy"]
    assert list(rows[0].values()) == [0, 0.5, 0.5, 0.25, 0.0]
    # With k close to d the family certifies much less.
    assert list(rows[1].values()) == [59, 0.5, 0.0, 0.0, 0.0]


def test_k_ablation_and_image_dimensions_agree_with_the_certificates():
    rows = KAblation(3072, [0, 500]).run(quiet).tables["radius_ratio"]
    assert all(value == pytest.approx(1.0, abs=1e-12) for key, value in rows[0].items() if key != "k")
    assert rows[1]["p=0.99"] == pytest.approx(float(radius_ratio_to_gaussian(0.99, 500, 3072)), rel=1e-12)
    result = ImageDimensions([60], [20], [60], [20], scores=[1.0, 2.0], draws=2000).run(quiet)
    l2, linf = result.tables["radius_ratio"]
    assert l2["z=2"] == pytest.approx(float(radius_ratio_to_gaussian(stats.norm.cdf(2.0), 20, 60)), rel=1e-9)
    assert 0.3 < linf["z=1"] < 0.98


def test_algorithm_two_stays_below_the_exact_radius():
    result = AlgorithmTwo(9, 2.0, 0.5, [5000, 9000, 9900], n=10_000, step=0.02).run(quiet)
    rows = result.tables["algorithm_two"]
    assert rows[0]["algorithm_two"] == 0.0  # half of the votes
    assert all(row["algorithm_two"] <= row["exact"] for row in rows)
    # The two bounds cost something, but not everything.
    assert 0.7 * rows[1]["exact"] < rows[1]["algorithm_two"] < rows[2]["algorithm_two"]


def test_norm_angle_check_finds_a_wrong_table(monkeypatch):
    """The quadrature of k = 25 instead of 20 stands out by many standard errors."""
    right = NormAngleCheck(60, 20.0, [1.0, 2.0], draws=400_000)
    assert all(abs(row["standard_errors_off"]) < 5 for row in right.run(quiet).tables["norm_angle_check"])
    from lightning_rs.studies import norm_angle_check

    law = norm_angle_check.converged_law(60, 25.0)
    monkeypatch.setattr(norm_angle_check, "converged_law", lambda dim, k: law)
    wrong = right.run(quiet).tables["norm_angle_check"]
    assert any(abs(row["standard_errors_off"]) > 8 for row in wrong)
