"""The sweep file: what W&B's agent would run is understood."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from lightning_rs.cli import main

SWEEP = yaml.safe_load((Path(__file__).parents[1] / "configs/sweep/sigma_objective.yaml").read_text())


def words(values: dict[str, object]) -> list[str]:
    """Return what the agent runs for one choice of the parameters: ``${args}`` stands for all of them."""
    options = [f"--{name}={value}" for name, value in values.items()]
    return [word for part in SWEEP["command"] for word in (options if part == "${args}" else [part])]


def test_the_agent_runs_the_command_line() -> None:
    assert words({"a": 1}) == [
        "${env}", "python", "-m", "lightning_rs", "fit", "--trainer.logger.init_args.offline=false", "--a=1",
    ]  # fmt: skip
    assert SWEEP["method"] == "grid"
    assert SWEEP["metric"] == {"name": "preview/ACR", "goal": "maximize"}


def test_every_value_is_understood_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    choices = SWEEP["parameters"]
    assert list(choices) == ["model", "model.init_args.noise.init_args.sigma"]
    objectives, sigmas = ([*entry["values"]] for entry in choices.values())
    assert len(objectives) == len(sigmas) == 3
    # Each value once: a sweep's grid has all pairs, which the parser sees no differently.
    for number, (objective, sigma) in enumerate(zip(objectives, sigmas, strict=True)):
        pair = dict(zip(choices, (objective, sigma), strict=True))
        given = dict(itertools.islice(reversed(pair.items()), 2)) if number % 2 else pair
        assert main([*words(given)[4:], "--print_config"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["class_path"].rpartition(".")[2] == objective.rpartition(".")[2]
        assert config["model"]["init_args"]["noise"]["init_args"]["sigma"] == sigma
        assert config["trainer"]["logger"]["init_args"]["offline"] is False
