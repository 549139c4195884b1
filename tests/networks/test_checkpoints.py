"""Cohen-format checkpoints in every prefix variant, and fingerprints."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from lightning_rs.networks import build_network, load_cohen_checkpoint, state_dict_sha256

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


class PlainNormalize(nn.Module):
    """Constants as plain tensors, outside the state dict: the trap of the published checkpoints."""

    def __init__(self, means, sds):
        super().__init__()
        self.means, self.sds = torch.tensor(means).view(1, -1, 1, 1), torch.tensor(sds).view(1, -1, 1, 1)

    def forward(self, x):
        return (x - self.means) / self.sds


class BufferNormalize(PlainNormalize):
    """The same with buffers."""

    def __init__(self, means, sds):
        nn.Module.__init__(self)
        self.register_buffer("means", torch.tensor(means).view(1, -1, 1, 1))
        self.register_buffer("sds", torch.tensor(sds).view(1, -1, 1, 1))


def trained(name, shape, num_classes=10, seed=0):
    """A network with weights and statistics as after some training, without normalisation."""
    torch.manual_seed(seed)
    net = build_network(name, num_classes, shape).get_submodule("net")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return net


def save(path, arch, state_dict, parameters, **extra):
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-4)
    content = {"epoch": 90, "arch": arch, "state_dict": state_dict, "optimizer": optimizer.state_dict(), **extra}
    torch.save(content, path)
    return path


def prefixed(net, prefix):
    return {prefix + key: value for key, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def resnet():
    return trained("cifar_resnet20", (3, 32, 32))


def reference(net, x):
    return nn.Sequential(PlainNormalize(*CIFAR10), net).eval()(x)


@pytest.mark.parametrize("prefix", ["1.", "1.module.", "module.1.", "module.1.module.", "", "module.", "net."])
def test_every_prefix_loads_to_the_same_network(tmp_path, resnet, prefix):
    path = save(tmp_path / "checkpoint.pth.tar", "cifar_resnet20", prefixed(resnet, prefix), resnet.parameters())
    network, info = load_cohen_checkpoint(path, dataset="cifar10")
    assert info == {
        "arch": "cifar_resnet20",
        "name": "cifar_resnet20",
        "epoch": 90,
        "num_classes": 10,
        "shape": (3, 32, 32),
    }
    assert not network.training
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(resnet, x))
    # Normalisation is inside from here on.
    assert list(network.state_dict())[:2] == ["normalize.mean", "normalize.std"]


def test_the_format_as_the_reference_code_writes_it(tmp_path, resnet):
    model = nn.Sequential(PlainNormalize(*CIFAR10), resnet)
    assert "0.means" not in model.state_dict()
    path = save(tmp_path / "plain.pth.tar", "cifar_resnet20", model.state_dict(), model.parameters())
    by_dataset, _ = load_cohen_checkpoint(path, dataset="cifar10")
    by_hand, _ = load_cohen_checkpoint(path, mean=CIFAR10[0], std=CIFAR10[1])
    assert state_dict_sha256(by_dataset) == state_dict_sha256(by_hand)
    with pytest.raises(
        ValueError, match=r"plain.pth.tar does not hold its normalisation: pass mean and std, or dataset"
    ):
        load_cohen_checkpoint(path)


@pytest.mark.parametrize("parallel", [False, True])
def test_constants_in_the_checkpoint_are_used(tmp_path, resnet, parallel):
    model = nn.Sequential(BufferNormalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), resnet)
    state = prefixed(model, "module." if parallel else "")
    path = save(tmp_path / "own.pth", "cifar_resnet20", state, model.parameters())
    network, _ = load_cohen_checkpoint(path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.eval()(x))
    load_cohen_checkpoint(path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))  # saying the same is fine
    with pytest.raises(ValueError, match="holds its own normalisation"):
        load_cohen_checkpoint(path, dataset="cifar10")


def test_our_own_networks_round_trip(tmp_path, resnet):
    network = build_network("cifar_resnet20", 10, (3, 32, 32), mean=[0.1, 0.2, 0.3], std=0.5)
    path = save(tmp_path / "ours.pth", "cifar_resnet20", network.state_dict(), network.parameters())
    loaded, _ = load_cohen_checkpoint(path)
    assert state_dict_sha256(loaded) == state_dict_sha256(network)


def test_mnist_checkpoints_have_no_normalisation(tmp_path):
    net = trained("mnist_lenet", (1, 28, 28))
    path = save(tmp_path / "lenet.pth", "lenet", nn.Sequential(nn.Identity(), net).state_dict(), net.parameters())
    network, info = load_cohen_checkpoint(path, dataset="mnist")
    assert info["name"] == "mnist_lenet"
    assert info["shape"] == (1, 28, 28)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(network(x), net(x))


def test_imagenet_resnet50_inside_data_parallel(tmp_path):
    from torchvision.models import resnet50

    net = resnet50(weights=None, num_classes=20)
    path = save(tmp_path / "resnet50.pth.tar", "resnet50", prefixed(net, "1.module."), [nn.Parameter(torch.zeros(1))])
    network, info = load_cohen_checkpoint(path, dataset="imagenet")
    assert (info["name"], info["num_classes"], info["shape"]) == ("torchvision/resnet50", 20, (3, 224, 224))
    assert torch.equal(network.get_submodule("net").fc.weight, net.fc.weight)


def test_resnet110_with_a_hundred_classes_and_no_batch_counters(tmp_path):
    net = trained("cifar_resnet110", (3, 32, 32), num_classes=100)
    state = {key: value for key, value in prefixed(net, "1.").items() if "num_batches_tracked" not in key}
    assert "1.layer3.0.downsample.0.weight" in state  # the key layout of the released files
    assert len(prefixed(net, "1.")) == 668  # 111 conv, 111 BatchNorm of 5 entries, 2 of the last layer
    path = save(tmp_path / "old.pth", "cifar100_resnet110", state, net.parameters())
    network, info = load_cohen_checkpoint(path, dataset="cifar100")
    assert (info["name"], info["num_classes"]) == ("cifar_resnet110", 100)
    x = torch.rand(1, 3, 32, 32)
    normalised = (x - torch.tensor([0.5071, 0.4867, 0.4408]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2675, 0.2565, 0.2761]
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), net.eval()(normalised))


def test_files_in_the_old_format_load(tmp_path, resnet):
    path = tmp_path / "legacy.pth.tar"
    content = {"epoch": 3, "arch": "cifar_resnet20", "state_dict": prefixed(resnet, "1."), "optimizer": {}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert load_cohen_checkpoint(str(path), dataset="cifar10")[1]["epoch"] == 3


def test_arch_may_be_given_where_the_file_is_silent(tmp_path, resnet):
    path = tmp_path / "silent.pth"
    torch.save({"state_dict": prefixed(resnet, "1.")}, path)
    with pytest.raises(
        ValueError, match=r"silent.pth does not say its architecture: pass network .*weights fit cifar_resnet20"
    ):
        load_cohen_checkpoint(path, dataset="cifar10")
    _, info = load_cohen_checkpoint(path, dataset="cifar10", arch="cifar_resnet20")
    assert info["arch"] == "cifar_resnet20"
    assert info["epoch"] is None


class Bomb:
    """Code that runs when unpickled without care."""

    def __reduce__(self):
        return (pytest.fail, ("code from a checkpoint was run",))


def test_files_that_are_no_checkpoint_are_refused_by_name(tmp_path, resnet):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent.pth"):
        load_cohen_checkpoint(tmp_path / "absent.pth")
    whole = save(tmp_path / "whole.pth", "cifar_resnet20", prefixed(resnet, "1."), resnet.parameters()).read_bytes()
    for name, content in {
        "cut.pth": whole[: len(whole) // 2],
        "text.pth": b"not a checkpoint",
        "empty.pth": b"",
        "bomb.pth": pickle.dumps({"state_dict": Bomb()}),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"checkpoint .*{name} cannot be read with weights_only=True"):
            load_cohen_checkpoint(path, dataset="cifar10")
    torch.save({"bomb": Bomb(), "state_dict": {}}, tmp_path / "zip_bomb.pth")
    with pytest.raises(ValueError, match=r"zip_bomb.pth cannot be read with weights_only=True"):
        load_cohen_checkpoint(tmp_path / "zip_bomb.pth", dataset="cifar10")
    for content, got in (({"net": {}, "epoch": 3}, "epoch.*net"), ([1, 2], "list"), ({}, "nothing")):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=f"other.pth must hold a state dict, alone or under one of.*got {got}"):
            load_cohen_checkpoint(tmp_path / "other.pth", dataset="cifar10")


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        ("cifar_resnet21", {}, "must be one of .*got 'cifar_resnet21' .near: cifar_resnet20"),
        ("cifar_resnet56", {}, "does not hold the weights of cifar_resnet56: Missing key"),
        ("lenet", {}, "does not hold the weights of lenet: no weights named 'fc2.weight'"),
        ("cifar_resnet20", {"1.extra": torch.zeros(1)}, "Unexpected key.*extra"),
        ("cifar_resnet20", {"1.layer1.0.conv1.weight": torch.zeros(3)}, "size mismatch for layer1.0.conv1.weight"),
        ("cifar_resnet20", {"2.weight": torch.zeros(1)}, "must hold Sequential.normalize, net., got '2.weight'"),
        ("cifar_resnet20", {"0.means": torch.zeros(3)}, "first layer must hold mean and std, got means"),
        ("cifar_resnet20", {"0.a": torch.zeros(3), "0.b": torch.ones(3)}, "must hold mean and std, got a, b"),
    ],
)
def test_wrong_contents_are_refused_by_name(tmp_path, resnet, arch, change, message):
    path = save(tmp_path / "wrong.pth", arch, prefixed(resnet, "1.") | change, resnet.parameters())
    with pytest.raises(ValueError, match=f"wrong.pth.*{message}"):
        load_cohen_checkpoint(path, dataset="cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "cifar11"}, "dataset must be one of cifar10, .*got 'cifar11'"),
        ({"mean": 0.5}, "mean and std must be given together"),
        ({"dataset": "cifar10", "mean": 0.5, "std": 1.0}, "give either dataset or mean and std"),
        ({"dataset": "cifar10", "arch": "cifar_resnet56"}, "arch must be 'cifar_resnet20'"),
    ],
)
def test_arguments_that_contradict(tmp_path, resnet, arguments, message):
    path = save(tmp_path / "good.pth", "cifar_resnet20", prefixed(resnet, "1."), resnet.parameters())
    with pytest.raises(ValueError, match=message):
        load_cohen_checkpoint(path, **arguments)


class Pair(nn.Module):
    """Two entries whose order of registration is up to the caller."""

    def __init__(self, *names, dtype=torch.float32, shape=(2, 3)):
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.full(shape, float(ord(name)), dtype=dtype))


def test_fingerprint_ignores_what_does_not_matter():
    assert state_dict_sha256(Pair("a", "b")) == state_dict_sha256(Pair("b", "a"))
    network = build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.4)
    before = state_dict_sha256(network)
    assert before == state_dict_sha256(network.eval().requires_grad_(False))
    assert before == state_dict_sha256(network.to(memory_format=torch.channels_last))
    assert len(before) == 64


def test_fingerprint_notices_every_change():
    with torch.no_grad():
        changed = Pair("a", "b")
        changed.a[0, 0] = torch.nextafter(changed.a[0, 0], torch.tensor(1e9))
    different = [
        Pair("a", "b"),
        changed,
        Pair("a", "c"),
        Pair("a"),
        Pair("a", "b", dtype=torch.bfloat16),
        Pair("a", "b", dtype=torch.float16),
        Pair("a", "b", shape=(3, 2)),
        Pair("a", "b", shape=(0, 2)),
        Pair("a", "b", shape=()),
    ]
    assert len({state_dict_sha256(module) for module in different}) == len(different)
    network = build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.4)
    other = build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.41)
    other.get_submodule("net").load_state_dict(network.get_submodule("net").state_dict())
    assert state_dict_sha256(network) != state_dict_sha256(other)  # normalisation is part of the classifier


def test_fingerprint_is_stable_between_versions():
    # A stored record names its classifier by this value: it must not change with the code.
    import hashlib

    header = "('a', 'torch.float32', (2, 3))"
    body = b"\x00\x00\xc2\x42" * 6  # 97.0 in little-endian float32
    expected = hashlib.sha256(f"{len(header)}:{header}".encode() + body).hexdigest()
    assert state_dict_sha256(Pair("a")) == expected


def test_fingerprint_refuses_what_it_cannot_hash():
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"x": 1}

    with pytest.raises(ValueError, match="must hold tensors only, got dict for '_extra_state'"):
        state_dict_sha256(Extra())
