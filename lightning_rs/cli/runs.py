"""Folders of runs: one each, and the same one again when a training goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_rs.checks import folder_for

STAGES = ("fit", "validate", "test", "predict", "certify", "attack", "transfer")
_CHECKPOINTS = "checkpoints"


def run_of(checkpoint: str | Path | None) -> Path | None:
    """Return the folder of the run that a checkpoint was saved by, ``RUN/checkpoints/NAME.ckpt``, or None."""
    path = None if checkpoint is None else Path(checkpoint)
    if path is None or not path.is_file() or path.absolute().parent.name != _CHECKPOINTS:
        return None
    return path.parent.parent if path.parent.name == _CHECKPOINTS else Path(os.path.realpath(path)).parent.parent


def continue_logging(logger: Namespace, run: Path) -> None:
    """Let a logger write where the run did that is continued: same folder, same version or W&B run.

    Loggers keep a run in ``save_dir/name/version``. What the user chose stays; so does everything where the run was
    logged in another way.
    """
    kind = logger.class_path.rpartition(".")[2]
    chosen = logger.init_args
    if kind not in ("WandbLogger", "TensorBoardLogger"):  # Lightning's CSVLogger deletes what it finds in a folder
        return
    wandb = kind == "WandbLogger"
    label = str(chosen.get("project" if wandb else "name") or "")
    path = run.absolute()
    if path.parent.name != label if label else wandb or not path.name.startswith("version_"):
        return
    if chosen.get("id") is not None or chosen.get("version") is not None:
        return
    chosen["id" if wandb else "version"] = path.name
    folder = path.parent.parent if label else path.parent
    if os.path.realpath(folder) != os.path.realpath(chosen.get("save_dir") or "."):
        chosen["save_dir"] = str(folder)


def restore_folder(callback: ModelCheckpoint, states: Mapping[str, Any], run: Path) -> None:
    """Write a continued run's folder as the checkpoint does: written otherwise, Lightning forgets the best ones."""
    written = states.get(callback.state_key, {}).get("dirpath")
    if callback.dirpath is None and written and os.path.realpath(written) == os.path.realpath(run / _CHECKPOINTS):
        callback.dirpath = written


def own_folder(root: str | Path, command: str) -> Path:
    """Return a folder that no other run without a logger has: ``root``, or where that is taken ``root/COMMAND_N``.

    A run takes ``root`` by making its configuration file there, which only one can; it is filled in later. Only the
    first of several processes takes anything, and the others ask it.
    """
    root = Path(root)
    taken = any((root / f"{stage}.yaml").exists() for stage in STAGES)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0):
        return root
    folder_for(root, "default_root_dir")
    if not taken:
        with contextlib.suppress(FileExistsError), open(root / f"{command}.yaml", "x"):
            return root
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            (root / f"{command}_{number}").mkdir()
            return root / f"{command}_{number}"
    raise AssertionError


def drop_what_is_empty(folder: Path | None, command: str) -> None:
    """Remove what a run that left nothing has taken."""
    if folder is None or not folder.is_dir():
        return
    config = folder / f"{command}.yaml"
    if config.is_file() and not config.stat().st_size:
        config.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
