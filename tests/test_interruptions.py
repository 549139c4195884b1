"""Ctrl-C, requests to terminate and full disks at odd moments: what is whole stays whole, and the status says it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from lightning_rs.cli import main
from lightning_rs.data import Digits
from lightning_rs.records import RecordFile
from tests.driving import ONE_THREAD, certify, run, trained
from tests.fakes import certification, header
from tests.training import classifier, trainer


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: the new one was moved over the old one byte by byte, and half of it was left."""
    model, made = classifier(), trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    made.fit(model, datamodule=Digits())
    path = tmp_path / "last.ckpt"
    made.save_checkpoint(path)
    whole = path.read_bytes()
    assert torch.load(path, weights_only=True)["epoch"] == 1

    def half(self: Any, checkpoint: Any, part: Any, storage_options: Any = None) -> None:
        Path(part).write_bytes(whole[:100])
        raise OSError(28, "No space left on device")

    def moved(self: Any, checkpoint: Any, part: Any, storage_options: Any = None) -> None:
        half_written = Path(part)
        half_written.write_bytes(whole[:100])
        raise OSError(28, "No space left on device", "/tmp/tmp1234", None, str(part))

    for write in (half, moved):
        monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", write)
        with pytest.raises(OSError, match=rf"No space left on device: '{path}'$"):
            made.save_checkpoint(path)
        assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_ctrl_c_while_modules_are_imported_is_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: a traceback out of the middle of numpy."""
    import builtins

    from lightning_rs.__main__ import run as program

    load = builtins.__import__

    def interrupted(name: str, *args: Any) -> Any:
        if name == "lightning_rs.cli":
            raise KeyboardInterrupt
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert program() == 1
    monkeypatch.undo()
    assert capsys.readouterr().err == "interrupted\n"


def asked_to_terminate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGTERM, which Lightning only notes."""
    monkeypatch.setattr(pl.Trainer, "received_sigterm", property(lambda self: True))


def test_every_stage_heeds_a_request_to_terminate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: predict, attack and transfer never did, and a training that did ended with status 0."""
    assert certify(tmp_path / "r.jsonl", n=20, max=2) == 0
    asked_to_terminate(monkeypatch)
    folder = f"--trainer.default_root_dir={tmp_path}"
    assert run("predict", "--ckpt_path", trained(), "--certifier.n=20", "--data.max=2", folder, *ONE_THREAD) == 143
    assert run("attack", tmp_path / "r.jsonl", "--ckpt_path", trained(), "--attacker.n=100", folder) == 143
    assert "attacked images are recorded in" in capsys.readouterr().err
    assert run("fit", "--model.network=mlp", "--certifier=null", "--trainer.max_epochs=2", folder) == 143
    assert "interrupted in epoch 0" in capsys.readouterr().err


def test_a_command_on_records_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.jsonl"
    with RecordFile(path, header()) as file:
        file.append([certification(index) for index in header().expected or range(5)])
    there = sorted(os.listdir())
    # A process that a shell started in the background ignores Ctrl-C, and so would this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 1)):
            with monkeypatch.context() as context:
                context.setattr(os, "fsync", lambda descriptor, number=number: signal.raise_signal(number))
                assert main(["export", str(path), "--out", "table.tsv"]) == status
            assert sorted(os.listdir()) == there
            assert "Traceback" not in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
