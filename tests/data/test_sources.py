"""Sources, augmentation and batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from lightning_rs.data.augment import CropFlip, random_flip, random_shift
from lightning_rs.data.datasets import View, collate
from lightning_rs.data.errors import CorruptDataError
from lightning_rs.data.sources import ArraySource, IntArray, to_unit


@pytest.mark.parametrize("grid", [1, 16, 255, 255 * 16])
def test_pixels_are_the_grid_rounded_once(grid: int) -> None:
    values = np.arange(grid + 1, dtype=np.int32)
    pixels = to_unit(torch.from_numpy(values), grid)
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels.numpy(), (values / grid).astype(np.float32))
    if grid <= 255:  # declared grids: and back, in float32
        np.testing.assert_array_equal(pixels.numpy() * np.float32(grid), values)


def test_pixels_agree_with_torchvision() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    torch.testing.assert_close(to_unit(torch.from_numpy(image[..., 0])[None], 255), to_tensor(image), rtol=0, atol=0)


def small_source(count: int = 50, **arguments: object) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return ArraySource(images, np.arange(count) % 5, 255, **arguments)  # type: ignore[arg-type]


def test_source_does_not_hand_out_its_own_memory() -> None:
    source = ArraySource(np.ones((3, 2), np.float32), np.zeros(3, np.int64), None)
    source.images(np.arange(3)).zero_()
    assert (source.values == 1).all()


def test_source_refuses_more_labels_than_images() -> None:
    with pytest.raises(CorruptDataError, match="3 images but 4 labels"):
        ArraySource(np.zeros((3, 1, 2, 2), np.uint8), np.zeros(4, np.int64), 255)


def test_fingerprint_sees_labels_first_images_and_size() -> None:
    source, same = small_source(), small_source()
    assert source.fingerprint() == same.fingerprint()
    same.labels[-1] = 0
    assert source.fingerprint() != same.fingerprint()
    pixel = small_source()
    pixel.values[2, 0, 0, 0] ^= 1  # type: ignore[index]
    assert source.fingerprint() != pixel.fingerprint()
    assert source.fingerprint() != small_source(49).fingerprint()


def test_view_indexes_by_batch_and_agrees_with_single_samples() -> None:
    source = small_source()
    view = View(source, np.array([40, 3, 17]), keyed=True)
    batch = collate(view.__getitems__([2, 0]))
    assert isinstance(batch, dict)
    assert batch["index"].tolist() == [17, 40]
    assert batch["label"].tolist() == [17 % 5, 40 % 5]
    assert batch["index"].dtype == batch["label"].dtype == torch.int64
    single = view[1]
    assert (single["index"], single["label"]) == (3, 3)
    np.testing.assert_array_equal(single["image"].numpy() * 255, source.values[3])
    assert len(view) == 3
    assert [sample["index"] for sample in view] == [40, 3, 17]


@pytest.mark.parametrize("keyed", [False, True])
def test_torchs_own_collate_gives_the_same_batches(keyed: bool) -> None:
    """Anyone may put a ``DataLoader`` around a view without knowing of ``collate``."""
    view = View(small_source(), np.arange(10, 20), keyed=keyed)
    ours = list(DataLoader(view, batch_size=4, collate_fn=collate))
    theirs = list(DataLoader(view, batch_size=4))
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs, strict=True):
        pairs = [(mine[key], other[key]) for key in other] if keyed else zip(mine, other, strict=True)
        for left, right in pairs:
            assert left.dtype == right.dtype
            torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_batch_costs_one_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(small_source(), np.arange(50))
    fetched = []
    original = ArraySource.images

    def images(self: ArraySource, indices: IntArray, augment: bool = False) -> torch.Tensor:
        fetched.append(len(indices))
        return original(self, indices, augment)

    monkeypatch.setattr(ArraySource, "images", images)
    list(DataLoader(view, batch_size=20, collate_fn=collate))
    assert fetched == [20, 20, 10]


def test_shift_gives_every_window_of_the_padded_image_and_nothing_else() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (1, 2, 3, 3), dtype=torch.uint8)
    shifted = random_shift(image.repeat(2000, 1, 1, 1), 1)
    assert shifted.dtype == torch.uint8
    padded = torch.zeros(2, 5, 5, dtype=torch.uint8)
    padded[:, 1:4, 1:4] = image[0]
    windows = [padded[:, i : i + 3, j : j + 3] for i, j in itertools.product(range(3), repeat=2)]
    counts = [int((shifted == window).all(dim=(1, 2, 3)).sum()) for window in windows]
    assert sum(counts) == 2000
    np.testing.assert_allclose(counts, 2000 / 9, atol=5 * np.sqrt(2000 / 9))  # uniform, within 5 deviations


def test_flip_mirrors_each_image_on_its_own() -> None:
    torch.manual_seed(0)
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    flipped = random_flip(image.repeat(1000, 1, 1, 1))
    kept = (flipped == image).all(dim=(1, 2, 3))
    mirrored = (flipped == image.flip(3)).all(dim=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert abs(int(kept.sum()) - 500) < 5 * np.sqrt(250)


def test_augmentation_only_on_request_and_from_torchs_generator() -> None:
    source = small_source(augmentation=CropFlip(2, flip=True))
    rows = np.arange(50)
    plain = source.images(rows)
    torch.testing.assert_close(plain, source.images(rows), rtol=0, atol=0)
    torch.manual_seed(1)
    first, second = source.images(rows, augment=True), source.images(rows, augment=True)
    torch.manual_seed(1)
    again = source.images(rows, augment=True)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    torch.testing.assert_close(CropFlip()(plain), plain, rtol=0, atol=0)
