"""Bad input: exit status 2, one line that names argument, value and what would be right, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_rs.cli import main
from lightning_rs.cli.console import shorten
from lightning_rs.data.sources import ArraySource
from tests.driving import PLAIN, certify, run, trained

# Command -> what the one line says.
BAD = {
    "alpha": (["fit", "--certifier.init_args.alpha=1.5"], ["alpha must lie in (0, 1), got 1.5"]),
    "alpha text": (["fit", "--certifier.init_args.alpha=much"], ["certifier.alpha", "expected float", "got much"]),
    "n": (["certify", "--certifier.init_args.n=0"], ["n must be a whole number >= 1, got 0"]),
    "n0": (["certify", "--certifier.init_args.n0=0"], ["n0 must be a whole number >= 1, got 0"]),
    "sigma": (["fit", "--model.init_args.noise.init_args.sigma=-1"], ["sigma must be finite and > 0, got -1"]),
    "network": (["fit", "--model.init_args.network=resnet999"], ["got 'resnet999'", "near: ", "resnet"]),
    "precision": (
        ["certify", "--certifier.init_args.runtime.init_args.precision=fp8"],
        ["certifier.runtime.precision", "'32-true', 'bf16-true'", "got fp8"],
    ),
    "precision here": (
        ["certify", "--untrained=true", "--certifier.init_args.runtime.init_args.precision=16-true"],
        ["'16-true' is not supported on the CPU", "32-true, bf16-true"],
    ),
    "scheduler": (["fit", "--model.init_args.scheduler=sine"], ["model.scheduler", "got sine"]),
    "shard": (["certify", "--untrained=true", "--shard=3/3"], ["shard must be 'i/m' with 0 <= i < m", "got '3/3'"]),
    "shard text": (["certify", "--untrained=true", "--shard=first"], ["shard must be 'i/m'", "got 'first'"]),
    "certificate": (
        ["certify", "--untrained=true", "--certifier.init_args.certificates=[UniformL1]"],
        ["certificate UniformL1 is proved for UniformNoise, got noise GaussianNoise(sigma=0.25)"],
    ),
    "schemes": (
        ["certify", "--certifier.init_args.certificates=[GaussianL2,DipoleL2]"],
        ["certificates of one pass", "iid: GaussianL2", "antithetic: DipoleL2", "separate_passes"],
    ),
    "index": (
        ["certify", "--untrained=true", "--data.init_args.indices=[5,9999]"],
        ["indices must lie in the certified split", "[9999]"],
    ),
    "data": (
        ["fit", "--data=MNIST", "--data.init_args.root=nowhere"],
        ["mnist: data not found", "nowhere", "download"],
    ),
    "unknown data": (["fit", "--data=Nope"], ["data: ", "Nope"]),
    "checkpoint": (["certify", "--ckpt_path=no.ckpt"], ["ckpt_path must be a checkpoint file, got 'no.ckpt'"]),
    "checkpoint of fit": (["fit", "--ckpt_path=no.ckpt"], ["ckpt_path must be a checkpoint file, got 'no.ckpt'"]),
    "config": (["fit", "-c", "no.yaml"], ["config must be a file or the name of a shipped one", "no.yaml"]),
    "option": (["fit", "--sigma=1"], ["unrecognized arguments: --sigma=1"]),
    "trainer": (["fit", "--trainer.max_epochs=x"], ["trainer.max_epochs", "expected int", "got x"]),
    "devices": (["fit", "--trainer.devices=0"], ["devices", "0"]),
    "command": (["fti"], ["got 'fti'", "did you mean fit?"]),
    "records": (["report", "no.jsonl"], ["no record file at no.jsonl"]),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = BAD[case]
    plain = [word for word in PLAIN if not any(word.split("=")[0] in other for other in words)]
    assert main([*words, *(plain if words[0] in ("fit", "certify") else [])]) == 2
    line = _error(capsys)
    for part in said:
        assert part in line
    assert "Traceback" not in line
    assert "Namespace(" not in line


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "a command is missing: one of fit, validate, test, predict, certify" in _error(capsys)


@pytest.mark.parametrize("stage", ["certify", "predict", "test", "fit"])
def test_damaged_checkpoints(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.ckpt"
    path.write_bytes(trained().read_bytes()[:-300])
    capsys.readouterr()
    assert run(stage, "--ckpt_path", path) == 2
    assert f"ckpt_path '{path}' is damaged or no checkpoint" in _error(capsys)


def test_other_files_than_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.ckpt")
    assert run("certify", "--ckpt_path", tmp_path / "x.ckpt") == 2
    assert "holds weights and does not name their architecture" in _error(capsys)


def test_a_checkpoint_of_another_class_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = torch.load(trained(), weights_only=True)
    del contents["lightning_rs"]
    contents["state_dict"] = {"layer.weight": torch.zeros(3)}
    torch.save(contents, tmp_path / "x.ckpt")
    capsys.readouterr()
    assert run("certify", "--ckpt_path", tmp_path / "x.ckpt") == 2
    assert "the checkpoint does not hold the weights of network 'digits_cnn'" in _error(capsys)


def test_a_corrupt_record_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.jsonl"
    assert certify(out) == 0
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:3], "not JSON\n", *lines[4:]]))
    before = out.read_bytes()
    capsys.readouterr()
    assert certify(out) == 2
    assert f"{out}:4: not a line of JSON" in _error(capsys)
    assert out.read_bytes() == before
    out.write_text("idx\tlabel\n0\t3\n")
    assert certify(out) == 2
    assert f"{out}:1: not a record file" in _error(capsys)
    assert out.read_text() == "idx\tlabel\n0\t3\n"


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "images must be finite, got NaN"), (0.03, "images must be multiples of 1/16")]
)
def test_a_bad_image_is_named_and_what_came_before_is_kept(
    value: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.jsonl"
    assert certify(out) == 0
    good = out.read_text().splitlines()
    images = ArraySource.images

    def broken(self: ArraySource, indices: np.ndarray, augment: bool = False) -> torch.Tensor:
        batch = images(self, indices, augment)
        if len(indices) < 16:  # the fingerprint of the data stays
            batch[np.asarray(indices) == 7, 0, 2, 1] = value
        return batch

    out.unlink()
    monkeypatch.setattr(ArraySource, "images", broken)
    capsys.readouterr()
    assert certify(out, "--data.init_args.certify_batch_size=5") == 2
    said_all = capsys.readouterr().err
    line = next(line for line in said_all.splitlines() if line.startswith("error"))
    assert f"image 7 of digits: {said}" in line
    assert line.endswith("at coordinate 17")
    assert "7 images are recorded" in said_all  # all before it, however many are handed over at once
    assert out.read_text().splitlines()[1:] == good[1:8]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert certify(out) == 0
    assert out.read_text().splitlines()[1:] == good[1:]


def test_bad_images_stop_predictions_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained()
    images = ArraySource.images
    monkeypatch.setattr(ArraySource, "images", lambda self, i, augment=False: images(self, i, augment) + 1)
    assert run("predict", "--ckpt_path", trained(), "--data.init_args.max=3") == 2
    assert "image 0 of digits: images must lie in [0, 1]" in _error(capsys)


def test_networks_that_give_nan_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = torch.load(trained(), weights_only=True)
    contents["state_dict"]["network.net.head.bias"][0] = float("nan")
    torch.save(contents, tmp_path / "nan.ckpt")
    capsys.readouterr()
    assert run("certify", "--ckpt_path", tmp_path / "nan.ckpt") == 2
    assert "NaN or infinite logits" in _error(capsys)


def test_interrupts_outside_lightning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_rs.cli.program._run", interrupted)
    assert main(["fit"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_tracebacks_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_RS_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="ckpt_path"):
        run("certify", "--ckpt_path=no.ckpt")


def test_messages_become_one_line() -> None:
    nested = """Parser key "certifier":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'lightning_rs.certifier.Certifier'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'lightning_rs.Certifier':
            Parser key "alpha":
              Expected a <class 'float'>. Got value: abc
        - Expected a <class 'NoneType'>
      Given value type: <class 'jsonargparse._util.NestedArg'>
      Given value: NestedArg(key='alpha', val='abc')"""
    assert shorten(nested) == "certifier.alpha: expected float, got abc"
    assert shorten("one line") == "one line"
    assert shorten("data not found. Looked for:\n  /a\n  /b\nDownload it.") == (
        "data not found. Looked for: /a; /b; Download it."
    )
