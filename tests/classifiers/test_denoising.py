"""Training of denoisers: the three losses, the frozen classifier, all levels at once, what the checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rs.certifier import Certifier
from lightning_rs.classifiers import CleanTraining, DenoiserTraining
from lightning_rs.classifiers.denoising import denoising_loss, level_weight
from lightning_rs.noise import DeterministicSplittingNoise, GaussianNoise
from tests.training import same, trainer, weights

SHAPE = (1, 8, 8)
DNCNN = {"class_path": "lightning_rs.networks.DnCNN", "init_args": {"depth": 3, "width": 4}}
UNET = {
    "class_path": "lightning_rs.networks.SigmaDenoiser",
    "init_args": {"net": {"class_path": "lightning_rs.networks.SigmaUNet", "init_args": {"widths": [8, 8]}}},
}


def training(
    objective: str = "mse", denoiser: Any = DNCNN, classifier: Any = "digits_cnn", **kwargs: Any
) -> DenoiserTraining:
    torch.manual_seed(0)
    own = {"noise": GaussianNoise(0.5), "num_classes": 3, "shape": SHAPE, "mean": [0.5], "std": [0.25], **kwargs}
    own.setdefault("scheduler", None)
    return DenoiserTraining(
        objective=objective, network="denoised", network_args={"denoiser": denoiser, "classifier": classifier}, **own
    )


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*batch()), batch_size=4)


def step(model: DenoiserTraining) -> Tensor:
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    return model.training_step(batch(), 0).detach()


def test_a_fresh_dncnn_has_the_error_of_the_noise() -> None:
    model = training().train()
    images, _ = batch()
    wanted = (model.noisy(images, 0) - images).square().mean()
    assert float(step(model)) == pytest.approx(float(wanted), rel=1e-6)


def test_losses_against_their_formulas() -> None:
    images, labels = batch()
    for loss in ("stability", "classification"):
        model = training(loss).train()
        net = model.denoised
        logits = net.classifier(net.denoiser(model.noisy(images, 0), 0.5))
        target = labels if loss == "classification" else net.classifier(images).argmax(1)
        wanted = nn.functional.cross_entropy(logits, target)
        assert float(step(model)) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert (target != net.classifier(images).argmax(1)).any()  # the two losses are told apart


@pytest.mark.parametrize("loss", ["mse", "stability", "classification"])
def test_passes_of_both_parts_are_counted_as_they_are(loss: str) -> None:
    model = training(loss).train()
    found = {"denoiser": [0, 0], "classifier": [0, 0]}

    def count(part: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[part][0] += len(output)
            if output.requires_grad:
                output.register_hook(lambda gradient: found[part].__setitem__(1, found[part][1] + len(gradient)))

        return hook

    model.denoised.get_submodule("denoiser.net").register_forward_hook(count("denoiser"))
    model.denoised.classifier.register_forward_hook(count("classifier"))
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    model.training_step(batch(), 0).backward()
    assert tuple(count / 8 for count in found["denoiser"]) == model.passes
    assert tuple(count / 8 for count in found["classifier"]) == model.of_classifier
    assert model.cost.startswith("1 forward and 1 backward pass of the denoiser an image")
    assert ("of the classifier" in model.cost) == (loss != "mse")


def test_levels_count_alike() -> None:
    sigma = torch.tensor([0.05, 0.5, 2.0])
    total = (2 * sigma).square() + 0.62**2
    c_out = 2 * sigma * 0.62 / total.sqrt()
    torch.testing.assert_close(level_weight(sigma, 0.31), c_out.pow(-2))
    clean, found = torch.zeros(3, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    torch.testing.assert_close(denoising_loss(found, clean, torch.tensor([6.0, 0.0, 1.0])), torch.tensor(5.0))


def test_all_levels_are_drawn_and_told() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    model = training(denoiser=UNET, sigma_range=(0.05, 2.0))
    network = model.denoised.denoiser.get_submodule("net")
    network.register_forward_pre_hook(lambda module, args: seen.append(args))
    images, labels = torch.full((4000, *SHAPE), 0.5), torch.zeros(4000, dtype=torch.long)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    model.training_step((images, labels), 0)
    (u, s), sigma = seen[0], seen[0][1] / 2
    assert 0.05 <= float(sigma.min()) < 0.06
    assert 1.9 < float(sigma.max()) <= 2.0
    assert float(sigma.log().mean()) == pytest.approx(float(torch.tensor([0.05, 2.0]).log().mean()), abs=0.06)
    # The noise in model units has the level that the denoiser is told: 64 numbers an image.
    ratio = u.flatten(1).square().mean(1).sqrt() / s
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.01)
    model.training_step((images, labels), 1)
    assert not torch.equal(seen[0][1], seen[1][1])


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start of training")
@pytest.mark.parametrize("loss", ["mse", "stability", "classification"])
def test_training_moves_the_denoiser_and_nothing_of_the_classifier(loss: str, tmp_path: Path) -> None:
    model = training(loss)
    before, frozen = weights(model.denoised.denoiser), weights(model.denoised.classifier)
    trainer(tmp_path).fit(model, loader(), loader())
    assert same(weights(model.denoised.classifier), frozen)
    assert not same(weights(model.denoised.denoiser), before)
    records = Certifier(n=100, n0=10).certify(model.network, model.noise, batch(2)[0], [0, 1])
    assert len(records) == 2


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start of training")
def test_the_checkpoint_needs_no_other_file_and_lends_its_parts(tmp_path: Path) -> None:
    clean = CleanTraining("digits_cnn", num_classes=3, shape=SHAPE, mean=[0.5], std=[0.25], scheduler=None)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(clean, loader(), loader())
    run.save_checkpoint(tmp_path / "clean.ckpt")
    model = training(classifier={"checkpoint": str(tmp_path / "clean.ckpt")}, denoiser=UNET, sigma_range=[0.1, 1.0])
    assert same(weights(model.denoised.classifier), weights(clean.network))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(), loader())
    run.save_checkpoint(tmp_path / "denoiser.ckpt")
    with pytest.raises(ValueError, match="has no part 'denoiser': its network is 'digits_cnn'"):
        training(denoiser={"checkpoint": str(tmp_path / "clean.ckpt"), "part": "denoiser"})
    (tmp_path / "clean.ckpt").unlink()
    rebuilt = DenoiserTraining.load_from_checkpoint(tmp_path / "denoiser.ckpt", weights_only=True)
    assert same(weights(rebuilt), weights(model))
    assert rebuilt.sigma_range == (0.1, 1.0)
    assert rebuilt.denoised.sigma == 0.5
    lent = {"checkpoint": str(tmp_path / "denoiser.ckpt"), "part": "denoiser"}
    other = training("stability", denoiser=lent, noise=GaussianNoise(0.25))
    assert same(weights(other.denoised.denoiser), weights(model.denoised.denoiser))
    assert other.denoised.sigma == 0.25


def test_another_sigma_than_that_of_the_noise_warns() -> None:
    with pytest.warns(UserWarning, match=r"network denoised is told sigma=0.25, but the noise has sigma=0.5"):
        DenoiserTraining(
            network="denoised",
            network_args={"denoiser": DNCNN, "classifier": "digits_cnn", "sigma": 0.25},
            noise=GaussianNoise(0.5),
            num_classes=3,
            shape=SHAPE,
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"objective": "l1"}, "objective must be one of 'mse', 'stability', 'classification', got 'l1'"),
        ({"sigma_range": [1.0, 0.5]}, r"sigma_range must be .smallest, largest. in pixel units, got \[1.0, 0.5\]"),
        ({"sigma_range": [0.5]}, "sigma_range must be"),
        ({"sigma_range": [0.0, 1.0]}, "sigma_range must be finite and > 0"),
        (
            {"sigma_range": [0.1, 1.0], "objective": "stability"},
            "needs the objective 'mse', got 'stability'",
        ),
        (
            {"sigma_range": [0.1, 1.0], "noise": DeterministicSplittingNoise(1.0, shape=SHAPE), "grid": 255},
            "sigma_range needs a noise that is added",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(**kwargs)


def test_the_network_must_have_a_denoiser() -> None:
    with pytest.raises(ValueError, match="network must be 'denoised' with a denoiser to train, got 'digits_cnn'"):
        DenoiserTraining(network="digits_cnn")
