"""The attack command: records in, brackets out; resumed, sharded, and refusing what does not belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rs.attacks import merge_attacks, read_attacks
from lightning_rs.records import read_records
from tests.driving import certify, run, trained

FEW = ("--attacker=lightning_rs.attacks.Attacker", "--attacker.n=2000", "--attacker.screen=100", "--attacker.rounds=1")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    assert certify(path, "--check=0.5", max=4) == 0
    return path


def attack(path: Path, *words: object, ckpt: Path | None = None) -> int:
    return run(
        "attack", path, f"--ckpt_path={ckpt or trained()}", f"--trainer.default_root_dir={path.parent}", *FEW, *words
    )


def test_attack_brackets_resumes_and_is_sharded(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.jsonl"
    assert attack(records, f"--out={out}") == 0
    assert "contradicted certificates: 0" in capsys.readouterr().err
    _, found = read_attacks(out)
    certificates = {record.index: record for record in read_records(records)[1]}
    assert [record.index for record in found] == sorted(certificates)
    for record in found:
        assert record.radius == certificates[record.index].radius
        assert record.attacked is None or record.attacked > record.radius
        assert {test.kind for test in record.tests} == {"clean", "random", "adversarial"}
    assert any(record.attacked is not None for record in found)
    assert list(records.parent.rglob("attack_bracket.png"))
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # killed in the middle of the third image
    assert attack(records, f"--out={out}") == 0
    assert "attack 2 of 4 certified images" in capsys.readouterr().err
    assert len(read_attacks(out)[1]) == 4
    for shard in ("0/2", "1/2"):
        assert attack(records, f"--out={tmp_path / 's.jsonl'}", f"--shard={shard}") == 0
    parts = sorted(tmp_path.glob("s.shard*.jsonl"))
    assert run_merge(parts, tmp_path / "merged.jsonl") == 0
    assert [r.index for r in read_attacks(tmp_path / "merged.jsonl")[1]] == sorted(certificates)
    with pytest.raises(FileExistsError):
        merge_attacks(parts, tmp_path / "merged.jsonl")


def run_merge(parts: list[Path], out: Path) -> int:
    from lightning_rs.cli import main

    return main(["merge", *map(str, parts), "--out", str(out)])


def changed(records: Path, out: Path, **binding: Any) -> Path:
    """Return a copy of the records whose header says something else."""
    first, *rest = records.read_text().splitlines()
    header = json.loads(first)
    header["binding"].update(binding)
    out.write_text("\n".join([json.dumps(header, separators=(",", ":")), *rest]) + "\n")
    return out


def test_what_does_not_belong_together_is_one_line(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = torch.load(trained(), weights_only=True)
    name = next(name for name in contents["state_dict"] if name.endswith("weight"))
    contents["state_dict"][name] += 0.1
    other = tmp_path / "other.ckpt"
    torch.save(contents, other)
    binding = read_records(records)[0].binding
    runtime = {**binding["runtime"], "micro_batch": binding["runtime"]["micro_batch"] * 2, "device": "elsewhere"}
    noise = {**binding["noise"], "sigma": 0.5}
    capsys.readouterr()
    for path, ckpt, words, message in (
        (records, other, (), "are not of this checkpoint, noise, runtime and data: classifier"),
        (
            changed(records, tmp_path / "runtime.jsonl", runtime=runtime),
            None,
            (),
            "runtime.device: 'elsewhere' != 'cpu'",
        ),
        (records, None, ("--attacker.copies=0",), "copies must be a whole number >= 1, got 0"),
        (records, None, ("--certificate=GaussianL3",), "certificate must be one of GaussianL2, got 'GaussianL3'"),
        (records, None, ("--attacker.attacks=[{class_path: lightning_rs.attacks.SplittingMoves}]",), "norm 'l2'"),
        (tmp_path / "nowhere.jsonl", None, (), "nowhere.jsonl"),
    ):
        assert attack(path, f"--out={tmp_path / 'x.jsonl'}", *words, ckpt=ckpt) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
        assert message in said[-1], said
    # Records whose noise is another are refused either for their noise or because their radii no longer follow.
    assert attack(changed(records, tmp_path / "noise.jsonl", noise=noise), f"--out={tmp_path / 'x.jsonl'}") == 2


def test_check_must_be_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify(tmp_path / "r.jsonl", "--check=2.0", max=2) == 2
    assert "check must lie in (0, 1], got 2.0" in capsys.readouterr().err
