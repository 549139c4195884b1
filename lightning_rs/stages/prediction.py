"""The predict stage: the abstaining smoothed prediction as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rs.announce import announced
from lightning_rs.certifier import Certifier
from lightning_rs.checks import folder_for, naming
from lightning_rs.data.base import ImageDataModule
from lightning_rs.loggers import Job, PredictionLog, run_directory
from lightning_rs.loggers.jobs import checkpoint_file, stage_job
from lightning_rs.noise import noise_to_dict
from lightning_rs.records.certification import to_line
from lightning_rs.stages.base import SmoothingStage
from lightning_rs.stages.power import smallest_n_to_predict
from lightning_rs.stages.progress import duration
from lightning_rs.stages.ranks import on_rank_zero

_COLUMNS = (
    "index", "label", "prediction", "abstain", "p_value", "n", "alpha", "seed", "classifier", "noise", "runtime",
)  # fmt: skip


class PredictionStage(SmoothingStage):
    """Writes the abstaining smoothed prediction of the subset as ``predictions.csv`` into the run's folder.

    Args:
        certifier: its runtime, n and alpha are used; None: n = 1,000. Noise streams come from fresh entropy, which is
            recorded.
        data: where the images come from.
    """

    command: ClassVar[str] = "predict"
    default_n: ClassVar[int] = 1000

    def __init__(self, certifier: Certifier | None, data: ImageDataModule) -> None:
        super().__init__(certifier, data)
        self.path = Path("predictions.csv")
        self._log: PredictionLog | None = None

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: the certification subset."""
        trainer = self.pl_trainer
        folder = on_rank_zero(trainer, lambda: run_directory(trainer))
        self.path = folder / self.path.name
        subset = self.data.certification_subset()
        first = self.one(0)
        with announced("preparing the network", quiet=not trainer.is_global_zero):
            session = self.open_session()
            self.check_images(first)
            session.probe(first["image"])
        folder_for(folder, "the folder of predictions")
        self._write(self._part(trainer.global_rank), [list(_COLUMNS)], "w")
        samples = session.setting.n
        seconds = -(-len(subset) // trainer.world_size) * samples / session.measure(first["image"], 0.2)
        self.say(
            f"predict {len(subset)} images of {self.data.name} ({self.data.certify_split}) under {session.noise!r}: "
            f"{samples:,} samples an image, alpha {self.certifier.alpha:g}, about {duration(seconds)}"
        )
        needed = smallest_n_to_predict(self.certifier.alpha)
        if samples < needed and session.noise.outcomes is None:
            self.say(
                f"  note: every image abstains: n = {samples} samples are never significant at alpha = "
                f"{self.certifier.alpha:g}, even if all agree; the smallest useful n is {needed}"
            )
        self._log = PredictionLog(trainer)
        return self.loader(range(len(subset)))

    def _step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Predict a batch, append it to the file and return the predictions (-1 where it abstains)."""
        certifier = self.certifier
        found = self.session.predict(batch["image"], certifier.n, certifier.alpha)
        n = self.session.noise.outcomes or certifier.n
        rows = zip(
            batch["index"].tolist(),
            batch["label"].tolist(),
            found.prediction.tolist(),
            found.p_value.tolist(),
            strict=True,
        )
        ran = self._ran()
        lines = [[i, y, c, int(c < 0), p, n, certifier.alpha, found.seed, *ran] for i, y, c, p in rows]
        self._write(self._part(self.pl_trainer.global_rank), lines, "a")
        if self._log is not None:
            self._log.add(batch["label"].tolist(), found.prediction.tolist(), self._job)
        return found.prediction.tolist()

    def interrupted(self) -> None:
        """Tell the loggers what is there."""
        if self._log is not None:
            self._log.interrupted(self._rows(self.pl_trainer.global_rank))

    def _job(self) -> Job:
        certifier, session = self.certifier, self.session
        how = {"n": certifier.n, "alpha": certifier.alpha, "runtime": session.prepared.describe()}
        checkpoint = checkpoint_file(self.pl_trainer.ckpt_path)
        return stage_job(
            "predict", self.model, self.data, session.noise, checkpoint, session.classifier,
            {**how, "predictions": str(self.path)}, PredictionLog.metrics,
        )  # fmt: skip

    def _ran(self) -> list[str]:
        """Return what predicted: the network's fingerprint, the noise and the runtime, as text."""
        session = self.session
        return [session.classifier, to_line(noise_to_dict(session.noise)), to_line(session.prepared.describe())]

    def finish(self, trainer: pl.Trainer) -> str:
        """Put the ranks' files together in the order of the indices, and return the result as a line for people."""
        self.raise_errors()
        return on_rank_zero(trainer, lambda: self._merge(trainer.world_size))

    def _merge(self, world_size: int) -> str:
        rows: list[dict[str, str]] = []
        for rank in range(world_size):
            rows += self._rows(rank)
            self._part(rank).unlink()
        rows.sort(key=lambda row: int(row["index"]))
        self._write(self.path, [list(_COLUMNS), *(list(row.values()) for row in rows)], "w")
        if self._log is not None:
            self._log.finish(rows)
        abstained = sum(int(row["abstain"]) for row in rows)
        right = sum(row["label"] == row["prediction"] for row in rows)
        total = max(len(rows), 1)
        return (
            f"{len(rows)} images: smoothed accuracy {right / total:.3f}, abstained {abstained / total:.3f}\n"
            f"predictions: {self.path}"
        )

    def _rows(self, rank: int) -> list[dict[str, str]]:
        with open(self._part(rank), newline="") as file:
            return list(csv.DictReader(file))

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.stem}.rank{rank}{self.path.suffix}")

    @staticmethod
    def _write(path: Path, rows: list[list[Any]], mode: str) -> None:
        with naming(path), open(path, mode, newline="") as file:
            csv.writer(file).writerows(rows)
