"""Training under noise: the noise is fresh, checkpoints describe themselves, every Trainer feature works."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_rs.classifiers import BaseClassifier, NoiseAugmentation
from lightning_rs.classifiers.base import CHECKPOINT_KEY
from lightning_rs.data import Digits
from lightning_rs.noise import GaussianNoise, LaplaceNoise
from tests.training import classifier, same, trainer, weights


class Spy(pl.Callback):
    """Keeps the noise that every training batch got."""

    def __init__(self) -> None:
        self.noise: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        noisy = pl_module.noisy

        def spied(images: Tensor, *args: Any) -> Tensor:
            made = noisy(images, *args)
            self.noise.append(made - images)
            return made

        pl_module.noisy = spied


def fit(folder: Path, *, network: str = "mlp", seed: int = 0, data: Digits | None = None, **kwargs: Any) -> Any:
    model, spy = classifier(network, noise=GaussianNoise(0.25)), Spy()
    pl.seed_everything(seed)
    extra = kwargs.pop("callbacks", [])
    ckpt_path = kwargs.pop("ckpt_path", None)
    run = trainer(folder, callbacks=[spy, *extra], **kwargs)
    run.fit(model, datamodule=data or Digits(batch_size=256), ckpt_path=ckpt_path)
    return model, torch.cat([n.flatten(1).float() for n in spy.noise]), run


def test_noise_is_fresh_for_each_sample_and_step(tmp_path: Path) -> None:
    _, noise, _ = fit(tmp_path, max_epochs=3)
    assert len(noise) == 3 * 5 * 256
    assert len(torch.unique(noise, dim=0)) == len(noise)
    # Standard errors over 245,760 numbers: 5e-4 and 4e-4.
    assert abs(float(noise.mean())) < 3e-3
    assert abs(float(noise.std()) - 0.25) < 2e-3
    # No row of one step correlates with the same row of another: 15 steps, all pairs.
    steps = noise.view(15, -1)
    correlation = torch.corrcoef(steps).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / steps.shape[1] ** 0.5


def test_noise_is_named_by_the_seed(tmp_path: Path) -> None:
    noises = [fit(tmp_path, max_epochs=1, seed=seed)[1] for seed in (1, 1, 2)]
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


def test_ranks_draw_different_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = classifier("mlp"), torch.rand(4, 1, 8, 8)
    one = model.noisy(images, 0)
    assert torch.equal(one, model.noisy(images, 0))
    assert not torch.equal(one, model.noisy(images, 0, copy=1))
    monkeypatch.setattr(BaseClassifier, "global_rank", PropertyMock(return_value=1))
    assert not torch.equal(one, model.noisy(images, 0))


def test_noise_does_not_touch_the_training_stream() -> None:
    model, images = classifier("mlp"), torch.rand(4, 1, 8, 8)
    before = torch.get_rng_state()
    model.noisy(images, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_resumed_training_draws_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    whole, noise, _ = fit(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[_every_epoch(tmp_path)])
    first = next(tmp_path.glob("*epoch=0*.ckpt"))
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):  # ours is not needed again
        resumed, rest, run = fit(tmp_path, max_epochs=3, ckpt_path=first)
    assert run.current_epoch == 3
    assert len(rest) == 2 * len(noise) // 3
    # Other images are at its place, so x + w - x is w up to rounding.
    assert torch.allclose(rest, noise[len(noise) // 3 :], atol=1e-6)
    assert not same(weights(whole), weights(classifier("mlp")))
    assert weights(resumed).keys() == weights(whole).keys()


@pytest.mark.parametrize(
    "feature",
    [
        {"fast_dev_run": True},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"limit_train_batches": 2, "limit_val_batches": 1},
        {"gradient_clip_val": 0.5},
        {"max_epochs": -1, "max_steps": 3, "val_check_interval": 1},
        {"val_check_interval": 2},
        {"overfit_batches": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_ordinary_trainer_features(feature: dict[str, Any], tmp_path: Path) -> None:
    before = weights(classifier("digits_cnn"))
    model, _, run = fit(tmp_path, network="digits_cnn", **{"max_epochs": 1, **feature})
    after = weights(model)
    assert run.state.finished
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["network.net.conv1.weight"], after["network.net.conv1.weight"])
    assert {"val/accuracy_clean", "val/accuracy_noisy", "val/loss_noisy", "train/loss"} <= set(run.callback_metrics)


def test_accumulated_batches_get_different_noise(tmp_path: Path) -> None:
    _, noise, run = fit(tmp_path, max_epochs=1, accumulate_grad_batches=5)
    assert run.global_step == 1
    assert len(torch.unique(noise, dim=0)) == 5 * 256


def test_it_learns_the_digits(tmp_path: Path) -> None:
    model = classifier("digits_cnn", optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    run = trainer(tmp_path, max_epochs=12)
    pl.seed_everything(0)
    run.fit(model, datamodule=Digits())
    (found,) = run.test(model, datamodule=Digits(), verbose=False)
    assert found["test/accuracy_clean"] > 0.95
    assert 0.85 < found["test/accuracy_noisy"] <= found["test/accuracy_clean"]
    (again,) = run.test(model, datamodule=Digits(), verbose=False)
    assert found == again  # evaluation draws the same noise every time


def test_cosine_ends_with_the_training(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    for length in (
        {"max_epochs": 2},
        {"max_epochs": -1, "max_steps": 4},
        {"max_epochs": 2, "accumulate_grad_batches": 2},
    ):
        rates.clear()
        fit(tmp_path, callbacks=[Watch()], **length)
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > 5e-4
        assert rates[-1] < 1e-8


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_longer_training_goes_on_from_a_lower_rate(tmp_path: Path) -> None:
    """Resumed halfway the rate falls on to zero at the new end; at its end it has nowhere to fall from, and says so."""
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, callbacks=[keep], max_epochs=2, enable_checkpointing=True)
    fit(tmp_path, callbacks=[Watch()], max_epochs=4, ckpt_path=tmp_path / "epoch=0.ckpt")
    halfway = rates.copy()
    assert halfway == sorted(halfway, reverse=True)
    assert 0 < halfway[0] <= 5e-4 + 1e-9  # half of the first rate, and lower
    assert halfway[-1] < 1e-8
    rates.clear()
    with pytest.warns(UserWarning, match="with a rate of zero, which stays"):
        fit(tmp_path, callbacks=[Watch()], max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert set(rates) == {0.0}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_schedule_of_torch_that_would_rise_again_says_so(tmp_path: Path) -> None:
    """A checkpoint brings its own T_max, whatever the longer training is told."""

    def scheduled(t_max: int) -> NoiseAugmentation:
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR
        return classifier("mlp", scheduler=lambda optimizer: annealing(optimizer, T_max=t_max))

    short = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    short.fit(scheduled(1), datamodule=Digits())
    short.save_checkpoint(tmp_path / "short.ckpt")
    longer = trainer(tmp_path, max_epochs=3, limit_train_batches=1)
    with pytest.warns(UserWarning, match="ends after T_max = 1 epochs, then its rate rises again until epoch 3"):
        longer.fit(scheduled(3), datamodule=Digits(), ckpt_path=tmp_path / "short.ckpt")


def test_cosine_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cosine' needs an end of training: set max_epochs or max_steps"):
        fit(tmp_path, max_epochs=-1, max_time={"seconds": 1})


def test_a_plateau_watches_the_loss(tmp_path: Path) -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    model = classifier("mlp", scheduler=lambda optimizer: plateau(optimizer, patience=0, threshold=9.0))
    run = trainer(tmp_path, max_epochs=4, limit_train_batches=1)
    run.fit(model, datamodule=Digits())
    assert run.lr_scheduler_configs[0].monitor == "val/loss_noisy"
    assert run.optimizers[0].param_groups[0]["lr"] < 1e-3


def test_constant_rates_and_unknown_schedulers(tmp_path: Path) -> None:
    model = classifier("mlp", scheduler=None)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=Digits())
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-3
    with pytest.raises(ValueError, match="scheduler must be one of 'cosine', got 'sine'"):
        classifier("mlp", scheduler="sine")


def _every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, save_top_k=-1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a small network under noise that is not the default."""
    model = classifier("mlp", network_args={"hidden_sizes": [16]}, noise=LaplaceNoise(0.3))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[_every_epoch(tmp_path)])
    run.fit(model, datamodule=Digits())
    return next(tmp_path.glob("*.ckpt"))


def test_a_checkpoint_rebuilds_its_classifier(saved: Path) -> None:
    contents = torch.load(saved, weights_only=True)
    assert contents[CHECKPOINT_KEY]["class_path"].endswith("NoiseAugmentation")
    model = NoiseAugmentation.load_from_checkpoint(saved, weights_only=True)
    assert model.noise == LaplaceNoise(0.3)
    assert model.hparams["network_args"] == {"hidden_sizes": [16]}
    assert model.grid == 16
    assert model.domain == (0.0, 1.0)
    loaded = {name: value for name, value in contents["state_dict"].items() if name.startswith("network")}
    assert same({name: model.state_dict()[name] for name in loaded}, loaded)
    assert "network.normalize.mean" in loaded  # the standardisation travels with the weights


def _load(saved: Path, model: BaseClassifier) -> None:
    model.on_load_checkpoint(torch.load(saved, weights_only=True))


def test_a_checkpoint_of_another_network_is_refused(saved: Path) -> None:
    for other, message in (
        (classifier("digits_cnn"), "network of the checkpoint is 'mlp', but 'digits_cnn' is configured"),
        (classifier("mlp", network_args={"hidden_sizes": [17]}), r"\(16, 64\) there and \(17, 64\) here"),
        (classifier("mlp", num_classes=7), "num_classes of the checkpoint is 10, but 7 is configured"),
        (classifier("mlp", shape=(1, 8, 9)), "shape of the checkpoint is"),
    ):
        with pytest.raises(ValueError, match=message):
            _load(saved, other)


def test_the_noise_of_the_checkpoint_is_taken_aloud(saved: Path) -> None:
    model = classifier("mlp", network_args={"hidden_sizes": [16]})
    with pytest.warns(UserWarning, match=r"noise LaplaceNoise\(scale=0.3\) replaces the configured GaussianNoise"):
        _load(saved, model)
    assert model.noise == LaplaceNoise(0.3)
    assert model.hparams["noise"] == {"class": "LaplaceNoise", "scale": 0.3}


def test_a_checkpoint_without_noise_says_so(saved: Path) -> None:
    contents = torch.load(saved, weights_only=True)
    del contents[CHECKPOINT_KEY]
    model = classifier("mlp", network_args={"hidden_sizes": [16]})
    with pytest.warns(UserWarning, match="does not say its noise; taking the configured GaussianNoise"):
        model.on_load_checkpoint(contents)
    assert model.noise == GaussianNoise(0.25)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_training_may_go_on_under_other_noise(saved: Path, tmp_path: Path) -> None:
    model = classifier("mlp", network_args={"hidden_sizes": [16]}, scheduler=None)
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[_every_epoch(tmp_path)])
    with pytest.warns(UserWarning, match=r"training goes on with GaussianNoise\(sigma=0.25\); the checkpoint was"):
        run.fit(model, datamodule=Digits(), ckpt_path=saved)
    assert model.noise == GaussianNoise(0.25)


def test_prediction_needs_our_trainer(tmp_path: Path) -> None:
    run = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(TypeError, match=r"needs lightning_rs.Trainer .*got pytorch_lightning.trainer.trainer.Trainer"):
        run.predict(classifier("mlp"), datamodule=Digits(max=3))


def test_noise_that_does_not_fit_the_shape_is_refused() -> None:
    from lightning_rs.noise import DeterministicSplittingNoise

    with pytest.raises(ValueError, match="shape"):
        classifier("mlp", noise=DeterministicSplittingNoise(lam=0.5, shape=(1, 7, 7), q=16))
