"""Networks of your own: by class path, with arguments, and errors that name what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_rs.networks import Normalize, build_network, load_checkpoint
from lightning_rs.networks.parts import self_contained
from tests.networks.own import Normalising, OwnNet, Wrapped

OWN = "tests.networks.own"
DIGIT = (1, 8, 8)


def test_a_class_path_builds_the_network_behind_its_normalisation() -> None:
    network = build_network(f"{OWN}.OwnNet", 7, DIGIT, mean=0.5, std=0.25, width=3)
    net = network.get_submodule("net")
    assert isinstance(net, OwnNet)
    assert net.width == 3
    assert net.head.out_features == 7
    assert isinstance(network.get_submodule("normalize"), Normalize)
    raw = build_network(f"{OWN}.OwnNet", 7, DIGIT, mean=0.5, std=0.25, normalize=False)
    assert isinstance(raw.get_submodule("normalize"), nn.Identity)


def test_a_network_that_takes_mean_and_std_normalises_by_itself() -> None:
    network = build_network(f"{OWN}.Normalising", 3, DIGIT, mean=[0.5], std=[0.25])
    net = network.get_submodule("net")
    assert isinstance(net, Normalising)
    assert (net.mean, net.std) == ([0.5], [0.25])
    assert isinstance(network.get_submodule("normalize"), nn.Identity)


def test_a_factory_that_says_what_it_returns_will_do() -> None:
    assert isinstance(build_network(f"{OWN}.make_own", 3, DIGIT).get_submodule("net"), OwnNet)


def test_arguments_may_be_modules(tmp_path: Path) -> None:
    inner = build_network("digits_cnn", 10, DIGIT, mean=0.3, std=0.4)
    torch.save(inner.state_dict(), tmp_path / "inner.pth")
    spec = {"network": "digits_cnn", "weights": str(tmp_path / "inner.pth"), "mean": 0.3, "std": 0.4}
    network = build_network(f"{OWN}.Wrapped", 10, DIGIT, inner=spec)
    net = network.get_submodule("net")
    assert isinstance(net, Wrapped)
    x = torch.rand(2, *DIGIT)
    assert torch.equal(net.inner.eval()(x), inner.eval()(x))
    kept = self_contained({"inner": spec})
    assert kept == {"inner": {"network": "digits_cnn", "mean": 0.3, "std": 0.4}}
    rebuilt = build_network(f"{OWN}.Wrapped", 10, DIGIT, **kept)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("nomodule.MyNet", {}, "network 'nomodule.MyNet': there is no module 'nomodule' in /"),
        (f"{OWN}.OwnNets", {}, f"network '{OWN}.OwnNets': module '{OWN}' has no 'OwnNets'; near: OwnNet"),
        ("os.system", {"command": "true"}, "network 'os.system' must name a subclass of torch.nn.Module"),
        (f"{OWN}.says_nothing", {}, "a function annotated to return one.*got a function"),
        (f"{OWN}.Tensor", {}, "must name a subclass of torch.nn.Module .*got a class"),
        (f"{OWN}.OwnNet", {"depth": 3}, "has no argument 'depth'; it takes: num_classes, width"),
        (f"{OWN}.OwnNet", {"width": "wide"}, f"network {OWN}.OwnNet refused its arguments"),
        (f"{OWN}.Wrapped", {}, f"network {OWN}.Wrapped needs the argument 'inner'"),
        (f"{OWN}.NoLogits", {}, r"must return logits of shape \(1, 10\), got \(1, 1, 8, 8\)"),
        ("torch.nn.Conv3d", {"in_channels": 1, "out_channels": 1, "kernel_size": 3}, "cannot take inputs of shape"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(name: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_network(name, 10, DIGIT, **kwargs)
    assert "\n" not in str(error.value)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "needs_other_net.py").write_text("import no_such_library\n")
    (tmp_path / "broken_net.py").write_text("raise RuntimeError('half done')\n")
    with pytest.raises(ValueError, match="module 'needs_other_net' needs 'no_such_library'"):
        build_network("needs_other_net.Net", 10, DIGIT)
    with pytest.raises(ValueError, match="module 'broken_net' cannot be imported: half done"):
        build_network("broken_net.Net", 10, DIGIT)


def test_checkpoints_hold_plain_values_only() -> None:
    with pytest.raises(ValueError, match=r"network_args must hold plain values .*got Linear"):
        self_contained({"head": nn.Linear(2, 2)})


def test_weights_of_an_own_network_load(tmp_path: Path) -> None:
    trained = OwnNet(10, width=6).eval()
    torch.save({"net": {f"module.{k}": v for k, v in trained.state_dict().items()}, "epoch": 3}, tmp_path / "x.pth")
    arguments = {"network_args": {"width": 6}, "num_classes": 10, "shape": DIGIT}
    network, info = load_checkpoint(tmp_path / "x.pth", f"{OWN}.OwnNet", normalize=False, **arguments)
    x = torch.rand(2, *DIGIT)
    assert torch.equal(network(x), trained(x))
    assert (info["name"], info["epoch"]) == (f"{OWN}.OwnNet", 3)
    normalised, _ = load_checkpoint(tmp_path / "x.pth", f"{OWN}.OwnNet", mean=0.5, std=0.5, **arguments)
    torch.testing.assert_close(normalised(x), trained((x - 0.5) / 0.5))
    for missing, message in (("num_classes", "pass num_classes, which"), ("shape", "pass shape, which")):
        fewer = {key: value for key, value in arguments.items() if key != missing}
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "x.pth", f"{OWN}.OwnNet", normalize=False, **fewer)
    with pytest.raises(ValueError, match="or normalize=False for a network that takes pixels as they are"):
        load_checkpoint(tmp_path / "x.pth", f"{OWN}.OwnNet", **arguments)
