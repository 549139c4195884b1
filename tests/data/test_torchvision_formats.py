"""The torchvision data sets: content as written to disk, and clear errors for what is missing or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms

from lightning_rs.data import CIFAR10, MNIST, SVHN, CorruptDataError, ImageDataModule, ImageNet, MissingDataError
from tests.data import formats
from tests.data.examples import EMBEDDED, EXAMPLES, build

ON_DISK = sorted(set(EXAMPLES) - set(EMBEDDED))


def assert_holds(module: ImageDataModule, written: dict[str, formats.Arrays]) -> None:
    for split in ("train", "test"):
        images, labels = written[split]
        source = module.source(split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(source.labels, labels)
        pixels = source.images(np.arange(len(labels)))
        expected = (images.reshape(pixels.shape) / 255).astype(np.float32)
        np.testing.assert_array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_images_and_labels_are_those_on_disk(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = EXAMPLES[name][2](tmp_path, monkeypatch)
    assert_holds(build(name, tmp_path), written)


def test_imagenet_decodes_crops_and_labels(tmp_path: Path) -> None:
    formats.write_imagenet(tmp_path)
    source = ImageNet(root=tmp_path, image_size=20, resize=24, val_size=6).source("test")
    assert source.labels.tolist() == [3, 3, 500, 500, 999, 999]  # of the thousand, though three folders exist
    reference = datasets.ImageNet(
        str(tmp_path),
        "val",
        transform=transforms.Compose([transforms.Resize(24), transforms.CenterCrop(20), transforms.ToTensor()]),
    )
    images = source.images(np.arange(6))
    torch.testing.assert_close(images, torch.stack([image for image, _ in reference]), rtol=0, atol=0)


def test_imagenet_trains_on_random_crops_and_certifies_fixed_ones(tmp_path: Path) -> None:
    formats.write_imagenet(tmp_path)
    source = ImageNet(root=tmp_path, image_size=20, resize=24, val_size=6).source("train")
    rows = np.arange(4)
    assert torch.equal(source.images(rows), source.images(rows))
    assert not torch.equal(source.images(rows, augment=True), source.images(rows, augment=True))


def test_imagenet_refuses_other_classes(tmp_path: Path) -> None:
    formats.write_imagenet(tmp_path)
    (tmp_path / "val" / formats.wnids()[3]).rename(tmp_path / "val" / "n99999999")
    with pytest.raises(CorruptDataError, match=r"folders \['n99999999'\] .* for other data use ImageFolder"):
        ImageNet(root=tmp_path).setup("test")
    torch.save(({"n00000001": ("x",), "n99999999": ("y",)}, []), tmp_path / "meta.bin")
    with pytest.raises(CorruptDataError, match=r"meta.bin has 2 classes \(not 1000\)"):
        ImageNet(root=tmp_path).setup("test")
    (tmp_path / "meta.bin").write_bytes(b"torn")
    with pytest.raises(CorruptDataError, match=r"meta.bin is damaged"):
        ImageNet(root=tmp_path).setup("test")


def test_imagenet_cannot_be_downloaded() -> None:
    with pytest.raises(ValueError, match="download must be false for ImageNet"):
        ImageNet(download=True)


@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.parametrize("stage", ["fit", "test", "predict", "validate"])
def test_missing_data_is_one_clear_error(name: str, stage: str, tmp_path: Path) -> None:
    module = build(name, tmp_path / "nowhere")
    module.prepare_data()
    with pytest.raises(MissingDataError) as caught:
        module.setup(stage)
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message  # where
    assert "--data.root" in message  # what to do
    assert "lace " in message
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_missing_data_can_be_downloaded_says_the_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"--data.download true"):
        build(name, tmp_path).setup("test")


def test_only_what_is_absent_is_listed(tmp_path: Path) -> None:
    formats.write_idx(tmp_path)
    gone = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    gone.unlink()
    with pytest.raises(MissingDataError) as caught:
        MNIST(root=tmp_path).setup("fit")
    assert str(gone) in str(caught.value)
    assert "train-images" not in str(caught.value)


def test_svhn_certifies_without_its_training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats.write_svhn(tmp_path, monkeypatch)
    (tmp_path / "train_32x32.mat").unlink()
    module = SVHN(root=tmp_path)
    module.setup("predict")
    assert len(module.certification_subset()) == module.describe()["size"] == 30


def test_download_happens_in_prepare_data_and_its_failure_is_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    module = MNIST(root=tmp_path, download=True)
    with pytest.raises(MissingDataError, match=r"download into .* failed: no network"):
        module.prepare_data()
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: formats.write_idx(tmp_path, test=20, train=40))
    first = MNIST(root=tmp_path, download=True, val_size=4)
    monkeypatch.setattr(datasets.MNIST, "_check_exists", lambda self: True)
    with monkeypatch.context() as once:
        once.setattr(datasets.MNIST, "download", _once(lambda: formats.write_idx(tmp_path, test=20, train=40)))
        first.prepare_data()
    first.setup("fit")
    assert len(first.dataset("train")) == 36


def _once(act: object) -> object:
    done: list[int] = []

    def download(self: object) -> None:
        if not done:
            done.append(1)
            act()  # type: ignore[operator]

    return download


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/train-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("svhn", "train_32x32.mat"),
    ],
)
@pytest.mark.parametrize("damage", ["torn", "empty"])
def test_damaged_files(name: str, file: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EXAMPLES[name][2](tmp_path, monkeypatch)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    with pytest.raises(CorruptDataError, match="damaged") as caught:
        build(name, tmp_path).setup("fit")
    assert str((tmp_path / file).parent) in str(caught.value)
    assert "download them again" in str(caught.value)


def test_labels_must_fit_the_images_and_the_classes(tmp_path: Path) -> None:
    formats.write_idx(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([11]))
    with pytest.raises(CorruptDataError, match=r"labels 0..11 do not fit 10 classes"):
        MNIST(root=tmp_path).setup("test")
    path.write_bytes(content[:4] + (49).to_bytes(4, "big") + content[8:-1])
    with pytest.raises(CorruptDataError, match="mnist test: 50 images but 49 labels"):
        MNIST(root=tmp_path).setup("test")


def test_images_must_have_the_declared_shape(tmp_path: Path) -> None:
    formats.write_idx(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:8] + (14).to_bytes(4, "big") + (56).to_bytes(4, "big") + content[16:])
    with pytest.raises(CorruptDataError, match=r"shape \(1, 14, 56\), not \(1, 28, 28\)"):
        MNIST(root=tmp_path).setup("test")


def test_usual_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR: crop and flip; SVHN: no flip (a mirrored digit is another digit); MNIST: nothing unless asked for."""
    formats.write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    formats.write_svhn(tmp_path, monkeypatch)
    formats.write_idx(tmp_path)
    rows = np.zeros(64, np.int64)
    cifar, svhn = CIFAR10(root=tmp_path).source("train"), SVHN(root=tmp_path).source("train")
    assert (cifar.augmentation.padding, cifar.augmentation.flip) == (4, True)  # type: ignore[attr-defined]
    assert (svhn.augmentation.padding, svhn.augmentation.flip) == (4, False)  # type: ignore[attr-defined]
    assert len(cifar.images(rows, augment=True).unique(dim=0)) > 20
    plain, moved = MNIST(root=tmp_path).source("train"), MNIST(root=tmp_path, shift=2).source("train")
    assert torch.equal(plain.images(rows, augment=True), plain.images(rows))
    assert len(moved.images(rows, augment=True).unique(dim=0)) > 10
    off = build("cifar10", tmp_path, augment=False)
    assert not off.train_dataloader().dataset.augment  # type: ignore[attr-defined]
