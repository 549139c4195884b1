"""The commands with a model: LightningCLI with a certify stage."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from lightning_rs.certifier import Certifier
from lightning_rs.checks import folder_for, naming
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.cli.defaults import DEFAULTS, LINKED, UNKNOWN_NETWORK, checkpoint_defaults, is_foreign, plain
from lightning_rs.cli.mistakes import meant
from lightning_rs.cli.runs import continue_logging, drop_what_is_empty, own_folder, restore_folder, run_of
from lightning_rs.cli.words import told, whole_numbers_in_files, with_whole_numbers
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.own import as_datamodule
from lightning_rs.loggers import prepare_loggers, run_directory, summary, when_begun
from lightning_rs.networks.checkpoints import unnamed_network
from lightning_rs.records import Certification
from lightning_rs.shipped import checkpoint_path
from lightning_rs.trainer import CALLBACKS_OF_TRAINING, Trainer, check_checkpoint

# Stages whose model and data a checkpoint may name.
_FROM_CHECKPOINT = ("certify", "attack", "transfer", "predict", "test", "validate")
# What all stages share; the rest of a configuration belongs to one call of one stage.
_SHARED = ("seed_everything", "trainer", "model", "data", "certifier")


class RunConfig(SaveConfigCallback):
    """Saves the configuration as ``fit.yaml``, ``certify.yaml``, ... in the run's folder.

    Only what all stages share, so that every stage accepts the file with ``-c``; what belongs to this call
    (``ckpt_path``, ``records``, ``shard``, ...) stands in a comment. A second run in a folder writes over it.
    """

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file on rank 0; a W&B run that never begins has none."""
        when_begun(trainer, lambda: self._write(trainer, stage))

    def _write(self, trainer: pl.Trainer, stage: str) -> None:
        smoothing = getattr(trainer, "smoothing_stage", None)
        name = getattr(stage, "value", stage) if smoothing is None else smoothing.command
        shared = Namespace({key: self.config[key] for key in _SHARED if key in self.config})
        own = {k: v for k, v in vars(self.config).items() if k not in (*_SHARED, "config") and v is not None}
        told = "".join(f"\n# {key}: {value}" for key, value in own.items())
        path = run_directory(trainer) / f"{name}.yaml"
        folder_for(path.parent, "default_root_dir")
        text = self.parser.dump(shared, skip_unset=False, skip_validation=True)
        with naming(path):
            path.write_text(f"# python -m lightning_rs {name}{told}\n{text}")


class SmoothingCLI(LightningCLI):
    """fit, validate, test, predict, certify and attack; one configuration serves them all."""

    datamodule: ImageDataModule
    model: BaseClassifier
    trainer: Trainer

    def __init__(self, args: ArgsType = None) -> None:
        words = sys.argv[1:] if args is None else cast("Sequence[str]", args)
        self._asked = words[0] if words and words[0] in self.subcommands() else None
        super().__init__(
            model_class=BaseClassifier,
            datamodule_class=pl.LightningDataModule,
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
                "description": "Train image classifiers under noise and certify them.",
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands, certify and attack."""
        commands = {**LightningCLI.subcommands(), "certify": {"model", "datamodule", "certifier"}}
        commands["predict"] = commands["predict"] | {"certifier"}
        commands["attack"] = {"model", "datamodule"}
        commands["transfer"] = {"model", "datamodule", "certifier"}
        return commands

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        # Where the first word is a subcommand, the others are only names: their arguments would take half a second.
        if self._asked not in (None, subcommand):
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

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
        """Parse; an error says what was probably meant."""
        given = _named(with_whole_numbers(sys.argv[1:] if args is None else cast("Sequence[str]", args)))
        for stage in _FROM_CHECKPOINT:
            self._subcommand_parsers[stage].add_argument(
                "--untrained",
                type=bool | None,
                default=None,
                help="Without a checkpoint: use random weights on purpose.",
            )
        self._told = told(given, "model", LINKED)
        try:
            with whole_numbers_in_files():
                self._parse(parser, given)
        except (ArgumentError, ValueError) as error:
            subcommand = next((word for word in given if word in self._subcommand_parsers), "fit")
            actions = self._subcommand_parsers[subcommand]._actions
            options = [option[2:] for action in actions for option in action.option_strings if option[:2] == "--"]
            hint = meant(given, str(error), [*options, "version", "completion"]).removeprefix("; ")
            raise ValueError(f"{error}\n{hint}") from error

    def _parse(self, parser: LightningArgumentParser, given: list[str]) -> None:
        """Parse; with ``ckpt_path``, model and data default to what the checkpoint says of itself."""
        # The field's n where a classifier is certified on purpose; the certification that ends a fit is a preview.
        if self._asked in (None, "certify"):
            defaults = {"certifier": {**DEFAULTS["certifier"], "init_args": {}}}
            self._subcommand_parsers["certify"].set_defaults(defaults)
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
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.get("ckpt_path") is not None:  # perhaps named by a configuration file
            config["ckpt_path"] = checkpoint_path(config["ckpt_path"])
        path = config.get("ckpt_path")
        self._foreign = path if self.subcommand in _FROM_CHECKPOINT and is_foreign(path) else None
        if self._foreign is None:
            check_checkpoint(path, training=self.subcommand == "fit")
        elif config.model.init_args.get("network") == UNKNOWN_NETWORK:
            raise ValueError(unnamed_network(self._foreign))
        logger, root = config.trainer.logger, config.trainer.default_root_dir
        if isinstance(logger, Namespace) and logger.get("init_args.save_dir") == "runs":
            logger["init_args.save_dir"] = str(root)
        self._continued = run_of(path) if self.subcommand == "fit" else None
        if self._continued is not None and isinstance(logger, Namespace):
            continue_logging(logger, self._continued)

    def instantiate_classes(self) -> None:
        """Instantiate; the model remembers its data, for the checkpoint."""
        assert self.subcommand is not None
        # As Lightning's, with plain data modules wrapped before the model is linked to them.
        own = [(_own_data, pl.LightningDataModule, True)]
        self.config_init = self.parser.instantiate(self.config, instantiators=own)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = cast(Trainer, self.instantiate_trainer())
        config = self.config[self.subcommand]
        if self.subcommand in _FROM_CHECKPOINT and config.get("ckpt_path") is None and not config.get("untrained"):
            raise ValueError(
                f"{self.subcommand} needs the trained classifier, --ckpt_path FILE; with --untrained true it takes "
                "random weights"
            )
        self._refuse_what_contradicts_the_data()
        if self._continued is not None:
            states = torch.load(config.ckpt_path, map_location="cpu", weights_only=True).get("callbacks", {})
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    restore_folder(callback, states, self._continued)
        self._give_folder()
        self.model.data_spec = plain(self.config[self.subcommand]["data"])
        self.model.argument_specs = plain(self.config[self.subcommand]["model"]["init_args"])
        self.certifier: Certifier | None = self._get(self.config_init, "certifier")
        if self._foreign is not None:
            rank_zero_warn(self.model.adopt_weights(self._foreign))
            self.config_init[self.subcommand]["ckpt_path"] = None  # it is no checkpoint of Lightning
        prepare_loggers(self.trainer)

    def _refuse_what_contradicts_the_data(self) -> None:
        """Refuse arguments of the model that follow from the data and were told otherwise."""
        for name, value in self._told.items():
            right = getattr(self.datamodule, name)
            if plain(value) != plain(right):
                raise ValueError(
                    f"model.{name} follows from the data, which say {plain(right)!r}, got {value!r}: leave it out, or "
                    "choose other data"
                )

    def _give_folder(self) -> None:
        """Without a logger, keep what the run writes in a folder of its own; a continued training keeps its own."""
        trainer = self.trainer
        if trainer.logger is not None or getattr(trainer, "fast_dev_run", False):
            return
        trainer.run_folder = self._continued or own_folder(trainer.default_root_dir, str(self.subcommand))
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = os.path.realpath(trainer.run_folder / "checkpoints")  # as Lightning writes it

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self._run(subcommand)
        except SystemExit:
            if subcommand == "fit" and self.trainer.interrupted and self.trainer.state.fn == "fit":
                self._say_how_to_go_on()
            raise
        finally:
            drop_what_is_empty(self.trainer.run_folder, subcommand)

    def _say_how_to_go_on(self) -> None:
        trainer = self.trainer
        saved = getattr(trainer.checkpoint_callback, "last_model_path", "") or getattr(
            trainer.checkpoint_callback, "best_model_path", ""
        )
        if not trainer.is_global_zero:
            return
        if not saved:
            print(f"interrupted in epoch {trainer.current_epoch}, before a checkpoint was saved", file=sys.stderr)
            return
        print(
            f"interrupted in epoch {trainer.current_epoch}; the training goes on, in the same folder, with\n"
            f"  python -m lightning_rs fit -c {run_directory(trainer) / 'fit.yaml'} --ckpt_path {saved}",
            file=sys.stderr,
        )

    def _run(self, subcommand: str) -> None:
        if subcommand != "fit":
            warnings.filterwarnings("ignore", message=CALLBACKS_OF_TRAINING)  # until the command ends
        super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in ("certify", "predict", "transfer"):
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
        if self.trainer.is_global_zero and self.trainer.check_summary:
            print(self.trainer.check_summary)

    def after_attack(self) -> None:
        """Say where the records are."""
        if self.trainer.is_global_zero:
            print(f"attacks: {self.trainer.attacks_path}")

    def after_transfer(self) -> None:
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


def _own_data(kind: type[Any], *args: Any, **kwargs: Any) -> ImageDataModule:
    """Build a data module; a plain one of Lightning's is wrapped, and asked for what certification needs."""
    return as_datamodule(kind(*args, **kwargs))


def _named(words: list[str]) -> list[str]:
    """Return the words with the record file of ``attack RECORDS`` or ``transfer RECORDS`` as an option."""
    if words[:1] in (["attack"], ["transfer"]) and len(words) > 1 and not words[1].startswith("-"):
        return [words[0], "--records", *words[1:]]
    return words


def _option(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word == name and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
