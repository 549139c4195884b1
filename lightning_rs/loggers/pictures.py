"""What people look at: figures, W&B's native charts, and the table of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.pictures import pixels
from lightning_rs.loggers.runs import Waiting, run_directory
from lightning_rs.metrics import certified_accuracy, label_probabilities
from lightning_rs.noise import Noise
from lightning_rs.plots import accuracy_steps, save_figure
from lightning_rs.plots.curves import radius_bins
from lightning_rs.records import Certification
from lightning_rs.records.units import axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
# Points of a chart: W&B's editor draws at most some thousands, over all runs that it overlays.
_POINTS = 200
_BINS = 30
# Rows of a table that W&B keeps, and rows with pictures: two files each.
_ROWS, PICTURES = 10_000, 200
_SMALL, _LARGE = 64, 128


def log_figure(trainer: pl.Trainer, key: str, figure: Figure, wandb: bool = True) -> None:
    """Show a figure on every logger that takes pictures; without one, save it in the run's folder.

    Args:
        trainer: whose loggers.
        key: name of the figure.
        figure: what to show.
        wandb: whether W&B gets the picture; it has a native chart instead otherwise.
    """
    shown = False
    for logger in trainer.loggers:
        if isinstance(logger, (WandbLogger, Waiting)):
            if wandb and isinstance(logger, WandbLogger):
                logger.log_image(key, [_pixels(figure)])
            shown = True
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, global_step=trainer.global_step)
            shown = True
    if not shown:
        save_figure(figure, run_directory(trainer) / (key.replace("/", "_") + ".png"))


def accuracy_points(records: Sequence[Certification]) -> tuple[FloatArray, FloatArray]:
    """Return radii from 0 to where the curve ends, evenly spaced, and the certified accuracy at each, exactly."""
    end = float(accuracy_steps(records)[0][-1])
    radii = np.linspace(0.0, end, _POINTS + 1)
    return radii, certified_accuracy(records, radii.tolist())


def distribution_points(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the empirical distribution of m >= 1 values: some of them, sorted, and the share that is at most each."""
    return thinned(np.sort(values)), thinned(np.arange(1, len(values) + 1) / len(values))


def thinned(values: FloatArray) -> FloatArray:
    """Return the values if they are few, else some of them, evenly spread by position, the first and last included."""
    if len(values) <= _POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, _POINTS).round().astype(int)]


def line_chart(series: Mapping[str, tuple[FloatArray, FloatArray]], title: str, x: str) -> Any:
    """Return W&B's native chart of lines, which overlays the lines of several runs."""
    import wandb

    xs = [points[0].tolist() for points in series.values()]
    ys = [points[1].tolist() for points in series.values()]
    return wandb.plot.line_series(xs=xs, ys=ys, keys=list(series), title=title, xname=x)


def certification_charts(records: Sequence[Certification], name: str) -> dict[str, Any]:
    """Return certified accuracy, histogram of radii and distribution of bounds of labelled records, for W&B.

    Args:
        records: records of at least one image, with labels.
        name: of the run, by which lines are told apart.
    """
    import wandb

    norm = records[0].norm
    charts = {
        "certify/curve": line_chart({name: accuracy_points(records)}, "certified accuracy", axis(norm)),
    }
    if all(record.has_radius for record in records):
        radii = [record.radius if record.correct else 0.0 for record in records]
        charts["certify/radii"] = wandb.Histogram(
            np_histogram=np.histogram(radii, radius_bins(norm, max(radii), _BINS))
        )
    bounds = label_probabilities(records)
    if bounds is not None:
        charts["certify/probabilities"] = line_chart(
            {name: distribution_points(bounds)}, "images whose label's probability is bounded by at most p", "p"
        )
    return charts


def certification_table(
    records: Sequence[Certification],
    seconds: Mapping[int, float],
    data: ImageDataModule | None = None,
    noise: Noise | None = None,
) -> Any:
    """Return one row an image for W&B: pictures, label, prediction, the radius of each certificate, counts, seconds.

    Args:
        records: what was certified, in index order.
        seconds: seconds that images took, by index.
        data: where pictures come from; None: no pictures.
        noise: draws the noisy pictures.
    """
    import wandb

    names = list(dict.fromkeys(name for record in records for name in (record.radii or {record.certificate: 0.0})))
    shown = records[:_ROWS]
    pictures = {} if data is None or noise is None else thumbnails(data, noise, [r.index for r in shown[:PICTURES]])
    columns = [
        "index", *(("image", "noisy") if pictures else ()), "label", "prediction", "correct", "status",
        *(f"radius {name}" for name in names), "p_lower", "n", "counts", "seconds", "statement",
    ]  # fmt: skip
    rows = []
    for record in shown:
        seen: list[Any] = [wandb.Image(each) for each in pictures.get(record.index, ())] or [None, None]
        radii = record.radii or {record.certificate: record.radius}
        rows.append(
            [
                record.index, *(seen if pictures else ()), record.label, record.prediction, record.correct,
                record.status, *(radii.get(name) for name in names), record.bounds.get("p_lower"), record.n_used,
                " ".join(map(str, record.counts)), seconds.get(record.index), repr(record),
            ]
        )  # fmt: skip
    return wandb.Table(columns=columns, data=rows)


def thumbnails(data: ImageDataModule, noise: Noise, indices: Sequence[int]) -> dict[int, tuple[Image.Image, ...]]:
    """Return each image and a noisy copy of it, by index; none for data that are no pictures.

    The copies are drawn by generators of their own, keyed by the index: they disturb nothing and come out the same.
    """
    if len(data.shape) != 3 or data.shape[0] not in (1, 3):
        return {}
    view = data.certification_subset()
    positions = {int(index): position for position, index in enumerate(view.indices)}
    known = [index for index in indices if index in positions]
    if not known:
        return {}
    images = view.__getitems__([positions[index] for index in known]).image
    return {
        index: tuple(_picture(each, data.domain) for each in (image, _noisy(image, noise, index)))
        for index, image in zip(known, images, strict=True)
    }


def _noisy(image: Tensor, noise: Noise, index: int) -> Tensor:
    return noise(image[None], torch.Generator().manual_seed(index))[0]


def _picture(image: Tensor, domain: tuple[float, float] | None) -> Image.Image:
    """Return an image (C, H, W) of a size to look at; values outside the domain are clipped."""
    found = pixels(image, domain)
    picture = Image.fromarray(found[..., 0] if found.shape[2] == 1 else found)
    side = max(picture.size)
    if side < _SMALL:
        factor = -(-_SMALL // side)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((_LARGE, _LARGE))
    return picture


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
