"""The contract of every network: saved, rebuilt, resumed bit for bit, differentiable, run by the engine unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks.build import _BUILDERS
from lightning_rs.noise import GaussianNoise
from tests.training import same, trainer, weights

RGB, GRAY, DIGIT = (3, 32, 32), (1, 28, 28), (1, 8, 8)
UNET = {"class_path": "lightning_rs.networks.SigmaUNet", "init_args": {"widths": [8, 8]}}


@dataclass(frozen=True)
class Row:
    """A network and what it is built for."""

    network: str
    shape: tuple[int, ...] = RGB
    args: dict[str, Any] = field(default_factory=dict)
    label: str = ""


# Every name of `build_network` has a row; a class of your own, timm and torchvision stand for their kind.
ROWS = [
    Row("cifar_resnet20"),
    Row("cifar_resnet56", (3, 8, 8)),
    Row("cifar_resnet110", (3, 8, 8)),
    Row("wide_resnet40_2", (3, 8, 8)),
    Row("mnist_lenet", GRAY),
    Row("digits_cnn", DIGIT),
    Row("small_cnn", GRAY),
    Row("pooled_cnn", GRAY),
    Row("mlp", (5,), {"hidden_sizes": [4]}),
    Row("low_resolution", (1, 16, 16), {"base": "digits_cnn", "pool": 2}),
    Row("null_coded", DIGIT, {"base": "digits_cnn"}),
    Row(
        "denoised",
        GRAY,
        {
            "denoiser": {"class_path": "lightning_rs.networks.SigmaDenoiser", "init_args": {"net": UNET}},
            "classifier": "small_cnn",
        },
        "denoised by a U-Net",
    ),
    Row(
        "denoised",
        DIGIT,
        {
            "denoiser": {"class_path": "lightning_rs.networks.DnCNN", "init_args": {"depth": 3, "width": 4}},
            "classifier": {"network": "mnist_lenet"},
            "resize": 16,
        },
        "denoised by a DnCNN",
    ),
    Row("timm/test_resnet"),
    Row("torchvision/resnet18"),
    Row("tests.networks.own.OwnNet", DIGIT, {"width": 3}),
]


def name_of(row: Row) -> str:
    return row.label or row.network


def classifier(row: Row) -> NoiseAugmentation:
    torch.manual_seed(0)
    constants = {"mean": [0.5] * row.shape[0], "std": [0.25] * row.shape[0]}
    own = {"num_classes": 3, "shape": row.shape, "scheduler": None, **constants}
    return NoiseAugmentation(row.network, row.args, GaussianNoise(0.25), **own)


def loader(row: Row) -> DataLoader:
    images = torch.rand(8, *row.shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=4)


def test_every_network_has_a_row() -> None:
    assert set(_BUILDERS) <= {row.network for row in ROWS}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_saved_rebuilt_and_resumed_bit_for_bit(row: Row, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    model = classifier(row)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[keep]).fit(model, loader(row), loader(row))
    rebuilt = NoiseAugmentation.load_from_checkpoint(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert same(weights(rebuilt), weights(model))
    inputs = next(iter(loader(row)))[0]
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(inputs), model.eval()(inputs))
    resumed = classifier(row)
    torch.manual_seed(0)
    start = tmp_path / "epoch=0.ckpt"
    trainer(tmp_path).fit(resumed, loader(row), loader(row), ckpt_path=start, weights_only=True)
    assert same(weights(resumed), weights(model))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_differentiable_and_unchanged_by_the_engine(row: Row) -> None:
    model = classifier(row).eval()
    inputs = torch.rand(4, *row.shape, requires_grad=True)
    logits = model(inputs)
    logits[:, 0].sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.flatten(1).abs().amax(1).gt(0).all()
    prepared = Runtime(micro_batch=4, threads=1).prepare(model.network, row.shape)
    with torch.inference_mode():
        found = prepared.logits(prepared.flatten(inputs.detach()))
    torch.testing.assert_close(found, logits.detach(), rtol=1e-3, atol=1e-4)
