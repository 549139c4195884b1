"""The attack command: records in, brackets out; resumed, sharded, and refusing what does not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_rs.attacks import Attacker, merge_attacks, read_attacks
from lightning_rs.engine.runtime import Runtime
from lightning_rs.records import read_records
from lightning_rs.records.combined import combine
from lightning_rs.shipped import config_path, names
from lightning_rs.stages.attack import runtime_of
from tests.attacks.words import FEW
from tests.driving import certify, run, trained
from tests.fakes import changed


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
        if record.stated:
            assert record.attacked is None or record.attacked > record.radius
        else:  # no ball: a class that nothing is stated of may be lost at the image itself
            assert record.radius == 0
        assert {test.kind for test in record.tests} == {"clean", "random", "adversarial"}
    assert any(record.attacked is not None for record in found if record.stated)
    assert sum(record.stated for record in found) >= 3
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
    again, combined = tmp_path / "again.jsonl", tmp_path / "combined.jsonl"
    assert certify(again, "--certifier.init_args.seed=1", max=4) == 0
    combine([records, again], combined)
    capsys.readouterr()
    for path, ckpt, words, message in (
        (records, other, (), "are not of this checkpoint, noise, runtime and data: classifier"),
        (
            changed(records, lambda h: h["binding"].update(runtime=runtime), out=tmp_path / "runtime.jsonl"),
            None,
            (),
            "runtime.device: 'elsewhere' != 'cpu'",
        ),
        (records, None, ("--attacker.copies=0",), "copies must be a whole number >= 1, got 0"),
        (
            records,
            None,
            ("--attacker.attacks=[{class_path: lightning_rs.attacks.PGD, init_args: {steps: 0}}]",),
            "steps must be a whole number >= 1, got 0",
        ),
        (records, None, ("--certificate=GaussianL3",), "certificate must be one of GaussianL2, got 'GaussianL3'"),
        (
            records,
            None,
            ("--attacker.attacks=[{class_path: lightning_rs.attacks.SplittingMoves}]",),
            "which attacks in l1",
        ),
        (tmp_path / "nowhere.jsonl", None, (), "nowhere.jsonl"),
        (combined, None, (), f"records must be of one classifier to be attacked; {combined} combines others"),
    ):
        assert attack(path, f"--out={tmp_path / 'x.jsonl'}", *words, ckpt=ckpt) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
        assert message in said[-1], said


def test_records_of_another_noise_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ("--certifier.init_args.noise=GaussianNoise", "--certifier.init_args.noise.init_args.sigma=0.5")
    path = tmp_path / "r.jsonl"
    with pytest.warns(UserWarning, match="smoothing with"):
        assert certify(path, *other, max=2) == 0
    capsys.readouterr()
    assert attack(path) == 2
    said = capsys.readouterr().err
    assert "were made with GaussianNoise(sigma=0.5), the checkpoint is of GaussianNoise(sigma=0.3): set" in said
    # A header that was changed is refused by its radii, which no longer follow from the counts.
    assert certify(tmp_path / "s.jsonl", max=2) == 0
    noise = {**read_records(tmp_path / "s.jsonl")[0].binding["noise"], "sigma": 0.5}
    assert attack(changed(tmp_path / "s.jsonl", lambda h: h["binding"].update(noise=noise))) == 2


def test_a_network_without_gradient_is_told_which_black_box_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--untrained=true", "--data=Digits", "--data.max=2", "--model.network=tests.attacks.networks.Rounding",
        f"--trainer.default_root_dir={tmp_path}",
    )  # fmt: skip
    path = tmp_path / "r.jsonl"
    assert run("certify", *words, "--certifier.n=200", f"--records={path}") == 0
    capsys.readouterr()
    assert run("attack", path, *words, *FEW) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "must have a gradient in its input" in said
    assert "use lightning_rs.attacks.VoteSearch" in said
    black_box = "--attacker.attacks=[{class_path: lightning_rs.attacks.VoteSearch, init_args: {steps: 5}}]"
    assert run("attack", path, *words, *FEW, black_box) == 0


def test_regions_are_attacked_in_their_region(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    top = "--certifier.certificates=[{class_path: ChannelL2, init_args: {region: top}}]"
    assert certify(path, top, max=3, n=1000) == 0
    assert attack(path) == 0
    found = read_attacks(path.with_suffix(".attack.jsonl"))[1]
    assert [record.norm for record in found] == ["l2:top"] * 3
    assert not any(record.contradicted for record in found)
    assert any(record.attacked is not None for record in found)


def test_a_failing_check_says_all_that_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A planted theorem: no probability falls.
    from lightning_rs.attacks import assertions

    monkeypatch.setattr(assertions, "law_value_lower", lambda noise, q_upper, delta: 1 - q_upper)
    path = tmp_path / "r.jsonl"
    assert certify(path, "--check=1.0", max=4) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    for words in ("of 4 certificates are contradicted", "votes for the class", "asserted are", "(seed ", "kept in r.f"):
        assert words in said
    files = sorted((tmp_path / "r.failures").glob("image*.npz"))
    assert files
    with np.load(files[0]) as kept:
        told = json.loads(str(kept["record"]))
        assert kept["image"].shape == kept["adversarial"].shape == (1, 8, 8)
    assert told["binding"] == read_records(path)[0].binding
    assert told["informative"]["checkpoint"]["path"] == str(trained())
    assert len(read_records(path)[1]) == 4  # the certifications themselves are on disk


@pytest.mark.parametrize("name", sorted(name for name in names("configs") if name.startswith("attack/")))
def test_shipped_configurations_are_attackers(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attacker", type=Attacker | None)
    built = parser.instantiate_classes(parser.parse_path(config_path(name))).attacker
    assert isinstance(built, Attacker)
    assert json.dumps(built.describe())


def test_a_shipped_configuration_attacks(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    words = (f"--ckpt_path={trained()}", f"--trainer.default_root_dir={tmp_path}", f"--out={out}")
    assert run("attack", records, "-c", "attack/fast", *words) == 0
    header, found = read_attacks(out)
    assert header.binding["attacker"]["n"] == 1000
    assert len(found) == 4


def test_check_must_be_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify(tmp_path / "r.jsonl", "--check=2.0", max=2) == 2
    assert "check must lie in (0, 1], got 2.0" in capsys.readouterr().err


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_runtime_of_a_header_is_the_one_that_ran(stochastic: bool) -> None:
    runtime = Runtime(micro_batch=64, fuse=False, stochastic_network=stochastic)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    described = runtime.prepare(network, (1, 2, 2)).describe()
    assert runtime_of(described, Path("x")).prepare(network, (1, 2, 2)).describe() == described
