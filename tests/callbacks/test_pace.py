"""What a training says of its pace: passes an image, images a second, time left; nothing of it changes the training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from lightning_rs.callbacks import TrainingPace
from lightning_rs.callbacks.pace import seconds_left
from lightning_rs.classifiers import Consistency
from lightning_rs.data import Digits
from lightning_rs.noise import GaussianNoise
from tests.training import classifier, same, trainer, weights


def ticking(step: float) -> Any:
    """Return a clock that goes on by ``step`` at every look."""
    times = itertools.count()
    return lambda: next(times) * step


def test_the_bar_shows_images_a_second_and_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two seconds a look at the clock: one at the start, one at each epoch's, one after each validation, one a batch.
    pace = TrainingPace(clock=ticking(2.0))
    model = Consistency(network="digits_cnn", noise=GaussianNoise(0.25), copies=3, grid=16)
    shown: list[dict[str, Any]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            shown.append(dict(trainer.progress_bar_metrics))

    run = trainer(tmp_path, callbacks=[pace, Watch()], limit_train_batches=4, enable_progress_bar=True)
    run.fit(model, datamodule=Digits(batch_size=32))
    assert sum(isinstance(own, TrainingPace) for own in run.callbacks) == 1  # its own, no second one
    assert shown[-1]["images/s"] == pytest.approx(16.0)
    assert shown[-1]["min_left"] == 0.0
    assert shown[3]["min_left"] == pytest.approx((2 * 5) / 4 * 4 / 60)
    said = capsys.readouterr().err
    assert "Consistency: 3 forward and 3 backward passes an image" in said
    assert "trained on 256 images in 26 s, 10 images/s" in said


def test_numbers_are_told_once_a_second_and_when_loggers_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    pace = TrainingPace(clock=ticking(0.3))
    model = classifier()
    log = model.log

    def watched(name: str, value: Any, **how: Any) -> None:
        if name in ("images/s", "train/learning_rate"):
            told.append((run.fit_loop.epoch_loop.batch_idx, name == "train/learning_rate"))
        log(name, value, **how)

    monkeypatch.setattr(model, "log", watched)
    run = trainer(tmp_path, callbacks=[pace], limit_train_batches=9, max_epochs=1, log_every_n_steps=3)
    run.fit(model, datamodule=Digits(batch_size=32))
    # Looks are 0.3 s apart: the first batch, then a second later, every third batch for loggers, and the last one.
    assert [batch for batch, rate in told if not rate] == [0, 2, 5, 8]
    assert [batch for batch, rate in told if rate] == [0, 2, 5, 8]
    told.clear()
    pace._clock = ticking(0.3)
    run = trainer(tmp_path, callbacks=[pace], limit_train_batches=7, max_epochs=2, log_every_n_steps=100)
    run.fit(model, datamodule=Digits(batch_size=32))
    # Also the last batch of an epoch: its numbers stand in the line after the validation.
    assert [batch for batch, rate in told if not rate] == [0, 4, 6] * 2
    assert [batch for batch, rate in told if rate] == [0] * 2


def test_training_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    with_it, without = classifier(), classifier()
    run = trainer(tmp_path, limit_train_batches=2)
    pl.seed_everything(0)
    run.fit(with_it, datamodule=Digits(batch_size=32))
    assert not any(isinstance(own, TrainingPace) for own in run.callbacks)  # it goes when the training ends
    pl.seed_everything(0)
    pl.Trainer.fit(trainer(tmp_path, limit_train_batches=2), without, datamodule=Digits(batch_size=32))
    assert same(weights(with_it), weights(without))


@pytest.mark.parametrize(
    ("passed", "done", "left", "wanted"), [(10.0, 5, 20.0, 40.0), (10.0, 0, 20.0, None), (10.0, 5, math.inf, None)]
)
def test_time_left(passed: float, done: int, left: float, wanted: float | None) -> None:
    assert seconds_left(passed, done, left) == wanted
