"""Weights & Biases, offline: what a run leaves there, and that a second run in the folder works."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_rs.cli import main
from tests.driving import PLAIN

TINY = ("--certifier.init_args.n=100", "--data.init_args.max=7", *(word for word in PLAIN if "logger" not in word))


def test_metrics_table_and_images_arrive_and_a_second_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["fit", "--trainer.max_epochs=2", *TINY]) == 0
    sys.modules["wandb"].teardown()  # its service writes in a process of its own: when that has ended, all is there
    (run,) = Path("runs/wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    for metric in ("train/loss", "val/accuracy_noisy", "certify/ACR", "certify/accuracy@0.25", "certify/abstain"):
        assert metric.encode() in log.read_bytes()
    (table,) = run.glob("files/media/table/certify/images_*.table.json")
    contents = json.loads(table.read_text())
    assert contents["columns"][:4] == ["index", "label", "prediction", "radius"]
    assert [row[0] for row in contents["data"]] == list(range(7))
    assert "perturbation" in contents["data"][0][-1] or "abstains" in contents["data"][0][-1]
    assert len(list(run.glob("files/media/images/certify/curve_*.png"))) == 1
    assert len(list(run.glob("files/media/images/noise/images_*.png"))) == 1
    said = capsys.readouterr().err
    assert f"wandb sync {run.resolve()}" in said or f"wandb sync {run}" in said
    assert "anonymous" not in said

    (saved,) = Path("runs/lightning_rs").glob("*/fit.yaml")
    best = next(Path("runs/lightning_rs").glob("*/checkpoints/epoch*.ckpt"))
    assert sys.modules["wandb"].run is None
    assert main(["certify", "-c", str(saved), "--ckpt_path", str(best), *TINY, "--data.init_args.skip=9"]) == 0
    assert main(["predict", "-c", str(saved), "--ckpt_path", str(best), *TINY]) == 0
    assert len(list(Path("runs/wandb").glob("offline-run-*"))) == 3
    # Every run has a folder of its own, beside its configuration.
    names = sorted(path.parent.name for path in Path("runs/lightning_rs").glob("*/*.yaml"))
    assert len(set(names)) == 3
    assert len(list(Path("runs/lightning_rs").glob("*/predictions.csv"))) == 1
    assert not Path("runs/lightning_rs/version_None").exists()


def test_the_runs_folder_moves_with_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ("--trainer.max_epochs=1", "--certifier=null", "--trainer.default_root_dir=elsewhere")
    assert main(["fit", *words, *TINY[1:]]) == 0
    assert not Path("runs").exists()
    assert list(Path("elsewhere/wandb").glob("offline-run-*"))
    assert list(Path("elsewhere/lightning_rs").glob("*/fit.yaml"))
