"""The stages of the command line, driven as users drive them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_rs.cli import main
from lightning_rs.cli.defaults import checkpoint_defaults
from lightning_rs.records import body_lines, read_records, read_seconds
from tests.driving import ONE_THREAD, PLAIN, ROOT, SIGMA, certify, indices, run, trained

TINY_FIT = ("--trainer.max_epochs=2", "--certifier.init_args.n=100", "--data.init_args.max=7")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, because the defaults write into ``runs``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_trains_certifies_and_says_what_comes_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *TINY_FIT) == 0
    said = capsys.readouterr()
    best = next((here / "runs/checkpoints").glob("epoch*-noisy*.ckpt"))
    records = next(Path("runs/certify").glob("digits-gaussiannoise-0.25-*[0-9a-f].jsonl"))
    header, certifications = read_records(records)
    assert [record.index for record in certifications] == list(range(7))
    assert header.binding["data"]["split"] == "test"
    assert header.informative["checkpoint"]["path"] == str(best)
    assert Path("runs/fit.yaml").is_file()
    assert Path("runs/noise_images.png").is_file()
    assert Path("runs/certify_curve.png").is_file()
    assert f"checkpoint: {best}" in said.out
    assert "average certified radius" in said.out
    assert f"report:  python -m lightning_rs report {records}" in said.out


def test_certifier_null_switches_the_final_certification_off(here: Path) -> None:
    assert run("fit", *TINY_FIT[:1], "--certifier=null") == 0
    assert not Path("runs/certify").exists()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_takes_model_and_data_from_the_checkpoint(
    stage: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stage, "--ckpt_path", trained()) == 0
    assert f"{'val' if stage == 'validate' else 'test'}/accuracy_noisy" in capsys.readouterr().out


def test_certify_needs_a_checkpoint_only(here: Path) -> None:
    assert run("certify", "--ckpt_path", trained(), "--certifier.init_args.n=100", "--data.init_args.skip=60") == 0
    header, records = read_records(next(Path("runs/certify").glob("*[0-9a-f].jsonl")))
    assert header.binding["noise"] == {"class": "GaussianNoise", "sigma": SIGMA}
    assert header.informative["model"]["network"] == "mlp"
    assert [record.index for record in records] == [0, 60, 120, 180, 240, 300]
    assert sum(record.correct for record in records) >= 4  # the weights were loaded


def test_predict_writes_abstaining_predictions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--certifier.init_args.n=20", "--certifier.init_args.alpha=0.01", "--data.init_args.max=60")
    assert run("predict", "--ckpt_path", trained(), *words) == 0
    with open("runs/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(60))
    for row in rows:
        assert (row["prediction"] == "-1") == (row["abstain"] == "1") == (float(row["p_value"]) > 0.01)
        assert (row["n"], row["alpha"]) == ("20", "0.01")
    assert 0 < sum(row["abstain"] == "1" for row in rows) < 30
    right = sum(row["prediction"] == row["label"] for row in rows) / 60
    assert right > 0.6
    assert f"smoothed accuracy {right:.3f}" in capsys.readouterr().out
    assert not list(Path("runs").glob(".predictions*"))


def test_predictions_draw_fresh_entropy(here: Path) -> None:
    seeds = []
    for folder in ("runs", "runs/predict_1"):
        words = ("--certifier.init_args.n=10", "--data.init_args.max=2")
        assert run("predict", "--ckpt_path", trained(), *words) == 0
        with open(f"{folder}/predictions.csv") as file:
            seeds.append(next(csv.DictReader(file))["seed"])
    assert seeds[0] != seeds[1]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict", "certify"])
def test_every_stage_accepts_the_saved_configuration(stage: str, here: Path) -> None:
    assert run("fit", *TINY_FIT, "--trainer.max_epochs=1", "--trainer.callbacks=[]", "--certifier=null") == 0
    checkpoint = next(Path("runs/checkpoints").glob("*.ckpt"))
    ending = (
        ("--ckpt_path", checkpoint, "--certifier=Certifier", "--certifier.init_args.n=20") if stage != "fit" else ()
    )
    assert run(stage, "-c", "runs/fit.yaml", *ending) == 0
    told = Path(f"runs/{stage}_1/{stage}.yaml").read_text()  # a folder each
    saved = yaml.safe_load(told)
    assert set(saved) == {"seed_everything", "trainer", "model", "data", "certifier"}
    if stage != "fit":
        assert f"# ckpt_path: {checkpoint}" in told


def test_print_config_is_a_configuration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TINY_FIT, *PLAIN, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["trainer"]["max_epochs"] == 2
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "-c", "printed.yaml", "--trainer.fast_dev_run=true"]) == 0


def test_configurations_compose(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = ("model/mlp", "noise/laplace", "data/digits", "certify/staged", "trainer/cpu")
    files = [word for name in configs for word in ("-c", str(ROOT / f"configs/{name}.yaml"))]
    assert main(["fit", *files, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["network"] == "mlp"
    assert config["model"]["init_args"]["noise"]["class_path"].endswith("LaplaceNoise")
    assert config["certifier"]["init_args"]["budget"]["class_path"].endswith("StagedSamples")
    assert config["trainer"]["accelerator"] == "cpu"


def test_other_noise_is_certified_by_its_own_certificate(here: Path) -> None:
    noise = "{class_path: LaplaceNoise, init_args: {scale: 0.2}}"
    assert run("fit", *TINY_FIT, f"--model.init_args.noise={noise}") == 0
    header, _ = read_records(next(Path("runs/certify").glob("*laplace*[0-9a-f].jsonl")))
    assert [c["class"] for c in header.binding["certificates"]] == ["LaplaceL1"]


def test_explicit_noise_warns_and_is_recorded(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=rf"smoothing with GaussianNoise\(sigma=0.5\).*trained with.*{SIGMA}"):
        assert certify(tmp_path / "r.jsonl", "--certifier.init_args.noise=GaussianNoise", *_sigma(0.5), max=2) == 0
    header, _ = read_records(tmp_path / "r.jsonl")
    assert header.binding["noise"]["sigma"] == 0.5
    assert header.informative["model"]["noise"]["sigma"] == SIGMA


def test_the_noise_of_the_model_is_the_checkpoints(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"checkpoint's noise .*0.3.* replaces the configured .*0.5"):
        assert certify(tmp_path / "r.jsonl", "--model.init_args.noise.init_args.sigma=0.5", max=2) == 0
    header, _ = read_records(tmp_path / "r.jsonl")
    assert header.binding["noise"]["sigma"] == header.informative["model"]["noise"]["sigma"] == SIGMA


def test_the_command_line_wins_over_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn = ("--model.init_args.network=digits_cnn", "--model.init_args.network_args={}")
    assert certify(tmp_path / "r.jsonl", *cnn) == 2
    error = capsys.readouterr().err
    assert "network of the checkpoint is 'mlp', but 'digits_cnn' is configured" in error
    assert certify(tmp_path / "r.jsonl", "--model.init_args.network_args={hidden_sizes: [16]}") == 2
    error = capsys.readouterr().err
    assert "does not hold the weights of network 'mlp'" in error
    assert "(32, 64) there and (16, 64) here" in error
    assert certify(tmp_path / "r.jsonl", "--data.init_args.split_seed=7", max=2) == 0
    assert read_records(tmp_path / "r.jsonl")[0].binding["data"]["split_seed"] == 7


def test_a_checkpoint_named_in_a_file_gives_defaults_too(here: Path) -> None:
    Path("c.yaml").write_text(f"ckpt_path: {trained()}\n")
    assert run("certify", "-c", "c.yaml", "--certifier.init_args.n=50", "--data.init_args.max=2") == 0
    header, _ = read_records(next(Path("runs/certify").glob("*[0-9a-f].jsonl")))
    assert header.binding["noise"]["sigma"] == SIGMA


def test_checkpoints_name_model_and_data() -> None:
    defaults = checkpoint_defaults(str(trained()))
    assert defaults["model"]["init_args"]["network"] == "mlp"
    assert defaults["data"]["init_args"]["certify_batch_size"] == 5
    assert checkpoint_defaults("nowhere.ckpt") == {}


def test_a_rerun_does_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert certify(whole) == 0
    lines = whole.read_text().splitlines(keepends=True)
    torn.write_text("".join(lines[:9]) + lines[9][:50])  # header, 8 images, a torn line
    capsys.readouterr()
    assert certify(torn) == 0
    assert "certify the missing 5 of 13 images" in capsys.readouterr().err
    assert sorted(read_seconds(torn)) == [8, 9, 10, 11, 12]
    assert torn.read_text() == whole.read_text().replace("whole", "torn") or body_lines(torn) == body_lines(whole)
    before = torn.read_bytes()
    assert certify(torn) == 0
    assert "all 13 images are recorded" in capsys.readouterr().err
    assert torn.read_bytes() == before


def test_derived_names_resume_even_where_the_micro_batch_is_tuned(here: Path) -> None:
    words = ("--certifier.init_args.n=50", "--data.init_args.max=3", *ONE_THREAD)
    tune = "--certifier.init_args.runtime.init_args.micro_batch=tune"
    assert run("certify", "--ckpt_path", trained(), *words, tune) == 0
    record = next(Path("runs/certify").glob("*[0-9a-f].jsonl"))
    lines = record.read_text().splitlines(keepends=True)
    size = json.loads(lines[0])["binding"]["runtime"]["micro_batch"]
    other = {32: 64}.get(size, 32)  # as if another size had won then
    record.write_text(lines[0].replace(f'"micro_batch":{size}', f'"micro_batch":{other}') + lines[1])
    assert run("certify", "--ckpt_path", trained(), *words, tune) == 0
    assert [file.name for file in Path("runs/certify").glob("*[0-9a-f].jsonl")] == [record.name]
    assert len(body_lines(record)) == 3


def test_another_configuration_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.jsonl"
    assert certify(out, max=2) == 0
    before = out.read_bytes()
    for change, named in (
        ("--certifier.init_args.n=300", "n: 200 != 300"),
        ("--certifier.init_args.seed=5", "seed: 0 != 5"),
        ("--certifier.init_args.alpha=0.05", "alpha: 0.001 != 0.05"),
        ("--data.init_args.max=3", "subset.indices"),
        ("--certifier.init_args.runtime.init_args.precision=bf16-true", "runtime.precision: '32-true' != 'bf16-true'"),
    ):
        capsys.readouterr()
        assert certify(out, change, max=2) == 2
        error = capsys.readouterr().err
        assert "was made with another configuration" in error
        assert named in error
        assert out.read_bytes() == before


def test_batch_sizes_only_schedule(tmp_path: Path) -> None:
    for size in (7, 400):
        assert certify(tmp_path / f"{size}.jsonl", f"--data.init_args.certify_batch_size={size}") == 0
    assert body_lines(tmp_path / "7.jsonl") == body_lines(tmp_path / "400.jsonl")
    assert indices(tmp_path / "7.jsonl") == list(range(13))


def test_shards_merge_to_the_whole(tmp_path: Path) -> None:
    assert certify(tmp_path / "whole.jsonl") == 0
    for shard in range(3):
        assert certify(tmp_path / "part.jsonl", "--shard", f"{shard}/3") == 0
    parts = [str(tmp_path / f"part.shard{shard}of3.jsonl") for shard in range(3)]
    assert [indices(Path(part)) for part in parts] == [list(range(i, 13, 3)) for i in range(3)]
    assert main(["merge", *parts, "--out", str(tmp_path / "merged.jsonl")]) == 0
    assert body_lines(tmp_path / "merged.jsonl") == body_lines(tmp_path / "whole.jsonl")
    assert main(["merge", *parts[:2], "--out", str(tmp_path / "gap.jsonl")]) == 2


def test_another_seed_draws_other_noise(tmp_path: Path) -> None:
    assert certify(tmp_path / "a.jsonl", max=5) == 0
    assert certify(tmp_path / "b.jsonl", "--certifier.init_args.seed=1", max=5) == 0
    assert body_lines(tmp_path / "a.jsonl") != body_lines(tmp_path / "b.jsonl")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_lightnings_precision_does_not_touch_certification(precision: str, tmp_path: Path) -> None:
    assert certify(tmp_path / "a.jsonl") == 0
    assert certify(tmp_path / "b.jsonl", f"--trainer.precision={precision}") == 0
    assert body_lines(tmp_path / "a.jsonl") == body_lines(tmp_path / "b.jsonl")
    assert torch.get_default_dtype() == torch.float32


def test_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("fit", "certify", "report", "merge", "import", "export"))
    assert main(["certify", "--help"]) == 0
    assert "--shard" in capsys.readouterr().out


def _sigma(value: float) -> tuple[str]:
    return (f"--certifier.init_args.noise.init_args.sigma={value}",)
