"""Trainings at several noise levels: what is trained and certified where, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_rs.cli import main
from lightning_rs.cli.levels import Levels, claimed
from lightning_rs.records import read_records
from tests.driving import ONE_THREAD, PLAIN, ROOT

CONFIGS = sorted((ROOT / "configs" / "levels").glob("*.yaml"))
TINY = """
data: {class_path: lightning_rs.data.Digits, init_args: {max: 3}}
model:
  class_path: lightning_rs.classifiers.NoiseAugmentation
  init_args: {network: mlp, network_args: {hidden_sizes: [8]}}
trainer:
  max_epochs: 1
  callbacks:
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {save_weights_only: true, filename: final}
"""


def words(out: Path, **changes: Any) -> list[str]:
    """Return trainings on digits in seconds."""
    (out.parent / "tiny.yaml").write_text(TINY)
    settings = {
        "fit": str(out.parent / "tiny.yaml"),
        "train": [0.25, 0.5],
        "certify": [0.25, 0.5],
        "warm_start": True,
        "fit_words": list(PLAIN),
        "certify_words": ["--certifier.init_args.n=50", *ONE_THREAD, *PLAIN],
        **changes,
    }
    (out.parent / "levels.yaml").write_text(json.dumps({"levels": settings}))
    return ["levels", "-c", str(out.parent / "levels.yaml"), "--out", str(out)]


@pytest.mark.filterwarnings("ignore:smoothing with GaussianNoise")
def test_every_level_is_trained_once_and_certified_at_every_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(out)) == 0
    with open(out / "levels.csv") as file:
        rows = list(csv.DictReader(file))
    pairs = [("0.25", "0.25"), ("0.25", "0.5"), ("0.5", "0.25"), ("0.5", "0.5")]
    assert [(row["trained at"], row["certified at"]) for row in rows] == pairs
    assert {row["images"] for row in rows} == {"3"}
    for own, other in pairs:
        header, _ = read_records(out / f"train_{own}_certify_{other}.jsonl")
        assert header.binding["noise"]["sigma"] == float(other)
        assert header.informative["model"]["noise"]["sigma"] == float(own)
    warm = yaml.safe_load(next((out / "train_0.5").rglob("fit.yaml")).read_text())
    assert warm["model"]["init_args"]["init_from"] == str(out / "train_0.25.ckpt")
    assert f"| {' | '.join(rows[0].values())} |" in capsys.readouterr().out
    table = (out / "levels.md").read_text()

    before = (out / "train_0.25.ckpt").read_bytes()
    assert main(words(out)) == 0  # again: nothing is trained, nothing sampled
    said = capsys.readouterr().err
    assert said.count("trained already") == 2
    assert said.count("all 3 images are recorded") == 4
    assert (out / "train_0.25.ckpt").read_bytes() == before
    assert (out / "levels.md").read_text() == table

    assert main(words(out, train=[0.25])) == 2
    assert "out must be a new folder, or that of the same levels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "train must hold noise levels, each once, got []"),
        ({"train": [0.5, 0.5]}, "train must hold noise levels, each once"),
        ({"certify": [-0.5]}, "certify must be finite and > 0"),
    ],
)
def test_bad_levels_are_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "out", **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_command_that_was_refused_before_it_trained_may_be_put_right(tmp_path: Path) -> None:
    for settings in ("levels: {fit: typing_error}\n", "levels: {fit: right}\n"):
        assert claimed(tmp_path / "out", settings) == tmp_path / "out"
    (tmp_path / "out" / "train_0.25.ckpt").touch()
    with pytest.raises(ValueError, match=r"of the same levels; .* has other settings"):
        claimed(tmp_path / "out", "levels: {fit: another}\n")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="which is neither"):
        claimed(tmp_path, "levels: {}\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_levels_names_trainings_that_parse(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = Levels(**yaml.safe_load(path.read_text())["levels"])
    last = levels.train[-1]
    assert main([*levels.training(last, Path("out")), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["noise"]["init_args"] == {"sigma": last}
    assert (config["model"]["init_args"]["init_from"] is not None) == levels.warm_start
    assert len(levels.pairs()) == len(levels.train) * len(levels.certify or [0])
