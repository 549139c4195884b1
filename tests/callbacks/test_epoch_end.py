"""Certification at epoch ends: what it logs, what it must not disturb, what it must not touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_rs.callbacks import EpochEndCertification, NoisyImageGrid
from lightning_rs.certifier import Certifier
from lightning_rs.data import Digits
from lightning_rs.data.sources import Source
from lightning_rs.engine.runtime import Runtime, usual_micro_batch
from lightning_rs.noise import LaplaceNoise
from lightning_rs.session import Session
from tests.training import classifier, same, trainer, weights


def small(**kwargs: Any) -> EpochEndCertification:
    # Without a share, so that nothing depends on how fast the machine is.
    return EpochEndCertification(images=12, certifier=Certifier(n0=16, n=100, alpha=0.01), share=None, **kwargs)


class Careless(pl.Callback):
    """Leaves the network in evaluation mode, as a callback that certifies could."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        pl_module.network.eval()


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    other_runtime = Certifier(n0=16, n=100, runtime=Runtime(precision="bf16-true", threads=2))
    for callbacks in ([], [small(), NoisyImageGrid()], [EpochEndCertification(12, 2, other_runtime)], [Careless()]):
        model = classifier()
        pl.seed_everything(3)
        trainer(tmp_path, callbacks=callbacks, max_epochs=3).fit(model, datamodule=Digits())
        ends.append(weights(model))
        assert torch.get_num_threads() == 1
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])
    assert not same(ends[0], ends[3])  # the comparison notices what it should


def test_metrics_are_those_of_the_records(tmp_path: Path) -> None:
    model, data, callback = classifier(), Digits(), small(radii=[0.0, 0.25])
    run = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    run.fit(model, datamodule=data)
    subset = data.epoch_end_subset(12)
    batch = subset.__getitems__(range(12))
    certifier = callback.certifier
    assert certifier is not None
    how: Any = {"grid": data.grid, "stage": "epoch-end", "micro_batch": 64}  # small, because each is probed
    session = certifier.session(model.network, model.noise, model.shape, **how)
    records = list(session.certify(batch.image, batch.label, batch.own))
    right = [record.radius if record.prediction == record.label else None for record in records]
    assert run.callback_metrics["preview/ACR"] == pytest.approx(sum(r or 0.0 for r in right) / 12, rel=1e-6)
    assert run.callback_metrics["preview/accuracy@0"] == pytest.approx(sum(r is not None for r in right) / 12)
    assert run.callback_metrics["preview/accuracy@0.25"] == pytest.approx(sum((r or 0) >= 0.25 for r in right) / 12)
    assert run.callback_metrics["preview/abstain"] == pytest.approx(sum(r.prediction < 0 for r in records) / 12)
    assert 0 < run.callback_metrics["preview/ACR"] < 1


def test_the_test_data_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Digits._load

    def guarded(self: Digits, split: Any) -> Source:
        assert split == "train", "the test data must not be touched during training"
        return read(self, split)

    monkeypatch.setattr(Digits, "_load", guarded)
    callbacks = [small(), NoisyImageGrid()]
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(classifier(), datamodule=Digits())
    assert (tmp_path / "noise_images.png").is_file()


def test_checkpoints_can_monitor_it(tmp_path: Path) -> None:
    saved = ModelCheckpoint(dirpath=tmp_path, monitor="preview/ACR", mode="max", save_top_k=1)
    run = trainer(tmp_path, callbacks=[small(every_n_epochs=2), saved], max_epochs=4, enable_checkpointing=True)
    run.fit(classifier(), datamodule=Digits())
    assert saved.best_model_score == pytest.approx(float(run.callback_metrics["preview/ACR"]), rel=0.5)
    assert "epoch=2" not in saved.best_model_path  # between certifications nothing is better


def test_it_certifies_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, epochs = small(every_n_epochs=3), []
    certify = callback._certify

    def counted(run: pl.Trainer, *args: Any) -> Any:
        epochs.append(run.current_epoch)
        return certify(run, *args)

    monkeypatch.setattr(callback, "_certify", counted)
    run = trainer(tmp_path, callbacks=[callback], max_epochs=7, limit_train_batches=1)
    model, data = classifier(), Digits()
    run.fit(model, datamodule=data)
    assert epochs == [0, 2, 5]
    standing = float(run.callback_metrics["preview/ACR"])
    assert callback.state_dict() == {"last": callback._last}
    assert callback._last["preview/ACR"] == pytest.approx(standing)
    # An evaluation is of the weights at hand, so nothing stands there.
    run.validate(model, datamodule=data, verbose=False)
    assert len(epochs) == 4


def test_the_network_is_prepared_once_a_certification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than few samples: a size that is settled is known before."""
    prepared, probed, session, probe = [], [], Certifier.session, Session.probe

    def counted(self: Certifier, *args: Any, **how: Any) -> Session:
        prepared.append(self.n)
        return session(self, *args, **how)

    monkeypatch.setattr(Certifier, "session", counted)
    monkeypatch.setattr(Session, "probe", lambda self, images: probed.append(1) or probe(self, images))
    callback = EpochEndCertification(images=8, certifier=Certifier(n0=16, n=400, alpha=0.01))
    callback._size = (8, 100)
    run = trainer(tmp_path, callbacks=[callback], max_epochs=3, limit_train_batches=1)
    model, data = classifier(), Digits()
    run.fit(model, datamodule=data)
    assert prepared == [100] * 3
    assert len(probed) == 3
    run.validate(model, datamodule=data, verbose=False)  # which no epoch's share limits
    assert prepared[3:] == [400]


@pytest.mark.parametrize(("shape", "rows"), [((1, 8, 8), 64), ((3, 224, 224), 32)])
def test_micro_batches_are_never_larger_than_usual(
    shape: tuple[int, ...], rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def asked(self: Certifier, *_: Any, micro_batch: int | None, **__: Any) -> Session:
        raise Stop(micro_batch)

    monkeypatch.setattr(Certifier, "session", asked)
    run = trainer(tmp_path, callbacks=[small()], max_epochs=1, limit_train_batches=1)
    model = classifier()
    monkeypatch.setattr(model, "on_train_start", lambda: setattr(model, "shape", shape))
    with pytest.raises(Stop, match=rf"^{rows}$"):
        run.fit(model, datamodule=Digits())
    assert usual_micro_batch(shape, "cpu") >= rows


def test_a_resumed_training_keeps_the_standing_metrics() -> None:
    one, other = small(), small()
    one._last = {"preview/ACR": 0.5}
    other.load_state_dict(one.state_dict())
    assert other._last == {"preview/ACR": 0.5}


def test_metrics_have_new_names_and_old_checkpoints_are_read(tmp_path: Path) -> None:
    """Until 0.1 they were called as those of the test data are."""
    callback = small()
    callback.load_state_dict({"last": {"certify/ACR": 0.5, "certify/accuracy@0.25": 0.25}})
    assert callback._last == {"preview/ACR": 0.5, "preview/accuracy@0.25": 0.25}
    saved = ModelCheckpoint(dirpath=tmp_path, monitor="preview/ACR", mode="max")
    old = {"callbacks": {saved.state_key.replace("preview", "certify"): {"best_model_score": 0.5}}}
    callback.on_load_checkpoint(trainer(tmp_path), classifier(), old)
    assert old["callbacks"] == {saved.state_key: {"best_model_score": 0.5}}
    for monitoring in (ModelCheckpoint(monitor="certify/ACR", mode="max"), EarlyStopping("certify/ACR", mode="max")):
        run = trainer(tmp_path, callbacks=[small(), monitoring], max_epochs=1, enable_checkpointing=True)
        with pytest.raises(ValueError, match=r"monitor of \w+ must be 'preview/ACR', got 'certify/ACR'"):
            run.fit(classifier(), datamodule=Digits())


def test_other_noise_takes_its_own_certificate(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[EpochEndCertification(images=4)], max_epochs=1)
    run.fit(classifier(noise=LaplaceNoise(0.2)), datamodule=Digits())
    assert "preview/ACR" in run.callback_metrics


def test_fast_development_runs_take_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, subset = [], Digits.epoch_end_subset
    monkeypatch.setattr(Digits, "epoch_end_subset", lambda self, max: sizes.append(max) or subset(self, max))
    trainer(tmp_path, callbacks=[small()], fast_dev_run=True).fit(classifier(), datamodule=Digits())
    assert sizes == [4]


def test_without_our_data_it_says_what_it_needs(tmp_path: Path) -> None:
    images = TensorDataset(torch.rand(8, 1, 8, 8), torch.arange(8))
    run = trainer(tmp_path, callbacks=[small(), NoisyImageGrid()], max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(ValueError, match=r"must be one of lightning_rs\.data, got NoneType"):
        run.fit(classifier(), DataLoader(images, batch_size=4), DataLoader(images, batch_size=4))


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_without_validation_images_there_is_nothing_to_certify(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[small(), NoisyImageGrid()], max_epochs=1)
    run.fit(classifier(), datamodule=Digits(val_size=0))
    assert "preview/ACR" not in run.callback_metrics
    assert (tmp_path / "noise_images.png").is_file()


@pytest.mark.parametrize("bad", [{"images": 0}, {"every_n_epochs": 0}])
def test_bad_arguments(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number >= 1, got 0"):
        EpochEndCertification(**bad)  # type: ignore[arg-type]
