"""What loggers get, and where it lies without them."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lightning_rs.certificates import GaussianL2, UniformL1
from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.certifier import Certifier
from lightning_rs.data import Digits
from lightning_rs.loggers import (
    certification_metrics,
    held,
    log_certifications,
    metric_radii,
    run_directory,
    summary,
    when_begun,
)
from lightning_rs.loggers.jobs import checkpoint_file
from lightning_rs.loggers.pictures import distribution_points, thumbnails
from lightning_rs.loggers.runs import link_checkpoint, link_files
from lightning_rs.noise import GaussianNoise, Noise, UniformNoise
from lightning_rs.records import Certification
from lightning_rs.shipped import checkpoint_path
from lightning_rs.stages.ranks import Share, gather
from tests.training import classifier, trainer


def record(index: int, label: int | None, prediction: int, radius: float, **kwargs: Any) -> Certification:
    values = {
        "norm": "l2", "certificate": "GaussianL2", "alpha": 0.001, "n": 100, "n_used": 100,
        "status": "abstain" if prediction < 0 else "certified", **kwargs,
    }  # fmt: skip
    return Certification(index=index, label=label, prediction=prediction, radius=radius, **values)


RECORDS = [record(0, 1, 1, 0.5), record(1, 2, 1, 0.9), record(2, 3, -1, 0.0), record(3, 4, 4, 0.125)]


def test_metrics_by_hand() -> None:
    assert metric_radii(0.25) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.75]
    assert metric_radii(0.07, "patch") == metric_radii(0.06, "l0") == [0.0, 1.0, 2.0, 3.0, 5.0, 8.0], "whole pixels"
    assert certification_metrics(RECORDS, [0.0, 0.125, 0.5, 0.6]) == {
        "certify/accuracy@0": 0.5,
        "certify/accuracy@0.125": 0.5,
        "certify/accuracy@0.5": 0.25,
        "certify/accuracy@0.6": 0.0,
        "certify/abstain": 0.25,
        "certify/ACR": pytest.approx(0.625 / 4),
    }


def test_decisions_have_no_average_radius(tmp_path: Path) -> None:
    decided = [
        record(0, 1, 1, 0.0, status="decided", mode="decision", target=0.25),
        record(1, 1, -1, 0.0, status="undecided", mode="decision", target=0.25),
    ]
    assert "certify/ACR" not in certification_metrics(decided, [0.0])
    assert "undecided 0.500" in summary(decided, GaussianNoise(0.25))
    assert "average" not in summary(decided, GaussianNoise(0.25))
    log_certifications(trainer(tmp_path), decided, GaussianNoise(0.25))
    assert not (tmp_path / "certify_curve.png").exists()


def test_the_summary_is_for_people() -> None:
    said = summary(RECORDS, GaussianNoise(0.25))
    assert "4 images, GaussianL2 (l2), GaussianNoise(sigma=0.25), alpha = 0.001" in said
    assert "0.500 at 0  0.500 at 0.125  0.250 at 0.25  0.250 at 0.375  0.250 at 0.5  0.000 at 0.75" in said
    assert "average certified radius 0.1562, abstained 0.250" in said
    assert summary([record(0, None, 1, 0.5)], GaussianNoise(0.25)) == "1 images without labels"


def test_any_logger_gets_the_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="mine")
    run = trainer(tmp_path, logger=logger)
    assert run_directory(run) == tmp_path / "mine" / "version_0" == Path(logger.log_dir)
    metrics = log_certifications(run, RECORDS, GaussianNoise(0.25))
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["certify/ACR"]) == metrics["certify/ACR"]
    assert (run_directory(run) / "certify_curve.png").stat().st_size > 1000


def test_without_a_logger_the_folder_is_the_trainers(tmp_path: Path) -> None:
    assert run_directory(trainer(tmp_path)) == tmp_path
    assert log_certifications(trainer(tmp_path), [record(0, None, 1, 0.5)], GaussianNoise(0.25)) == {}


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_csv_gets_the_live_numbers_and_the_result(tmp_path: Path) -> None:
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="csv"))
    certifier, trained = Certifier(n0=20, n=100, alpha=0.01), checkpoint_path("digits_gaussian_0.25")
    records = run.certify(classifier(), Digits(max=5), certifier, ckpt_path=trained)
    assert 0 < sum(record.certified_at(0.25) for record in records) < 5
    with open(run_directory(run) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["certify/images"]) for row in rows] == [1, 2, 3, 4, 5, 5]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 5]
    for row, done in zip(rows, (1, 2, 3, 4, 5, 5), strict=True):
        for name, value in certification_metrics(records[:done], metric_radii(0.25)).items():
            assert float(row[name]) == pytest.approx(value)
    assert rows[-1]["certify/complete"] == "1.0"
    # With the file complete, the result alone is told.
    again = trainer(tmp_path, logger=CSVLogger(tmp_path, name="csv"))
    again.certify(classifier(), Digits(max=5), certifier, ckpt_path=trained)
    with open(run_directory(again) / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["certify/ACR"]) == float(rows[-1]["certify/ACR"])


def test_a_waiting_run_has_a_folder_and_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = WandbLogger(project="mine", save_dir=tmp_path, offline=True)
    run, done = trainer(tmp_path, logger=logger), []
    with held(run):
        assert not hasattr(run.logger, "experiment")  # which Lightning would ask for, and so begin the run
        folder = run_directory(run)
        run.logger.log_metrics({"nothing": 1.0})
        when_begun(run, lambda: done.append(run_directory(run)))
        assert not done
    assert run.logger is logger
    assert logger._experiment is None
    assert run_directory(run) == folder == tmp_path / "mine" / logger.version
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    other = trainer(tmp_path, logger=WandbLogger(project="mine", save_dir=tmp_path, offline=True))
    with held(other):
        assert run_directory(other).name == "of-a-sweep"


class Remembering:
    """Stands for W&B's run, online."""

    def __init__(self, offline: bool = False) -> None:
        self.offline = offline
        self.used, self.logged = [], []
        self.use_artifact, self.log_artifact = self.used.append, self.logged.append


def test_online_checkpoint_and_records_are_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    checkpoint, records = tmp_path / "best.ckpt", tmp_path / "digits.jsonl"
    checkpoint.write_bytes(b"weights")
    records.write_text("{}")
    ran = Remembering()
    run = trainer(tmp_path, logger=WandbLogger(experiment=ran, save_dir=tmp_path))
    link_checkpoint(run, checkpoint)
    link_files(run, checkpoint_file(checkpoint), records)
    trained, stated = ran.logged
    (used,) = ran.used
    assert trained.name == used.name == f"checkpoint-{hashlib.sha256(b'weights').hexdigest()[:12]}"
    assert trained.digest == used.digest
    assert (stated.name, stated.type) == ("digits", "records")
    # Weights that are not those of a file name none; offline there is nothing to link.
    link_files(run, {"path": str(checkpoint), "holds": "others"}, records)
    assert len(ran.used) == 1
    off = Remembering(offline=True)
    link_files(
        trainer(tmp_path, logger=WandbLogger(experiment=off, save_dir=tmp_path)), checkpoint_file(checkpoint), records
    )
    assert not off.used + off.logged


def test_pictures_of_a_table(tmp_path: Path) -> None:
    class Points(Digits):
        shape = (64,)

    found = thumbnails(Digits(max=3), GaussianNoise(0.25), [0, 2, 99])
    assert list(found) == [0, 2]
    clean, noisy = found[2]
    assert clean.size == noisy.size == (64, 64)
    image = Digits(max=3).certification_subset().__getitems__([2]).image[0, 0]
    assert np.asarray(clean)[::8, ::8] == pytest.approx(image.numpy() * 255, abs=0.5)
    assert np.asarray(noisy).tolist() == np.asarray(thumbnails(Digits(max=3), GaussianNoise(0.25), [2])[2][1]).tolist()
    assert thumbnails(Points(), GaussianNoise(0.25), [0]) == {}


def test_charts_have_few_points() -> None:
    values = np.random.default_rng(0).random(5000)
    x, share = distribution_points(values)
    assert len(x) == len(share) == 200
    assert [float((values <= at).mean()) for at in x] == pytest.approx(share.tolist())
    assert distribution_points(values[:3])[1].tolist() == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("noise", [GaussianNoise(0.25), UniformNoise(0.5)])
def test_natural_certificates_are_proved_for_their_noise(noise: Noise) -> None:
    natural_certificate(type(noise))().check_noise(noise)


def test_every_noise_has_a_natural_certificate() -> None:
    import lightning_rs.noise as laws

    concrete = [law for law in vars(laws).values() if isinstance(law, type) and issubclass(law, Noise)]
    for law in concrete:
        if not getattr(law, "__abstractmethods__", None):
            assert law in natural_certificate(law).noises
    assert natural_certificate(GaussianNoise) is GaussianL2
    assert natural_certificate(UniformNoise) is UniformL1
    with pytest.raises(ValueError, match="certificates must be named for Noise"):
        natural_certificate(Noise)  # type: ignore[type-abstract]


@pytest.mark.parametrize(("images", "world"), [(13, 2), (1, 2), (0, 3), (5, 5)])
def test_shares_cover_every_position_once(images: int, world: int) -> None:
    shares = [Share(list(range(100, 100 + images)), rank, world) for rank in range(world)]
    assert sorted(position for share in shares for position in share) == list(range(100, 100 + images))
    assert sum(map(len, shares)) == images
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_gathers_itself() -> None:
    assert gather("x", 1) == ["x"]
