"""Lightning's progress bar with room for what it says: a metric a line, never cut."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import CustomBarColumn, RichProgressBarTheme
from rich.table import Column

_NARROW = 110  # columns of a terminal in which a bar would take the room of the metrics


class MetricsBar(RichProgressBar):
    """Lightning's bar, which cuts metrics at 80 columns: here each has a line, and a narrow terminal has no bar.

    ``Trainer.fit`` takes it in the place of Lightning's bar with Lightning's looks.
    """

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

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(overflow="fold")


def in_place_of(callback: pl.Callback) -> pl.Callback:
    """Return our bar for Lightning's own with its usual looks, and anything else as it is."""
    if type(callback) is not RichProgressBar or callback.theme != RichProgressBarTheme():
        return callback
    return MetricsBar(int(callback.refresh_rate), callback._leave, callback._console_kwargs)
