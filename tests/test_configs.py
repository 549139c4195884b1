"""The shipped configurations of trainings: each parses, each objective has one, and says the defaults it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_rs.classifiers import __all__ as CLASSIFIERS
from lightning_rs.cli import main
from tests.driving import ROOT

FIT = sorted((ROOT / "configs" / "fit").glob("*.yaml"))
MODEL = sorted((ROOT / "configs" / "model").glob("*.yaml"))
OBJECTIVES = {f"lightning_rs.classifiers.{name}" for name in CLASSIFIERS} - {
    "lightning_rs.classifiers.BaseClassifier",
    "lightning_rs.classifiers.NoisyCopies",
}


def held(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("folder", ["fit", "model"])
def test_every_objective_has_a_configuration(folder: str) -> None:
    files = FIT if folder == "fit" else MODEL
    assert {held(path)["model"]["class_path"] for path in files} == OBJECTIVES


@pytest.mark.parametrize("path", [*FIT, *MODEL], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_training_configuration_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(path), "--print_config"]) == 0
    given, parsed = held(path)["model"], yaml.safe_load(capsys.readouterr().out)["model"]
    assert parsed["class_path"] == given["class_path"]
    plain = {name: value for name, value in given["init_args"].items() if not isinstance(value, (dict, list))}
    assert {name: parsed["init_args"][name] for name in plain} == plain


@pytest.mark.parametrize("path", [*FIT, *MODEL], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_training_configuration_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_an_objective_is_added_behind_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fit/mnist_lenet", "model/consistency")
    assert main(["fit", *(word for name in names for word in ("-c", name)), "--print_config"]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["class_path"].endswith("Consistency")
    assert model["init_args"]["network"] == "mnist_lenet"
    assert model["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    assert model["init_args"]["lam"] == 5.0
