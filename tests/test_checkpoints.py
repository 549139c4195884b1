"""The shipped checkpoints are what the manifest says, and certify."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_rs.data
from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.certifier import Certifier
from lightning_rs.class_paths import class_named
from lightning_rs.classifiers.base import CHECKPOINT_KEY, BaseClassifier
from lightning_rs.networks import state_dict_sha256
from tests.conftest import SHARED

FOLDER = Path(__file__).parents[1] / "checkpoints"
MANIFEST: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())["checkpoints"]


def by_name(entry: dict[str, Any]) -> str:
    return str(entry["file"])


def test_the_manifest_lists_every_checkpoint() -> None:
    assert sorted(entry["file"] for entry in MANIFEST) == sorted(path.name for path in FOLDER.glob("*.ckpt"))
    sizes = [path.stat().st_size for path in FOLDER.glob("*.ckpt")]
    assert max(sizes) < 2_000_000
    assert sum(sizes) < 6_000_000  # they are in the wheel


@pytest.mark.parametrize("entry", MANIFEST, ids=by_name)
def test_the_file_is_the_one_that_was_measured(entry: dict[str, Any]) -> None:
    assert hashlib.sha256((FOLDER / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert (FOLDER.parent / entry["config"]).is_file() or entry["config"] == "defaults of `fit`"
    assert entry["licence"]


@pytest.mark.parametrize("entry", MANIFEST, ids=by_name)
def test_it_loads_without_pickle_and_certifies(entry: dict[str, Any]) -> None:
    if entry["data"] != "Digits" and not (SHARED / "data" / "MNIST").is_dir():
        pytest.skip(f"{entry['data']} is not at {SHARED / 'data'}")
    path = FOLDER / entry["file"]
    contents = torch.load(path, weights_only=True, map_location="cpu")
    assert "optimizer_states" not in contents
    kind_of_model = class_named(contents[CHECKPOINT_KEY]["class_path"], BaseClassifier, "class_path")  # type: ignore[type-abstract]
    model = kind_of_model.load_from_checkpoint(path, weights_only=True).eval()
    assert type(model.noise).__name__ == entry["noise"].partition("(")[0]
    assert type(model).__name__ == entry.get("objective", "NoiseAugmentation").partition("(")[0]
    assert str(SHARED) not in str(contents[CHECKPOINT_KEY])  # no path of the machine that trained it
    assert state_dict_sha256(model.network) == entry["classifier"]
    kind = getattr(lightning_rs.data, entry["data"])
    data = kind() if entry["data"] == "Digits" else kind(root=SHARED / "data")
    data.setup("test")
    test = data.dataset("test")
    rows = list(range(min(len(test), 1000)))
    batch = test.__getitems__(rows)
    with torch.inference_mode():
        accuracy = float((model(batch.image).argmax(1) == batch.label).float().mean())
    assert accuracy >= entry["clean_accuracy"] - 0.015
    certificate = natural_certificate(type(model.noise))()
    records = Certifier([certificate], n=1000).certify(model.network, model.noise, batch.image[:20], batch.label[:20])
    assert sum(record.correct for record in records) >= 17
