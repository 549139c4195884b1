"""The Trainer in Python: certify and predict without the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.data import Digits
from lightning_rs.engine.runtime import PreparedNetwork, Runtime
from lightning_rs.noise import DeterministicSplittingNoise, GaussianNoise, UniformNoise
from lightning_rs.records import body_lines, read_records
from lightning_rs.trainer import check_checkpoint
from tests.training import classifier, same, trainer, weights


def certifier(n: int = 100, **kwargs: object) -> Certifier:
    return Certifier(n0=16, n=n, runtime=Runtime(threads=1), **kwargs)  # type: ignore[arg-type]


def test_certify_returns_the_records_that_it_wrote(tmp_path: Path) -> None:
    run, model = trainer(tmp_path), classifier()
    before = weights(model)
    records = run.certify(model, Digits(max=5), certifier())
    assert run.records_path is not None
    assert run.records_path.parent == tmp_path / "certify"
    header, written = read_records(run.records_path)
    assert records == written == run.certifications
    assert [record.index for record in records] == [0, 1, 2, 3, 4]
    assert header.informative["checkpoint"] == {}
    assert "its logits did not move with position or companions" in header.informative["purity"]
    assert same(before, weights(model))
    assert run.smoothing_stage is None


@pytest.mark.parametrize("size", [64, "tune"])
def test_the_network_is_prepared_once(size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, tuned = [], []
    real = Certifier.session
    monkeypatch.setattr(Certifier, "session", lambda *a, **k: opened.append(k["micro_batch"]) or real(*a, **k))
    monkeypatch.setattr(PreparedNetwork, "tune", lambda prepared: tuned.append(prepared) or 96)
    made = Certifier(n0=16, n=100, runtime=Runtime(threads=1, micro_batch=size))
    run = trainer(tmp_path)
    records = run.certify(classifier(), Digits(max=3), made)
    header, _ = read_records(run.records_path)  # type: ignore[arg-type]
    assert header.binding["runtime"]["micro_batch"] == (96 if size == "tune" else 64)
    assert (len(opened), len(tuned)) == (1, size == "tune")
    again = trainer(tmp_path).certify(classifier(), Digits(max=3), made)  # resumed at the recorded size
    assert (again, len(tuned)) == (records, size == "tune")


def test_it_agrees_with_the_certifier_without_lightning(tmp_path: Path) -> None:
    model, data = classifier(), Digits(max=4)
    records = trainer(tmp_path).certify(model, data, certifier(n=300))
    data.setup("test")
    batch = data.certification_subset().__getitems__(range(4))
    plain = certifier(n=300).certify(model.network, model.noise, batch.image, batch.label, batch.own, grid=data.grid)
    assert records == plain


def test_a_trained_model_is_certified_from_its_best_checkpoint(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint

    model, data = classifier(), Digits(max=3)
    saved = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss_noisy", mode="min")
    run = trainer(tmp_path, callbacks=[saved], enable_checkpointing=True, limit_train_batches=2)
    run.fit(model, datamodule=data)
    run.certify(model, data, certifier(), ckpt_path="best")
    assert run.records_path is not None
    header, _ = read_records(run.records_path)
    assert header.informative["checkpoint"]["path"] == saved.best_model_path
    assert len(header.informative["checkpoint"]["sha256"]) == 64


def test_without_a_certifier_the_noise_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_rs.stages import CertificationStage

    monkeypatch.setattr(CertificationStage, "default_n", 200)
    (record,) = trainer(tmp_path).certify(classifier(noise=UniformNoise(lam=0.4)), Digits(max=1))
    assert (record.certificate, record.norm, record.n) == ("UniformL1", "l1", 200)


def test_another_fixed_noise_is_refused_unless_allowed(tmp_path: Path) -> None:
    def law(seed: int) -> DeterministicSplittingNoise:
        return DeterministicSplittingNoise(lam=0.5, shape=(1, 8, 8), q=16, seed=seed)

    from lightning_rs.certificates import DeterministicSplittingL1

    model = classifier("mlp", noise=law(0))
    wanted = Certifier([DeterministicSplittingL1()], noise=law(1), runtime=Runtime(threads=1))
    with pytest.raises(ValueError, match="which belongs to it; leave the noise out, or set allow_noise_mismatch"):
        trainer(tmp_path).certify(model, Digits(max=1), wanted)
    wanted.allow_noise_mismatch = True
    with pytest.warns(UserWarning, match="smoothing with DeterministicSplittingNoise"):
        (record,) = trainer(tmp_path).certify(model, Digits(max=1), wanted)
    assert record.alpha == 0.0


def test_an_equal_noise_is_no_other_noise(tmp_path: Path) -> None:
    trainer(tmp_path).certify(classifier(), Digits(max=1), certifier(noise=GaussianNoise(0.25)))


def test_batches_are_fetched_by_workers_too(tmp_path: Path) -> None:
    for workers in (0, 1):
        data = Digits(max=5, certify_batch_size=2, num_workers=workers)
        trainer(tmp_path).certify(classifier(), data, certifier(), records=tmp_path / f"{workers}.jsonl")
    assert body_lines(tmp_path / "0.jsonl") == body_lines(tmp_path / "1.jsonl")


def test_predict_returns_classes_and_writes_them(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    found = run.predict(classifier(), datamodule=Digits(max=10), certifier=certifier())
    with open(tmp_path / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [c for batch in found for c in batch] == [int(row["prediction"]) for row in rows]
    assert "10 images: smoothed accuracy" in run.prediction_summary


def test_exact_predictions_have_no_p_value(tmp_path: Path) -> None:
    noise = DeterministicSplittingNoise(lam=0.5, shape=(1, 8, 8), q=16)
    trainer(tmp_path).predict(classifier("mlp", noise=noise), datamodule=Digits(max=2))
    with open(tmp_path / "predictions.csv") as file:
        assert {(row["p_value"], row["n"]) for row in csv.DictReader(file)} == {("0.0", str(noise.size))}


def test_other_modules_predict_as_ever(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return batch * 2

    (doubled,) = trainer(tmp_path).predict(Plain(), DataLoader(torch.ones(3, 2), batch_size=3))
    assert torch.equal(doubled, torch.full((3, 2), 2.0))


def test_processes_that_fork_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, strategy="ddp_spawn", devices=2)
    with pytest.raises(ValueError, match="strategy must be 'ddp' or one process to certify"):
        run.certify(classifier(), Digits(max=1), certifier())


def test_a_failing_stage_leaves_the_trainer_usable(tmp_path: Path) -> None:
    run = trainer(tmp_path, precision="bf16-mixed")
    plugin = run.precision_plugin
    with pytest.raises(ValueError, match="certificate GaussianL2 is proved for GaussianNoise"):
        run.certify(classifier(noise=UniformNoise(lam=0.4)), Digits(max=1), certifier(certificates=[GaussianL2()]))
    assert run.smoothing_stage is None
    assert run.precision_plugin is plugin


@pytest.mark.parametrize("fine", [None, "best", "last", "s3://bucket/x.ckpt"])
def test_what_lightning_resolves_is_left_to_it(fine: str | None) -> None:
    check_checkpoint(fine)
