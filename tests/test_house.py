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
# One process trains, one certifies and reports: each finds the new parts by their names alone.
RUN = """
from pathlib import Path
from lightning_rs.cli import main
assert main({fit!r}) == 0
path = str(next(Path("runs").rglob("*.ckpt")))
assert main(["certify", "--ckpt_path", path, *{certify!r}]) == 0
assert main(["report", "x.jsonl", "--out", "report"]) == 0
"""


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


def python(tree: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], cwd=cwd or tree, env=environment, capture_output=True, text=True)


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


def test_the_contract_tables_take_what_was_added(tree: Path) -> None:
    found = python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", OURS, *TABLES)
    assert found.returncode == 0, found.stdout
    for name in ("LogisticNoise", "LogisticL1", "Focal"):
        assert name not in found.stdout  # neither failed nor skipped
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed is not None
    assert int(passed[1]) > 50


def test_what_was_added_trains_certifies_and_reports(tree: Path, tmp_path: Path) -> None:
    fit = ["fit", "--model=Focal", "--model.init_args.network=mlp", "--model.init_args.noise=LogisticNoise",
           "--model.init_args.noise.init_args.scale=0.05", "--trainer.max_epochs=1", "--data.init_args.max=3",
           "--trainer.default_root_dir=runs", "--certifier=null"]  # fmt: skip
    certify = ["--certifier.init_args.n=200", "--certifier.init_args.n0=20", "--records=x.jsonl",
               "--data.init_args.max=3", *PLAIN, *ONE_THREAD]  # fmt: skip
    found = python(tree, "-c", RUN.format(fit=fit, certify=certify), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    records = (tmp_path / "x.jsonl").read_text()
    assert '"certificate":"LogisticL1"' in records.replace(" ", "")
    (row,) = csv.DictReader((tmp_path / "report" / "report.csv").read_text().splitlines())
    assert row["n_images"] == "3"
    assert float(row["acr"]) > 0
