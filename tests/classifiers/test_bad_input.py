"""What users get wrong about objectives and denoisers, by the command line: one line says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_rs.networks import DigitsCNN
from tests.driving import run

ONE_BATCH = (
    "--certifier=null",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
)
HERE = "tests.classifiers.test_bad_input"
BEFORE_IT = f"{{denoiser: {{class_path: {HERE}.%s}}, classifier: digits_cnn}}"
DENOISER = ("--model=DenoiserTraining", "--model.network=denoised")
DROPS_PIXELS = ("--model.noise=AblationNoise", "--model.noise.k=9", "--model.noise.shape=[1,8,8]")
GRADIENT = ["noise must be one whose gradient reaches the pixels", "it drops pixels"]
BAD = {
    "weight": (["--model=Consistency", "--model.lam=-1"], ["lam must be >= 0, got -1.0"]),
    "weight of macer": (["--model=MACER", "--model.lam=-1"], ["lam must be >= 0, got -1.0"]),
    "weight of smoothmix": (["--model=SmoothMix", "--model.eta=-1"], ["eta must be >= 0, got -1.0"]),
    "no number": (["--model=Consistency", "--model.lam=nan"], ["lam", "nan"]),
    "count": (["--model=MACER", "--model.copies=0"], ["copies must be a whole number >= 1, got 0"]),
    "part of a copy": (["--model=Consistency", "--model.copies=2.5"], ["model.copies", "expected int", "got 2.5"]),
    "one copy": (
        ["--model=Consistency", "--model.copies=1"],
        ["copies must be >= 2: Consistency compares copies", "got 1"],
    ),
    "one copy of smoothadv": (
        ["--model=SmoothAdv", "--model.copies=1", "--model.lam=1"],
        ["copies must be >= 2 for lam > 0", "got 1"],
    ),
    "one copy of catrs": (
        ["--model=CATRS", "--model.reference=digits_gaussian_0.25", "--model.copies=1"],
        ["copies must be >= 2", "got 1"],
    ),
    "no gradient": (["--model=SmoothAdv", *DROPS_PIXELS], GRADIENT),
    "no gradient for smoothmix": (["--model=SmoothMix", *DROPS_PIXELS], GRADIENT),
    "grey levels": (["--model=SmoothAdv", "--model.eps=127"], ["eps must lie in (0, 8]", "pixel units", "got 127"]),
    "grey levels of smoothmix": (["--model=SmoothMix", "--model.step_size=255"], ["step_size must lie in", "got 255"]),
    "grey levels of catrs": (
        ["--model=CATRS", "--model.reference=digits_gaussian_0.25", "--model.eps=200"],
        ["eps must lie in (0, 8]", "got 200"],
    ),
    "no reference": (["--model=CATRS"], ["required: reference"]),
    "another shape": (
        [*DENOISER, "--model.network_args", BEFORE_IT % "Halving"],
        ["the denoiser must keep the shape (1, 1, 8, 8), got (1, 1, 4, 4)"],
    ),
    "another range": (
        [*DENOISER, "--model.network_args", BEFORE_IT % "InGreyLevels", "--model.objective=classification"],
        ["the denoiser must return pixels in [0, 1] units as it gets them", "got values up to"],
    ),
    "no schedule": (
        [
            *DENOISER,
            "--model.network_args",
            f"{{denoiser: {{class_path: lightning_rs.networks.EpsilonDenoiser, init_args: {{net: {{class_path: "
            f"{HERE}.Epsilon}}}}}}, classifier: digits_cnn}}",
        ],
        ["alphas_cumprod must be the schedule that the diffusion model was trained with", "got None"],
    ),
    "no denoiser": (
        ["--model=DenoiserTraining"],
        ["network must be 'denoised' with a denoiser to train", "'digits_cnn'"],
    ),
}


class Halving(nn.Module):
    """Returns images of half the side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 2, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z)


class InGreyLevels(nn.Module):
    """Returns pixels in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return 255 * z + self.conv(z)


class Epsilon(nn.Module):
    """A diffusion model, as far as its arguments go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x)


class Breaking(DigitsCNN):
    """After the sixth batch of a training its logits are no numbers."""

    batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        return super().forward(x) * (torch.nan if self.batches > 6 else 1.0)


@pytest.mark.parametrize("case", BAD)
def test_one_line_says_what_would_be_right(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, said = BAD[case]
    assert run("fit", *words, *ONE_BATCH) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in said), lines[0]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("fit", f"--model.network={HERE}.Breaking", *ONE_BATCH) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert "loss must be finite, got nan at batch 2 of epoch 1" in lines[0]
    kept = list(tmp_path.rglob("*.ckpt"))
    assert kept
    for path in kept:  # of epoch 0: trained, finite, and it loads
        state = torch.load(path, weights_only=True)
        assert state["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in state["state_dict"].values() if value.is_floating_point())
