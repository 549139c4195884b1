"""The data that a command on records is told of: a configuration, a class path, or what the checkpoint says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import pytorch_lightning as pl
import torch
import yaml

from lightning_rs import shipped
from lightning_rs.classifiers.base import CHECKPOINT_KEY
from lightning_rs.cli.words import read_config
from lightning_rs.data import ImageDataModule
from lightning_rs.data.own import as_datamodule
from lightning_rs.records import Header


def build_data(spec: str, headers: Sequence[Header]) -> ImageDataModule:
    """Return the data module that an option names.

    Args:
        spec: a configuration (file or name of a shipped one) with the key ``data``; a class path (``MNIST``); a mapping
            ``{class_path: MNIST, init_args: {root: data}}``; or ``checkpoint``.
        headers: of the record files, which say where their checkpoints lie.

    Raises:
        ValueError: if it names no data module, or one that cannot be built.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    try:
        parsed = parser.parse_object({"data": _told(spec, headers)})
        built = parser.instantiate_classes(parsed)["data"]
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"--data {spec}: {error}") from error
    return as_datamodule(built)


def _told(spec: str, headers: Sequence[Header]) -> Any:
    if spec == "checkpoint":
        return _of_checkpoints(headers)
    path = shipped.find(spec, "configs")
    try:
        value = read_config(path) if path else yaml.safe_load(spec)
    except yaml.YAMLError as error:
        raise ValueError(f"--data {spec}: neither a configuration nor a class path: {error}") from error
    if isinstance(value, dict) and "data" in value:
        value = value["data"]
    if path and not (isinstance(value, dict) and "class_path" in value):
        raise ValueError(f"--data: the configuration {path} must have the key data with a class_path")
    return value


def _of_checkpoints(headers: Sequence[Header]) -> Any:
    paths = {str((header.informative.get("checkpoint") or {}).get("path")) for header in headers}
    found = []
    for path in sorted(paths):
        if not Path(path).is_file():
            raise ValueError(f"--data checkpoint: there is no checkpoint at {path}; name the data instead")
        spec = torch.load(path, map_location="cpu", weights_only=True).get(CHECKPOINT_KEY, {}).get("data")
        if spec is None:
            raise ValueError(f"--data checkpoint: {path} does not say which data it was trained on; name them instead")
        found.append(spec)
    if any(spec != found[0] for spec in found):
        raise ValueError("--data checkpoint: the checkpoints say different data; name those of the records instead")
    return found[0]
