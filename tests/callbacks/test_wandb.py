"""Weights & Biases, offline: what every command leaves in its run, read back from the run's file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_rs.cli import main
from lightning_rs.loggers import AttackLog, PredictionLog, metric_radii
from lightning_rs.records import Certification, read_records, read_seconds
from lightning_rs.stages.files import RecordSet
from tests.driving import ONE_THREAD, PLAIN
from tests.training import classifier, trainer
from tests.wandb_runs import Run, read_run, table

LOGGED = tuple(word for word in PLAIN if "logger" not in word)
FEW = ("--certifier.init_args.n=100", "--certifier.init_args.n0=20", "--data.init_args.max=7", *ONE_THREAD, *LOGGED)
CALLBACKS = (
    "[{class_path: lightning_rs.callbacks.EpochEndCertification, init_args: {images: 8, share: null, "
    "certifier: {n0: 16, n: 50, alpha: 0.01}}}, {class_path: lightning_rs.callbacks.NoisyImageGrid}, "
    "{class_path: ModelCheckpoint, init_args: {monitor: preview/ACR, mode: max}}]"
)
RADII = metric_radii(0.25)
ATTACKER = "--attacker={n: 200, screen: 50, copies: 4, rounds: 1, beta: 0.01}"


def interrupting_after(action: Callable[..., None], times: int) -> Callable[..., None]:
    """Return the action with Ctrl-C behind its n-th call."""
    done = 0

    def acting(*args: Any) -> None:
        nonlocal done
        action(*args)
        done += 1
        if done == times:
            raise KeyboardInterrupt

    return acting


class Story:
    """One folder in which a training, its certification and what follows were run; each run by what it was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, Path] = {}
        self.statuses: dict[str, int] = {}
        self.runs: dict[str, Run] = {}
        self.errors: dict[str, str] = {}

    def run(self, name: str, *words: object) -> None:
        """Run a command, and note which W&B run it left, if any."""
        before = self._all()
        self.statuses[name] = main([str(word) for word in (*words, f"--trainer.default_root_dir={self.root}")])
        left = self._all() - before
        assert len(left) <= 1
        if left:
            self.folders[name] = left.pop()

    def read(self) -> None:
        """Read the runs: wandb writes in a process of its own, and when that has ended all is there."""
        sys.modules["wandb"].teardown()
        self.runs = {name: read_run(folder) for name, folder in self.folders.items()}

    def _all(self) -> set[Path]:
        return set((self.root / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Fit, an interrupted certification, its continuation, once more, bad input, predict, attack: for all tests."""
    told = Story(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(told.root / "staged"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        told.run(
            "fit", "fit", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=3", "--model.init_args.network=mlp",
            "--model.init_args.network_args={hidden_sizes: [16]}", f"--trainer.callbacks={CALLBACKS}", *FEW,
        )  # fmt: skip
        best = next((told.root / "lightning_rs").glob("*/checkpoints/*.ckpt"))
        records = told.root / "r.jsonl"
        certify = ("certify", f"--ckpt_path={best}", f"--records={records}", *FEW)
        with patch.context() as interrupted:
            interrupted.setattr(RecordSet, "append", interrupting_after(RecordSet.append, 4))
            told.run("interrupted", *certify)
        told.run("certify", *certify)
        told.run("again", *certify)
        bad = (*certify[:2], f"--records={told.root / 'bad.jsonl'}", *FEW)
        told.run("bad images", *bad, "--data.init_args.indices=[100000]", "--data.init_args.max=null")
        told.run("bad checkpoint", "certify", "--ckpt_path=nothing.ckpt", *FEW)
        told.run("predict", "predict", f"--ckpt_path={best}", *FEW)
        told.run(
            "attack", "attack", f"--ckpt_path={best}", f"--records={records}", *LOGGED,
            ATTACKER,
        )  # fmt: skip
        with patch.context() as interrupted:
            interrupted.setattr(PredictionLog, "add", interrupting_after(PredictionLog.add, 2))
            told.run(
                "interrupted predict", "predict", f"--ckpt_path={best}", "--data.init_args.certify_batch_size=2", *FEW
            )
        others = Path(shutil.copy(records, told.root / "others.jsonl"))
        with patch.context() as interrupted:
            interrupted.setattr(AttackLog, "add", interrupting_after(AttackLog.add, 3))
            told.run(
                "interrupted attack", "attack", f"--ckpt_path={best}", f"--records={others}", *LOGGED, ATTACKER,
            )  # fmt: skip
        told.read()
        yield told


def certified(story: Story) -> list[Certification]:
    return read_records(story.root / "r.jsonl")[1]


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def acr(records: list[Certification]) -> float:
    return sum(record.radius for record in records if record.prediction == record.label) / len(records)


def test_every_command_worked_and_only_results_leave_runs(story: Story) -> None:
    assert story.statuses == {
        "fit": 0, "interrupted": 1, "certify": 0, "again": 0, "bad images": 2, "bad checkpoint": 2, "predict": 0,
        "attack": 0, "interrupted predict": 1, "interrupted attack": 1,
    }  # fmt: skip
    assert list(story.folders) == [
        "fit", "interrupted", "certify", "predict", "attack", "interrupted predict", "interrupted attack",
    ]  # fmt: skip
    assert [run.exit for run in story.runs.values()] == [0, 1, 0, 0, 0, 1, 1]
    assert sys.modules["wandb"].run is None
    # A folder for each, named after the run, with its configuration; none for those that began nothing.
    folders = {path.parent.name: path.name for path in (story.root / "lightning_rs").glob("*/*.yaml")}
    assert folders == {
        run.id: f"{'certify' if name == 'interrupted' else name.removeprefix('interrupted ')}.yaml"
        for name, run in story.runs.items()
    }
    assert list((story.root / "lightning_rs").glob(f"{story.runs['predict'].id}/predictions.csv"))


def test_names_group_job_type_and_tags(story: Story) -> None:
    runs = story.runs
    jobs = ["fit", "certify", "certify", "predict", "attack", "predict", "attack"]
    assert [run.job for run in runs.values()] == jobs
    assert {run.group for run in runs.values()} == {f"mlp gaussian-0.25 {runs['fit'].id}"}
    assert runs["fit"].name == "fit digits mlp gaussian-0.25"
    assert runs["certify"].name == "certify digits mlp gaussian-0.25 n=100"
    assert runs["attack"].name == "attack digits mlp gaussian-0.25"
    assert runs["certify"].tags == ["digits", "mlp", "GaussianNoise", "NoiseAugmentation", "GaussianL2"]


def test_the_configuration_of_a_training(story: Story) -> None:
    config = story.runs["fit"].config
    assert config["objective"]["class"] == "lightning_rs.classifiers.augmentation.NoiseAugmentation"
    assert config["model"]["network"] == "mlp"
    assert config["noise"] == {"class": "GaussianNoise", "sigma": 0.25}
    assert config["data"]["name"] == "digits"
    assert config["data"]["batch_size"] == 128
    assert config["data"]["train"] + config["data"]["val"] == 1437
    assert config["optimizer"][0]["class"] == "AdamW"
    assert config["optimizer"][0]["lr"] == 0.01
    assert config["seed"] == 0
    assert config["trainer"]["max_epochs"] == 2
    assert config["preview"][0]["n"] == 50
    assert config["preview"][0]["images"] == 8
    assert config["versions"]["torch"]
    # The certification at the end stands beside it.
    assert config["certify"]["n"] == 100
    assert config["certify"]["stage"] == "preview"


def test_the_configuration_of_what_follows(story: Story) -> None:
    header = read_records(story.root / "r.jsonl")[0]
    for name in ("interrupted", "certify"):
        config = story.runs[name].config
        for key in ("certificates", "n", "n0", "alpha", "budget", "runtime", "seed", "subset", "data", "classifier"):
            assert config[key] == json.loads(json.dumps(header.binding[key])), key
        assert config["checkpoint"] == header.informative["checkpoint"]
        assert len(config["checkpoint"]["sha256"]) == 64
        assert config["objective"]["class"].endswith("NoiseAugmentation")
        assert config["records"] == str(story.root / "r.jsonl")
        assert {"versions", "git", "command", "host"} <= config.keys()
    for name in ("predict", "attack"):
        assert story.runs[name].config["checkpoint"] == header.informative["checkpoint"]
        assert story.runs[name].config["classifier"] == header.binding["classifier"]
    assert story.runs["predict"].config["n"] == 100
    assert story.runs["attack"].config["attacker"]["n"] == 200
    assert story.runs["attack"].config["certification"]["n"] == 100


def test_validation_and_test_images_have_names_of_their_own(story: Story) -> None:
    fit = story.runs["fit"]
    assert len(fit.values("preview/ACR")) == 2
    assert set(fit.values("epoch")) == {0, 1}
    assert len(fit.values("certify/ACR")) == 8  # 7 live ones and the result, after the training
    assert fit.values("certify/images")[-1] == 7
    assert not any(
        key.startswith("preview/") for run in list(story.runs.values())[1:] for row in run.history for key in row
    )
    assert fit.axes["preview/ACR"] == ("epoch", "max")
    assert fit.axes["preview/accuracy@0.25"] == ("epoch", "max")
    assert fit.axes["certify/ACR"] == ("certify/images", "last")


def test_learning_rate_and_speed(story: Story) -> None:
    fit = story.runs["fit"]
    rates = fit.values("train/learning_rate")
    assert len(rates) == len(fit.values("train/images_per_s")) == len(fit.values("train/loss")) > 3
    assert 0.01 > rates[0] > rates[-1] > 0  # a cosine
    assert min(fit.values("train/images_per_s")) > 0
    assert fit.axes["train/learning_rate"] == ("trainer/global_step", "last")
    assert all("trainer/global_step" in row for row in fit.history if "train/learning_rate" in row)


def test_a_certification_can_be_watched(story: Story) -> None:
    records, run = certified(story), story.runs["certify"]
    assert run.values("certify/images") == [5, 6, 7, 7]  # four were recorded before
    for done, value in zip((5, 6, 7, 7), run.values("certify/ACR"), strict=True):
        assert value == pytest.approx(acr(records[:done]))
    assert {f"certify/accuracy@{r:g}" for r in RADII} <= run.history[0].keys()
    assert all(value > 0 for value in run.values("certify/images_per_s"))
    assert run.values("certify/complete") == [1]
    assert {run.axes[key] for key in run.axes if key.startswith("certify/") and key != "certify/images"} == {
        ("certify/images", "last")
    }


def test_an_interrupted_certification_keeps_what_it_had(story: Story) -> None:
    run = story.runs["interrupted"]
    assert run.values("certify/images") == [1, 2, 3, 4]  # the last one was on disk, but not yet told
    assert run.values("certify/complete") == [0]
    assert run.values("certify/ACR")[-1] == pytest.approx(acr(certified(story)[:4]))
    columns, rows = table(story.folders["interrupted"], "certify/table")
    assert [row[columns.index("index")] for row in rows] == [record.index for record in certified(story)[:4]]
    assert run.values("certify/radii")


def test_the_table_of_images(story: Story) -> None:
    columns, rows = table(story.folders["certify"], "certify/table")
    assert columns == [
        "index", "image", "noisy", "label", "prediction", "correct", "status", "radius GaussianL2", "p_lower", "n",
        "counts", "seconds", "statement",
    ]  # fmt: skip
    seconds = read_seconds(story.root / "r.jsonl")
    for row, record in zip(rows, certified(story), strict=True):
        cells = dict(zip(columns, row, strict=True))
        assert cells["index"] == record.index
        assert (cells["label"], cells["prediction"]) == (record.label, record.prediction)
        assert cells["radius GaussianL2"] == pytest.approx(record.radius)
        assert cells["counts"] == " ".join(map(str, record.counts))
        assert cells["seconds"] == pytest.approx(seconds[record.index])
        assert cells["statement"] == repr(record)
    # Pictures lie in the artifact that W&B makes of a table.
    pictures = {name: path for _, files in story.runs["certify"].artifacts for name, path in files.items()}
    pictures = {name: path for name, path in pictures.items() if name.endswith(".png")}
    assert len(pictures) == 14
    assert {size(path) for path in pictures.values()} == {(64, 64)}  # 8 pixels, enlarged


def test_native_charts(story: Story) -> None:
    records, folder = certified(story), story.folders["certify"]
    _, curve = table(folder, "certify/curve_table")
    assert {line for _, line, _ in curve} == {story.runs["certify"].name}  # runs are told apart where they overlay
    for r, _, accuracy in curve:
        assert accuracy == pytest.approx(sum(record.certified_at(r) for record in records) / 7)
    assert curve[0][0] == 0
    assert curve[-1][0] == pytest.approx(max(record.radius for record in records if record.correct))
    _, bounds = table(folder, "certify/probabilities_table")
    assert [p for p, _, _ in bounds] == pytest.approx(
        sorted(record.bounds["p_lower"] if record.top == record.label else 0.0 for record in records)
    )
    assert [share for _, _, share in bounds] == pytest.approx([k / 7 for k in range(1, 8)])
    (histogram,) = story.runs["certify"].values("certify/radii")
    assert sum(histogram["values"]) == 7
    visual = json.dumps(story.runs["certify"].config)
    assert "wandb/lineseries/v0" in visual
    assert len(list(story.folders["fit"].glob("files/media/images/noise/images_*.png"))) == 1
    assert not list(folder.glob("files/media/images/certify/curve_*"))  # no pixels where lines can be


def test_predictions_and_attacks(story: Story) -> None:
    predict, attack = story.runs["predict"], story.runs["attack"]
    assert predict.values("predict/images")[-1] == 7
    assert predict.values("predict/complete") == [1]
    columns, rows = table(story.folders["predict"], "predict/table")
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    right = sum(cell["label"] == cell["prediction"] for cell in cells) / 7
    assert predict.values("predict/accuracy")[-1] == pytest.approx(right)
    assert attack.values("attack/images")[:7] == list(range(1, 8))
    assert attack.values("attack/contradicted")[-1] == 0
    assert attack.values("attack/certified")[-1] == pytest.approx(sum(r.correct for r in certified(story)) / 7)
    _, lines = table(story.folders["attack"], "attack/bracket_table")
    assert {line.rpartition(": ")[2] for _, line, _ in lines} == {"certified", "not attacked"}
    assert len(table(story.folders["attack"], "attack/table")[1]) == 7


def test_interrupted_predictions_and_attacks_keep_what_they_had(story: Story) -> None:
    predict, attack = story.runs["interrupted predict"], story.runs["interrupted attack"]
    assert (predict.job, attack.job) == ("predict", "attack")
    assert predict.values("predict/images") == [2, 4, 4]
    assert predict.values("predict/complete") == [0]
    assert 0 <= predict.values("predict/accuracy")[-1] <= 1
    assert len(table(story.folders["interrupted predict"], "predict/table")[1]) == 4
    assert attack.values("attack/images") == [1, 2, 3, 3]
    assert attack.values("attack/complete") == [0]
    whole = story.runs["attack"]
    assert attack.values("attack/certified")[:3] == whole.values("attack/certified")[:3]
    columns, rows = table(story.folders["interrupted attack"], "attack/table")
    assert [row[columns.index("index")] for row in rows] == [record.index for record in certified(story)[:3]]


@pytest.mark.parametrize("wrong", ["image", "label"])
def test_a_bad_first_batch_of_a_training_leaves_no_run(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found good before it, the validation images, is good here."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    bad = images.clone(), labels.clone()
    bad[wrong == "label"][0] = torch.nan if wrong == "image" else 99
    logger = WandbLogger(project="mine", save_dir=tmp_path, offline=True)
    run = trainer(tmp_path, logger=logger, max_epochs=1)
    train, val = (DataLoader(TensorDataset(*data), batch_size=8) for data in (bad, (images, labels)))
    raised = pytest.raises(ValueError, match="loss must be finite") if wrong == "image" else pytest.raises(IndexError)
    with raised:
        run.fit(classifier(), train, val)
    assert logger._experiment is None
    assert not list(tmp_path.rglob("*.wandb"))


def test_what_the_user_chooses_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """And the folder of the runs moves with the trainer; the line at the end says where the run lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ("--trainer.max_epochs=1", "--certifier=null", "--trainer.default_root_dir=elsewhere")
    mine = "{name: mine, group: my group, tags: [one]}"
    assert main(["fit", *words, *LOGGED, f"--trainer.logger.dict_kwargs={mine}"]) == 0
    sys.modules["wandb"].teardown()
    assert not Path("runs").exists()
    (folder,) = Path("elsewhere/wandb").glob("offline-run-*")
    run = read_run(folder)
    assert (run.name, run.group, run.tags, run.job) == ("mine", "my group", ["one"], "fit")
    assert list(Path("elsewhere/lightning_rs").glob(f"{run.id}/fit.yaml"))
    said = capsys.readouterr().err
    assert f"wandb sync {folder.resolve()}" in said or f"wandb sync {folder}" in said
    assert "anonymous" not in said
