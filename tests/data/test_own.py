"""Data that were not made for certification: tensors, data sets and plain data modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_rs import Certifier
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data import MissingDataError, OwnData, as_datamodule
from lightning_rs.data.samples import source_of
from lightning_rs.records import read_records
from lightning_rs.trainer import Trainer
from tests.driving import ONE_THREAD, PLAIN, main

IMAGES = torch.arange(40 * 16).view(40, 1, 4, 4).remainder(256) / 255
LABELS = torch.arange(40) % 3
FACTS: dict[str, Any] = {"num_classes": 3, "domain": (0, 1), "grid": 255}


class Samples(Dataset[Any]):
    """Samples that are computed, with labels that nobody lists."""

    def __init__(self, images: Any = IMAGES, labels: Any = LABELS) -> None:
        self.pictures, self.answers = images, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.pictures[index], self.answers[index]


class Keyed(Samples):
    def __getitem__(self, index: int) -> Any:
        return {"image": self.pictures[index].numpy(), "label": int(self.answers[index]), "path": "x"}


class Lying(Samples):
    """Lists labels that its samples do not have."""

    targets = torch.zeros(40)


class Module(pl.LightningDataModule):
    """As in Lightning's own examples: it says nothing about its data."""

    def setup(self, stage: str) -> None:
        self.parts = {"fit": Samples(IMAGES[:30], LABELS[:30]), "test": Samples(IMAGES[30:], LABELS[30:])}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts["fit"], batch_size=8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts["test"], batch_size=8)


def model() -> NoiseAugmentation:
    arguments = {"hidden_sizes": [8]}
    return NoiseAugmentation("mlp", arguments, num_classes=3, shape=(1, 4, 4), domain=(0.0, 1.0), grid=255)


def trainer(folder: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        [IMAGES.numpy(), LABELS.numpy()],
        (IMAGES.double(), LABELS.float()),
        TensorDataset(IMAGES, LABELS),
        Samples(),
        Keyed(),
        Lying(),
        DataLoader(Samples(), batch_size=7),
        Subset(Samples(torch.cat([IMAGES, IMAGES]), torch.cat([LABELS, LABELS])), range(40, 80)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_sources_of_every_form_hold_the_same_images_and_labels(data: Any) -> None:
    source = source_of(data, "mine")
    assert torch.equal(source.images(np.arange(40)), IMAGES)
    assert source.labels.tolist() == LABELS.tolist()
    assert source.fingerprint() == source_of((IMAGES, LABELS), "mine").fingerprint()


class Random(Samples):
    def __getitem__(self, index: int) -> Any:
        return torch.rand(1, 4, 4), 0


class Ragged(Samples):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1, 4, 4 + index), 0


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (IMAGES.mul(255).to(torch.uint8), LABELS),
            r"mine images must be a float tensor .*got torch.uint8: divide 8-bit",
        ),
        (Samples(IMAGES.mul(255).to(torch.uint8)), r"mine\[0\] must be a float tensor .*got torch.uint8"),
        (Samples([Image.new("L", (4, 4))]), r"mine\[0\] must be a float tensor, got Image: apply .*ToTensor"),
        ((IMAGES, LABELS[:-1]), r"mine must be images \(n, \*shape\) and n labels, got \(40, 1, 4, 4\) and 39"),
        ((IMAGES, LABELS + 0.5), "must have one whole number as its label, got tensor"),
        ((IMAGES, torch.eye(3)[LABELS]), "must have one whole number as its label"),
        (Samples(labels=["cat"] * 40), r"mine\[0\] must have one whole number as its label, got 'cat'"),
        (Samples(IMAGES[:0]), "mine must hold at least one sample"),
        (Random(), r"mine\[0\] is another image at every call"),
        (Ragged(), r"mine\[1\] has shape \(1, 4, 5\), but \[0\] has \(1, 4, 4\)"),
        (Endless(), "mine must be tensors .* or a Dataset with a length and an index .*got Endless"),
        ([1, 2, 3][0], "got int"),
    ],
)
def test_what_cannot_be_certified_is_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source_of(data, "mine").images(np.arange(2))


def test_all_that_is_missing_is_asked_for_at_once() -> None:
    for data in (Module(), Samples(), (IMAGES, LABELS)):
        with pytest.raises(ValueError, match=r"num_classes .*; domain .*; grid ") as caught:
            _ = as_datamodule(data).domain
        assert "\n" not in str(caught.value)
        assert "OwnData" in str(caught.value)
    with pytest.raises(ValueError, match=r"needs to know of .*Samples: grid \(grid=255") as caught:
        _ = OwnData(test=Samples(), num_classes=3, domain="none").num_classes
    assert "domain (" not in str(caught.value)
    assert OwnData(test=Samples(), num_classes=3, domain="none", grid="none").domain is None


def test_attributes_of_the_data_answer() -> None:
    class Saying(Module):
        num_classes, domain, grid, batch_size = 3, None, None, 5

    data = as_datamodule(Saying())
    assert (data.num_classes, data.domain, data.grid, data.shape, data.batch_size) == (3, None, None, (1, 4, 4), 5)
    assert data.class_names == ("0", "1", "2")
    assert (data.mean, data.std, data.name) == ((0.0,), (1.0,), "saying")


def test_splits_of_a_plain_module() -> None:
    data = OwnData(Module(), val_size=6, **FACTS)
    data.prepare_data()
    data.setup(None)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [24, 6, 10]  # type: ignore[arg-type]
    index = next(iter(data.predict_dataloader()))["index"]
    assert index.tolist() == list(range(8))
    with pytest.raises(MissingDataError, match="there are no test data: test= was not given"):
        OwnData(train=Samples(), **FACTS).dataset("test")
    with pytest.raises(ValueError, match="give a LightningDataModule, or some of train, val and test"):
        OwnData(**FACTS)


@pytest.mark.parametrize("data", [(IMAGES, LABELS), Samples(), Module()], ids=["pair", "dataset", "module"])
def test_the_trainer_takes_them_as_they_are(data: Any, tmp_path: Path) -> None:
    network = model()
    trainer(tmp_path, max_epochs=1).fit(
        network, data if not isinstance(data, pl.LightningDataModule) else OwnData(data, **FACTS)
    )
    run = trainer(tmp_path)
    records = run.certify(network, data, Certifier(n=50, n0=5))
    assert [record.index for record in records] == list(range(40 if not isinstance(data, Module) else 10))
    expected = LABELS if not isinstance(data, Module) else LABELS[30:]
    assert [record.label for record in records] == expected.tolist()
    header, _ = read_records(run.records_path)  # type: ignore[arg-type]
    assert header.binding["data"]["grid"] == 255
    predicted = trainer(tmp_path).predict(network, data, return_predictions=True, certifier=Certifier(n=20))
    assert sum(map(len, predicted)) == len(records)


def test_validation_tensors_are_used_for_validation(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model(), (IMAGES[:30], LABELS[:30]), (IMAGES[30:], LABELS[30:]))
    assert len(run.datamodule.dataset("val")) == 10
    assert len(run.datamodule.dataset("train")) == 30


def test_raw_pixels_and_what_is_no_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        trainer(tmp_path).certify(model(), (IMAGES * 255, LABELS), Certifier(n=20))
    with pytest.raises(ValueError, match=r"datamodule must be a LightningDataModule, a Dataset, .*got str"):
        trainer(tmp_path).certify(model(), "digits", Certifier(n=20))


SOURCE = """
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset

class Rows(TensorDataset):
    def __init__(self, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        super().__init__(torch.rand(60, 1, 8, 8, generator=draw), torch.arange(60) % 3)

class Plain(pl.LightningDataModule):
    def __init__(self, batch: int = 16):
        super().__init__()
        self.batch = batch
    def train_dataloader(self): return DataLoader(Rows(0), batch_size=self.batch)
    def test_dataloader(self): return DataLoader(Rows(1), batch_size=self.batch)

class Saying(Plain):
    num_classes, domain, grid = 3, (0.0, 1.0), None
"""
FIT = ("fit", "--trainer.max_epochs=1", "--trainer.callbacks=[]", "--certifier=null", "--model.init_args.network=mlp")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "owndata.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("owndata", None)


def command(*words: str) -> int:
    return main([*words, *PLAIN])


def test_own_data_by_class_path(here: Path) -> None:
    assert command(*FIT, "--data=owndata.Saying", "--data.init_args.batch=8") == 0
    path = str(next(Path("runs").rglob("*.ckpt")))
    small = ("--certifier.init_args.n=30", "--records=x.jsonl", *ONE_THREAD)
    assert command("certify", f"--ckpt_path={path}", *small) == 0
    header, records = read_records(Path("x.jsonl"))
    assert len(records) == 60
    assert (header.binding["num_classes"], header.binding["data"]["name"]) == (3, "saying")


def test_data_sets_and_facts_by_class_path(here: Path) -> None:
    own = (
        "--data=lightning_rs.data.OwnData", "--data.init_args.train=owndata.Rows", "--data.init_args.test=owndata.Rows",
        "--data.init_args.test.init_args.seed=1", "--data.init_args.num_classes=3", "--data.init_args.domain=[0, 1]",
        "--data.init_args.grid=none", "--data.init_args.max=4",
    )  # fmt: skip
    assert command(*FIT, *own) == 0
    path = str(next(Path("runs").rglob("*.ckpt")))
    assert (
        command("certify", f"--ckpt_path={path}", "--certifier.init_args.n=30", "--records=y.jsonl", *ONE_THREAD) == 0
    )
    assert len(read_records(Path("y.jsonl"))[1]) == 4


def test_the_command_line_asks_in_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(*FIT, "--data=owndata.Plain") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert "needs to know of owndata.Plain: num_classes" in line
    assert "--data.init_args.data owndata.Plain" in line
    facts = ("--data.init_args.num_classes=3", "--data.init_args.domain=none", "--data.init_args.grid=none")
    assert command(*FIT, "--data=lightning_rs.data.OwnData", "--data.init_args.data=owndata.Plain", *facts) == 0
