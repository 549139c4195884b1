"""The certify stage: records appended as soon as they are there, resumed, merged over ranks, logged."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rs.announce import announced
from lightning_rs.certifier import Certifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.engine.streams import image_sha256
from lightning_rs.loggers import CertificationLog
from lightning_rs.networks import weights_sha256
from lightning_rs.records import Certification, Header
from lightning_rs.records.certification import to_line
from lightning_rs.records.units import counts_pixels
from lightning_rs.stages.base import SmoothingStage
from lightning_rs.stages.files import RecordSet
from lightning_rs.stages.power import smallest_n_to_certify
from lightning_rs.stages.progress import Progress, duration
from lightning_rs.stages.ranks import on_rank_zero

# Radii at which the running certified accuracy is shown: in units of sigma, or in pixels.
_SHOWN, _SHOWN_PIXELS = (0.0, 0.5, 1.0, 2.0), (0.0, 1.0, 2.0, 5.0)
_SECONDS_OF_TRIAL = 0.2
# Images that are compared with their records at once.
_CHECKED_AT_ONCE = 64
# Which network it is, as the model was told.
_ARGUMENTS = ("network", "network_args", "mean", "std")
# Where a classifier keeps its base network.
_PREFIX = "network."


class CertificationStage(SmoothingStage):
    """Certifies the subset, appends every record as soon as it is there, resumes, merges the ranks' files.

    Args:
        certifier: how to certify; None: n = 100,000 and the usual certificate of the noise.
        data: where the images come from.
        records: record file; None derives a name from everything that binds it, under ``root``.
        root: folder for derived names.
        shard: (i, m): only every m-th image, from the i-th; shards are independent jobs.
        preview: draw noise that the final certification does not see.
    """

    command: ClassVar[str] = "certify"
    default_n: ClassVar[int] = 100_000

    def __init__(
        self,
        certifier: Certifier | None,
        data: ImageDataModule,
        records: str | Path | None = None,
        root: str | Path = "runs",
        shard: tuple[int, int] | None = None,
        preview: bool = False,
    ) -> None:
        super().__init__(certifier, data)
        self._records = None if records is None else Path(records)
        self._root = Path(root)
        self._shard = shard
        self.purpose = "preview" if preview else "final"
        self._files: RecordSet | None = None
        self._progress: Progress | None = None
        self._mark = time.monotonic()
        self._source: dict[str, Any] | None = None
        self._log: CertificationLog | None = None

    @property
    def files(self) -> RecordSet:
        """The record files; exist once the loader was asked for."""
        assert self._files is not None
        return self._files

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: open the record files and return the images that are still missing."""
        trainer = self.pl_trainer
        subset = self.data.certification_subset()
        first = self.one(0)
        # A tuned size must agree between ranks and with the records to resume, so it is settled before the rest.
        tuned = self.certifier.runtime.micro_batch == "tune"
        with announced("preparing the network", quiet=not trainer.is_global_zero):
            session = self.open_session(2 if tuned else None)
        indices = [int(i) for i in subset.indices]
        if tuned:
            path = self._path(self._header(indices))
            with announced("tuning the micro-batch", quiet=not trainer.is_global_zero):
                size = on_rank_zero(trainer, lambda: RecordSet.recorded_micro_batch(path) or session.prepared.tune())
                session.resize(size)
        self.check_images(first)
        with announced("comparing the prepared network with the given one", quiet=not trainer.is_global_zero):
            session.probe(first["image"])
        header = self._header(indices)
        files = RecordSet(self._path(header), header, trainer.global_rank, trainer.world_size)
        done = on_rank_zero(trainer, files.resume)
        on_rank_zero(trainer, lambda: self._check_recorded(files, indices))
        files.open()
        self._files = files
        mine = _shard_positions(len(subset), self._shard)
        missing = [p for p in mine if indices[p] not in done]
        self._log = self._opened_log(header, {indices[p] for p in mine} & done, len(missing))
        self._announce(len(mine), missing)
        return self.loader(missing, session.images_at_once)

    def _opened_log(self, header: Header, done: set[int], missing: int) -> CertificationLog:
        """Return what tells the loggers of this process, which count the images of an earlier run too."""
        trainer = self.pl_trainer
        known = self.files.read() if done and trainer.loggers and trainer.is_global_zero else []
        return CertificationLog(
            trainer, self.model, self.data, header, self.files.path, self.session.noise,
            len(done) + -(-missing // trainer.world_size), [record for record in known if record.index in done],
        )  # fmt: skip

    def _check_recorded(self, files: RecordSet, indices: list[int]) -> None:
        """Refuse to go on with a file whose images are others than those on disk now.

        Raises:
            ValueError: naming the first image and the file.
        """
        recorded = {record.index: record.image for record in files.read()}
        positions = [position for position, index in enumerate(indices) if index in recorded]
        for start in range(0, len(positions), _CHECKED_AT_ONCE):
            found = self.data.certification_subset().__getitems__(positions[start : start + _CHECKED_AT_ONCE])
            for index, image in zip(found.own.tolist(), found.image, strict=True):
                if recorded[index] != image_sha256(image):
                    files.close()
                    raise ValueError(
                        f"{files.path}: image {index} of {self.data.name} is another one now than the one recorded "
                        "there (its SHA-256 differs): restore the data, or record into another file"
                    )

    def _step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Certify a batch, write each record as soon as it is there, and return the indices."""
        for record in self.session.certify(batch["image"], batch["label"], batch["index"]):
            now = time.monotonic()
            self.files.append(record, now - self._mark)
            self._mark = now
            if self._progress is not None:
                self._progress.add_record(record)
            if self._log is not None:
                self._log.add(record)
            self.heed_termination()
        return batch["index"].tolist()

    def finish(self, trainer: pl.Trainer) -> list[Certification]:
        """Close and merge the files, log the results, and return all records of this run (on every rank)."""
        if self._progress is not None:
            self._progress.close()
        self.files.close()
        self.raise_errors()  # all ranks meet here
        expected = self.files.header.expected or []
        chosen = [expected[p] for p in _shard_positions(len(expected), self._shard)]
        on_rank_zero(trainer, lambda: self.files.merge(chosen))
        certifications = self.files.read()
        if self._log is not None:
            self._log.finish(certifications)
        return certifications

    def interrupted(self) -> None:
        """Release the files and say what is safe."""
        if self._files is None:
            return
        self._files.close()
        if self._progress is not None:
            self._progress.close()
        if self.trainer is not None and self.trainer.is_global_zero:
            done = len(self._files.recorded())
            print(
                f"{done} images are recorded in {self._files.path}: the same certification goes on from there",
                file=sys.stderr,
            )
        if self._log is not None:
            self._log.interrupted(self._files.read())

    def _header(self, indices: list[int]) -> Header:
        session, described = self.session, self.data.describe()
        unbound = ("root", "subset", "size")
        data = {name: value for name, value in described.items() if name not in unbound}
        described_session = session.describe()
        arguments = {name: self.model.hparams[name] for name in _ARGUMENTS if name in self.model.hparams}
        described_session["function"] = {**described_session["function"], "arguments": arguments}
        header = Header.create(described_session, data=data, indices=indices)
        informative = {
            **header.informative,
            "checkpoint": self._checkpoint(),
            "objective": self.model.objective,
            "model": dict(self.model.hparams),
            "root": described.get("root"),
            "sigma": session.noise.sigma,  # for reports, which do not load the laws
            "remarks": list(session.prepared.remarks),
            "probe": None if session.probed is None else vars(session.probed),
            "purity": session.purity,
            **({} if session.exactness is None else {"exact": session.exactness}),
        }
        return Header(header.binding, informative)

    def _checkpoint(self) -> dict[str, Any]:
        """Return which file the weights that ran came from: named by its hash only if it holds them."""
        path, began = self.pl_trainer.ckpt_path, self.model.weights_path
        if path is None and began is not None:  # weights of any format: where the model began, not what ran
            return {"began": str(began), **_file(Path(began))}
        if path is None or not Path(path).is_file():
            return {} if path is None else {"path": str(path)}
        if self._source is None:
            self._source = checkpoint_source(Path(path), self.session.classifier)
            if "differs" in self._source:
                self.say(f"note: {self._source['differs']}")
        return self._source

    def _path(self, header: Header) -> Path:
        if self._records is not None:
            path = self._records
        else:
            law, binding = self.session.noise, dict(header.binding)
            if self.certifier.runtime.micro_batch == "tune":  # what is tuned cannot name the file to resume
                binding["runtime"] = {**binding["runtime"], "micro_batch": "tune"}
            # Another processor may round a logit otherwise: the same run must find its file.
            binding["function"] = {**binding["function"], "logits": None}
            digest = hashlib.sha256(to_line(binding).encode()).hexdigest()[:8]
            name = f"{self.data.name}-{type(law).__name__}-{law.sigma:g}-{digest}.jsonl"
            path = self._root / "certify" / name.lower().replace(" ", "_")
        if self._shard is None:
            return path
        index, total = self._shard
        return path.with_name(f"{path.stem}.shard{index}of{total}{path.suffix}")

    def _announce(self, total: int, missing: list[int]) -> None:
        if not missing:
            self.say(f"certify: all {total} images are recorded in {self.files.path}")
            return
        certifier, session, world = self.certifier, self.session, self.pl_trainer.world_size
        samples, mine = session.samples_per_image, -(-len(missing) // world)
        rate = session.measure(self.one(missing[0])["image"], _SECONDS_OF_TRIAL)
        many = f"{len(missing)} images" if len(missing) == total else f"the missing {len(missing)} of {total} images"
        ranks = f" in {world} processes" if world > 1 else ""
        bound = "at most " if certifier.budget.fewest(session.setting.n) < session.setting.n else ""
        theorems = ", ".join(repr(c) for c in certifier.certificates)
        self.say(
            f"certify {many} of {self.data.name} ({self.data.certify_split}) under {session.noise!r} by {theorems}"
            f"{ranks}: {bound}{samples:,} samples an image, {bound}about {duration(mine * samples / rate)}"
        )
        self._announce_details(rate)
        counted = counts_pixels(certifier.certificates[0].norm)
        radii = _SHOWN_PIXELS if counted else [round(f * session.noise.sigma, 6) for f in _SHOWN]
        self._progress = Progress(mine, samples, radii, sys.stderr if self.pl_trainer.is_global_zero else None)
        session.sampler.on_samples = self._progress.add_samples
        self._mark = time.monotonic()

    def _announce_details(self, rate: float) -> None:
        probe = self.session.probed
        assert probe is not None
        runtime = ", ".join(f"{name} {value}" for name, value in self.session.prepared.describe().items())
        exact = all(certificate.exact for certificate in self.certifier.certificates)
        level = "exact" if exact else f"alpha {self.certifier.alpha:g} an image"
        self.say(
            f"  {level}, {rate:,.0f} samples/s, records in {self.files.path}\n"
            f"  {runtime}\n"
            f"  labels changed by the runtime: {probe.changed:.2%} of {probe.rows}\n"
            f"  one function of one row: {self.session.purity}"
        )
        needed = smallest_n_to_certify(
            self.certifier, self.session.noise, self.session.prepared.shape, self.session.prepared.num_classes
        )
        if self.certifier.n < needed:
            self.say(
                f"  note: every image abstains: n = {self.certifier.n} samples cannot certify anything at alpha = "
                f"{self.certifier.alpha:g}, even if all agree; the smallest useful n is {needed}"
            )
        for remark in self.session.prepared.remarks:
            self.say(f"  note: {remark}")


def _shard_positions(total: int, shard: tuple[int, int] | None) -> list[int]:
    index, step = shard or (0, 1)
    return list(range(index, total, step))


def checkpoint_source(path: Path, classifier: str) -> dict[str, Any]:
    """Return how a record names a checkpoint file: with its hash if the network in it is the one that ran.

    Averaging callbacks put other weights in place when they load or save, so that the file named may hold another
    network than the one at work.

    Args:
        path: the file.
        classifier: fingerprint of the network that ran.
    """
    held = network_sha256(path)
    if held != classifier:
        told = (
            f"the weights that run are not those that {path} holds, for instance because a callback averages them; the "
            "record names the weights by their own hash and not that file's"
        )
        return {"path": str(path), "holds": held, "differs": told}
    return _file(path)


def _file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"path": str(path), "sha256": digest.hexdigest()}


def network_sha256(path: Path) -> str | None:
    """Return the fingerprint of the base network in a Lightning checkpoint, None if it has none that can be read."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        own = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
        return weights_sha256(own) if own else None
    except Exception:  # torch.load and odd contents fail in many ways; then the file is not known to hold the network
        return None
