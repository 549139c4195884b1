"""What loggers get, and where it lies without them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger

from lightning_rs.certificates import GaussianL2, UniformL1
from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.loggers import certification_metrics, log_certifications, metric_radii, run_directory, summary
from lightning_rs.noise import GaussianNoise, Noise, UniformNoise
from lightning_rs.records import Certification
from lightning_rs.stages.ranks import Share, gather
from tests.training import trainer


def record(index: int, label: int | None, prediction: int, radius: float, **kwargs: Any) -> Certification:
    values = {
        "norm": "l2", "certificate": "GaussianL2", "alpha": 0.001, "n": 100, "n_used": 100,
        "status": "abstain" if prediction < 0 else "certified", **kwargs,
    }  # fmt: skip
    return Certification(index=index, label=label, prediction=prediction, radius=radius, **values)


RECORDS = [record(0, 1, 1, 0.5), record(1, 2, 1, 0.9), record(2, 3, -1, 0.0), record(3, 4, 4, 0.125)]


def test_metrics_by_hand() -> None:
    assert metric_radii(0.25) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.75]
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
