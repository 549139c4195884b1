"""A Lightning Trainer with a certify stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_rs.callbacks.logging import run_directory
from lightning_rs.callbacks.stage import CertificationStage, PredictionStage, SmoothingStage
from lightning_rs.certifier import Certifier
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.records import Certification


class Trainer(pl.Trainer):
    """pytorch_lightning.Trainer plus :meth:`certify`, and a :meth:`predict` that runs the smoothed classifier.

    Lightning's ``precision`` governs training; the certifier's runtime alone governs certification and prediction.
    """

    smoothing_stage: SmoothingStage | None = None
    certifications: Sequence[Certification] = ()
    records_path: Path | None = None

    def certify(
        self,
        model: BaseClassifier,
        datamodule: ImageDataModule,
        certifier: Certifier | None = None,
        ckpt_path: str | Path | None = None,
        records: str | Path | None = None,
        shard: str | None = None,
    ) -> list[Certification]:
        """Certify the data module's certification subset and return its records in index order.

        Every finished image is on disk; running the same command again does only what is missing.

        Args:
            model: the classifier.
            datamodule: declares the certification subset (``certify_split``, ``skip``, ``max``, ``indices``).
            certifier: certificates, n0, n, alpha, seed, runtime, budget; default: Cohen's with n = 100,000.
            ckpt_path: checkpoint to load; "best" and "last" as in Lightning; None certifies the model as it is.
            records: record file (JSON lines); default: a name under ``default_root_dir`` that is derived from all that
                binds the file.
            shard: "i/m" certifies every m-th image of the subset from the i-th (0 <= i < m), as an independent job;
                merge the files with ``python -m lightning_rs merge``.

        Raises:
            FileNotFoundError: if the checkpoint or the data are missing.
            ValueError: if the checkpoint is corrupt, the shard is out of range, a certificate is not proved for the
                noise, or the record file was made with another configuration (the message names the difference).
        """
        path = self._checked_checkpoint(ckpt_path)
        stage = CertificationStage(
            certifier or Certifier(),
            datamodule,
            records=records,
            root=self.default_root_dir,
            shard=_parse_shard(shard),
            checkpoint=None if path is None else {"path": str(path), "sha256": _sha256(path)},
        )
        self._run_stage_in_predict_loop(model, stage, ckpt_path)
        self.certifications = stage.finish(self)
        self.records_path = stage.files.path
        return self.certifications

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
        """
        kwargs: dict[str, Any] = {
            "return_predictions": return_predictions,
            "ckpt_path": ckpt_path,
            "weights_only": weights_only,
        }
        if not (isinstance(datamodule, ImageDataModule) and isinstance(model, BaseClassifier)):
            return super().predict(model, dataloaders, datamodule, **kwargs)
        self._checked_checkpoint(ckpt_path)
        stage = PredictionStage(certifier or Certifier(n=1000), datamodule, run_directory(self) / "predictions.csv")
        self.smoothing_stage = stage
        try:
            return super().predict(model, datamodule=stage, **kwargs)
        finally:
            self.smoothing_stage = None

    def _run_stage_in_predict_loop(
        self, model: BaseClassifier, stage: CertificationStage, ckpt_path: str | Path | None
    ) -> None:
        self.smoothing_stage = stage
        bar = self.progress_bar_callback
        if bar is not None:
            bar.disable()
        try:
            super().predict(model, datamodule=stage, return_predictions=False, ckpt_path=ckpt_path)
        except BaseException:
            stage.interrupted()
            raise
        finally:
            self.smoothing_stage = None
            if bar is not None:
                bar.enable()

    def _checked_checkpoint(self, ckpt_path: str | Path | None) -> Path | None:
        """Return the file behind ``ckpt_path``; one clear error if it is not there or not a checkpoint."""
        if ckpt_path is None or str(ckpt_path) in ("best", "last", "hpc", "registry"):
            best = getattr(self.checkpoint_callback, "best_model_path", "") if ckpt_path == "best" else ""
            return Path(best) if best else None
        path = Path(ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"ckpt_path must be a checkpoint file, got {str(path)!r}, which does not exist")
        try:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"ckpt_path {str(path)!r} is no readable checkpoint: {reason}") from error
        if not isinstance(contents, dict) or "state_dict" not in contents:
            raise ValueError(f"ckpt_path {str(path)!r} holds no 'state_dict': it is not a Lightning checkpoint")
        return path


def _parse_shard(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    index, slash, total = shard.partition("/")
    if not (slash and index.isdigit() and total.isdigit() and int(index) < int(total)):
        raise ValueError(f"shard must be 'i/m' with 0 <= i < m, for instance '0/4', got {shard!r}")
    return int(index), int(total)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
