"""Lightning's progress bar with room for what it says: a metric a line, never cut; plain lines where none is drawn."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import CustomBarColumn, RichProgressBarTheme
from rich.table import Column

from lightning_rs.stages.progress import SECONDS_BETWEEN_LINES, duration

_NARROW = 110  # columns of a terminal in which a bar would take the room of the metrics


class MetricsBar(RichProgressBar):
    """Lightning's bar, which cuts metrics at 80 columns: here each has a line, and a narrow terminal has no bar.

    Where nothing can be redrawn, in a pipe, a file or a dumb terminal, Lightning's bar says nothing before the training
    ends: here a plain line goes to stderr now and then, with the first batch, and after every validation.
    ``Trainer.fit`` takes it in the place of Lightning's bar with Lightning's looks.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)
    _said: float | None = None  # when the last line was printed

    def __init__(
        self, refresh_rate: int = 1, leave: bool = False, console_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(refresh_rate, leave, RichProgressBarTheme(metrics_text_delimiter="\n"), console_kwargs)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Return the columns before the metrics."""
        columns = super().configure_columns(trainer)
        narrow = self._console is not None and self._console.width < _NARROW
        return [each for each in columns if not (narrow and isinstance(each, CustomBarColumn))]

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the metrics without the run's id, which the last lines say."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: draw the bar; in a pipe, begin anew."""
        super().on_train_start(trainer, pl_module)
        self._said = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning hook: move the bar; in a pipe, print a line now and then."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._said is None or self.clock() - self._said >= SECONDS_BETWEEN_LINES:
            self._say(trainer, pl_module, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: show what validation found."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, pl_module, None)

    def _say(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: int | None) -> None:
        """Print a line, where nothing can be redrawn."""
        console = self._console
        if self.is_disabled or console is None or console.is_jupyter:
            return
        if console.is_terminal and not console.is_dumb_terminal:
            return
        self._said = self.clock()
        last = trainer.max_epochs or -1
        where = [f"epoch {_of(trainer.current_epoch + 1, last if last > 0 else math.inf)}"]
        if batch is not None:
            where.append(f"batch {_of(batch, self.total_train_batches)}")
        print(", ".join([*where, *told(self.get_metrics(trainer, pl_module))]), file=sys.stderr, flush=True)

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(overflow="fold")


def told(metrics: Mapping[str, Any]) -> list[str]:
    """Return metrics of the bar as people say them: pace and time left first."""
    rest = dict(metrics)
    speed, left = rest.pop("images/s", None), rest.pop("min_left", None)
    words = [] if speed is None else [f"{float(speed):,.0f} images/s"]
    words += [] if left is None else [f"{duration(60 * float(left))} left"]
    return words + [f"{name} {_told(value)}" for name, value in rest.items()]


def _told(value: Any) -> str:
    """Return a metric as a number, or as it is: a user's own bar may show anything."""
    try:
        return f"{float(value):.4g}" if not isinstance(value, str) else value
    except (TypeError, ValueError, RuntimeError):
        return str(value)


def _of(done: int, total: float) -> str:
    return f"{done:,}" if math.isinf(total) else f"{done:,}/{int(total):,}"


def in_place_of(callback: pl.Callback) -> pl.Callback:
    """Return our bar for Lightning's own with its usual looks, and anything else as it is."""
    if type(callback) is not RichProgressBar or callback.theme != RichProgressBarTheme():
        return callback
    return MetricsBar(int(callback.refresh_rate), callback._leave, callback._console_kwargs)
