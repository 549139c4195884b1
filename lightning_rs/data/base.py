"""The sequence every data module follows: load, check, hold out, select, serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, RandomSampler

from lightning_rs.checks import check_at_least, check_choice
from lightning_rs.data.datasets import View, collate
from lightning_rs.data.errors import CorruptDataError
from lightning_rs.data.sources import IntArray, Source
from lightning_rs.data.splits import certification_indices, hold_out, stratified_sample

Split = Literal["train", "val", "test"]
STAGES: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    None: ("train", "val", "test"),
}


class ImageDataModule(pl.LightningDataModule, ABC):
    """Labelled images for training under noise and for certification.

    A data set declares what the rest learns from it (``num_classes``, ``shape``, ``domain``, ``grid``, ``mean``,
    ``std``, ``class_names``, ``name``: all known without touching the disk) and implements ``_load``; this class
    does everything else, in one order: load, check against the declaration, hold out, select, serve.

    Images are float32 pixels in ``domain``, not normalised: noise is added in pixel space and the network
    standardises. On a grid they are exactly ``k / grid`` rounded to float32. Training, validation and test loaders
    yield ``(image, label)``; the predict loader yields ``{"index", "image", "label"}`` over the certification
    subset, where ``index`` is the image's own index in the published data set (for ``val``: in the training file).

    Args:
        batch_size: images a training step.
        eval_batch_size: images a validation or test step; ``None`` for twice ``batch_size``.
        certify_batch_size: images a certification step, at least: more where images need few samples. It does not
            change any result.
        num_workers: loader processes; 0 is fast for the data sets that are held in memory.
        augment: apply the usual augmentation of the data set to training images.
        val_fraction: share of the training data held out for validation, stratified. 0 holds out nothing.
        val_size: the same as a number of images; give at most one of the two.
        split_seed: seed of the held-out split.
        certify_split: the images that are certified and predicted.
        skip: certify image ``i`` when ``i % skip == 0``.
        max: certify at most so many images, whatever ``skip`` is; ``None`` for all.
        indices: certify exactly the images with these own indices instead.

    Raises:
        ValueError: on arguments out of range, contradictory, or repeated or negative ``indices``.
    """

    name: str
    domain: tuple[float, float] | None = (0.0, 1.0)
    grid: int | None = 255
    default_val_size: ClassVar[int | float] = 0.1

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        certify_batch_size: int = 8,
        num_workers: int = 0,
        augment: bool = True,
        val_fraction: float | None = None,
        val_size: int | None = None,
        split_seed: int = 0,
        certify_split: Literal["test", "val"] = "test",
        skip: int = 1,
        max: int | None = None,
        indices: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = check_at_least("batch_size", batch_size, 1)
        self.eval_batch_size = check_at_least("eval_batch_size", eval_batch_size or 2 * batch_size, 1)
        self.certify_batch_size = check_at_least("certify_batch_size", certify_batch_size, 1)
        self.num_workers = check_at_least("num_workers", num_workers, 0)
        self.augment = augment
        self.val_fraction, self.val_size = _checked_val(val_fraction, val_size)
        self.split_seed = check_at_least("split_seed", split_seed, 0)
        check_choice("certify_split", certify_split, ("test", "val"))
        self.certify_split: Split = certify_split
        self.skip = check_at_least("skip", skip, 1)
        self.max = None if max is None else check_at_least("max", max, 1)
        self.indices = _checked_indices(indices, self.skip, self.max)
        self.keyed_training = False  # set by a classifier that needs the own indices of its training images
        self._sources: dict[Split, Source] = {}

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes; labels are ``0..num_classes - 1``."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, channels first; ``(d,)`` for vectors."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """Usual mean of each channel, for the network's first layer."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """Usual standard deviation of each channel, for the network's first layer."""

    @abstractmethod
    def _load(self, split: Literal["train", "test"]) -> Source:
        """Read the training or the test data from where they are.

        Raises:
            MissingDataError: if they are not there.
            CorruptDataError: if they are not what they should be.
        """

    def _load_val(self) -> Source | None:
        """Read published validation data; ``None`` holds them out of the training data."""
        return None

    def _prepare(self) -> None:
        """Download or decode, once a machine; nothing by default."""
        return  # not abstract: most data sets have nothing to prepare

    @final
    def prepare_data(self) -> None:
        """Lightning hook: download or decode what is asked for, in one process a machine."""
        self._prepare()

    @final
    def setup(self, stage: str | None = None) -> None:
        """Lightning hook: load what ``stage`` needs, so that missing data is an error before anything starts."""
        for split in STAGES.get(stage, ()):
            self.split_indices(split)
        if stage == "predict":
            self.certification_subset()

    @final
    def source(self, split: Split) -> Source:
        """Return the published data set of which ``split`` is a part: for a held-out ``val``, the training data."""
        if split not in self._sources:
            self._sources[split] = self._checked(split, self._read(split))
        return self._sources[split]

    @final
    def split_indices(self, split: Split) -> IntArray:
        """Return the own indices of a split, sorted; ``train`` and a held-out ``val`` are disjoint."""
        source = self.source(split)
        if split == "test" or self.source("val") is not self._sources.get("train"):
            return np.arange(len(source))
        kept, val = hold_out(source.labels, self.held_out_size(len(source)), self.split_seed)
        return kept if split == "train" else val

    @final
    def held_out_size(self, total: int) -> int:
        """Return how many of ``total`` training images are held out for validation."""
        wanted = self.val_size if self.val_size is not None else self.val_fraction
        if wanted is None:
            wanted = self.default_val_size
        size = wanted if isinstance(wanted, int) else round(wanted * total)
        if not size < total:
            raise ValueError(f"val_size must be smaller than the {total} training images of {self.name}, got {size}")
        return size

    @final
    def dataset(self, split: Split) -> View:
        """Return a split as ``(image, label)`` samples, without augmentation."""
        return View(self.source(split), self.split_indices(split))

    @final
    def certification_subset(self) -> View:
        """Return the images to certify as ``{"index", "image", "label"}`` samples, in the order of their indices.

        Raises:
            ValueError: if an explicit index is not in ``certify_split``, or if nothing is left to certify.
        """
        available = self.split_indices(self.certify_split)
        chosen = certification_indices(available, self.skip, self.max, self.indices)
        return View(self.source(self.certify_split), chosen, keyed=True)

    @final
    def epoch_end_subset(self, max: int) -> View:
        """Return at most ``max`` validation images for certification during training, the same at every call.

        Stratified and seeded by ``split_seed``; never from the test data. Samples as in ``certification_subset``.

        Raises:
            ValueError: if nothing is held out for validation.
        """
        view = self.dataset("val")
        if not len(view):
            raise ValueError(f"{self.name}: no validation images to certify, because val_size or val_fraction is 0")
        size = min(check_at_least("max", max, 1), len(view))
        return View(view.source, view.indices[stratified_sample(view.labels, size, self.split_seed)], keyed=True)

    @final
    def train_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: shuffled by torch's default generator, an incomplete last batch dropped."""
        view = View(self.source("train"), self.split_indices("train"), self.augment, self.keyed_training)
        ranks = 1 if self.trainer is None else self.trainer.world_size
        drop_last = len(view) // ranks >= self.batch_size  # else there would be nothing to train on
        return self._loader(view, self.batch_size, shuffle=True, drop_last=drop_last)

    @final
    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Lightning hook: the validation split; an empty list, which skips validation, if nothing is held out."""
        view = self.dataset("val")
        return self._loader(view, self.eval_batch_size) if len(view) else []

    @final
    def test_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: the whole test data."""
        return self._loader(self.dataset("test"), self.eval_batch_size)

    @final
    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: the certification subset, with own indices."""
        return self._loader(self.certification_subset(), self.certify_batch_size)

    @final
    def describe(self) -> dict[str, Any]:
        """Return what was certified, as plain values for the provenance of a record.

        ``fingerprint`` is a sha256 over all labels and the first images of the data set behind ``split``; ``size``
        counts the images of the split, ``subset`` says which of them are certified.
        """
        subset = {"skip": self.skip, "max": self.max, "indices": self.indices, "size": len(self.certification_subset())}
        return {
            "name": self.name,
            "split": self.certify_split,
            "root": self._root_name(),
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction,
            "val_size": self.val_size,
            "size": len(self.split_indices(self.certify_split)),
            "subset": subset,
            "num_classes": self.num_classes,
            "shape": list(self.shape),
            "domain": None if self.domain is None else list(self.domain),
            "grid": self.grid,
            "fingerprint": self.source(self.certify_split).fingerprint(),
        }

    def _root_name(self) -> str | None:
        """Return the last part of where the data lie (no whole path: records are published)."""
        return None

    def _read(self, split: Split) -> Source:
        if split != "val":
            return self._load(split)
        published = self._load_val()
        return self.source("train") if published is None else published

    def _checked(self, split: Split, source: Source) -> Source:
        if source.shape != tuple(self.shape):
            raise CorruptDataError(f"{self.name} {split}: images have shape {source.shape}, not {tuple(self.shape)}")
        if not len(source):
            raise CorruptDataError(f"{self.name} {split}: there are no images")
        least, most = source.labels.min(), source.labels.max()
        if least < 0 or most >= self.num_classes:
            raise CorruptDataError(f"{self.name} {split}: labels {least}..{most} do not fit {self.num_classes} classes")
        return source

    def _loader(self, view: View, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Any]:
        return DataLoader(
            view,
            batch_size=batch_size,  # by keyword: Lightning re-creates predict loaders from keywords
            sampler=RandomSampler(view) if shuffle else None,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(torch.initial_seed()),  # no draw of its own from the default one
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )


def _checked_val(fraction: float | None, size: int | None) -> tuple[float | None, int | None]:
    if fraction is not None and size is not None:
        raise ValueError(f"give at most one of val_fraction and val_size, got {fraction} and {size}")
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), got {fraction}")
    return fraction, None if size is None else check_at_least("val_size", size, 0)


def _checked_indices(indices: Sequence[int] | None, skip: int, max: int | None) -> list[int] | None:
    if indices is None:
        return None
    if skip != 1 or max is not None:
        raise ValueError(f"indices say which images: beside them give skip 1 and max null, got skip={skip}, max={max}")
    chosen = [check_at_least("indices", index, 0) for index in indices]
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"indices must not repeat, got {chosen}")
    return chosen
