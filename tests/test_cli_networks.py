"""Own networks and files of others by the command line: fit, certify from the checkpoint, errors of one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lightning_rs import classifiers
from lightning_rs.cli import main
from lightning_rs.networks import build_network
from lightning_rs.records import read_records
from tests.driving import run, trained

OWN_NET = """
import torch
from torch import nn

class MyNet(nn.Module):
    def __init__(self, num_classes, hidden=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x):
        return self.layers(x)
"""
FEW = ("--certifier.init_args.n=100", "--certifier.init_args.n0=20", "--data.init_args.max=5")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    return lines[0]


def test_an_own_network_is_trained_and_its_checkpoint_certifies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_own_net.py").write_text(OWN_NET)
    own = ("--model.network", "my_own_net.MyNet", "--model.network_args", "{hidden: 24}")
    assert run("fit", *own, "--trainer.max_epochs=6", "--trainer.callbacks=[]", "--certifier=null") == 0
    checkpoint = next(Path("runs/checkpoints").glob("*.ckpt"))
    assert run("certify", "--ckpt_path", checkpoint, *FEW, "--records=r.jsonl") == 0
    header, records = read_records(here / "r.jsonl")
    assert header.informative["model"]["network"] == "my_own_net.MyNet"
    assert header.informative["model"]["network_args"] == {"hidden": 24}
    assert sum(record.correct for record in records) >= 3
    capsys.readouterr()
    contents = torch.load(checkpoint, weights_only=True)
    contents["lightning_rs"]["init_args"]["network"] = "my_lost_net.MyNet"
    contents["hyper_parameters"]["network"] = "my_lost_net.MyNet"
    torch.save(contents, here / "lost.ckpt")
    assert run("certify", "--ckpt_path", here / "lost.ckpt", *FEW) == 2
    assert "there is no module 'my_lost_net'" in last_error(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.network=nosuchnet.MyNet"], "network 'nosuchnet.MyNet': there is no module 'nosuchnet' in"),
        (["--model.network=os.system"], "network 'os.system' must name a subclass of torch.nn.Module"),
        (["--model.network=tests.networks.own.OwnNet", "--model.network_args={depth: 3}"], "no argument 'depth'"),
    ],
)
def test_what_is_no_network_is_one_line(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *words) == 2
    assert said in last_error(capsys)


def foreign(folder: Path) -> Path:
    """Write the weights of the trained network as another code would: without normalisation and provenance."""
    state = torch.load(trained(), weights_only=True)["state_dict"]
    prefix = "network.net."
    weights = {f"module.{k.removeprefix(prefix)}": v for k, v in state.items() if k.startswith(prefix)}
    torch.save({"net": weights, "epoch": 3}, folder / "macer.pth")
    return folder / "macer.pth"


def test_weights_of_others_certify_when_told_their_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(here)
    network = ("--model.network=mlp", "--model.network_args={hidden_sizes: [32]}")
    with pytest.warns(UserWarning, match=r"weights of .*macer.pth, which hold no normalisation; at work: Normalize"):
        assert run("certify", "--ckpt_path", path, *network, *FEW, "--records=r.jsonl") == 0
    header, records = read_records(here / "r.jsonl")
    assert sum(record.correct for record in records) >= 4
    assert header.informative["checkpoint"]["path"] == str(path)
    capsys.readouterr()
    assert run("certify", "--ckpt_path", path, *FEW) == 2
    assert "does not name their architecture: pass --model.network NAME" in last_error(capsys)
    assert run("certify", "--ckpt_path", path, "--model.network=digits_cnn", *FEW) == 2
    assert "does not hold the weights of the configured network" in last_error(capsys)


def test_a_file_that_names_its_architecture_needs_no_more(here: Path) -> None:
    state = build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.4).state_dict()
    torch.save({"state_dict": state, "arch": "digits_cnn"}, here / "x.pth")
    with pytest.warns(UserWarning, match=r"weights and normalisation of .*x.pth"):
        assert run("test", "--ckpt_path", here / "x.pth") == 0


def test_files_that_would_run_code_are_refused_without_advice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "bomb": Path("x")}, here / "bomb.ckpt")
    assert run("certify", "--ckpt_path", here / "bomb.ckpt") == 2
    line = last_error(capsys)
    assert "it holds objects of pathlib" in line
    assert "weights_only=False" not in line
    assert "trust" not in line


@pytest.mark.parametrize("objective", sorted({*classifiers.__all__} - {"BaseClassifier", "NoisyCopies"}))
def test_every_objective_takes_the_network_from_the_command_line(
    objective: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", objective, "--model.network=mlp", "--model.noise.sigma=0.7", "--print_config")
    assert main(["fit", *words]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["init_args"]["network"] == "mlp"
    assert model["init_args"]["noise"]["init_args"]["sigma"] == 0.7


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start of training")
def test_a_denoiser_is_trained_and_certified_by_class_path(here: Path) -> None:
    dncnn = "{class_path: lightning_rs.networks.DnCNN, init_args: {depth: 3, width: 4}}"
    parts = f"{{denoiser: {dncnn}, classifier: digits_cnn}}"
    words = ("--model=DenoiserTraining", "--model.network=denoised", f"--model.network_args={parts}")
    assert run("fit", *words, "--trainer.max_epochs=1", "--trainer.callbacks=[]", "--certifier=null") == 0
    checkpoint = next(Path("runs/checkpoints").glob("*.ckpt"))
    assert run("certify", "--ckpt_path", checkpoint, *FEW, "--records=r.jsonl") == 0
    header, _ = read_records(here / "r.jsonl")
    assert header.informative["model"]["network_args"]["sigma"] == header.binding["noise"]["sigma"] == 0.25
    assert header.informative["model"]["network_args"]["denoiser"]["init_args"] == {"depth": 3, "width": 4}
