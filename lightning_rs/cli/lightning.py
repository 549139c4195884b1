"""The command line: LightningCLI with a certify stage; report, merge, import, export and study before it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_rs.certifier import Certifier
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.cli.commands import export_main, import_main, merge_main, report_main
from lightning_rs.cli.configs import configs_main, with_shipped
from lightning_rs.cli.console import quiet, report_error
from lightning_rs.cli.defaults import DEFAULTS, LINKED, UNKNOWN_NETWORK, checkpoint_defaults, is_foreign, plain
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.errors import CorruptDataError
from lightning_rs.loggers import close_loggers, prepare_loggers, run_directory, summary
from lightning_rs.networks.checkpoints import unnamed_network
from lightning_rs.records import Certification
from lightning_rs.shipped import checkpoint_path
from lightning_rs.trainer import Trainer, check_checkpoint

_STUDY = "Run an experiment on laws and bounds, and write its tables and figures into a folder."


def study_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs study`` and return its exit code."""
    from lightning_rs.studies import Study, empty_folder

    parser = ArgumentParser(prog="lightning_rs study", description=_STUDY, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML with the study, see configs/study")
    parser.add_subclass_arguments(Study, "study", required=True)
    parser.add_argument("--out", type=str, required=True, help="a new or empty folder for the results")
    config = parser.parse_args(argv)
    folder = empty_folder(config.out)
    result = parser.instantiate(config).study.run(lambda line: print(line, file=sys.stderr))
    files = result.write(folder)
    settings = folder / "study.yaml"
    settings.write_text(parser.dump(Namespace(study=config.study), skip_validation=True))
    print("\n".join([str(result), *(f"wrote {file}" for file in [*files, settings])]))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "report": report_main,
    "merge": merge_main,
    "import": import_main,
    "export": export_main,
    "study": study_main,
    "configs": configs_main,
}
# Stages whose model and data a checkpoint may name.
_FROM_CHECKPOINT = ("certify", "predict", "test", "validate")
# What all stages share; the rest of a configuration belongs to one call of one stage.
_SHARED = ("seed_everything", "trainer", "model", "data", "certifier")
_BAD_INPUT = (ValueError, OSError, CorruptDataError, MisconfigurationException, ModuleNotFoundError)


class RunConfig(SaveConfigCallback):
    """Saves the configuration as ``fit.yaml``, ``certify.yaml``, ... in the run's folder.

    Only what all stages share, so that every stage accepts the file with ``-c``; what belongs to this call
    (``ckpt_path``, ``records``, ``shard``, ...) stands in a comment. A second run in a folder writes over it.
    """

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file on rank 0."""
        smoothing = getattr(trainer, "smoothing_stage", None)
        name = getattr(stage, "value", stage) if smoothing is None else smoothing.command
        shared = Namespace({key: self.config[key] for key in _SHARED if key in self.config})
        own = {k: v for k, v in vars(self.config).items() if k not in (*_SHARED, "config") and v is not None}
        told = "".join(f"\n# {key}: {value}" for key, value in own.items())
        path = run_directory(trainer) / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(shared, skip_unset=False, skip_validation=True)
        path.write_text(f"# python -m lightning_rs {name}{told}\n{text}")


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
            parser_kwargs={
                "prog": "lightning_rs",
                "description": "Train image classifiers under noise and certify them. Without a model: "
                f"{', '.join(COMMANDS)} (each with --help).",
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands, and certify."""
        commands = {**LightningCLI.subcommands(), "certify": {"model", "datamodule", "certifier"}}
        commands["predict"] = commands["predict"] | {"certifier"}
        return commands

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that raises its errors, so that they become one line."""
        return super().init_parser(**kwargs, exit_on_error=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the certifier to every subcommand, link the model to the data, set the defaults."""
        parser.add_argument(
            "--certifier",
            type=Certifier | None,
            help="How to certify and predict; fit certifies the test data at its end, null switches that off.",
        )
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; with ``ckpt_path``, model and data default to what the checkpoint says of itself."""
        # The field's n where a classifier is certified on purpose; the certification that ends a fit is a preview.
        self._subcommand_parsers["certify"].set_defaults({"certifier": {**DEFAULTS["certifier"], "init_args": {}}})
        given = list(sys.argv[1:] if args is None else args)
        subcommand = next((word for word in given if word in self.subcommands()), None)
        path = _option(given, "--ckpt_path")
        if subcommand in _FROM_CHECKPOINT and path is not None:
            self._subcommand_parsers[subcommand].set_defaults(checkpoint_defaults(path))
        self.config = parser.parse_args(given)
        subcommand = self.config.subcommand
        named = self.config[subcommand].get("ckpt_path")  # perhaps by a configuration file
        if subcommand in _FROM_CHECKPOINT and path is None and named is not None:
            self._subcommand_parsers[subcommand].set_defaults(checkpoint_defaults(checkpoint_path(named)))
            self.config = parser.parse_args(given)

    def _parse_ckpt_path(self) -> None:
        # Lightning lets hyperparameters of the checkpoint override the command line silently. Here the checkpoint
        # gives defaults only, and the command line wins.
        return

    def before_instantiate_classes(self) -> None:
        """Refuse a bad checkpoint at once; keep a run in one folder."""
        config = self.config[self.subcommand]
        if config.get("ckpt_path") is not None:  # perhaps named by a configuration file
            config["ckpt_path"] = checkpoint_path(config["ckpt_path"])
        path = config.get("ckpt_path")
        self._foreign = path if self.subcommand in _FROM_CHECKPOINT and is_foreign(path) else None
        if self._foreign is None:
            check_checkpoint(path)
        elif config.model.init_args.get("network") == UNKNOWN_NETWORK:
            raise ValueError(unnamed_network(self._foreign))
        logger, root = config.trainer.logger, config.trainer.default_root_dir
        if isinstance(logger, Namespace) and logger.get("init_args.save_dir") == "runs":
            logger["init_args.save_dir"] = str(root)

    def instantiate_classes(self) -> None:
        """Instantiate; the model remembers its data, for the checkpoint."""
        super().instantiate_classes()
        assert self.subcommand is not None
        self.model.data_spec = plain(self.config[self.subcommand]["data"])
        self.certifier: Certifier | None = self._get(self.config_init, "certifier")
        if self._foreign is not None:
            rank_zero_warn(self.model.adopt_weights(self._foreign))
            self.config_init[self.subcommand]["ckpt_path"] = None  # it is no checkpoint of Lightning
        prepare_loggers(self.trainer)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in ("certify", "predict"):
            kwargs["certifier"] = self.certifier
        return kwargs

    def after_fit(self) -> None:
        """Certify the test data with the best checkpoint of the run."""
        if self.certifier is None or self.trainer.interrupted or getattr(self.trainer, "fast_dev_run", False):
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if best and self.trainer.is_global_zero:
            print(f"checkpoint: {best}")
        noise = self.certifier.noise or self.model.noise
        if not self.certifier.for_noise(noise).certificates:
            warnings.warn(f"not certified: no certificate is registered for {type(noise).__name__}", stacklevel=2)
            return
        certified = self.trainer.certify(
            self.model, self.datamodule, self.certifier, ckpt_path=best or None, preview=True
        )
        self._summarize(certified)

    def after_certify(self) -> None:
        """Print the result."""
        self._summarize(self.trainer.certifications)

    def after_predict(self) -> None:
        """Print the result."""
        if self.trainer.is_global_zero:
            print(self.trainer.prediction_summary)

    def _summarize(self, records: Sequence[Certification]) -> None:
        path = self.trainer.records_path
        if self.trainer.is_global_zero and records:
            noise = self.certifier.noise if self.certifier is not None and self.certifier.noise else self.model.noise
            print(f"{summary(records, noise)}\nrecords: {path}\nreport:  python -m lightning_rs report {path}")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 2 for bad input, which is one line on standard error.

    Ctrl-C gives 1. Set LIGHTNING_RS_TRACEBACK=1 to see where an error came from.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not {"", os.getcwd()} & set(sys.path):  # `python -m lightning_rs` finds modules of the current folder, this too
        sys.path.append(os.getcwd())
    os.environ.setdefault("WANDB_SILENT", "true")
    with quiet(training="fit" in words):
        try:
            status = _run(words)
        except SystemExit as stop:  # --help, a parser's error, or Lightning after Ctrl-C
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 1
        except (argparse.ArgumentError, *_BAD_INPUT) as error:
            if os.environ.get("LIGHTNING_RS_TRACEBACK"):
                raise
            report_error(error)
            status = 2
        close_loggers(failed=status != 0)
    return status


def _run(words: list[str]) -> int:
    words = with_shipped(words)
    if words and words[0] in COMMANDS:
        return 2 if COMMANDS[words[0]](words[1:]) else 0
    SmoothingCLI(words)
    return 0


def _option(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word == name and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
