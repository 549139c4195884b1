"""Attacks in two processes, one of them killed: every image once, nothing lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lightning_rs.attacks import read_attacks
from lightning_rs.records import read_records
from tests.attacks.words import FEW
from tests.driving import Forks, certify_words, run, said, trained
from tests.processes import Act

pytestmark = pytest.mark.filterwarnings("ignore:.* is resumed although git")


def words(records: Path, out: Path) -> list[object]:
    return [
        "attack", records, f"--ckpt_path={trained()}", f"--out={out}", f"--trainer.default_root_dir={out.parent}", *FEW,
        "--attacker.screen=50", "--data.init_args.certify_batch_size=1",
    ]  # fmt: skip


def test_two_processes_share_an_attack_and_a_killed_one_loses_nothing(
    tmp_path: Path, forks: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    records, two, torn = tmp_path / "r.jsonl", tmp_path / "two.jsonl", tmp_path / "torn.jsonl"
    folder = tmp_path / "together"
    ends = forks.run(folder, certify_words(records, max=6), words(records, two), devices=2)
    assert ends == [0, 0], said(folder)
    certificates = {record.index: record for record in read_records(records)[1]}
    found = read_attacks(two)[1]
    assert [record.index for record in found] == sorted(certificates)
    assert [record.radius for record in found] == [certificates[index].radius for index in sorted(certificates)]
    assert not list(tmp_path.glob("two.rank*"))  # merged
    assert "attack 6 of 6 certified images" in said(folder)
    # One process is killed after its second image, while the other has recorded one and waits.
    folder = tmp_path / "killed"
    acts = {0: Act("tell", after=1), 1: Act("SIGKILL", after=2, told=True)}
    assert forks.run(folder, words(records, torn), devices=2, acts=acts) == [-signal.SIGKILL] * 2, said(folder)
    parts = [read_attacks(tmp_path / f"torn.rank{rank}.jsonl")[1] for rank in range(2)]
    assert [[record.index for record in part] for part in parts] == [
        sorted(certificates)[:1],
        sorted(certificates)[1:4:2],
    ]
    with open(tmp_path / "torn.rank1.jsonl", "a") as file:
        file.write('{"index":23,"la')
    capsys.readouterr()
    assert run(*words(records, torn)) == 0
    assert "attack 3 of 6 certified images" in capsys.readouterr().err
    whole = read_attacks(torn)[1]
    assert [record.index for record in whole] == sorted(certificates)
    assert [record for record in whole if record.index in {p.index for part in parts for p in part}] == sorted(
        [record for part in parts for record in part], key=lambda record: record.index
    )
    assert not list(tmp_path.glob("torn.rank*"))
