"""What folders mean: splits in any writing, classes, and what is refused because it could be both; links."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lightning_rs.data import CorruptDataError, ImageFolder
from tests.data.formats import folder_images, write_folder, write_zip

PICTURE = next(iter(folder_images().values()))


def tree(*folders: str, images: int = 2) -> dict[str, bytes]:
    return {f"{folder}/{i}.png": PICTURE for folder in folders for i in range(images)}


def module(root: Path, **arguments: object) -> ImageFolder:
    return ImageFolder(root=root, image_size=16, val_size=0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("train/a", "train/b", "test/a"), "train", "test"),
        (("Train/a", "Train/b", "Test/a"), "Train", "Test"),
        (("training/a", "training/b", "Testing/b"), "training", "Testing"),
        (("TRAIN/a", "TRAIN/b", "VALIDATION/b"), "TRAIN", "VALIDATION"),
        (("set/Training/a", "set/Training/b", "set/Valid/b", "set/TEST/a"), "Training", "TEST"),
    ],
)
@pytest.mark.parametrize("place", ["folder", "zip"])
def test_splits_are_recognised_in_any_writing(
    folders: tuple[str, ...], train: str, test: str, place: str, tmp_path: Path
) -> None:
    files = tree(*folders)
    data = module(write_folder(tmp_path, files) if place == "folder" else write_zip(tmp_path / "i.zip", files))
    assert data.class_names == ("a", "b")
    for split, folder in (("train", train), ("test", test)):
        assert {name.split("/")[-3] for name in data.names(split)} == {folder}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "folders",
    [
        ("Train/a", "Train/b", "Test/a", "Meta/a"),  # the traffic signs of GTSRB
        ("Train/a", "Train/b", "Test/a", "Meta"),
        ("train/a", "train/b", "Train/a", "test/b"),
        ("train/a", "train/b", "val/a", "Validation/a"),
        ("train_set/a", "train_set/b", "test_set/a"),
        ("train2017/a", "train2017/b", "val2017/a"),
        ("train_images", "test_images"),
        ("training/a", "training/b", "photos/a"),
        ("fold1/a", "fold1/b", "fold2/a", "fold2/b"),
    ],
)
def test_what_could_be_splits_or_classes_is_one_error(folders: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError) as caught:
        _ = module(write_folder(tmp_path, tree(*folders))).class_names
    said = str(caught.value).splitlines()[0]
    for top in {folder.partition("/")[0] for folder in folders}:
        assert f"{top}/ (" in said  # what was found
    assert "{train: FOLDER, test: FOLDER}" in said  # how to say what is meant


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("car", "train", "bus"), ("bus", "car", "train")),  # vehicles
        (("freight_train", "night_train"), ("freight_train", "night_train")),
        (("cat/left", "cat/right", "dog/front"), ("cat", "dog")),
        (("Meta", "cat"), ("Meta", "cat")),
    ],
)
def test_folders_of_images_are_classes(folders: tuple[str, ...], classes: tuple[str, ...], tmp_path: Path) -> None:
    assert module(write_folder(tmp_path, tree(*folders))).class_names == classes


def test_folders_say_what_is_meant(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {**tree("Train/a", "Train/b", "Test/a", "Meta/x"), "cover.png": PICTURE})
    data = module(root, folders={"train": "Train", "test": "Test"})
    assert data.class_names == ("a", "b")
    assert len(data.names("train") + data.names("test")) == 6
    fold = write_folder(tmp_path / "f", tree("fold1/a", "fold1/b", "fold2/a", "fold2/b"))
    assert module(fold, folders={}).class_names == ("fold1", "fold2")
    with pytest.raises(CorruptDataError, match="there is no folder 'test'"):
        _ = module(root, folders={"train": "Train", "test": "test"}).class_names
    with pytest.raises(ValueError, match="folders must name those of train, val and test, got 'dev'"):
        _ = module(root, folders={"dev": "Train"}).class_names
    with pytest.raises(ValueError, match="folders must name a folder of its own for each split"):
        _ = module(root, folders={"train": "Train", "test": "Train"}).class_names


def test_an_image_beside_recognised_splits_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {**tree("train/a", "train/b", "test/a"), "cover.png": PICTURE})
    with pytest.raises(CorruptDataError, match=r"cover.png lies in no class folder"):
        _ = module(root).class_names


# --- links ---


def test_links_in_circles_end_and_count_nothing_twice(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "i", tree("a", "b"))
    (root / "a/again").symlink_to(root)
    (root / "b/self").symlink_to(root / "b")
    data = module(root)
    assert sorted(data.names("train") + data.names("test")) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_second_name_in_one_folder_counts_once(link: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path, tree("a", "b"))
    make = os.symlink if link == "symbolic" else os.link
    make(root / "a/0.png", root / "a/z.png")
    data = module(root)
    assert len(data.names("train") + data.names("test")) == 4


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("val", "test", "test and val are one folder"),
        ("train/c", "train/a", "train/a and train/c are one folder"),
        ("test/a/9.png", "train/a/0.png", "test/a/9.png and train/a/0.png are one file"),
        ("train/b/9.png", "train/a/0.png", "train/a/0.png and train/b/9.png are one file"),
        ("train/a/broken.png", "nowhere", r"train/a/broken.png cannot be read \(No such file"),
        ("train/a/loop.png", "train/a/loop.png", r"train/a/loop.png cannot be read \(Too many levels"),
    ],
)
def test_links_that_would_count_twice_or_lead_nowhere_are_named(
    link: str, target: str, message: str, tmp_path: Path
) -> None:
    root = write_folder(tmp_path, tree("train/a", "train/b", "test/a"))
    (root / link).symlink_to(root / target)
    with pytest.raises(CorruptDataError, match=message) as caught:
        _ = module(root).class_names
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, tree("a", "b"))
    os.mkfifo(root / "a/pipe.png")
    with pytest.raises(CorruptDataError, match=r"a/pipe.png is neither a file nor a folder"):
        _ = module(root).class_names


def test_names_that_terminals_cannot_show_are_written_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {**tree("a", "b"), "a/new\n\udcffline.png": b""})
    data = module(root, cache_dir=tmp_path / "cache")
    with pytest.raises(CorruptDataError, match=re.escape(r"'a/new\n\udcffline.png' cannot be decoded")) as caught:
        data.prepare_data()
    assert "\n" not in str(caught.value)
