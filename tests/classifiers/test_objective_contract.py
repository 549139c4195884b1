"""What every training objective promises: one table, one set of tests. An objective that is missing fails."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import lightning_rs.classifiers as package
from lightning_rs.classifiers import (
    CATRS,
    MACER,
    BaseClassifier,
    CleanTraining,
    Consistency,
    DenoiserTraining,
    NoiseAugmentation,
    NoisyCopies,
    SmoothAdv,
    SmoothMix,
    Stability,
)
from lightning_rs.data import Digits
from lightning_rs.noise import (
    AblationNoise,
    BandNoise,
    BlockNoise,
    DeterministicSplittingNoise,
    GaussianNoise,
    LaplaceNoise,
    MixedNormNoise,
    Noise,
    NormPowerNoise,
    SplittingNoise,
    UniformNoise,
)
from tests.training import same, trainer, weights


@dataclass(frozen=True)
class Example:
    """An objective with arguments that are not its defaults, and arguments that must be refused with a message."""

    arguments: dict[str, Any] = field(default_factory=dict)
    bad: tuple[tuple[dict[str, Any], str], ...] = ()
    attacks: bool = False
    gaussian_only: bool = False


# No objectives of a classifier under noise: what they promise stands in networks/test_denoise.
WITHOUT_NOISY_COPIES: set[type[BaseClassifier]] = {CleanTraining, DenoiserTraining}
WEIGHTS = (({"lam": -1.0}, "lam must be >= 0, got -1.0"), ({"lam": float("nan")}, "lam must not be NaN"))
DROPPING = tuple(
    ({"noise": noise}, "gradient reaches the pixels for an attack in training, got .*: it drops pixels")
    for noise in (AblationNoise(9, shape=(1, 8, 8)), BandNoise(3, shape=(1, 8, 8)), BlockNoise(3, shape=(1, 8, 8)))
)
EXAMPLES: dict[type[BaseClassifier], list[Example]] = {
    NoiseAugmentation: [Example()],
    Stability: [
        Example({"lam": 3.0}, (*WEIGHTS, ({"form": "l1"}, "form must be one of 'clean', 'pair', got 'l1'"))),
        Example({"lam": 12.0, "form": "pair"}),
    ],
    Consistency: [
        Example(
            {"lam": 2.5, "eta": 0.25, "copies": 3},
            (
                *WEIGHTS,
                ({"eta": -0.5}, "eta must be >= 0, got -0.5"),
                ({"copies": 1}, "copies must be >= 2: Consistency compares copies of an image, got 1"),
                ({"copies": 0}, "copies must be a whole number >= 1, got 0"),
            ),
        )
    ],
    MACER: [
        Example(
            {"lam": 3.0, "gamma": 4.0, "beta": 8.0, "copies": 4, "start_epoch": 1},
            (
                *WEIGHTS,
                ({"gamma": 0.0}, "gamma must be finite and > 0, got 0.0"),
                ({"beta": -1.0}, "beta must be finite and > 0, got -1.0"),
                ({"start_epoch": -1}, "start_epoch must be a whole number >= 0, got -1"),
            ),
        )
    ],
    SmoothAdv: [
        Example(
            {"eps": 0.5, "steps": 2, "copies": 2, "warmup": 2},
            (
                *WEIGHTS,
                *DROPPING,
                ({"eps": 127.0}, r"eps must lie in \(0, 8\], the l2 diameter of the images, in pixel units .* got 127"),
                ({"eps": 0.0}, "eps must lie in"),
                ({"eps": float("nan")}, "eps must lie in .* got nan"),
                ({"steps": -1}, "steps must be a whole number >= 0, got -1"),
                ({"attack": "fgsm"}, "attack must be one of 'pgd', 'ddn', 'score', got 'fgsm'"),
                ({"lam": 1.0, "copies": 1}, "copies must be >= 2 for lam > 0"),
                ({"attack": "score", "copies": 1}, "copies must be >= 2 for lam > 0 and for attack 'score', got 1"),
                ({"attack": "score", "noise": UniformNoise(0.5)}, "GaussianNoise and NormPowerNoise only, got Uniform"),
                ({"attack": "ddn", "noise": LaplaceNoise(0.5)}, "'ddn' .* needs a noise with an l2 certificate"),
            ),
            attacks=True,
        ),
        Example({"eps": 0.5, "steps": 2, "copies": 2, "lam": 1.0, "eta": 0.25}, attacks=True),
        Example({"steps": 3, "copies": 2, "attack": "ddn"}, attacks=True, gaussian_only=True),
        Example({"steps": 2, "copies": 2, "attack": "score"}, attacks=True, gaussian_only=True),
    ],
    SmoothMix: [
        Example(
            {"eta": 2.0, "steps": 2, "step_size": 0.5, "copies": 2, "warmup": 0},
            (
                *DROPPING,
                ({"eta": -1.0}, "eta must be >= 0, got -1.0"),
                ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
                ({"step_size": 255.0}, "step_size must lie in .* got 255"),
            ),
            attacks=True,
        ),
        Example({"steps": 2, "copies": 2, "one_step": True}, attacks=True),
    ],
    CATRS: [
        Example(
            {"lam": 2.0, "copies": 3, "eps": 0.5, "steps": 2, "reference_samples": 5},
            (
                *WEIGHTS,
                ({"copies": 1}, "copies must be >= 2"),
                ({"noise": LaplaceNoise(0.3)}, "noise must be GaussianNoise or UniformNoise for CATRS.* got Laplace"),
            ),
            attacks=True,
            gaussian_only=True,
        )
    ],
}
ALL = [
    pytest.param(cls, example, id=f"{cls.__name__}-{i}")
    for cls, rows in EXAMPLES.items()
    for i, example in enumerate(rows)
]
BAD = [
    pytest.param(cls, {**example.arguments, **arguments}, message, id=f"{cls.__name__}-{arguments}")
    for cls, examples in EXAMPLES.items()
    for example in examples
    for arguments, message in example.bad
]
LAWS: list[Noise] = [
    UniformNoise(0.4),
    LaplaceNoise(0.2),
    NormPowerNoise(0.25, k=3.0, dim=64),
    MixedNormNoise(0.25, k_inf=3.0, dim=64),
    SplittingNoise(0.6),
    DeterministicSplittingNoise(0.6, shape=(1, 8, 8), q=16),
]
every = pytest.mark.parametrize(("cls", "example"), ALL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of an untrained network, for the objective that needs one."""
    model = build(NoiseAugmentation, {}, "")
    path = tmp_path_factory.mktemp("reference") / "reference.ckpt"
    torch.save({"state_dict": model.state_dict()}, path)
    return str(path)


def build(cls: type[BaseClassifier], arguments: dict[str, Any], reference: str, **kwargs: Any) -> Any:
    """Return a seeded classifier of digits with BatchNorm."""
    torch.manual_seed(0)
    needed = {"reference": reference} if cls is CATRS else {}
    usual = {"network": "digits_cnn", "noise": GaussianNoise(0.25), "grid": 16, "mean": (0.3,), "std": (0.4,)}
    return cls(**{**usual, **needed, **arguments, **kwargs})


def fit(model: Any, folder: Path, epochs: int = 2, ckpt_path: Path | None = None, **kwargs: Any) -> pl.Trainer:
    pl.seed_everything(3)
    keep = ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{epoch}")
    quiet = {"max_epochs": epochs, "limit_train_batches": 2, "limit_val_batches": 1, "enable_checkpointing": True}
    run = trainer(folder, callbacks=[keep], **{**quiet, **kwargs})
    run.fit(model, datamodule=Digits(batch_size=32), ckpt_path=ckpt_path)
    return run


def objectives() -> set[type[BaseClassifier]]:
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    found, queue = set(), [BaseClassifier]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if not inspect.isabstract(cls) and cls.__module__.startswith("lightning_rs."):
            found.add(cls)
    return found


def test_no_objective_is_missing_from_the_table() -> None:
    assert objectives() == set(EXAMPLES) | WITHOUT_NOISY_COPIES


@pytest.mark.parametrize(("cls", "arguments", "message"), BAD)
def test_bad_arguments_are_refused(cls: type[BaseClassifier], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(cls, arguments, "reference.ckpt")


@every
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_saved_rebuilt_and_resumed_bit_equal(
    cls: type[BaseClassifier], example: Example, reference: str, tmp_path: Path
) -> None:
    fresh = build(cls, example.arguments, reference)
    before = weights(fresh)
    fit(fresh, tmp_path)
    path = tmp_path / "epoch=0.ckpt"

    rebuilt = cls.load_from_checkpoint(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert same(weights(rebuilt), weights(fresh))
    assert rebuilt.objective == fresh.objective
    assert {name: rebuilt.objective[name] for name in example.arguments} == example.arguments
    assert rebuilt.objective["class"] == f"{cls.__module__}.{cls.__name__}"

    resumed = build(cls, example.arguments, reference)
    fit(resumed, tmp_path, ckpt_path=path)
    assert same(weights(resumed), weights(fresh))
    halfway = torch.load(path, weights_only=True)["state_dict"]
    assert not same({n: halfway[n] for n in before}, weights(fresh))
    assert not same(before, weights(fresh))


@every
def test_every_weight_gets_a_finite_gradient(
    cls: type[BaseClassifier], example: Example, reference: str, tmp_path: Path
) -> None:
    model = build(cls, example.arguments, reference, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    seen: list[dict[str, Any]] = []
    model.on_after_backward = lambda: seen.append({n: p.grad.clone() for n, p in model.network.named_parameters()})
    fit(model, tmp_path, epochs=1)
    assert len(seen) == 2
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in seen[0].values())
    assert all(p.requires_grad for p in model.network.parameters())
    assert not same(seen[0], seen[1])


@every
def test_noise_is_fresh_for_each_step_copy_and_rank(
    cls: type[BaseClassifier], example: Example, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = build(cls, example.arguments, reference), torch.rand(4, 1, 8, 8)
    copies = getattr(model, "copies", 1)
    drawn = {}
    for rank in (0, 1):
        monkeypatch.setattr(BaseClassifier, "global_rank", PropertyMock(return_value=rank))
        for epoch in (0, 1):
            monkeypatch.setattr(BaseClassifier, "current_epoch", PropertyMock(return_value=epoch))
            for step in (0, 1):
                many = (
                    model.draw(images, step) if isinstance(model, NoisyCopies) else model.variates(images, step)[None]
                )
                assert torch.equal(many[0], model.variates(images, step))
                drawn |= {(rank, epoch, step, copy): many[copy] for copy in range(copies)}
    rows = torch.cat(list(drawn.values()))
    assert len(rows) == 8 * copies * 4
    assert len(torch.unique(rows, dim=0)) == len(rows)


@every
def test_the_cost_is_what_the_docstring_table_says(
    cls: type[BaseClassifier], example: Example, reference: str, tmp_path: Path
) -> None:
    model = build(cls, example.arguments, reference)
    fit(model, tmp_path, epochs=1, limit_train_batches=1, limit_val_batches=0)
    rows = {"forward": 0, "backward": 0}

    def forward(module: Any, inputs: Any, output: Any) -> None:
        rows["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))

    model.network.register_forward_hook(forward)
    model.network.train()
    batch: Any = (torch.rand(8, 1, 8, 8).mul(16).round() / 16, torch.arange(8))
    batch = {"index": torch.arange(8), "image": batch[0], "label": batch[1]} if cls is CATRS else batch
    model.log = lambda *args, **kwargs: None
    model.training_step(batch, 0).backward()
    assert (rows["forward"] / 8, rows["backward"] / 8) == model.passes


def test_the_reference_may_be_a_shipped_name_and_its_errors_name_it(tmp_path: Path) -> None:
    few = {"copies": 2, "steps": 1, "reference_samples": 1}
    model = build(CATRS, few, "digits_gaussian_0.25")
    assert model.cost == "6 forward and 6 backward passes an image, and 1 forward passes of the reference once"
    fit(model, tmp_path, epochs=1, limit_train_batches=1)
    assert list(tmp_path.glob("reference-votes-*.pt"))
    with pytest.raises(FileNotFoundError, match=r"^reference must be a checkpoint file, got 'no.ckpt'"):
        fit(build(CATRS, few, "no.ckpt"), tmp_path / "other", epochs=1)


def test_every_objective_names_its_cost() -> None:
    assert [cls.__name__ for cls in objectives() if "Cost" not in (cls.__doc__ or "")] == []


@pytest.mark.parametrize(("cls", "example"), [p for p in ALL if p.values[1].attacks])
def test_attacks_leave_batchnorm_weights_and_modes_alone(
    cls: type[BaseClassifier], example: Example, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(cls, example.arguments, reference)
    model.network.net.bn2.eval()  # a part that somebody froze stays so
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    variates = model.draw(images, 0)
    before = weights(model.network)
    if cls is CATRS:
        model._reference = torch.full((8, 10), 0.1)
        model._attacked(images, variates)
    elif cls is SmoothMix:
        model._path(images, labels, variates)
    else:
        model.adversarial(images, labels, variates)
    assert same(before, weights(model.network))
    assert model.network.training
    assert model.network.net.bn1.training
    assert not model.network.net.bn2.training
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())


@every
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_other_noises_train_too(
    cls: type[BaseClassifier], example: Example, law: Noise, reference: str, tmp_path: Path
) -> None:
    if example.gaussian_only:
        pytest.skip("refused with a reason, see the bad arguments")
    model = build(cls, example.arguments, reference, noise=law, network="mlp", network_args={"hidden_sizes": [8]})
    before = weights(model)
    fit(model, tmp_path, epochs=1, limit_train_batches=1)
    after = weights(model)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not same(before, after)


@every
@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_losses_are_float32_in_mixed_precision(
    cls: type[BaseClassifier], example: Example, precision: str, reference: str, tmp_path: Path
) -> None:
    model = build(cls, example.arguments, reference)
    kinds = []
    model.on_before_backward = lambda loss: kinds.append(loss.dtype)
    fit(model, tmp_path, epochs=1, precision=precision)
    assert kinds == [torch.float32] * 2
