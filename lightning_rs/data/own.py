"""Somebody else's data: a plain LightningDataModule, data sets, or tensors, with what certification needs to know."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_rs.data.base import ImageDataModule, Split
from lightning_rs.data.errors import MissingDataError
from lightning_rs.data.samples import is_pair, source_of
from lightning_rs.data.sources import Source

_UNSAID = object()
_LOADERS = {"train": ("fit", "train_dataloader"), "val": ("fit", "val_dataloader"), "test": ("test", "test_dataloader")}
_ASKED = {
    "num_classes": "num_classes=10",
    "domain": 'domain=(0, 1), or "none" for all of R^d',
    "grid": 'grid=255 for 8-bit pixels k/255, or "none"',
}


class OwnData(ImageDataModule):
    """Data that were not made for certification, with what it needs to know of them.

    Give a ``LightningDataModule``, or a data set (or a pair of tensors: images and labels) for each split that is used.
    Images are float tensors in the units of the noise. What is not given here is taken from attributes of the data of
    the same name; if ``num_classes``, ``domain`` or ``grid`` is nowhere, one error asks for all of them. Only the data
    sets of a ``LightningDataModule`` are used, not its loaders. The own index of an image is its index in its data set.

    Args:
        data: a ``LightningDataModule``; its data sets are those behind its loaders.
        train: training data.
        val: validation data; None holds them out of the training data.
        test: test data.
        num_classes: number of classes.
        domain: interval of the pixels, or "none" for all of R^d.
        grid: q where pixels are multiples of 1/q, or "none".
        shape: shape of one image; None looks at the first one.
        class_names: None for "0", "1", ...
        mean: mean of each channel, for the network's first layer; None for 0.
        std: standard deviation of each channel; None for 1.
        name: what records and reports call the data; None for the name of their class.
        declared: takes what is not given from the attributes of this object, for instance the trained classifier.
        **kwargs: see ``ImageDataModule``.

    Raises:
        ValueError: if nothing is given, or both ``data`` and splits.
    """

    def __init__(
        self,
        data: pl.LightningDataModule | None = None,
        train: Dataset | None = None,  # not Dataset[Any]: the parser would find no arguments of a subclass
        val: Dataset | None = None,
        test: Dataset | None = None,
        num_classes: int | None = None,
        domain: tuple[float, float] | Literal["none"] | None = None,
        grid: int | Literal["none"] | None = None,
        shape: list[int] | None = None,
        class_names: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        name: str | None = None,
        declared: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(data, OwnData):  # the command line wraps plain modules wherever they stand
            data = data.data
        given: dict[Split, Any] = {"train": train, "val": val, "test": test}
        self.parts: dict[Split, Any] = {split: part for split, part in given.items() if part is not None}
        if (data is None) == (not self.parts):
            raise ValueError("data: give a LightningDataModule, or some of train, val and test")
        for setting in ("batch_size", "num_workers"):
            if isinstance(getattr(data, setting, None), int):
                kwargs.setdefault(setting, getattr(data, setting))
        super().__init__(**kwargs)
        self.data: pl.LightningDataModule | None = data
        self._said = {
            "num_classes": num_classes, "domain": domain, "grid": grid, "shape": shape, "class_names": class_names,
            "mean": mean, "std": std,
        }  # fmt: skip
        self._declared = declared
        self.name = name or type(data if data is not None else next(iter(self.parts.values()))).__name__.lower()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._known("num_classes"))

    @property
    def domain(self) -> tuple[float, float] | None:  # type: ignore[override]
        """Interval of the pixels, or None."""
        found = self._known("domain")
        return None if found is None else (float(found[0]), float(found[1]))

    @property
    def grid(self) -> int | None:  # type: ignore[override]
        """Number of steps in [0, 1], or None."""
        found = self._known("grid")
        return None if found is None else int(found)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: as said, or as the first one has it."""
        found = self._find("shape")
        if found is not _UNSAID and found is not None:
            return tuple(int(size) for size in found)
        split: Split = next((split for split in ("train", "test", "val") if self._has(split)), "train")
        return self._part(split).shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        found = self._find("class_names")
        return tuple(map(str, range(self.num_classes))) if found in (_UNSAID, None) else tuple(found)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel."""
        found = self._find("mean")
        return (0.0,) * self.shape[0] if found in (_UNSAID, None) else tuple(found)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        found = self._find("std")
        return (1.0,) * self.shape[0] if found in (_UNSAID, None) else tuple(found)

    def _prepare(self) -> None:
        if self.data is not None:
            self.data.prepare_data()

    def _load(self, split: Literal["train", "test"]) -> Source:
        self._known("num_classes")
        return self._part(split)

    def _load_val(self) -> Source | None:
        return self._part("val") if self._has("val") else None

    def _part(self, split: Split) -> Source:
        if not self._has(split):
            said = f"{type(self.data).__name__} has no {split}_dataloader" if self.data else f"{split}= was not given"
            raise MissingDataError(f"{self.name}: there are no {split} data: {said}")
        return source_of(self._dataset(split), f"{self.name}.{split}")

    def _has(self, split: Split) -> bool:
        return split in self.parts if self.data is None else self._loader_of(split) is not None

    def _dataset(self, split: Split) -> Any:
        if self.data is None:
            return self.parts[split]
        loader = self._loader_of(split)
        if not isinstance(loader, DataLoader):
            raise ValueError(f"{self.name}: {split}_dataloader must give one DataLoader, got {type(loader).__name__}")
        return loader.dataset

    def _loader_of(self, split: Split) -> Any:
        """Return the loader of a plain module, set up for its stage; None if it has none."""
        assert self.data is not None
        stage, method = _LOADERS[split]
        self.data.setup(stage)
        try:
            return getattr(self.data, method)() or None
        except MisconfigurationException:  # Lightning's way to say that the hook is not implemented
            return None

    def _known(self, wanted: str) -> Any:
        """Return one of the facts that certification cannot do without; ask for all that are missing at once."""
        missing = [name for name in _ASKED if self._find(name) is _UNSAID]
        if missing:
            one = self.data if self.data is not None else next(iter(self.parts.values()))
            needed = "; ".join(f"{name} ({_ASKED[name]})" for name in missing)
            kind = f"{type(one).__module__}.{type(one).__name__}"
            raise ValueError(
                f"certification needs to know of {kind}: {needed}. Set them as attributes of the class, or say them: "
                f"lightning_rs.data.OwnData(..., {missing[0]}=...), on the command line "
                f"--data lightning_rs.data.OwnData --data.init_args.data {kind} --data.init_args.{missing[0]} ..."
            )
        found = self._find(wanted)
        return None if isinstance(found, str) and found == "none" else found

    def _find(self, name: str) -> Any:
        if self._said[name] is not None:
            return self._said[name]
        for owner in (self.data, *self.parts.values(), self._declared):
            found = getattr(owner, name, _UNSAID)
            if found is not _UNSAID and not (isinstance(owner, Tensor | tuple)):
                return found
        return _UNSAID


def as_datamodule(data: Any, declared: Any = None, split: Split = "test", val: Any = None) -> ImageDataModule:
    """Return data of any form as a data module: ours as it is, others as :class:`OwnData`.

    Args:
        data: a data module, a data set, a loader or a pair of tensors (images, labels).
        declared: where ``num_classes``, ``domain`` and ``grid`` come from, if the data do not say.
        split: what data that are no module are used for.
        val: validation data beside them.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(data, ImageDataModule):
        return data
    if isinstance(data, pl.LightningDataModule):
        return OwnData(data, declared=declared)
    if not is_data(data):
        raise ValueError(
            "datamodule must be a LightningDataModule, a Dataset, a DataLoader or a pair of tensors (images, labels), "
            f"got {type(data).__name__}"
        )
    parts: dict[str, Any] = {split: data} | ({} if val is None else {"val": val})
    return OwnData(**parts, declared=declared)


def is_data(data: Any) -> bool:
    """Return whether this is a data set, a loader or a pair of arrays."""
    return is_pair(data) or isinstance(data, (Dataset, DataLoader))
