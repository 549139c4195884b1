"""A Lightning Trainer with a certify and an attack stage."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision, TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data import DataLoader

from lightning_rs.attacks import Attacker, AttackRecord
from lightning_rs.callbacks.bar import in_place_of
from lightning_rs.callbacks.fit_log import FitLog
from lightning_rs.callbacks.pace import TrainingPace
from lightning_rs.certifier import Certifier
from lightning_rs.checks import naming, renamed
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.own import as_datamodule, is_data
from lightning_rs.loggers import held
from lightning_rs.networks.files import reason_not_loaded
from lightning_rs.records import Certifications
from lightning_rs.shipped import checkpoint_path
from lightning_rs.stages import (
    AttackStage,
    CertificationStage,
    PredictionStage,
    SmoothingStage,
    TransferStage,
    check_certificates,
)

# What Lightning understands instead of a path.
_KEYWORDS = ("best", "last", "hpc", "registry")


# The callbacks of the training have nothing to do in the other stages, which have folders of their own.
CALLBACKS_OF_TRAINING = (
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint|The dirpath has changed from "
)


class Trainer(pl.Trainer):
    """pytorch_lightning.Trainer plus certify and attack, and a :meth:`predict` that runs the smoothed classifier.

    Lightning's ``precision`` governs training; the certifier's runtime alone governs certification and prediction.

    Attributes:
        smoothing_stage: the stage at work, or None.
        certifications: records of the last certification.
        records_path: their file.
        prediction_summary: the last prediction's result as a line for people.
        run_folder: where a run without a logger keeps its files; None: ``default_root_dir``.
        check_summary: what the check of the last certification found.
        attacks_path: file of the last attack.
    """

    smoothing_stage: SmoothingStage | None = None
    certifications = Certifications()
    records_path: Path | None = None
    prediction_summary: str = ""
    run_folder: Path | None = None
    check_summary: str = ""
    attacks_path: Path | None = None

    def certify(
        self,
        model: BaseClassifier,
        datamodule: Any,
        certifier: Certifier | None = None,
        ckpt_path: str | Path | None = None,
        records: str | Path | None = None,
        shard: str | None = None,
        preview: bool = False,
        check: float | None = None,
    ) -> Certifications:
        """Certify the data module's certification subset and return its records in index order.

        Every finished image is on disk; running the same command again does only what is missing.

        Args:
            model: the classifier.
            datamodule: declares the certification subset (``certify_split``, ``skip``, ``max``, ``indices``); or a
                plain LightningDataModule, a Dataset or a pair of tensors (images, labels), of which all is certified
                and whose classes, domain and grid are the model's unless they say their own
                (``lightning_rs.data.OwnData``).
            certifier: certificates, n0, n, alpha, seed, runtime, budget; default: the usual certificate of the noise
                with n = 100,000.
            ckpt_path: checkpoint to load, or a shipped one's name; "best" and "last" as in Lightning; None certifies
                the model as it is.
            records: record file (JSON lines); default: a name under ``default_root_dir`` that is derived from all that
                binds the file.
            shard: "i/m" certifies every m-th image of the subset from the i-th (0 <= i < m), as an independent job;
                merge the files with ``python -m lightning_rs merge``.
            preview: draw noise of its own, which no later certification of the checkpoint sees again; records say so.
            check: share of the images, in (0, 1], whose certificates are then tested: at the image, a random and an
                adversarial point of the ball, fresh votes are compared with what the certificate asserts there.

        Raises:
            FileNotFoundError: if the checkpoint or the data are missing.
            ValueError: if the checkpoint is corrupt, the shard or the check is out of range, an image is bad, a
                certificate is not proved for the noise, the record file was made with another configuration (the
                message names the difference), or more certificates are contradicted than chance explains.
        """
        if check is not None and not 0 < check <= 1:
            raise ValueError(f"check must lie in (0, 1], got {check!r}")
        ckpt_path = None if ckpt_path is None else checkpoint_path(ckpt_path)
        check_checkpoint(ckpt_path)
        datamodule = as_datamodule(datamodule, model)
        stage = CertificationStage(certifier, datamodule, records, self.default_root_dir, _parse_shard(shard), preview)
        with self._smoothing(stage):
            super().predict(model, datamodule=stage, return_predictions=False, ckpt_path=ckpt_path)
            self.certifications = Certifications(stage.finish(self))
            self.records_path = stage.files.path
            if check is not None and self.is_global_zero:
                self.check_summary = check_certificates(stage, self.certifications, check)
        return self.certifications

    def attack(
        self,
        model: BaseClassifier,
        datamodule: Any,
        records: str | Path,
        attacker: Attacker | None = None,
        ckpt_path: str | Path | None = None,
        out: str | Path | None = None,
        shard: str | None = None,
        certificate: str | None = None,
        allow_noise_mismatch: bool = False,
    ) -> list[AttackRecord]:
        """Attack the images of a record file, test their certificates, and return one attack record an image.

        The checkpoint, the noise, the runtime and the data must be those of the records. Every finished image is on
        disk; the same call goes on after an interruption. Confirmations are votes on fresh entropy, which is recorded.

        Args:
            model: the classifier.
            datamodule: where the images come from, as for :meth:`certify`; which of them, the records say.
            records: record file of :meth:`certify`.
            attacker: which attacks, how many votes; None: the usual attacks of the noise.
            ckpt_path: checkpoint that made the records.
            out: file of attack records; None: ``NAME.attack.jsonl`` beside the records.
            shard: "i/m" attacks every m-th recorded image from the i-th.
            certificate: attack in the norm of this certificate of the pass; None: the records' own.
            allow_noise_mismatch: attack records whose noise is not the checkpoint's.

        Raises:
            FileNotFoundError: if the checkpoint, the records or the data are missing.
            ValueError: if the records are of another checkpoint, noise, runtime or data, if their norm has no attack,
                if the network has no gradient for a gradient attack, or if more certificates are contradicted than
                chance explains.
        """
        ckpt_path = None if ckpt_path is None else checkpoint_path(ckpt_path)
        check_checkpoint(ckpt_path)
        datamodule = as_datamodule(datamodule, model)
        stage = AttackStage(attacker, datamodule, records, out, _parse_shard(shard), certificate, allow_noise_mismatch)
        loop = self.predict_loop
        before, loop.inference_mode = loop.inference_mode, False  # nothing inside can undo inference mode
        try:
            with self._smoothing(stage):
                super().predict(model, datamodule=stage, return_predictions=False, ckpt_path=ckpt_path)
                self.attacks_path = stage.path
                return stage.finish(self)
        finally:
            loop.inference_mode = before

    def transfer(
        self,
        model: BaseClassifier,
        datamodule: Any,
        records: str | Path,
        certifier: Certifier | None = None,
        ckpt_path: str | Path | None = None,
        source: str | Path | None = None,
        out: str | Path | None = None,
        pairs: int = 1000,
        alpha: float = 0.001,
        pair_seed: int = 0,
    ) -> Certifications:
        """Carry the records of one classifier to another, by few paired samples, and return the new records.

        For instance from int8 to fp32, or to a fine-tuned or pruned checkpoint. The noise is that of the records; the
        result holds at the sum of both alphas, and its file binds both classifiers.

        Args:
            model: the new classifier.
            datamodule: where the images come from, as for :meth:`certify`; which of them, the records say.
            records: record file of the first classifier: Gaussian noise, ``GaussianL2``.
            certifier: runtime of the new classifier; None: fp32.
            ckpt_path: the new classifier's checkpoint.
            source: the first classifier's checkpoint; None: the same network in the runtime of the records.
            out: the new record file; None: ``NAME.transfer.jsonl`` beside the records.
            pairs: paired samples an image.
            alpha: failure probability of the paired bound.
            pair_seed: names the noise of the pairs.

        Raises:
            FileNotFoundError: if a checkpoint, the records or the data are missing.
            ValueError: if the first classifier did not make the records, both would not see the same samples, or the
                records cannot be transferred.
        """
        ckpt_path = None if ckpt_path is None else checkpoint_path(ckpt_path)
        check_checkpoint(ckpt_path)
        origin = None if source is None else checkpoint_path(source)
        check_checkpoint(origin)
        datamodule = as_datamodule(datamodule, model)
        stage = TransferStage(certifier, datamodule, records, origin, out, pairs, alpha, pair_seed)
        with self._smoothing(stage):
            super().predict(model, datamodule=stage, return_predictions=False, ckpt_path=ckpt_path)
            self.records_path = stage.path
            self.certifications = Certifications(stage.finish(self))
        return self.certifications

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, as pytorch_lightning does; data sets and pairs of tensors (images, labels) can stand for loaders.

        The progress bar shows images a second and the time left (``lightning_rs.callbacks.TrainingPace``).

        Args:
            model: the classifier.
            train_dataloaders: loaders, or a Dataset or a pair of tensors.
            val_dataloaders: the same; with tensors or a Dataset for training, None holds out a tenth of it.
            datamodule: data module, instead of both.
            ckpt_path: checkpoint from which the training goes on.
            weights_only: load tensors and plain values only; see pytorch_lightning.
        """
        plain = is_data(train_dataloaders) and not isinstance(train_dataloaders, DataLoader)
        if isinstance(model, BaseClassifier) and datamodule is None and plain:
            datamodule = as_datamodule(train_dataloaders, model, "train", val_dataloaders)
            train_dataloaders = val_dataloaders = None
        elif is_data(datamodule):
            datamodule = as_datamodule(datamodule, model, "train")
        if not isinstance(model, BaseClassifier):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
            return
        self.callbacks[:] = [in_place_of(each) for each in self.callbacks]  # type: ignore[attr-defined]
        paced = any(isinstance(each, TrainingPace) for each in self.callbacks)  # type: ignore[attr-defined]
        added: list[pl.Callback] = [FitLog(), *([] if paced else [TrainingPace()])]
        self.callbacks[:0] = added  # type: ignore[attr-defined]  # before those that log when the training starts
        try:
            with held(self):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        finally:
            for each in added:
                self.callbacks.remove(each)  # type: ignore[attr-defined]

    def predict(
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        certifier: Certifier | None = None,
    ) -> Any:
        """Predict with the smoothed classifier, abstaining where the vote is not significant.

        As pytorch_lightning's; for our data modules and classifiers, ``certifier`` gives runtime, n and alpha, and the
        predictions are also written to ``predictions.csv`` in the run's folder.

        Args:
            model: the classifier.
            dataloaders: for other modules than ours.
            datamodule: declares the images, as for :meth:`certify`.
            return_predictions: return the classes (-1 where it abstains), a list for each batch.
            ckpt_path: checkpoint to load.
            weights_only: load tensors and plain values only; see pytorch_lightning.
            certifier: runtime, n, alpha and noise; default: n = 1,000 at alpha = 0.001.

        Raises:
            FileNotFoundError: if the checkpoint or the data are missing.
            ValueError: if the checkpoint is corrupt or an image is bad.
        """
        kwargs: dict[str, Any] = {
            "return_predictions": return_predictions,
            "ckpt_path": None if ckpt_path is None else checkpoint_path(ckpt_path),
            "weights_only": weights_only,
        }
        theirs = isinstance(dataloaders, pl.LightningDataModule) or is_data(dataloaders)
        if isinstance(model, BaseClassifier) and (datamodule is not None or theirs):
            datamodule = as_datamodule(dataloaders if datamodule is None else datamodule, model)
        else:
            return super().predict(model, dataloaders, datamodule, **kwargs)
        check_checkpoint(kwargs["ckpt_path"])
        stage = PredictionStage(certifier, datamodule)
        with self._smoothing(stage):
            predictions = super().predict(model, datamodule=stage, **kwargs)
            self.prediction_summary = stage.finish(self)
        return predictions

    def save_checkpoint(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save as Lightning does; a full disk is an error that names the file, and the one before it stays whole."""
        # Lightning writes into the folder of temporary files and moves it: onto another disk, byte by byte.
        whole = isinstance(self.strategy, (SingleDeviceStrategy, DDPStrategy))  # others write folders, each its share
        if "://" in str(filepath) or not whole or type(self.strategy.checkpoint_io) is not TorchCheckpointIO:
            super().save_checkpoint(filepath, *args, **kwargs)
            return
        part = Path(filepath).with_name(f".{Path(filepath).name}.part")
        try:
            with naming(filepath):
                super().save_checkpoint(part, *args, **kwargs)
                if self.is_global_zero:
                    os.replace(part, filepath)
        except OSError as error:
            raise (renamed(error, filepath) if str(part) in (error.filename, error.filename2) else error) from error
        finally:
            if self.is_global_zero:
                part.unlink(missing_ok=True)
        self.strategy.barrier("Trainer.save_checkpoint.renamed")

    @contextmanager
    def _smoothing(self, stage: SmoothingStage) -> Iterator[None]:
        """Hand the predict loop to a stage: without Lightning's precision, which would round images and network."""
        if isinstance(self.strategy.launcher, _MultiProcessingLauncher):
            raise ValueError(f"strategy must be 'ddp' or one process to {stage.command}, not one that spawns or forks")
        precision, self.strategy.precision_plugin = self.strategy.precision_plugin, Precision()
        bar = self.progress_bar_callback
        silenced = bar is not None and getattr(bar, "is_enabled", True) and isinstance(stage, CertificationStage)
        if bar is not None and silenced:
            bar.disable()  # the stage shows its own progress
        self.smoothing_stage = stage
        try:
            with held(self), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=CALLBACKS_OF_TRAINING)
                # Nothing is missing: the stage says that all images are recorded.
                warnings.filterwarnings("ignore", message="Total length of `.*` across ranks is zero")
                try:
                    yield
                except BaseException:
                    stage.interrupted()
                    raise
        finally:
            self.smoothing_stage = None
            self.strategy.precision_plugin = precision
            if bar is not None and silenced:
                bar.enable()


def check_checkpoint(ckpt_path: str | Path | None, training: bool = False) -> None:
    """Refuse a path that is not a Lightning checkpoint, before anything else happens.

    Args:
        ckpt_path: the file; None and Lightning's own keywords are fine.
        training: whether a training is to go on from it, which needs more than weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or something else than a Lightning checkpoint.
    """
    if ckpt_path is None or str(ckpt_path) in _KEYWORDS or "://" in str(ckpt_path):
        return
    path = Path(ckpt_path)
    if path.is_dir():
        inside = sorted(str(file) for file in path.rglob("*.ckpt"))
        hint = f"; in it lie {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else ""
        raise ValueError(f"ckpt_path must be a checkpoint file, got {str(path)!r}, which is a folder{hint}")
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path must be a checkpoint file, got {str(path)!r}, which does not exist")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:  # the file may be whole; a damaged one makes torch seek, and the system say "invalid"
        raise
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
        raise ValueError(f"ckpt_path {str(path)!r} is damaged or no checkpoint: {reason_not_loaded(error)}") from error
    if not isinstance(contents, dict) or "state_dict" not in contents:
        held = ", ".join(map(str, list(contents)[:6])) if isinstance(contents, dict) else type(contents).__name__
        raise ValueError(
            f"ckpt_path {str(path)!r} holds no weights under 'state_dict', nor alone or under one other key; it holds "
            f"{held or 'nothing'}"
        )
    if "pytorch-lightning_version" not in contents:
        raise ValueError(
            f"ckpt_path {str(path)!r} is not a Lightning checkpoint; lightning_rs.load_checkpoint and "
            "BaseClassifier.adopt_weights read weights of others, as load_cohen_checkpoint does"
        )
    missing = [name for name in ("loops", "optimizer_states", "lr_schedulers") if name not in contents]
    if training and missing:
        raise ValueError(
            f"ckpt_path {str(path)!r} holds weights only (no {', '.join(missing)}): a training cannot go on from it, "
            "but validate, test, predict and certify can use it"
        )


def _parse_shard(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    index, slash, total = shard.partition("/")
    if not (slash and index.isdigit() and total.isdigit() and int(index) < int(total)):
        raise ValueError(f"shard must be 'i/m' with 0 <= i < m, for instance '0/4', got {shard!r}")
    return int(index), int(total)
