"""What holds of every data module: one table, all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_rs import data
from lightning_rs.data import ImageDataModule
from tests.data.examples import EXAMPLES, build


def test_every_data_module_has_an_example() -> None:
    public = {
        value
        for value in vars(data).values()
        if isinstance(value, type) and issubclass(value, ImageDataModule) and value is not ImageDataModule
    }
    assert {make for make, _, _ in EXAMPLES.values()} == public


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_declared_without_touching_the_disk(name: str) -> None:
    """LightningCLI links these into the model when the data module exists and nothing is loaded."""
    changes = {"num_classes": 2} if name == "folder" else {}
    module = build(name, Path("/nonexistent"), **changes)
    assert module.name == name
    assert module.num_classes >= 2
    assert module.domain in ((0.0, 1.0), None)
    assert module.grid in (255, 16, None)
    assert len(module.mean) == len(module.std) == module.shape[0]
    assert min(module.std) > 0
    if name != "folder":
        assert len(module.class_names) == len(set(module.class_names)) or name == "imagenet"
        assert len(module.class_names) == module.num_classes


def test_loaders_yield_what_is_declared(module: ImageDataModule) -> None:
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    train, val = len(module.dataset("train")), len(module.dataset("val"))
    assert val == module.held_out_size(train + val)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (len(labels), *module.shape)
        assert labels.min() >= 0
        assert labels.max() < module.num_classes
    assert next(iter(module.train_dataloader()))[0].shape[0] == 16
    assert sum(len(labels) for _, labels in module.test_dataloader()) == len(module.dataset("test"))


def test_pixels_lie_in_the_domain_and_on_the_grid(module: ImageDataModule) -> None:
    """Training images too: the augmentation must not leave the grid."""
    for loader in (module.train_dataloader(), module.test_dataloader()):
        images = torch.cat([images for images, _ in loader])
        assert torch.isfinite(images).all()
        if module.domain is not None:
            assert images.min() >= module.domain[0]
            assert images.max() <= module.domain[1]
        if module.grid is not None:
            scaled = images * module.grid
            assert torch.equal(scaled, scaled.round())
            assert torch.equal((scaled.double() / module.grid).float(), images)
            assert len(scaled.unique()) > 10  # not all black


def test_validation_is_held_out_of_training_seeded_and_stratified(example: str, tmp_path: Path) -> None:
    module, again, other = (build(example, tmp_path, split_seed=seed) for seed in (0, 0, 1))
    train, val = module.split_indices("train"), module.split_indices("val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == len(module.source("train"))
    np.testing.assert_array_equal(train, module.train_dataloader().dataset.indices)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(val, module.val_dataloader().dataset.indices)  # type: ignore[union-attr]
    np.testing.assert_array_equal(val, again.split_indices("val"))
    assert not np.array_equal(val, other.split_indices("val"))
    labels = module.source("train").labels
    share = np.bincount(labels, minlength=module.num_classes) * len(val) / len(labels)
    assert (abs(np.bincount(labels[val], minlength=module.num_classes) - share) < 1).all()


def test_test_data_do_not_depend_on_the_split_seed(example: str, tmp_path: Path) -> None:
    prints = {build(example, tmp_path, split_seed=seed).source("test").fingerprint() for seed in (0, 1)}
    assert len(prints) == (2 if example == "mnist_pca10" else 1)  # its components are fitted on the training split


@pytest.mark.parametrize("split", ["test", "val"])
def test_certification_subset_keeps_own_indices(example: str, tmp_path: Path, split: str) -> None:
    module = build(example, tmp_path, certify_split=split, skip=2, max=3, certify_batch_size=2)
    subset = module.certification_subset()
    own = module.split_indices(split)  # type: ignore[arg-type]
    assert subset.indices.tolist() == [i for i in own if i % 2 == 0][:3]
    batches = list(module.predict_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [subset.indices[:2].tolist(), subset.indices[2:].tolist()]
    everything = module.source(split)  # type: ignore[arg-type]
    for batch in batches:
        assert set(batch) == {"index", "image", "label"}
        torch.testing.assert_close(batch["image"], everything.images(batch["index"].numpy()), rtol=0, atol=0)
        np.testing.assert_array_equal(batch["label"].numpy(), everything.labels[batch["index"].numpy()])


def test_epoch_end_subset_is_fixed_stratified_and_from_validation(module: ImageDataModule) -> None:
    subset, again = module.epoch_end_subset(max=6), module.epoch_end_subset(max=6)
    assert len(subset) == 6
    np.testing.assert_array_equal(subset.indices, again.indices)
    assert set(subset.indices) <= set(module.split_indices("val"))
    assert subset.source is module.source("val")
    assert "test" not in module._sources  # it was never read
    assert set(subset[0]) == {"index", "image", "label"}
    assert len(module.epoch_end_subset(max=10**6)) == len(module.dataset("val"))
    if module.num_classes == 2:
        assert np.bincount(subset.labels).tolist() == [3, 3]


def test_description_is_plain_and_reproducible(example: str, tmp_path: Path) -> None:
    module = build(example, tmp_path, skip=3, max=2)
    described = module.describe()
    assert json.loads(json.dumps(described)) == described == build(example, tmp_path, skip=3, max=2).describe()
    assert described["name"] == module.name
    assert described["subset"] == {"skip": 3, "max": 2, "indices": None, "size": 2}
    assert described["size"] == len(module.dataset("test"))
    assert str(tmp_path.parent) not in json.dumps(described)  # no private paths in published records
    places = {"own": None} | dict.fromkeys(("digits", "swiss_roll"), "scikit-learn")  # tensors have no place
    assert described["root"] == places.get(example, tmp_path.name)


def test_shuffling_and_augmentation_follow_lightnings_seed(module: ImageDataModule) -> None:
    def epoch(seed: int) -> torch.Tensor:
        pl.seed_everything(seed, verbose=False)
        return torch.cat([images for images, _ in module.train_dataloader()])

    first = epoch(0)
    torch.testing.assert_close(first, epoch(0), rtol=0, atol=0)
    assert not torch.equal(first, epoch(1))


@pytest.mark.parametrize("example", ["mnist", "imagenet"], indirect=True)  # in memory, and in files
def test_worker_processes_give_the_same_images(example: str, tmp_path: Path) -> None:
    alone, helped = (build(example, tmp_path, num_workers=workers) for workers in (0, 1))
    for mine, other in zip(alone.predict_dataloader(), helped.predict_dataloader(), strict=True):
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=0, atol=0)


def test_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(tmp_path: Path) -> None:
    module = build("swiss_roll", tmp_path, batch_size=30)  # 80 training points
    assert [len(labels) for _, labels in module.train_dataloader()] == [30, 30]
    assert [len(labels) for _, labels in build("swiss_roll", tmp_path, batch_size=100).train_dataloader()] == [80]


def test_no_validation_data(tmp_path: Path) -> None:
    module = build("swiss_roll", tmp_path, val_size=0)
    assert module.val_dataloader() == []
    assert len(module.dataset("train")) == 100
    with pytest.raises(ValueError, match="no validation images"):
        module.epoch_end_subset(max=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"val_size": None, "val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\), got 1.0"),
        ({"val_size": 5, "val_fraction": 0.5}, "at most one of val_fraction and val_size"),
        ({"val_size": -1}, "val_size"),
        ({"certify_split": "train"}, "certify_split must be one of 'test', 'val', got 'train'"),
        ({"skip": 0}, "skip"),
        ({"max": 0}, "max must be a whole number >= 1, got 0"),
        ({"indices": [1, -2]}, "indices"),
        ({"indices": [1, 2, 1]}, "must not repeat"),
        ({"indices": [1], "skip": 2}, "beside them give skip 1 and max null"),
        ({"indices": [1], "max": 2}, "beside them give skip 1 and max null"),
    ],
)
def test_bad_arguments(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("swiss_roll", tmp_path, **changes)


def test_bad_arguments_that_only_the_data_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="smaller than the 100 training images of swiss_roll, got 100"):
        build("swiss_roll", tmp_path, val_size=100).setup("fit")
    with pytest.raises(ValueError, match=r"0 to 39\), got \[40\]"):
        build("swiss_roll", tmp_path, indices=[39, 40]).certification_subset()
    training = build("swiss_roll", tmp_path).split_indices("train")[:1].tolist()
    with pytest.raises(ValueError, match=rf"certified split .* got \[{training[0]}\]"):
        build("swiss_roll", tmp_path, certify_split="val", indices=training).certification_subset()
