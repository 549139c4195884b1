"""The shipped checkpoints are what the manifest says, and certify."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.certifier import Certifier
from lightning_rs.class_paths import class_named
from lightning_rs.classifiers.base import CHECKPOINT_KEY, BaseClassifier
from lightning_rs.data import Digits
from lightning_rs.networks import state_dict_sha256

FOLDER = Path(__file__).parents[1] / "checkpoints"
MANIFEST: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())["checkpoints"]


def by_name(entry: dict[str, Any]) -> str:
    return str(entry["file"])


def test_the_manifest_lists_every_checkpoint() -> None:
    assert sorted(entry["file"] for entry in MANIFEST) == sorted(path.name for path in FOLDER.glob("*.ckpt"))
    sizes = [path.stat().st_size for path in FOLDER.glob("*.ckpt")]
    assert max(sizes) < 2_000_000
    assert sum(sizes) < 16_000_000  # they are in the wheel


@pytest.mark.parametrize("entry", MANIFEST, ids=by_name)
def test_the_file_is_the_one_that_was_measured(entry: dict[str, Any]) -> None:
    assert hashlib.sha256((FOLDER / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert (FOLDER.parent / entry["config"]).is_file() or entry["config"] == "defaults of `fit`"
    assert entry["licence"]


def images_of(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first test images in [0, 1] and their labels; of MNIST and CIFAR-10, of those beside this file."""
    if name == "Digits":
        data = Digits()
        data.setup("test")
        batch = data.dataset("test").__getitems__(list(range(count)))
        return batch.image, batch.label
    # Test images 0, 200, 400, ... of MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0), unchanged, and 0, 500, ... of
    # CIFAR-10 (Krizhevsky 2009), from JPEG.
    with np.load(Path(__file__).with_name({"MNIST": "mnist.npz", "cifar10_jpeg": "cifar10.npz"}[name])) as held:
        images, labels = held["images"][:count], held["labels"][:count]
    return torch.from_numpy(images.reshape(len(images), -1, *images.shape[-2:]) / np.float32(255)), torch.from_numpy(
        labels
    )


@pytest.mark.parametrize("entry", MANIFEST, ids=by_name)
def test_it_loads_without_pickle_and_certifies(entry: dict[str, Any]) -> None:
    path = FOLDER / entry["file"]
    contents = torch.load(path, weights_only=True, map_location="cpu")
    assert "optimizer_states" not in contents
    kind_of_model = class_named(contents[CHECKPOINT_KEY]["class_path"], BaseClassifier, "class_path")  # type: ignore[type-abstract]
    model = kind_of_model.load_from_checkpoint(path, weights_only=True).eval()
    assert type(model.noise).__name__ == entry["noise"].partition("(")[0]
    assert type(model).__name__ == entry.get("objective", "NoiseAugmentation").partition("(")[0]
    assert "/work/" not in str(contents[CHECKPOINT_KEY])  # no path of the machine that trained it
    assert state_dict_sha256(model.network) == entry["classifier"]
    images, labels = images_of(entry["data"], 50)
    with torch.inference_mode():
        right = float((model(images).argmax(1) == labels).float().mean())
    assert right >= entry["clean_accuracy"] - 0.05
    certificate = natural_certificate(type(model.noise))()
    certified = Certifier([certificate], n=500).certify(model.network, model.noise, images[:12], labels[:12])
    radius = float(np.mean([record.radius if record.correct else 0.0 for record in certified]))
    # Other machines round otherwise: a vote in some hundred may fall on the other side.
    assert radius == pytest.approx(entry["radius_of_12_images_at_n_500"], rel=0.02)
