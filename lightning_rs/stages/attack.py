"""The attack stage: certified images are attacked, their certificates tested, one record an image appended."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rs.attacks import Attacker, AttackFile, AttackRecord, Geometry, Victim, merge_attacks, read_attacks
from lightning_rs.certificates.base import certificate_from_dict
from lightning_rs.certifier import Certifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.streams import image_sha256
from lightning_rs.loggers import AttackLog, Job
from lightning_rs.loggers.jobs import checkpoint_file, stage_job
from lightning_rs.noise.base import noise_from_dict, noise_to_dict
from lightning_rs.records import ABSTAIN, Certification, Header, environment, read_records
from lightning_rs.records.attack_files import certification_sha256
from lightning_rs.records.combined import is_combined
from lightning_rs.stages.base import SmoothingStage
from lightning_rs.stages.contradictions import allowed_contradictions, chance_of_alarm, keep, refuse_contradictions
from lightning_rs.stages.ranks import on_rank_zero

_BOUND = ("classifier", "function", "noise", "lattice", "runtime")  # what decides a vote
_DATA = ("name", "split", "grid", "domain", "fingerprint")


class AttackStage(SmoothingStage):
    """Attacks the images of a record file with the checkpoint, noise and runtime that certified them.

    Args:
        attacker: how to attack; None: the usual attacks of the noise.
        data: where the images come from.
        records: the record file whose certificates are attacked.
        out: file of attack records; None: ``NAME.attack.jsonl`` beside the records.
        shard: (i, m): only every m-th recorded image, from the i-th.
        certificate: attack in the norm of this certificate of the pass; None: the records' own.
        allow_noise_mismatch: attack records whose noise is not the checkpoint's.
    """

    command: ClassVar[str] = "attack"
    default_n: ClassVar[int] = 10_000

    def __init__(
        self,
        attacker: Attacker | None,
        data: ImageDataModule,
        records: str | Path,
        out: str | Path | None = None,
        shard: tuple[int, int] | None = None,
        certificate: str | None = None,
        allow_noise_mismatch: bool = False,
    ) -> None:
        self.records_path = Path(records)
        self.attacker = attacker or Attacker()
        self._header, found = read_records(self.records_path)
        spec = _chosen(self._header, certificate, self.records_path)
        self._spec = spec
        self._shared = certificate_from_dict(spec).shared_failure
        self.certified = {r.index: _under(r, spec, certificate) for r in found}
        if not self.certified:
            raise ValueError(f"records must hold at least one image, got none in {self.records_path}")
        noise = noise_from_dict(self._header.binding["noise"])
        super().__init__(
            Certifier(
                [certificate_from_dict(each) for each in self._header.binding["certificates"]],
                separate_passes=True,
                n=int(self._header.binding["n"]),
                runtime=runtime_of(self._header.binding["runtime"], self.records_path),
                noise=noise,
                allow_noise_mismatch=allow_noise_mismatch,
            ),
            data,
        )
        self._allow_noise_mismatch = allow_noise_mismatch
        self._out = self.records_path.with_suffix(".attack.jsonl") if out is None else Path(out)
        if shard is not None:
            self._out = self._out.with_name(f"{self._out.stem}.shard{shard[0]}of{shard[1]}{self._out.suffix}")
        self._shard = shard or (0, 1)
        self._file: AttackFile | None = None
        self._victim: Victim | None = None
        self._seconds: list[float] = []
        self._log: AttackLog | None = None
        split = self._header.binding.get("data", {}).get("split", data.certify_split)
        data.certify_split, data.skip, data.max = split, 1, None
        data.indices = sorted(self.certified)

    @property
    def path(self) -> Path:
        """The file of attack records."""
        return self._out

    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: check that the records belong to this checkpoint; return the images left to attack."""
        trainer = self.pl_trainer
        self._check_noise()
        session = self.open_session()
        self._check_binding()
        self._check_first()
        norm = str(self._spec["norm"])
        vectors = self.attacker.vectors(norm)
        geometry = Geometry.of_certificate(norm, self.model.shape, self.data.domain, self.data.grid, vectors)
        for attack in self.attacker.chosen(session.noise):
            if geometry.norm not in attack.norms:
                name, possible = type(attack).__name__, " or ".join(attack.norms)
                raise ValueError(f"norm {norm!r} has no attack in {name}, which attacks in {possible}")
        self._victim = self.attacker.victim(session, self.model.network, geometry)
        header = self._attack_header()
        own = self._part(trainer.global_rank)
        done = on_rank_zero(trainer, lambda: self._done(header))
        self._file = AttackFile(own, header)
        self._log = AttackLog(trainer, self._known() if done else [])
        indices = sorted(self.certified)
        mine = indices[self._shard[0] :: self._shard[1]]
        missing = [position for position, index in enumerate(indices) if index in mine and index not in done]
        names = ", ".join(type(attack).__name__ for attack in self.attacker.chosen(session.noise))
        self.say(
            f"attack {len(missing)} of {len(mine)} certified images of {self.data.name} under {session.noise!r} in "
            f"{self._spec['norm']} by {names}; confirmations of n = {self.attacker.n:,} at beta "
            f"{self.attacker.beta:g}, records in {self.path}"
        )
        return self.loader(missing)

    def _step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Attack a batch and write its records."""
        assert self._victim is not None
        assert self._file is not None
        start = time.perf_counter()
        certified = [self.certified[int(index)] for index in batch["index"]]
        for claim, image in zip(certified, batch["image"], strict=True):
            if claim.image and claim.image != image_sha256(image):
                raise ValueError(f"image {claim.index} of {self.data.name} is not the certified one: SHA-256 differs")
        results = self.attacker.run_with_points(self._victim, certified, batch["image"])
        self._seconds.append((time.perf_counter() - start) / len(results))
        for claim, (record, points) in zip(certified, results, strict=True):
            kept = keep(record, points, claim, self._header, self.path) if points else record
            self._file.append(kept)
            if self._log is not None:
                self._log.add(kept, self._job)
            if kept.contradicted:
                print(repr(kept), file=sys.stderr)
        return batch["index"].tolist()

    def finish(self, trainer: pl.Trainer) -> list[AttackRecord]:
        """Close and merge the files, show the bracket, and return the records (on every rank).

        Raises:
            ContradictionError: if more certificates are contradicted than chance explains.
        """
        if self._file is not None:
            self._file.close()
        self.raise_errors()
        on_rank_zero(trainer, lambda: self._merge(trainer.world_size))
        records = read_attacks(self.path)[1]
        if self._log is not None and records:
            self._log.finish(records, self.data.name)
        if trainer.is_global_zero and records:
            self.say(self.summary(records))
        refuse_contradictions(records, self.attacker, self.path, self._shared)
        return records

    def summary(self, records: Sequence[AttackRecord]) -> str:
        """Return the result as lines for people."""
        right = [record for record in records if record.correct]
        broken = [record for record in right if record.attacked is not None]
        bad, allowed = sum(record.contradicted for record in records), allowed_contradictions(records, self.attacker)
        seconds = f", {np.mean(self._seconds):.2f} s an image" if self._seconds else ""
        silent = [test.prediction == ABSTAIN for r in records for test in r.tests if test.kind == "adversarial"]
        quiet = f", {np.mean(silent):.1%} abstentions at adversarial points of the balls" if silent else ""
        both = [r for r in broken if r.stated]
        gap = np.median([r.bracket[1] - r.bracket[0] for r in both]) if both else float("nan")
        return (
            f"{len(records)} images, {len(right)} right: {sum(r.stated for r in right)} certified, {len(broken)} "
            f"broken by a confirmed attack, median gap {gap:.4f} ({records[0].norm}){quiet}{seconds}\n"
            f"contradicted certificates: {bad} (by chance at most {allowed} with probability 1 - "
            f"{chance_of_alarm(self.attacker, self._shared):g})"
        )

    def interrupted(self) -> None:
        """Release the file and say what is safe."""
        if self._file is not None:
            self._file.close()
            print(f"attacked images are recorded in {self.path}: the same attack goes on from there", file=sys.stderr)
        if self._log is not None:
            self._log.interrupted()

    def _job(self) -> Job:
        names = ("certificates", "n", "n0", "alpha", "seed", "budget", "runtime", "data")
        certified = {name: self._header.binding.get(name) for name in names}
        config = {
            "attacker": self.attacker.describe(),
            "certificate": dict(self._spec),
            "runtime": self.session.prepared.describe(),
            "records": str(self.records_path),
            "certification": certified,
        }
        checkpoint = checkpoint_file(self.pl_trainer.ckpt_path)
        return stage_job(
            "attack", self.model, self.data, self.session.noise, checkpoint, self.session.classifier, config,
            AttackLog.metrics,
        )  # fmt: skip

    def _known(self) -> list[AttackRecord]:
        return [record for part in self._parts() for record in read_attacks(part)[1]]

    def _check_noise(self) -> None:
        theirs, own = noise_from_dict(self._header.binding["noise"]), self.model.noise
        if theirs != own and not self._allow_noise_mismatch:
            raise ValueError(
                f"records of {self.records_path} were made with {theirs!r}, the checkpoint is of {own!r}: set "
                "allow_noise_mismatch if that was on purpose"
            )

    def _check_binding(self) -> None:
        """Refuse records of another network, runtime or data set."""
        session, theirs = self.session, self._header.binding
        described = self.data.describe()
        bound = session.describe()
        mine = {
            **{name: bound[name] for name in _BOUND},
            "data": {name: described.get(name) for name in _DATA},
        }
        wanted = {
            **{name: theirs.get(name) for name in _BOUND},
            # The arguments stand in the header as well; what they build is bound by its logits.
            "function": {name: (theirs.get("function") or {}).get(name) for name in bound["function"]},
            "data": {name: theirs["data"].get(name) for name in _DATA},
        }
        differences = Header(wanted).difference(Header(mine))
        if differences:
            raise ValueError(
                f"records of {self.records_path} are not of this checkpoint, noise, runtime and data: "
                f"{'; '.join(differences)}"
            )

    def _check_first(self) -> None:
        first = self.one(0)
        self.check_images(first)
        self.session.probe(first["image"])

    def _attack_header(self) -> Header:
        binding = {
            "certification": certification_sha256(self._header),
            "certificate": self._spec["name"],
            "norm": self._spec["norm"],
            "alpha": self._header.binding["alpha"],
            "classifier": self.session.classifier,
            "noise": noise_to_dict(self.session.noise),
            "runtime": self.session.prepared.describe(),
            "attacker": self.attacker.describe(),
        }
        return Header(binding, {**environment(), "records": str(self.records_path), "shard": list(self._shard)})

    def _part(self, rank: int) -> Path:
        if self.pl_trainer.world_size == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}.rank{rank}{self.path.suffix}")

    def _parts(self) -> list[Path]:
        ranks = sorted(self.path.parent.glob(f"{self.path.stem}.rank*{self.path.suffix}"))
        return [path for path in (self.path, *ranks) if path.is_file()]

    def _done(self, header: Header) -> set[int]:
        done: set[int] = set()
        for path in self._parts():
            file = AttackFile(path, header)
            done |= file.done
            file.close()
        return done

    def _merge(self, world_size: int) -> None:
        parts = self._parts()
        if parts == [self.path]:
            return
        merged = self.path.with_name(f".{self.path.name}.merged")
        merged.unlink(missing_ok=True)
        merge_attacks(parts, merged)
        merged.replace(self.path)
        for part in parts:
            if part != self.path:
                part.unlink()


def _chosen(header: Header, name: str | None, path: Path) -> dict[str, Any]:
    """Return what the header says of the certificate to attack."""
    if header.imported:
        raise ValueError(f"records must be made by certify to be attacked; {path} was imported")
    if is_combined(header):
        raise ValueError(f"records must be of one classifier to be attacked; {path} combines others: attack those")
    specs = [dict(spec) for spec in header.binding["certificates"]]
    if name is None:
        return specs[0]
    for spec in specs:
        if spec["name"] == name:
            return spec
    raise ValueError(f"certificate must be one of {', '.join(spec['name'] for spec in specs)}, got {name!r}")


def _under(record: Certification, spec: Mapping[str, Any], name: str | None) -> Certification:
    if name is None or name == record.certificate:
        return record
    certificate = certificate_from_dict(spec)
    return record.under(name, certificate.norm, certificate.ball, 0.0 if certificate.exact else record.alpha)


def runtime_of(described: Mapping[str, Any], path: Path) -> Runtime:
    """Return the configuration of the runtime that a header describes."""
    try:
        return Runtime(
            precision=described["precision"],
            channels_last=described["channels_last"],
            fold=described["folded"],
            fuse=described["fused"],
            compile=described["compiled"],
            micro_batch=int(described["micro_batch"]),
            stochastic_network=bool(described.get("stochastic_network", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header does not describe a runtime that can be run again: {error}") from error
