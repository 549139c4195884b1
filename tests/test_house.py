"""What CONTRIBUTING says a new part takes is what it takes: each is added to a copy of the tree, which then works."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import house
from tests.driving import ONE_THREAD, PLAIN

TABLES = ("tests/test_noise_contract.py", "tests/test_certificate_contract.py",
          "tests/classifiers/test_objective_contract.py", "tests/test_functional.py")  # fmt: skip
OURS = "Logistic or logistic or Focal or missing_from_the_table or without_knowing_where or unique or fixed_names"
# One process does all, because importing torch takes its time; the parts are found by their names alone.
RUN = """
import os, sys
from pathlib import Path
from lightning_rs.cli import main
assert main({fit!r}) == 0
path = str(next(Path("runs").rglob("*.ckpt")))
assert main(["certify", "--ckpt_path", path, *{certify!r}]) == 0
assert main(["report", "x.jsonl", "--out", "report"]) == 0
import pytest
os.chdir({tree!r})
print({line!r}, flush=True)
sys.exit(pytest.main({tables!r}))
"""
LINE = "The contract tables:"
# Modules that training has imported are not rewritten.
QUIET = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with one more noise, certificate and objective."""
    copy = tmp_path_factory.mktemp("house") / "tree"
    for name in ("lightning_rs", "tests", "benchmarks", "configs", "checkpoints"):
        # With what Python has compiled: it compiles the files that change, not all of them, once for each process.
        shutil.copytree(house.ROOT / name, copy / name, ignore=shutil.ignore_patterns("results", "*.pyc.*"))
    shutil.copy(house.ROOT / "pyproject.toml", copy)
    for part in house.PARTS:
        house.add(part, copy)
    return copy


@pytest.fixture(scope="module")
def worked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Train, certify and report with the new parts in a folder, then run the contract tables."""
    folder = tmp_path_factory.mktemp("worked")
    fit = ["fit", "--model=Focal", "--model.init_args.network=mlp", "--model.init_args.noise=LogisticNoise",
           "--model.init_args.noise.init_args.scale=0.05", "--trainer.max_epochs=1", "--data.init_args.max=3",
           "--trainer.default_root_dir=runs", "--certifier=null"]  # fmt: skip
    certify = ["--certifier.init_args.n=200", "--certifier.init_args.n0=20", "--records=x.jsonl",
               "--data.init_args.max=3", *PLAIN, *ONE_THREAD]  # fmt: skip
    code = RUN.format(fit=fit, certify=certify, tree=str(tree), line=LINE, tables=[*QUIET, "-k", OURS, *TABLES])
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    return folder, done


@pytest.mark.parametrize("part", house.PARTS)
def test_contributing_lists_the_files_that_a_part_touches(part: str) -> None:
    rows = re.findall(rf"^\| {part} \|(.*)\|$", (house.ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) == 1, f"CONTRIBUTING.md must have one row for {part}"
    new = next(edit.path for edit in house.PARTS[part] if not edit.before)
    touched = [path.replace(Path(new).stem, "NAME") if path == new else path for path in house.files(part)]
    assert re.findall(r"`([\w/]+\.py)`", rows[0].split("|")[0]) == touched


def test_goals() -> None:
    """A noise in three files, a theorem in four, an objective in three."""
    assert {part: len(house.files(part)) for part in house.PARTS} == {
        "a noise": 3,
        "a certificate": 4,
        "a training objective": 3,
    }


def test_what_was_added_trains_certifies_and_reports(
    worked: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = worked
    assert LINE in done.stdout, done.stderr
    records = (folder / "x.jsonl").read_text()
    assert '"certificate":"LogisticL1"' in records.replace(" ", "")
    (row,) = csv.DictReader((folder / "report" / "report.csv").read_text().splitlines())
    assert row["n_images"] == "3"
    assert float(row["acr"]) > 0


def test_the_contract_tables_take_what_was_added(worked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = worked
    said = done.stdout.partition(LINE)[2]
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("LogisticNoise", "LogisticL1", "Focal"):
        assert name not in said  # neither failed nor skipped
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) > 50
