"""The transfer stage: records of one classifier become those of another, from paired samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_rs.certificates.base import certificate_from_dict
from lightning_rs.certifier import Certifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.noise.base import noise_from_dict
from lightning_rs.records import Certification, read_records
from lightning_rs.records.writing import write_whole
from lightning_rs.session import Session
from lightning_rs.shipped import checkpoint_path
from lightning_rs.smoothed import SmoothedClassifier
from lightning_rs.stages.attack import runtime_of
from lightning_rs.stages.base import SmoothingStage
from lightning_rs.transfer import describe_transfer, refuse_other_source, refuse_records, transfer, transfer_header


class TransferStage(SmoothingStage):
    """Carries records to the checkpoint that the trainer has loaded.

    Args:
        certifier: runtime of the new classifier; None: fp32. Its noise must be that of the records.
        data: where the images come from.
        records: record file of the first classifier.
        source: its checkpoint, or the name of a shipped one; None: the same network, in the runtime of the records.
        out: the new record file; None: ``NAME.transfer.jsonl`` beside the records.
        pairs: paired samples an image.
        alpha: failure probability of the paired bound.
        seed: names the noise of the pairs.
    """

    command: ClassVar[str] = "transfer"
    default_n: ClassVar[int] = 1000

    def __init__(
        self,
        certifier: Certifier | None,
        data: ImageDataModule,
        records: str | Path,
        source: str | Path | None = None,
        out: str | Path | None = None,
        pairs: int = 1000,
        alpha: float = 0.001,
        seed: int = 0,
    ) -> None:
        self.records_path = Path(records)
        self._header, found = read_records(self.records_path)
        refuse_records(self._header, found)
        self._records = {record.index: record for record in found}
        self._noise = noise_from_dict(self._header.binding["noise"])
        if certifier is not None and certifier.noise not in (None, self._noise):
            raise ValueError(
                f"noise of the certifier must be that of the records, {self._noise!r}, got {certifier.noise!r}"
            )
        runtime = runtime_of(self._header.binding["runtime"], self.records_path)
        entries = self._header.binding["certificates"]
        named = [certificate_from_dict(entry) for entry in entries]
        n = int(self._header.binding["n"])
        self._first = Certifier(named, n=n, runtime=runtime, noise=self._noise, separate_passes=True)
        own = None if certifier is None else certifier.runtime
        super().__init__(Certifier(named, n=n, runtime=own, noise=self._noise, separate_passes=True), data)
        self._source = None if source is None else Path(checkpoint_path(source))
        self.path = self.records_path.with_suffix(".transfer.jsonl") if out is None else Path(out)
        self.pairs, self.alpha, self.seed = pairs, alpha, seed
        self._from: Session | None = None
        self._made: list[Certification] = []
        split = self._header.binding["data"].get("split", data.certify_split)
        data.certify_split, data.skip, data.max = split, 1, None
        data.indices = sorted(self._records)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: prepare both classifiers and check that the first made the records."""
        if self.pl_trainer.world_size > 1:
            raise ValueError(f"devices must be 1 to transfer, got {self.pl_trainer.world_size}")
        size = int(self._header.binding["runtime"]["micro_batch"])
        self.open_session(size)  # both draw their noise in pieces of one micro-batch
        network: nn.Module = self.model.network
        if self._source is not None:
            network = SmoothedClassifier.from_checkpoint(self._source).network
        self._from = self._first.session(
            network,
            self._noise,
            self.model.shape,
            self.model.device,
            self.data.domain,
            self.data.grid,
            micro_batch=size,
        )
        refuse_other_source(self._header, self._from)
        first = self.one(0)
        self.check_images(first)
        for session in (self._from, self.session):
            session.probe(first["image"])
        self.say(
            f"transfer {len(self._records)} records of {self.records_path} by {self.pairs:,} paired samples an image "
            f"at alpha {self.alpha:g}"
        )
        return self.loader(range(len(self._records)))

    def _step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Transfer a batch."""
        assert self._from is not None
        records = [self._records[int(index)] for index in batch["index"]]
        self._made += transfer(
            self._header, records, self._from, self.session, batch["image"], self.pairs, self.alpha, self.seed
        )
        return batch["index"].tolist()

    def finish(self, trainer: pl.Trainer) -> list[Certification]:
        """Write the file and return its records in index order.

        Raises:
            ValueError: if the file exists and says something else.
        """
        assert self._from is not None
        self.raise_errors()
        told = describe_transfer(self._from, self.session, self.pairs, self.alpha, self.seed)
        records = sorted(self._made, key=lambda record: record.index)
        write_whole(self.path, transfer_header(self._header, told), [record.to_json() for record in records])
        return records
