"""Weights & Biases, CSV and TensorBoard get the same numbers: one run with all three, each read back from its files."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_rs.cli import main
from tests.driving import ONE_THREAD, PLAIN
from tests.wandb_runs import read_run

LOGGED = tuple(word for word in PLAIN if "logger" not in word)
FEW = ("--certifier.init_args.n=100", "--certifier.init_args.n0=20", "--data.init_args.max=5", *ONE_THREAD)
CALLBACKS = (
    "[{class_path: lightning_rs.callbacks.EpochEndCertification, init_args: {images: 8, share: null, "
    "certifier: {n0: 16, n: 50, alpha: 0.01}}}, "
    "{class_path: ModelCheckpoint, init_args: {monitor: preview/ACR, mode: max}}]"
)
ATTACKER = "--attacker={n: 200, screen: 50, copies: 4, rounds: 1, beta: 0.01}"
# Axes of ours, and what W&B and Lightning add to every row.
AXES = {"epoch", "step", "trainer/global_step", "_step", "_runtime", "_timestamp", "_wandb"}

Numbers = dict[str, list[float]]


def from_csv(root: Path) -> Numbers:
    """Return what CSVLogger wrote, by key, in order."""
    (path,) = root.rglob("metrics.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0] if key not in AXES}


def from_wandb(root: Path) -> Numbers:
    """Return the plain numbers of the run's file; charts and tables are W&B's own."""
    (folder,) = root.glob("wandb/offline-run-*")
    run = read_run(folder)
    keys = {key for row in run.history for key, value in row.items() if isinstance(value, int | float)}
    return {key: [float(value) for value in run.values(key)] for key in keys - AXES}


def from_tensorboard(root: Path) -> tuple[Numbers, dict[str, list[int]], list[str]]:
    """Return scalars and their steps by key, and the keys of pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # One folder, with a file before and one after the training.
    (folder,) = {path.parent for path in root.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    keys = [key for key in found.Tags()["scalars"] if key not in AXES and key != "hp_metric"]
    numbers = {key: [event.value for event in found.Scalars(key)] for key in keys}
    return numbers, {key: [event.step for event in found.Scalars(key)] for key in keys}, found.Tags()["images"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fit with a certification at its end, predict and attack: the folder of each."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    told = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(told / "staged"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")

        def run(name: str, *words: str) -> Path:
            root = told / name
            loggers = ", ".join(
                f"{{class_path: {kind}, init_args: {{save_dir: {root}}}}}"
                for kind in ("WandbLogger", "CSVLogger", "TensorBoardLogger")
            )
            command = [name, *words, *LOGGED, f"--trainer.logger=[{loggers}]", f"--trainer.default_root_dir={root}"]
            assert main(command) == 0
            return root

        fit = run(
            "fit", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=3", "--model.init_args.network=mlp",
            "--model.init_args.network_args={hidden_sizes: [16]}", f"--trainer.callbacks={CALLBACKS}", *FEW,
        )  # fmt: skip
        best, records = next(fit.rglob("*.ckpt")), next(fit.rglob("*.jsonl"))
        found = {
            "fit": fit,
            "predict": run("predict", f"--ckpt_path={best}", *FEW),
            "attack": run("attack", f"--ckpt_path={best}", f"--records={records}", ATTACKER),
        }
        sys.modules["wandb"].teardown()
    return found


NEEDED = {
    "fit": ("train/loss", "train/learning_rate", "train/images_per_s", "val/accuracy_clean", "val/accuracy_noisy",
            "preview/ACR", "preview/accuracy@0.25", "certify/ACR", "certify/accuracy@0.25", "certify/complete",
            "certify/images_per_s"),
    "predict": ("predict/accuracy", "predict/abstain", "predict/complete"),
    "attack": ("attack/certified", "attack/broken", "attack/contradicted", "attack/complete"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NEEDED))
def test_three_loggers_hold_the_same_numbers(stories: dict[str, Path], name: str) -> None:
    table, run = from_csv(stories[name]), from_wandb(stories[name])
    events, steps, _ = from_tensorboard(stories[name])
    assert set(NEEDED[name]) <= table.keys() == run.keys() == events.keys()
    for key, values in table.items():
        assert run[key] == pytest.approx(values, rel=1e-6), key
        assert events[key] == pytest.approx(np.float32(values).tolist()), key
        assert len(steps[key]) == len(values)


def test_steps_of_tensorboard_are_the_images_that_were_done(stories: dict[str, Path]) -> None:
    _, steps, pictures = from_tensorboard(stories["fit"])
    assert steps["certify/ACR"] == [1, 2, 3, 4, 5, 5]
    assert len(steps["preview/ACR"]) == 2
    assert steps["train/loss"] == sorted(steps["train/loss"])
    assert "certify/curve" in pictures
    assert from_tensorboard(stories["attack"])[2] == ["attack/bracket"]
