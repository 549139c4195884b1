"""The command line: LightningCLI with a certify stage; report, merge, import and export before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_rs.certificates
import lightning_rs.noise  # noqa: F401  (registers every law and theorem by its short name)
from lightning_rs.callbacks import run_directory, summary
from lightning_rs.certifier import Certifier
from lightning_rs.classifiers.base import CHECKPOINT_KEY, BaseClassifier
from lightning_rs.commands import export_main, import_main, merge_main, report_main
from lightning_rs.data.base import ImageDataModule
from lightning_rs.records import Certification
from lightning_rs.trainer import Trainer

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "report": report_main,
    "merge": merge_main,
    "import": import_main,
    "export": export_main,
}
# What the model learns from the data instead of being told twice.
_LINKED = ("num_classes", "shape", "mean", "std", "domain", "grid")
# Arguments of the command line that a checkpoint may answer.
_FROM_CHECKPOINT = ("certify", "predict", "test", "validate")

DEFAULTS: dict[str, Any] = {
    "data": {"class_path": "lightning_rs.data.Digits", "init_args": {"batch_size": 64}},
    "model": {
        "class_path": "lightning_rs.classifiers.NoiseAugmentation",
        "init_args": {
            "network": "digits_cnn",
            "noise": {"class_path": "lightning_rs.noise.GaussianNoise", "init_args": {"sigma": 0.25}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004, "weight_decay": 0.05}},
            "scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 30}},
        },
    },
    "certifier": {"class_path": "lightning_rs.certifier.Certifier", "init_args": {"n": 10_000}},
    "trainer": {
        "max_epochs": 30,
        "default_root_dir": "runs",
        "log_every_n_steps": 10,
        "logger": {
            "class_path": "pytorch_lightning.loggers.WandbLogger",
            "init_args": {"project": "lightning_rs", "save_dir": "runs", "offline": True},
        },
        "callbacks": [
            {
                "class_path": "lightning_rs.callbacks.EpochEndCertification",
                "init_args": {"images": 64, "every_n_epochs": 5},
            },
            {"class_path": "lightning_rs.callbacks.NoisyImageGrid"},
            {
                "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                "init_args": {"monitor": "val/accuracy_noisy", "mode": "max", "save_last": True},
            },
        ],
    },
}


class RunConfig(SaveConfigCallback):
    """Saves the complete configuration as ``STAGE.yaml`` in the run's folder; a second stage does not collide."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file on rank 0."""
        from lightning_rs.callbacks.stage import CertificationStage

        name = "certify" if isinstance(getattr(trainer, "smoothing_stage", None), CertificationStage) else stage
        path = run_directory(trainer) / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class SmoothingCLI(LightningCLI):
    """fit, validate, test, predict and certify; one configuration serves them all."""

    datamodule: ImageDataModule
    model: BaseClassifier
    trainer: Trainer

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            model_class=BaseClassifier,
            datamodule_class=ImageDataModule,
            trainer_class=Trainer,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"description": "Train image classifiers under noise and certify them."},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands, and certify."""
        commands = {**LightningCLI.subcommands(), "certify": {"model", "datamodule", "certifier"}}
        commands["predict"] = commands["predict"] | {"certifier"}
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the certifier to every subcommand, link the model to the data, set the defaults."""
        parser.add_argument(
            "--certifier",
            type=Certifier | None,
            help="How to certify and predict; fit certifies the test data at its end, null switches that off.",
        )
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; with --ckpt_path, model and data default to what the checkpoint says of itself."""
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            subcommand = next((word for word in given if word in _FROM_CHECKPOINT), None)
            path = _option(given, "--ckpt_path")
            if subcommand is not None and path is not None:
                self._subcommand_parsers[subcommand].set_defaults(checkpoint_defaults(path))
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        # Lightning lets hyperparameters of the checkpoint override the command line silently. Here the checkpoint
        # gives defaults only, and the command line wins.
        return

    def instantiate_classes(self) -> None:
        """Instantiate; the model remembers its data, for the checkpoint."""
        super().instantiate_classes()
        assert self.subcommand is not None
        self.model.data_spec = _plain(self.config[self.subcommand]["data"])
        self.certifier: Certifier | None = self._get(self.config_init, "certifier")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in ("certify", "predict"):
            kwargs["certifier"] = self.certifier
        return kwargs

    def after_fit(self) -> None:
        """Certify the test data with the best checkpoint of the run."""
        if self.certifier is None or self.trainer.interrupted or self.trainer.fast_dev_run:
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        records = self.trainer.certify(self.model, self.datamodule, self.certifier, ckpt_path="best" if best else None)
        if best and self.trainer.is_global_zero:
            print(f"best checkpoint: {best}")
        self._summarize(records)

    def after_certify(self) -> None:
        """Print the result."""
        self._summarize(self.trainer.certifications)

    def _summarize(self, records: Sequence[Certification]) -> None:
        path = self.trainer.records_path
        if self.trainer.is_global_zero and records:
            noise = self.certifier.noise if self.certifier is not None and self.certifier.noise else self.model.noise
            print(f"{summary(records, noise)}\nrecords: {path}\nreport:  python -m lightning_rs report {path}")


def checkpoint_defaults(path: str) -> dict[str, Any]:
    """Return the model and data configuration that a checkpoint of ours carries; empty for other files.

    Damaged or missing files are reported later, by the stage that loads them.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return {}
    own = contents.get(CHECKPOINT_KEY) if isinstance(contents, dict) else None
    if not own:
        return {}
    init_args = {name: value for name, value in own["init_args"].items() if name not in _LINKED}
    law = dict(init_args["noise"])
    init_args["noise"] = {"class_path": law.pop("class"), "init_args": law}
    defaults: dict[str, Any] = {"model": {"class_path": own["class_path"], "init_args": init_args}}
    if own.get("data"):
        defaults["data"] = own["data"]
    return defaults


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 2 for bad input, which is one line on standard error.

    Set LIGHTNING_RS_TRACEBACK=1 to see where an error came from.
    """
    words = list(sys.argv[1:] if args is None else args)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        if words and words[0] in COMMANDS:
            return COMMANDS[words[0]](words[1:])
        SmoothingCLI(args=None if args is None else words)
    except (ValueError, OSError, TypeError) as error:
        if os.environ.get("LIGHTNING_RS_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _option(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word == name and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
