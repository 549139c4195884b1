"""The smoothed classifier as a module: soft votes, gradients, files, and other people's attacks on it."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_rs import (
    Certifier,
    DeterministicSplittingNoise,
    GaussianNoise,
    LaplaceNoise,
    SmoothedClassifier,
    SplittingNoise,
    UniformNoise,
)
from lightning_rs.noise import Noise
from lightning_rs.smoothed import through_noise
from tests.helpers import HalfSpace, tiny_cnn

SHAPE = (2, 6, 6)
CKPT = Path(__file__).parents[1] / "checkpoints" / "digits_gaussian_0.25.ckpt"
NOISES: list[Noise] = [
    GaussianNoise(0.25),
    UniformNoise(lam=0.5),
    LaplaceNoise(0.2),
    SplittingNoise(lam=0.5),
    DeterministicSplittingNoise(lam=0.5, shape=SHAPE, q=15, seed=0),
]


def images(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(16, (count, *SHAPE), generator=generator).float() / 15


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_forward_is_the_log_of_the_mean_probability_over_the_copies(noise: Noise) -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), noise, copies=7, temperature=2.0)
    x = images()
    variates = smoothed.variates(math.prod(SHAPE))
    probabilities = torch.zeros(3, 3)
    for row, image in enumerate(x):
        noisy = torch.empty_like(variates)
        noise.apply(image.flatten(), variates, noisy)
        probabilities[row] = torch.softmax(2.0 * tiny_cnn()(noisy.view(-1, *SHAPE)), 1).mean(0)
    torch.testing.assert_close(smoothed(x).exp(), probabilities, rtol=1e-5, atol=1e-6)


def test_an_image_has_one_answer_whatever_its_companions_until_the_noise_is_renewed() -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5), copies=8)
    x = images()
    together, alone = smoothed(x), torch.cat([smoothed(image[None]) for image in x.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    smoothed.renew()
    assert (smoothed(x) - together).abs().max() > 1e-3
    fresh = SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5), copies=8, common_noise=False)
    assert not torch.equal(fresh(x), fresh(x))


def test_copies_of_an_enumerated_law_are_its_outcomes_each_once() -> None:
    noise = DeterministicSplittingNoise(lam=0.5, shape=SHAPE, q=15, seed=0)
    smoothed = SmoothedClassifier(tiny_cnn(), noise, copies=1000)
    assert sorted(smoothed.variates(72)[:, 0].tolist()) == list(range(noise.size))


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_rows_are_those_of_the_engine_with_the_identity_as_derivative(noise: Noise) -> None:
    x = images().flatten(1).requires_grad_()
    variates = torch.empty(3, 72)
    noise.draw_(variates, torch.Generator().manual_seed(0))
    expected = torch.empty(3, 72)
    noise.apply(x.detach(), variates, expected)
    noisy = through_noise(noise, x, variates)
    assert torch.equal(noisy, expected)
    noisy.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


def test_the_gradient_is_that_of_the_function() -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5), copies=6)
    x = images(1).requires_grad_()
    smoothed(x)[0, 1].backward()
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        change = smoothed(x + step)[0, 1] - smoothed(x - step)[0, 1]
    assert float(change) == pytest.approx(2 * float((x.grad * step).sum()), rel=0.02)  # type: ignore[operator]


def test_training_through_it_moves_the_weights() -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), SplittingNoise(lam=0.5), copies=4)
    nn.functional.nll_loss(smoothed(images()), torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None for parameter in smoothed.parameters())


def test_predict_and_certify_are_those_of_the_engine_and_follow_the_weights() -> None:
    network = HalfSpace(torch.ones(72) / math.sqrt(72), offset=4.0)
    certifier = Certifier(n=2000, n0=50)
    smoothed = SmoothedClassifier(network, GaussianNoise(0.5), certifier=certifier, domain=(0.0, 1.0))
    direct = certifier.certify(network, GaussianNoise(0.5), images(), [0, 1, 0])
    assert smoothed.certify(images(), [0, 1, 0]) == direct
    found = smoothed.predict(images(), n=500)
    assert (found.prediction == np.array([r.prediction for r in direct])).all()
    assert smoothed.predict(images()).seed != found.seed  # fresh entropy
    with torch.no_grad():
        network.weight.neg_()  # all scores fall far below the offset
    assert (smoothed.predict(images(), n=500).prediction == 0).all()
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        smoothed.predict(images() + 1)


def test_a_checkpoint_becomes_a_module_and_goes_through_safetensors_and_the_hub(tmp_path: Path) -> None:
    smoothed = SmoothedClassifier.from_checkpoint(CKPT, copies=5)
    assert smoothed.noise == GaussianNoise(0.25)
    assert (smoothed.grid, smoothed.domain) == (16, (0.0, 1.0))
    assert not smoothed.training
    x = torch.randint(17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 16
    expected = smoothed(x)
    smoothed.save_safetensors(tmp_path / "digits.safetensors")
    smoothed.save_pretrained(tmp_path / "repository")
    for again in (
        SmoothedClassifier.from_safetensors(tmp_path / "digits.safetensors", copies=5),
        SmoothedClassifier.from_pretrained(tmp_path / "repository", copies=5),
    ):
        assert torch.equal(again(x), expected)
        assert (again.noise, again.grid, again.domain) == (smoothed.noise, smoothed.grid, smoothed.domain)


def test_a_network_of_ones_own_is_brought_along(tmp_path: Path) -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5)).eval()
    smoothed.save_safetensors(tmp_path / "own.safetensors")
    other = tiny_cnn()
    nn.init.zeros_(other[4].weight)
    again = SmoothedClassifier.from_safetensors(tmp_path / "own.safetensors", network=other)
    assert torch.equal(again(images()), smoothed(images()))
    with pytest.raises(ValueError, match=r"network must be given, because .*own\.safetensors"):
        SmoothedClassifier.from_safetensors(tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of the network: "):
        SmoothedClassifier.from_safetensors(tmp_path / "own.safetensors", network=nn.Linear(2, 2))


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"no weights")
    for read in (SmoothedClassifier.from_checkpoint, SmoothedClassifier.from_safetensors):
        with pytest.raises(ValueError, match="broken' is damaged") as caught:
            read(broken)
        assert "\n" not in str(caught.value)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")
    torch.save({"state_dict": {}, "arch": "cifar_resnet20"}, broken)
    with pytest.raises(ValueError, match="load_cohen_checkpoint"):
        SmoothedClassifier.from_checkpoint(broken)


def test_the_base_network_is_exported_for_any_batch_size(tmp_path: Path) -> None:
    smoothed = SmoothedClassifier.from_checkpoint(CKPT)
    torch.export.save(smoothed.export(), tmp_path / "base.pt2")
    program = torch.export.load(tmp_path / "base.pt2").module()
    for count in (1, 5):
        x = torch.rand(count, 1, 8, 8)
        torch.testing.assert_close(program(x), smoothed.network(x))
    with pytest.raises(ValueError, match="shape must be given"):
        SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5)).export()


def test_copies_and_pickles_work_after_use() -> None:
    smoothed = SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5)).eval()
    smoothed.predict(images(), n=10)
    for other in (copy.deepcopy(smoothed), pickle.loads(pickle.dumps(smoothed.float()))):
        assert torch.equal(other(images()), smoothed(images()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"copies": 0}, "copies must be a whole number >= 1, got 0"), ({"temperature": 0.0}, "temperature must be")],
)
def test_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(tiny_cnn(), GaussianNoise(0.5), **arguments)  # type: ignore[arg-type]


class TestAttackLibraries:
    """Real packages, installed apart: pip install --no-deps --target /work/extras NAME."""

    @pytest.fixture
    def smoothed(self) -> SmoothedClassifier:
        weight = torch.ones(72) / math.sqrt(72)
        network = HalfSpace(weight, offset=float(0.5 * weight.sum())).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return SmoothedClassifier(network, GaussianNoise(0.25), copies=64, domain=(0.0, 1.0)).eval()

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return images whose smoothed class is 1, their classes, and the distance of the boundary."""
        x = torch.full((4, *SHAPE), 0.55)
        return x, torch.ones(4, dtype=torch.int64), 0.05 * math.sqrt(72)

    def check(self, smoothed: SmoothedClassifier, adversarial: torch.Tensor, eps: float) -> None:
        x, _, boundary = self.inputs()
        distance = (adversarial - x).flatten(1).norm(dim=1)
        assert (distance <= eps * 1.001).all()
        assert (distance > 0.9 * boundary).all()  # nothing is closer
        assert (smoothed.predict(adversarial, n=2000).prediction == 0).all()

    @pytest.mark.filterwarnings("ignore")
    def test_foolbox(self, smoothed: SmoothedClassifier) -> None:
        foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
        x, classes, boundary = self.inputs()
        model = foolbox.PyTorchModel(smoothed, bounds=(0, 1))
        attack = foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.2, random_start=False)
        _, clipped, success = attack(model, x, classes, epsilons=[1.3 * boundary])
        assert bool(success.all())
        self.check(smoothed, clipped[0], 1.3 * boundary)

    @pytest.mark.filterwarnings("ignore")
    def test_torchattacks(self, smoothed: SmoothedClassifier) -> None:
        torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
        x, classes, boundary = self.inputs()
        eps = 1.3 * boundary
        attack = torchattacks.PGDL2(smoothed, eps=eps, alpha=eps / 5, steps=20, random_start=False)
        self.check(smoothed, attack(x, classes), eps)

    @pytest.mark.filterwarnings("ignore")
    def test_art(self, smoothed: SmoothedClassifier) -> None:
        pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        x, classes, boundary = self.inputs()
        eps = 1.3 * boundary
        model = PyTorchClassifier(
            smoothed, loss=nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=2, clip_values=(0, 1), device_type="cpu"
        )
        attack = ProjectedGradientDescentPyTorch(model, norm=2, eps=eps, eps_step=eps / 5, max_iter=20, verbose=False)
        self.check(smoothed, torch.from_numpy(attack.generate(x.numpy(), classes.numpy())), eps)
