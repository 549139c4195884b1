"""Files of weights as others write them: MACER, timm, a state dict alone, safetensors; no code is run from them."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_rs.networks import build_network, load_checkpoint
from lightning_rs.networks.checkpoints import adopt_weights
from lightning_rs.networks.files import read_file
from lightning_rs.networks.normalize import Normalize

GRAY = (1, 28, 28)
LENET = {"network": "mnist_lenet", "normalize": False}


@pytest.fixture(scope="module")
def lenet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("mnist_lenet", 10, GRAY).eval().get_submodule("net")


def forms(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    parallel = {f"module.{key}": value for key, value in state.items()}
    compiled = {f"_orig_mod.{key}": value for key, value in parallel.items()}
    return {
        "MACER": {"net": parallel, "epoch": 440, "optimizer": {}},
        "a state dict": state,
        "an ordered state dict of DataParallel": OrderedDict(parallel),
        "compiled": {"model": compiled},
        "timm": {"epoch": 3, "state_dict": state, "args": argparse.Namespace(model="x", lr=0.1), "version": 2},
        "averaged": {"state_dict_ema": state},
    }


@pytest.mark.parametrize("form", forms({}))
def test_every_form_loads_to_the_same_network(form: str, lenet: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(forms(lenet.state_dict())[form], tmp_path / "x.pth")
    network, info = load_checkpoint(tmp_path / "x.pth", **LENET)
    x = torch.rand(2, *GRAY)
    assert torch.equal(network(x), lenet(x))
    assert (info["num_classes"], info["shape"]) == (10, GRAY)


def test_safetensors_load(lenet: torch.nn.Module, tmp_path: Path) -> None:
    save_file(lenet.state_dict(), tmp_path / "x.safetensors")
    network, _ = load_checkpoint(tmp_path / "x.safetensors", **LENET)
    x = torch.rand(2, *GRAY)
    assert torch.equal(network(x), lenet(x))
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged or no safetensors file") as error:
        load_checkpoint(tmp_path / "cut.safetensors", **LENET)
    assert "\n" not in str(error.value)


def test_a_timm_file_names_its_model(tmp_path: Path) -> None:
    net = build_network("timm/test_resnet", 4, (3, 32, 32)).eval().get_submodule("net")
    torch.save({"arch": "test_resnet", "state_dict": net.state_dict(), "epoch": 9}, tmp_path / "last.pth.tar")
    constants = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    network, info = load_checkpoint(tmp_path / "last.pth.tar", num_classes=4, shape=(3, 32, 32), **constants)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(x), net((x - 0.5) / 0.2))
    assert info["epoch"] == 9


def test_an_architecture_that_nobody_names_is_asked_for(tmp_path: Path, lenet: torch.nn.Module) -> None:
    torch.save({"net": lenet.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth does not say its architecture: pass network .*lenet.* num_classes"):
        load_checkpoint(tmp_path / "x.pth")
    torch.save({"weight": torch.zeros(3, 2)}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match=r"pass network: one of cifar_resnet20, .* or the class path of your own"):
        load_checkpoint(tmp_path / "y.pth")


def test_what_would_run_code_is_named_and_no_unsafe_way_is_shown(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "path": Path("x")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth cannot be read with weights_only=True .it holds objects of") as error:
        read_file(tmp_path / "x.pth")
    for advice in ("weights_only=False", "trust", "add_safe_globals"):
        assert advice not in str(error.value)


def test_a_normalisation_in_the_file_takes_the_place_of_the_datas(tmp_path: Path) -> None:
    theirs = build_network("digits_cnn", 10, (1, 8, 8), mean=0.1, std=0.2).eval()
    layers = torch.nn.Sequential(theirs.get_submodule("normalize"), theirs.get_submodule("net"))
    torch.save({"state_dict": layers.state_dict()}, tmp_path / "x.pth")
    mine = build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.4).eval()
    assert "which hold their normalisation: Normalize(mean=[0.1" in adopt_weights(tmp_path / "x.pth", mine)
    assert isinstance(mine.get_submodule("normalize"), Normalize)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(mine(x), theirs(x))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "module.model.", "backbone."]
)
def test_what_others_put_before_every_name_is_taken_off(prefix: str, tmp_path: Path, lenet: torch.nn.Module) -> None:
    """Before: ``model.`` of other people's LightningModules was "Unexpected key(s)"."""
    torch.save({"ema": {prefix + key: value.half() for key, value in lenet.state_dict().items()}}, tmp_path / "x.pth")
    mine = build_network("mnist_lenet", 10, (1, 28, 28)).eval()
    adopt_weights(tmp_path / "x.pth", mine)
    for key, value in mine.get_submodule("net").state_dict().items():
        assert torch.equal(value, lenet.state_dict()[key].half().float())


def test_weights_of_a_quantised_network_are_refused(tmp_path: Path, lenet: torch.nn.Module) -> None:
    """Before: whole numbers were taken for weights, without their scale."""
    torch.save({key: (100 * value).to(torch.int8) for key, value in lenet.state_dict().items()}, tmp_path / "x.pth")
    mine = build_network("mnist_lenet", 10, (1, 28, 28)).eval()
    with pytest.raises(ValueError, match=r"must be of a floating-point type, got torch\.int8"):
        adopt_weights(tmp_path / "x.pth", mine)


def test_which_of_several_state_dicts_is_asked_for(tmp_path: Path, lenet: torch.nn.Module) -> None:
    state = lenet.state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"must hold a state dict, alone or under .*; got student, teacher"):
        read_file(tmp_path / "x.pth")


def test_suffixes_in_capitals_and_files_without_weights(tmp_path: Path, lenet: torch.nn.Module) -> None:
    save_file(lenet.state_dict(), tmp_path / "X.SAFETENSORS")
    assert read_file(tmp_path / "X.SAFETENSORS")[0].keys() == lenet.state_dict().keys()
    for content, said in ((b"", "it is empty or cut short"), (b"hello", "it is no file of weights")):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_file(tmp_path / "x.pth")
