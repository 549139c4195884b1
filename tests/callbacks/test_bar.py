"""The progress bar of a training at several widths: every metric is there as a whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from lightning_rs.callbacks.bar import MetricsBar, in_place_of, told
from lightning_rs.data import Digits
from tests.training import classifier, trainer


@pytest.mark.parametrize("width", [80, 120])
def test_no_metric_is_cut(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    bar = RichProgressBar(console_kwargs={"force_terminal": True})
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], max_epochs=1)
    run.fit(classifier("mlp", network_args={"hidden_sizes": [8]}), datamodule=Digits(batch_size=256))
    shown = capsys.readouterr().out
    for name in ("train/loss: ", "images/s: ", "val/accuracy_clean: 0.", "val/accuracy_noisy: 0."):
        assert name in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert isinstance(run.progress_bar_callback, MetricsBar)


def test_in_a_pipe_lines_come_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count()
    # A line takes two looks and a batch without one takes one: one at once, then one after two more batches.
    monkeypatch.setattr(MetricsBar, "clock", staticmethod(lambda: 8.0 * next(looks)))
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[RichProgressBar()], max_epochs=2)
    run.fit(classifier("mlp", network_args={"hidden_sizes": [8]}), datamodule=Digits(batch_size=256))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert run.num_training_batches == 5
    assert [line.split(", ")[:2] for line in lines if ", batch " in line] == [
        [f"epoch {epoch}/2", f"batch {batch}/5"] for epoch, batch in ((1, 1), (1, 3), (1, 5), (2, 2), (2, 4))
    ]
    for epoch in (1, 2):  # what a validation found has a line of its own
        (found,) = [line for line in lines if line.startswith(f"epoch {epoch}/2") and ", batch " not in line]
        assert "val/accuracy_noisy 0." in found
    assert all(" images/s, " in line and " left, " in line and "train/loss " in line for line in lines[1:])


def test_a_dumb_terminal_is_no_better_than_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be redrawn there either: emacs's shell, some CI systems."""
    monkeypatch.setenv("TERM", "dumb")
    bar = RichProgressBar(console_kwargs={"force_terminal": True})
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], max_epochs=1)
    run.fit(classifier("mlp", network_args={"hidden_sizes": [8]}), datamodule=Digits(batch_size=256))
    shown = capsys.readouterr()  # rich may redirect stderr to stdout while it draws
    assert "epoch 1/1, batch 1/5" in shown.out + shown.err
    assert "val/accuracy_noisy 0." in shown.out + shown.err


@pytest.mark.parametrize("how", [{"enable_progress_bar": False}, {"callbacks": [RichProgressBar(refresh_rate=0)]}])
def test_who_wants_no_bar_gets_no_lines(
    how: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, **({"enable_progress_bar": True} | how), max_epochs=1)
    run.fit(classifier("mlp", network_args={"hidden_sizes": [8]}), datamodule=Digits(batch_size=256))
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]


def test_words_of_the_lines() -> None:
    metrics = {"train/loss": 0.63512, "images/s": 4042.3, "min_left": 1.5, "mine": "text"}
    assert told(metrics) == ["4,042 images/s", "1 min 30 s left", "train/loss 0.6351", "mine text"]
    assert told({}) == []
    assert told({"mine": [1, 2], "nothing": None, "two": torch.ones(2)}) == [
        "mine [1, 2]", "nothing None", "two tensor([1., 1.])",
    ]  # fmt: skip


def test_a_bar_that_the_user_has_chosen_stays() -> None:
    mine = RichProgressBar(theme=RichProgressBarTheme(metrics_text_delimiter=" | "))
    assert in_place_of(mine) is mine
    ours = in_place_of(RichProgressBar(refresh_rate=3, leave=True))
    assert isinstance(ours, MetricsBar)
    assert ours.refresh_rate == 3
