"""The stages of Trainer.certify and Trainer.predict: what happens to each batch, and where it is written."""

from __future__ import annotations

import csv
import hashlib
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_rs.callbacks.files import RecordSet
from lightning_rs.callbacks.logging import log_certifications
from lightning_rs.callbacks.progress import Progress, duration
from lightning_rs.certifier import Certifier, Session
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.noise import EnumeratedNoise, Noise
from lightning_rs.records import Certification, Header
from lightning_rs.records.certification import to_line

# Radii, in units of sigma, at which the running certified accuracy is shown.
_SHOWN = (0.0, 0.5, 1.0, 2.0)


class SmoothingStage(pl.LightningDataModule):
    """A pass of the smoothed classifier over a certification subset, driven by Lightning's predict loop.

    The predict loop is the only one whose distributed sampler does not pad, so that every image comes once. As the
    loop's data module the stage is asked for the loader after the processes have met and the weights are loaded:
    only then is it known which images are already recorded.

    Args:
        certifier: how to certify or predict.
        data: where the images come from.
        noise: replaces the checkpoint's noise.
    """

    def __init__(self, certifier: Certifier, data: ImageDataModule) -> None:
        super().__init__()
        self.certifier = certifier
        self.data = data
        self._session: Session | None = None

    def prepare_data(self) -> None:
        """Download what is asked for, once a machine."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Load the data."""
        self.data.trainer = self.trainer
        self.data.setup(stage)

    @property
    def model(self) -> BaseClassifier:
        """The classifier whose network is smoothed."""
        assert self.trainer is not None
        return self.trainer.lightning_module

    @property
    def session(self) -> Session:
        """The prepared network; exists once the loader was asked for."""
        assert self._session is not None
        return self._session

    def noise(self) -> Noise:
        """Return the certifier's noise if one is configured, else that of the checkpoint.

        Raises:
            ValueError: if a noise with fixed per-coordinate parameters would be replaced by another one.
        """
        wanted, trained = self.certifier.noise, self.model.noise
        if wanted is None or wanted == trained:
            return trained
        bound = any(isinstance(law, EnumeratedNoise) for law in (wanted, trained))
        if bound and not self.certifier.allow_noise_mismatch:
            raise ValueError(
                f"noise of the certifier is {wanted!r}, but the classifier was trained with {trained!r}, which belongs "
                "to it; leave the noise out, or set allow_noise_mismatch"
            )
        warnings.warn(f"certifying with {wanted!r}; the classifier was trained with {trained!r}", stacklevel=2)
        return wanted

    def open_session(self, micro_batch: int | None = None) -> Session:
        """Prepare the network where the trainer put it."""
        self._session = self.certifier.session(
            self.model.network,
            self.noise(),
            self.model.shape,
            device=self.model.device,
            domain=self.data.domain,
            grid=self.data.grid,
            micro_batch=micro_batch,
        )
        return self._session

    def loader(self, positions: Sequence[int]) -> DataLoader[Any]:
        """Return the loader of some positions of the certification subset."""
        base = self.data.predict_dataloader()
        return DataLoader(
            Subset(base.dataset, list(positions)),
            batch_size=base.batch_size,  # by keyword: Lightning re-creates the loader
            shuffle=False,
            num_workers=base.num_workers,
        )


class CertificationStage(SmoothingStage):
    """Certifies the subset, appends every record as soon as it is there, resumes, merges the ranks' files.

    Args:
        certifier: how to certify.
        data: where the images come from.
        records: record file; None derives a name from everything that binds it, under ``root``.
        root: folder for derived names.
        shard: (i, m): only every m-th image, from the i-th; shards are independent jobs.
        checkpoint: where the weights came from, for the header.
    """

    def __init__(
        self,
        certifier: Certifier,
        data: ImageDataModule,
        records: str | Path | None = None,
        root: str | Path = "runs",
        shard: tuple[int, int] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(certifier, data)
        self._records = None if records is None else Path(records)
        self._root = Path(root)
        self._shard = shard
        self._checkpoint = dict(checkpoint or {})
        self._files: RecordSet | None = None
        self._progress: Progress | None = None
        self._mark = time.monotonic()

    @property
    def files(self) -> RecordSet:
        """The record files; exist once the loader was asked for."""
        assert self._files is not None
        return self._files

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: open the record files and return the images that are still missing."""
        assert self.trainer is not None
        strategy = self.trainer.strategy
        subset = self.data.certification_subset()
        recorded = self._recorded_micro_batch() if self.certifier.runtime.micro_batch == "tune" else None
        session = self.open_session(strategy.broadcast(recorded))
        if self.certifier.runtime.micro_batch == "tune" and recorded is None and self.trainer.world_size > 1:
            session = self.open_session(strategy.broadcast(session.prepared.micro_batch))
        session.probe(subset[0]["image"][None])
        header = self._header(session, [int(i) for i in subset.indices])
        mine = _shard_positions(len(subset), self._shard)
        self._files = RecordSet(self._path(header), header, self.trainer.global_rank, self.trainer.world_size)
        done = strategy.broadcast(self.files.done() if self.trainer.is_global_zero else None)
        self.files.open()
        missing = [p for p in mine if int(subset.indices[p]) not in done]
        self._announce(len(mine), missing)
        return self.loader(missing)

    def step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Certify a batch, write each record as soon as it is there, and return the indices."""
        for record in self.session.certify(batch["image"], batch["label"], batch["index"]):
            now = time.monotonic()
            self.files.append(record, now - self._mark)
            self._mark = now
            if self._progress is not None:
                self._progress.add_record(record)
        return batch["index"].tolist()

    def finish(self, trainer: pl.Trainer) -> list[Certification]:
        """Close and merge the files, log the results, and return all records of this run (on every rank)."""
        if self._progress is not None:
            self._progress.close()
        self.files.close()
        trainer.strategy.barrier("records written")
        if trainer.is_global_zero:
            expected = self.files.header.expected or []
            chosen = [expected[p] for p in _shard_positions(len(expected), self._shard)]
            self.files.merge(chosen)
        trainer.strategy.barrier("records merged")
        certifications = self.files.read()
        if trainer.is_global_zero:
            log_certifications(trainer, certifications, self.session.noise)
        return certifications

    def interrupted(self) -> None:
        """Release the files and say how to go on."""
        if self._files is not None:
            self.files.close()
            done = len(self.files.done())
            print(
                f"stopped; {done} images are recorded in {self.files.path}: run the same command to go on",
                file=sys.stderr,
            )

    def _header(self, session: Session, indices: list[int]) -> Header:
        described = self.data.describe()
        unbound = ("root", "subset", "size")
        data = {name: value for name, value in described.items() if name not in unbound}
        header = Header.create(session.describe(), data=data, indices=indices)
        probe = session.probed
        informative = {
            **header.informative,
            "checkpoint": self._checkpoint,
            "model": dict(self.model.hparams),
            "root": described.get("root"),
            "remarks": list(session.prepared.remarks),
            "probe": None if probe is None else vars(probe),
        }
        return Header(header.binding, informative)

    def _path(self, header: Header) -> Path:
        if self._records is not None:
            path = self._records
        else:
            law = self.session.noise
            digest = hashlib.sha256(to_line(dict(header.binding)).encode()).hexdigest()[:8]
            name = f"{self.data.name}-{type(law).__name__}-{law.sigma:g}-{digest}.jsonl"
            path = self._root / "certify" / name.lower().replace(" ", "_")
        if self._shard is None:
            return path
        index, total = self._shard
        return path.with_name(f"{path.stem}.shard{index}of{total}{path.suffix}")

    def _recorded_micro_batch(self) -> int | None:
        return None if self._records is None else RecordSet.recorded_micro_batch(self._records)

    def _announce(self, total: int, missing: list[int]) -> None:
        assert self.trainer is not None
        if not missing:
            self._say(f"all {total} images are recorded in {self.files.path}")
            return
        self._mark = time.monotonic()
        certifier, session = self.certifier, self.session
        samples = session.samples_per_image
        rate = session.measure(self.data.certification_subset()[missing[0]]["image"][None])
        probe = session.probed
        assert probe is not None
        here = -(-len(missing) // self.trainer.world_size)
        theorems = ", ".join(repr(c) for c in certifier.certificates)
        alone = "yes" if probe.invariant else f"no (logits move by {probe.deviation:.1e})"
        self._say(
            f"certify {len(missing)} of {total} images of {self.data.name} ({self.data.certify_split}) under "
            f"{session.noise!r} by {theorems}\n"
            f"  alpha = {certifier.alpha:g}, {samples:,} samples an image, on {session.prepared.describe()}\n"
            f"  labels changed by the precision: {probe.changed:.2%} of {probe.rows}; "
            f"independent of micro-batch companions: {alone}\n"
            f"  about {rate:,.0f} samples/s: {duration(here * samples / rate)}; records go to {self.files.path}"
        )
        for remark in session.prepared.remarks:
            self._say(f"  note: {remark}")
        radii = [round(f * session.noise.sigma, 6) for f in _SHOWN]
        stream = sys.stderr if self.trainer.is_global_zero else None
        self._progress = Progress(here, samples, radii, stream)
        session.sampler.on_samples = self._progress.add_samples

    def _say(self, text: str) -> None:
        if self.trainer is not None and self.trainer.is_global_zero:
            print(text, file=sys.stderr)


class PredictionStage(SmoothingStage):
    """Writes the abstaining smoothed prediction of the subset as CSV, one file a rank.

    Args:
        certifier: its runtime, n and alpha are used; noise streams come from fresh entropy, which is recorded.
        data: where the images come from.
        out: the CSV file.
    """

    def __init__(self, certifier: Certifier, data: ImageDataModule, out: str | Path) -> None:
        super().__init__(certifier, data)
        self.out = Path(out)
        self._rows = 0

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: the certification subset."""
        assert self.trainer is not None
        if self.trainer.world_size > 1:
            self.out = self.out.with_name(f"{self.out.stem}.rank{self.trainer.global_rank}{self.out.suffix}")
        self.open_session()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._write([["index", "label", "prediction", "abstain", "p_value", "n", "seed"]], "w")
        return self.loader(range(len(self.data.certification_subset())))

    def step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Predict a batch, append it to the file and return the predictions (-1 where it abstains)."""
        certifier = self.certifier
        found = self.session.predict(batch["image"], certifier.n, certifier.alpha)
        n = int(found.counts[0].sum())
        columns = zip(
            batch["index"].tolist(),
            batch["label"].tolist(),
            found.prediction.tolist(),
            found.p_value.tolist(),
            strict=True,
        )
        self._write([[i, y, c, int(c < 0), p, n, found.seed] for i, y, c, p in columns], "a")
        self._rows += len(found.prediction)
        return found.prediction.tolist()

    def _write(self, rows: list[list[Any]], mode: str) -> None:
        with open(self.out, mode, newline="") as file:
            csv.writer(file).writerows(rows)


def _shard_positions(total: int, shard: tuple[int, int] | None) -> list[int]:
    index, step = shard or (0, 1)
    return list(range(index, total, step))
