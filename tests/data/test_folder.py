"""Image folders and zip archives: layouts, decoding, the cache."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import ToTensor

from lightning_rs.data import CorruptDataError, ImageFolder, MissingDataError
from lightning_rs.data.files import FolderFiles, ZipFiles
from lightning_rs.data.layout import read_layout
from tests.data.formats import encoded, folder_images, write_folder, write_zip


def all_images(module: ImageFolder, split: str) -> torch.Tensor:
    source = module.source(split)  # type: ignore[arg-type]
    return source.images(np.arange(len(source)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("place", ["folder", "zip"])
@pytest.mark.parametrize("cached", [False, True])
def test_images_agree_with_torchvision(kind: str, place: str, cached: bool, tmp_path: Path) -> None:
    files = folder_images(("train", "test"), 5, kind=kind)
    folder = write_folder(tmp_path / "images", files)
    root = folder if place == "folder" else write_zip(tmp_path / "images.zip", files, prefix="images/")
    module = ImageFolder(root=root, image_size=16, cache_dir=tmp_path / "cache" if cached else None)
    assert module.class_names == ("cat", "dog")
    for split in ("train", "test"):
        reference = list(datasets.ImageFolder(str(folder / split), transform=ToTensor()))
        torch.testing.assert_close(all_images(module, split), torch.stack([x for x, _ in reference]), rtol=0, atol=0)
        assert module.source(split).labels.tolist() == [y for _, y in reference]


def test_cache_and_files_are_the_same_data_set(tmp_path: Path) -> None:
    root = write_zip(tmp_path / "images.zip", folder_images(size=20))
    plain = ImageFolder(root=root, image_size=16, resize=18)
    cached = ImageFolder(root=root, image_size=16, resize=18, cache_dir=tmp_path / "cache")
    assert plain.describe() == cached.describe()
    assert torch.equal(all_images(plain, "test"), all_images(cached, "test"))


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "val", "test"), (40, 40, 40)),
        (("train", "test"), (36, 4, 40)),
        (("train", "val"), (36, 4, 40)),
        (("train", "valid", "test"), (40, 40, 40)),
        (("",), (29, 3, 8)),
        (("pets",), (29, 3, 8)),
        (("train",), (29, 3, 8)),
    ],
)
def test_layouts(splits: tuple[str, ...], sizes: tuple[int, int, int], tmp_path: Path) -> None:
    root = write_folder(tmp_path, folder_images(splits))
    module = ImageFolder(root=root, image_size=16)
    assert tuple(len(module.dataset(split)) for split in ("train", "val", "test")) == sizes
    names = {split: [module.names(split)[i] for i in module.split_indices(split)] for split in ("train", "val", "test")}
    assert len({name for part in names.values() for name in part}) == sum(sizes)  # no image in two splits
    for split, part in names.items():
        labels = module.dataset(split).labels  # type: ignore[arg-type]
        assert [name.split("/")[-2] for name in part] == [module.class_names[label] for label in labels]


def test_own_index_finds_the_file(tmp_path: Path) -> None:
    files = folder_images(("",))
    module = ImageFolder(root=write_folder(tmp_path, files), image_size=16, certify_split="val")
    for sample in module.certification_subset():
        content = (tmp_path / module.names("val")[sample["index"]]).read_bytes()
        path = tmp_path / "one.png"
        path.write_bytes(content)
        with Image.open(path) as image:
            assert torch.equal(ToTensor()(image), sample["image"])


def test_single_folder_test_split_is_stratified_and_seeded(tmp_path: Path) -> None:
    root = write_folder(tmp_path, folder_images(("",)))
    first, again, other = (ImageFolder(root=root, image_size=16, split_seed=seed) for seed in (0, 0, 1))
    assert first.names("test") == again.names("test") != other.names("test")
    assert np.bincount(first.source("test").labels).tolist() == [4, 4]


def test_training_images_are_augmented(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", folder_images())
    rows = np.zeros(40, np.int64)
    for cache in (None, tmp_path / "cache"):
        source = ImageFolder(root=root, image_size=16, cache_dir=cache).source("train")
        assert len(source.images(rows, augment=True).unique(dim=0)) > 10
        assert len(source.images(rows).unique(dim=0)) == 1


def test_images_without_flip_are_never_mirrored(tmp_path: Path) -> None:
    """The left half is black and the right half white: a random crop keeps the order, a flip does not."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    files = {
        f"{split}/{label}/{i}.png": encoded(image, "PNG") for split in ("train", "test") for label in "ab" for i in "01"
    }
    root = write_folder(tmp_path / "images", files)
    rows = np.zeros(50, np.int64)
    for cache in (None, tmp_path / "cache"):
        for flip in (True, False):
            source = ImageFolder(root=root, image_size=16, cache_dir=cache, flip=flip).source("train")
            images = source.images(rows, augment=True)[:, 0, 4:12]
            mirrored = images[..., :6].mean(dim=(1, 2)) > images[..., -6:].mean(dim=(1, 2))
            assert bool(mirrored.any()) == flip


def test_grey_images(tmp_path: Path) -> None:
    module = ImageFolder(root=write_folder(tmp_path, folder_images()), image_size=16, channels=1)
    assert (module.shape, len(module.mean), len(module.std)) == ((1, 16, 16), 1, 1)
    assert next(iter(module.test_dataloader()))[0].shape[1:] == (1, 16, 16)
    with pytest.raises(ValueError, match=r"mean must have 1 entries"):
        ImageFolder(channels=1, mean=[0.5, 0.5, 0.5])


def test_cache_is_used_checked_and_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_zip(tmp_path / "images.zip", folder_images())
    cache = tmp_path / "cache"

    def images() -> torch.Tensor:
        return all_images(ImageFolder(root=root, image_size=16, cache_dir=cache), "test")

    first = images()
    with monkeypatch.context() as sealed:
        sealed.setattr(ZipFiles, "read", lambda self, name: pytest.fail("decoded again"))
        assert torch.equal(images(), first)
    (array,) = cache.glob("images-test-*.npy")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    with pytest.warns(UserWarning, match="does not match its hash"):
        assert torch.equal(images(), first)
    array.with_suffix(".json").write_text("torn")
    with pytest.warns(UserWarning, match="does not match its hash"):
        assert torch.equal(images(), first)
    assert torch.equal(images(), first)  # and now it is whole again
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize("place", ["folder", "zip"])
def test_cache_notices_changed_files_and_settings(place: str, tmp_path: Path) -> None:
    files = folder_images()

    def write() -> Path:
        return write_folder(tmp_path / "i", files) if place == "folder" else write_zip(tmp_path / "i.zip", files)

    root, cache = write(), tmp_path / "cache"
    before = all_images(ImageFolder(root=root, image_size=16, cache_dir=cache), "test")
    files["test/cat/000.png"] = encoded(np.zeros((16, 16, 3), np.uint8), "PNG")
    write()
    after = all_images(ImageFolder(root=root, image_size=16, cache_dir=cache), "test")
    assert after[0].max() == 0
    assert torch.equal(before[1:], after[1:])
    assert all_images(ImageFolder(root=root, image_size=8, cache_dir=cache), "test").shape == (40, 3, 8, 8)


def test_prepare_data_fills_the_cache(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", folder_images())
    ImageFolder(root=root, image_size=16, cache_dir=tmp_path / "cache").prepare_data()
    arrays = sorted((tmp_path / "cache").glob("*.npy"))
    assert [path.name.split("-")[1] for path in arrays] == ["test", "train"]
    assert set(json.loads(arrays[0].with_suffix(".json").read_text())) == {"key", "sha256"}


def test_zip_handles_are_not_pickled(tmp_path: Path) -> None:
    files = ZipFiles(write_zip(tmp_path / "images.zip", folder_images()))
    name = next(iter(files.images()))
    assert pickle.loads(pickle.dumps(files)).read(name) == files.read(name)


def test_num_classes_needs_no_disk_when_given_but_must_be_true(tmp_path: Path) -> None:
    assert ImageFolder(root="/nonexistent", num_classes=7).num_classes == 7
    module = ImageFolder(root=write_folder(tmp_path, folder_images()), num_classes=3, image_size=16)
    with pytest.raises(CorruptDataError, match=r"num_classes is 3, but .* has 2 class folders: cat, dog"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no folder and no zip archive at"),
        ({"readme.txt": b""}, "no images"),
        ({"only/a.png": b"", "only/b.png": b""}, "only one class|lies in no class folder"),
        ({"train/only/a.png": b"", "test/only/b.png": b""}, r"only one class \(only\)"),
        (folder_images(("val", "test")), r"no train folder beside \['test', 'val'\]"),
    ],
)
def test_missing_images(files: dict[str, bytes] | None, message: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    if files is not None:
        write_folder(root, files)
    with pytest.raises((MissingDataError, CorruptDataError), match=message) as caught:
        _ = ImageFolder(root=root).num_classes
    assert str(root) in str(caught.value)
    assert "CLASS" in str(caught.value)


def test_wrong_layouts(tmp_path: Path) -> None:
    stray = write_folder(tmp_path / "stray", {**folder_images(), "train/stray.png": b""})
    with pytest.raises(CorruptDataError, match=r"train/stray.png lies in no class folder"):
        _ = ImageFolder(root=stray).num_classes
    extra = write_folder(tmp_path / "extra", folder_images(("train", "test", "more")))
    with pytest.raises(CorruptDataError, match=r"some folders look like splits, .*more/ \(40 images, 2 folders\)"):
        _ = ImageFolder(root=extra).num_classes
    unseen = write_folder(tmp_path / "unseen", {**folder_images(), "test/emu/1.png": b""})
    with pytest.raises(CorruptDataError, match=r"test has classes that train has not: \['emu'\]"):
        _ = ImageFolder(root=unseen).num_classes


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    others = {"train/cat/.hidden.png": b"", "train/cat/notes.txt": b"", "__MACOSX/train/cat/000.png": b""}
    files = {**folder_images(), **others}
    for opened in (FolderFiles(write_folder(tmp_path / "i", files)), ZipFiles(write_zip(tmp_path / "i.zip", files))):
        assert sorted(opened.images()) == sorted(folder_images())
        assert set(read_layout(opened, "").splits) == {"train", "test"}


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_damaged_images_are_named(content: bytes | None, tmp_path: Path) -> None:
    files = folder_images(size=64)
    whole = files["test/dog/003.png"]
    files["test/dog/003.png"] = whole[: len(whole) // 2] if content is None else content
    module = ImageFolder(root=write_folder(tmp_path, files), image_size=16)
    with pytest.raises(CorruptDataError, match=r"test/dog/003.png cannot be decoded"):
        list(module.test_dataloader())


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    files = folder_images()
    files["test/cat/000.png"] = encoded(np.full((16, 16), 40_000, np.uint16), "PNG")  # type: ignore[arg-type]
    module = ImageFolder(root=write_folder(tmp_path, files), image_size=16)
    with pytest.raises(CorruptDataError, match="not 8 bits a channel"):
        all_images(module, "test")


def test_damaged_archives(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "images.zip", folder_images())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptDataError, match="is no readable zip archive"):
        _ = ImageFolder(root=path).num_classes
    position = content.index(b"IDAT") + 20
    path.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
    with pytest.raises(CorruptDataError, match=r"train/cat/000.png is damaged"):
        all_images(ImageFolder(root=path, image_size=16), "train")


def test_large_images_are_resized_and_cut(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 10:50] = 200  # the central square at every scale
    files = {f"{split}/{label}/0.png": encoded(image, "PNG") for split in ("train", "test") for label in "ab"}
    module = ImageFolder(root=write_folder(tmp_path, files), image_size=10, resize=20, val_size=0)
    images = all_images(module, "test")
    assert torch.equal(images, torch.full_like(images, 200 / 255))
