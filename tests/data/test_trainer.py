"""Data modules under Lightning's Trainer, and the shipped configs through jsonargparse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_rs.data import CIFAR10, MNIST, Digits, ImageDataModule, ImageFolder, MissingDataError
from tests.data.examples import EXAMPLES, build

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # depends on the number of cores
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # pytorch-lightning 2.6 on torch 2.15
]
CONFIGS = Path(__file__).parents[2] / "configs" / "data"


class Linear(pl.LightningModule):
    """A linear classifier that remembers which images it was given to predict."""

    def __init__(self, module: ImageDataModule) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(math.prod(module.shape), module.num_classes)
        self.predicted: list[int] = []
        self.seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        self.seen += len(labels)
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        assert len(images) == len(labels)

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.predicted += batch["index"].tolist()
        return self.layer(batch["image"].flatten(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**arguments: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, **arguments})


def test_every_stage_of_the_trainer(example: str, tmp_path: Path) -> None:
    module = build(example, tmp_path, skip=3, max=5, certify_batch_size=2)
    model = Linear(module)
    trainer().fit(model, datamodule=module)
    assert model.seen == len(module.dataset("train")) // 16 * 16
    trainer().validate(model, datamodule=module, verbose=False)
    trainer().test(model, datamodule=module, verbose=False)
    trainer().predict(model, datamodule=module, return_predictions=False)
    assert model.predicted == module.certification_subset().indices.tolist()


def test_missing_data_stops_the_trainer_with_our_error(tmp_path: Path) -> None:
    module = MNIST(root=tmp_path)
    with pytest.raises(MissingDataError, match="train-images-idx3-ubyte"):
        trainer().fit(Linear(module), datamodule=module)


def test_training_is_reproducible(tmp_path: Path) -> None:
    def weights(seed: int) -> Tensor:
        pl.seed_everything(seed, verbose=False)
        module = build("swiss_roll", tmp_path)
        torch.manual_seed(0)
        model = Linear(module)
        pl.seed_everything(seed, verbose=False)
        trainer().fit(model, datamodule=module)
        return model.layer.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def data_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ImageDataModule, "data")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--shape", type=tuple[int, ...])
    parser.link_arguments("data.num_classes", "classes", apply_on="instantiate")
    parser.link_arguments("data.shape", "shape", apply_on="instantiate")
    return parser


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_builds_its_data_module(path: Path) -> None:
    parser = data_parser()
    arguments = ["--config", str(path)]
    if path.stem == "image_folder":
        arguments += ["--data.num_classes", "5"]  # else the folder would have to be there
    built = parser.instantiate(parser.parse_args(arguments))
    assert isinstance(built.data, ImageDataModule)
    assert built.classes == built.data.num_classes
    assert tuple(built.shape) == built.data.shape
    if path.stem != "image_folder":
        assert built.data.name == path.stem.replace("mnist_pca", "mnist_pca10")


def test_every_data_module_has_a_config() -> None:
    texts = [path.read_text() for path in CONFIGS.glob("*.yaml")]
    for make, _, _ in EXAMPLES.values():
        name = make.__name__  # type: ignore[attr-defined]
        assert any(f"lightning_rs.data.{name}\n" in text for text in texts), name


def test_command_line_reaches_inherited_arguments(tmp_path: Path) -> None:
    parser = data_parser()
    arguments = ["--data", "lightning_rs.data.MNIST", "--data.root", str(tmp_path), "--data.download", "true"]
    arguments += ["--data.skip", "20", "--data.max", "500", "--data.val_size", "7", "--data.average_pool", "4"]
    module = parser.instantiate(parser.parse_args(arguments)).data
    assert isinstance(module, MNIST)
    assert (module.root, module.download, module.skip, module.max, module.val_size) == (tmp_path, True, 20, 500, 7)
    assert module.shape == (1, 7, 7)
    parsed = parser.parse_args(["--data", "lightning_rs.data.Digits", "--data.indices", "[3,1]"])
    assert parser.instantiate(parsed).data.indices == [3, 1]


def test_names_are_public() -> None:
    assert {Digits().name, MNIST().name, CIFAR10().name} == {"digits", "mnist", "cifar10"}
    assert ImageFolder(root="/data/pets.zip", num_classes=2).name == "pets"
