"""What starts quickly: the package and the commands on records load neither torch nor Lightning nor wandb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_rs
from lightning_rs.cli import main
from lightning_rs.records import RecordFile
from tests.driving import ROOT
from tests.fakes import certification, header

HEAVY = (
    "torch",
    "pytorch_lightning",
    "wandb",
    "jsonargparse",
    "torchmetrics",
    "timm",
    "torchvision",
    "matplotlib.pyplot",
)
# Does one thing after another, and says after each of them what is loaded and how long the processor has worked so far.
CODE = """
import contextlib, io, json, resource, sys
def used():
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime
before, found = used(), []
for action in {actions!r}:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(action)
    found.append([used() - before, [name for name in {heavy!r} if name in sys.modules], said.getvalue()])
print(json.dumps(found))
"""


def measured(*actions: str) -> list[tuple[float, list[str], str]]:
    code = CODE.format(actions=actions, heavy=HEAVY)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return [(seconds, loaded, said) for seconds, loaded, said in json.loads(found.stdout)]


def command(*words: object) -> str:
    return f"from lightning_rs.cli import main; assert main({[str(word) for word in words]!r}) == 0"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    with RecordFile(tmp_path / "r.jsonl", header()) as file:
        file.append([certification(index) for index in header().expected or range(5)])
    return tmp_path / "r.jsonl"


def test_what_needs_no_network_loads_none(records: Path) -> None:
    """Also in processor time: a third of what the libraries of training cost, measured in the same run.

    What stands together runs in one process: no later command is cheaper for that, because all before it count, too.
    """
    ((baseline, loaded, _),) = measured("import torch, pytorch_lightning")
    assert {"torch", "pytorch_lightning"} <= set(loaded)
    groups: tuple[tuple[tuple[str, str], ...], ...] = (
        (
            ("import lightning_rs", ""),
            ("from lightning_rs import Certification", ""),
            (command("--version"), f"lightning_rs {lightning_rs.__version__}"),
            (command("--help"), "certify"),
            (command("fit", "--help"), "--trainer.max_epochs"),
        ),
        (
            (command("report", records), "GaussianL2"),
            (command("report", records, "--certificate", "TopK:2", "Targets"), "cannot become c"),
            (command("report", records, "--out", records.parent / "out"), "report.png"),
        ),
        (
            (command("merge", records, "--out", records.parent / "merged.jsonl"), " images"),
            (command("export", records, "--out", records.parent / "table.tsv"), " images"),
        ),
    )
    for group in groups:
        found = measured(*(action for action, _ in group))
        for (action, expected), (seconds, loaded, said) in zip(group, found, strict=True):
            assert loaded == [], action
            assert expected in said
            if "--out" not in action or "report" not in action:  # that one draws figures
                assert seconds < baseline / 3, (action, seconds, baseline)


def test_public_names_are_what_they_were() -> None:
    from lightning_rs import certificates, functional, noise

    assert {*certificates.__all__, *noise.__all__} <= set(lightning_rs.__all__) <= set(dir(lightning_rs))
    assert {"Certifier", "Trainer", "SmoothedClassifier", "Session", "functional"} <= set(dir(lightning_rs))
    assert len(set(lightning_rs.__all__)) == len(lightning_rs.__all__)
    for name in lightning_rs.__all__:
        assert getattr(lightning_rs, name).__name__ == name if name != "ABSTAIN" else lightning_rs.ABSTAIN == -1
    assert lightning_rs.functional is functional
    assert lightning_rs.Trainer.__module__ == "lightning_rs.trainer"
    with pytest.raises(AttributeError, match="module 'lightning_rs' has no attribute 'GaussianL3'"):
        _ = lightning_rs.GaussianL3
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from lightning_rs import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_help_is_short_and_leads_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 30
    assert main(["certify", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["certify", "--help", "all"]) == 0
    everything = capsys.readouterr().out
    assert len(short.splitlines()) < 40 < len(everything.splitlines())
    assert "lightning_rs certify --help all" in short
    assert "--trainer.accumulate_grad_batches" in everything
