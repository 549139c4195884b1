"""The progress bar of a training at several widths: every metric is there as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from lightning_rs.callbacks.bar import MetricsBar, in_place_of
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


def test_a_bar_that_the_user_has_chosen_stays() -> None:
    mine = RichProgressBar(theme=RichProgressBarTheme(metrics_text_delimiter=" | "))
    assert in_place_of(mine) is mine
    ours = in_place_of(RichProgressBar(refresh_rate=3, leave=True))
    assert isinstance(ours, MetricsBar)
    assert ours.refresh_rate == 3
