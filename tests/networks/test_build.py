"""Networks by name: shapes, published sizes, normalisation inside, refusals that say what would be right."""

from __future__ import annotations

import io
import urllib.error

import pytest
import torch
from torch import nn

from lightning_rs.networks import Normalize, available_networks, build_network

RGB, GRAY, DIGIT = (3, 32, 32), (1, 28, 28), (1, 8, 8)
# name, shape, arguments; the published parameter count at ten classes, or None
CASES = [
    ("cifar_resnet20", RGB, {}, 272_474),
    ("cifar_resnet56", RGB, {}, 855_770),
    ("cifar_resnet110", RGB, {}, 1_730_714),
    ("cifar_resnet20", (1, 20, 12), {}, None),
    ("wide_resnet40_2", RGB, {"dropout": 0.3}, 2_243_546),
    ("mnist_lenet", GRAY, {}, 431_080),
    ("digits_cnn", DIGIT, {}, 9_978),
    ("small_cnn", GRAY, {}, 16 * 25 + 32 + 16 * 32 * 9 + 64 + 32 * 25 * 128 + 128 + 1290),
    ("small_cnn", RGB, {"channels": [32, 64, 128], "hidden": 64}, None),
    ("small_cnn", (1, 9, 10), {}, None),
    ("pooled_cnn", GRAY, {}, 32 * 25 + 64 + 32 * 64 * 9 + 128 + 64 * 64 * 9 + 128 + 64 * 16 * 256 + 256 + 2570),
    ("pooled_cnn", (1, 16, 17), {}, None),
    ("pooled_cnn", (3, 8, 9), {"channels": [[4, 8]], "hidden": 16}, None),
    ("mlp", (1, 7, 7), {}, None),
    ("mlp", (2,), {"hidden_sizes": [16]}, 2 * 16 + 16 + 16 * 10 + 10),
    ("mlp", (10,), {"hidden_sizes": []}, 110),
    ("low_resolution", RGB, {"base": "cifar_resnet20", "pool": 2}, 272_474),
    ("null_coded", GRAY, {}, 16 * 50 + 32 + 16 * 32 * 9 + 64 + 32 * 25 * 128 + 128 + 1290),
    ("null_coded", RGB, {"base": "mlp", "hidden_sizes": []}, 10 * (2 * 3072 + 1)),
    ("timm/test_resnet", RGB, {}, None),
    ("test_resnet", GRAY, {}, None),
    ("torchvision/resnet18", RGB, {}, None),
]


@pytest.mark.parametrize(("name", "shape", "kwargs", "count"), CASES)
def test_shapes_counts_and_deterministic_evaluation(name, shape, kwargs, count):
    network = build_network(name, 10, shape, mean=0.5, std=0.25, **kwargs)
    assert network.training
    assert all(module.training for module in network.modules())
    if count is not None:
        assert sum(p.numel() for p in network.parameters()) == count
    x = torch.rand(3, *shape)
    network.eval()
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (3, 10)
        assert torch.equal(logits, network(x))


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [("cifar_resnet20", RGB, 0.27), ("cifar_resnet56", RGB, 0.85), ("wide_resnet40_2", RGB, 2.2)],
)
def test_sizes_round_to_the_papers(name, shape, millions):
    count = sum(p.numel() for p in build_network(name, 10, shape).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.01)


def test_same_seed_same_network():
    torch.manual_seed(3)
    first = build_network("wide_resnet40_2", 10, RGB).state_dict()
    torch.manual_seed(3)
    second = build_network("wide_resnet40_2", 10, RGB).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_convolutions_start_as_he_proposed():
    torch.manual_seed(0)
    net = build_network("cifar_resnet110", 10, RGB).get_submodule("net")
    weight = net.layer3[0].conv1.weight  # 32 -> 64 channels: fan-in and fan-out differ
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_gradients_reach_every_parameter():
    for name, shape in [
        ("cifar_resnet20", RGB),
        ("wide_resnet40_2", RGB),
        ("mnist_lenet", GRAY),
        ("digits_cnn", DIGIT),
    ]:
        network = build_network(name, 10, shape, mean=0.5, std=0.25)
        network(torch.rand(4, *shape)).logsumexp(1).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters()), name


def test_normalisation_comes_first_and_is_inside_the_checkpoint():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    network = build_network("cifar_resnet20", 10, RGB, mean=mean, std=std)
    state = network.state_dict()
    assert list(state)[:2] == ["normalize.mean", "normalize.std"]
    torch.testing.assert_close(state["normalize.mean"], torch.tensor(mean))
    x = torch.rand(2, *RGB)
    by_hand = (x.double() - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(network.get_submodule("normalize")(x), by_hand.float())
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    other = build_network("cifar_resnet20", 10, RGB, mean=0.0, std=1.0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other.eval()(x), network.eval()(x))


def test_no_constants_mean_raw_pixels():
    network = build_network("digits_cnn", 10, DIGIT).eval()
    assert isinstance(network.get_submodule("normalize"), nn.Identity)
    x = torch.rand(2, *DIGIT)
    assert torch.equal(network(x), network.get_submodule("net")(x))
    normalised = build_network("digits_cnn", 10, DIGIT, mean=0.3, std=0.2)
    with pytest.raises(RuntimeError, match="Missing key"):  # a checkpoint without them is not taken for one with
        normalised.load_state_dict(network.state_dict())


def test_normalise_vectors_feature_by_feature():
    layer = Normalize([0.0, 1.0], [1.0, 2.0])
    torch.testing.assert_close(layer(torch.tensor([[3.0, 5.0]])), torch.tensor([[3.0, 2.0]]))
    assert "std=[1.0, 2.0]" in repr(layer)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mean": 0.5}, "mean and std must be given together"),
        ({"mean": [0.5, 0.5], "std": 1.0}, "mean must hold 1 or 3 numbers"),
        ({"mean": 0.5, "std": 0.0}, "std must be finite and > 0"),
        ({"mean": float("inf"), "std": 1.0}, "mean must be finite"),
        ({"mean": float("nan"), "std": 1.0}, "mean must not be NaN"),
    ],
)
def test_constants_that_do_not_fit(constants, message):
    with pytest.raises(ValueError, match=message):
        build_network("cifar_resnet20", 10, RGB, **constants)


def test_normalize_lengths_must_agree():
    with pytest.raises(ValueError, match="same length, got 2 and 3"):
        Normalize([0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar_resnet21", "cifar_resnet20"),
        ("resnet18x", "timm/resnet18"),
        ("alexnet", "torchvision/alexnet"),
        ("timm/resnet1", "timm/resnet"),
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("zzzz", "ours are cifar_resnet20"),
        ("torchvision/", "ours are"),
        ("timm/", "ours are"),
    ],
)
def test_unknown_names_are_refused_with_near_matches(name, near):
    with pytest.raises(ValueError, match=f"^name must be a known network, got {name!r}.*{near}"):
        build_network(name, 10, RGB)


@pytest.mark.parametrize(
    ("name", "shape", "kwargs", "message"),
    [
        ("cifar_resnet20", (49,), {}, "network cifar_resnet20 takes images of shape"),
        ("timm/test_resnet", (49,), {}, "network timm/test_resnet takes images of shape"),
        ("mnist_lenet", (1, 8, 8), {}, "at least 16x16, got shape"),
        ("digits_cnn", (1, 4, 8), {}, "at least 5x5"),
        ("small_cnn", (1, 8, 9), {}, "at least 9x9"),
        ("small_cnn", GRAY, {"channels": []}, "channels must name at least one convolution, got none"),
        ("small_cnn", GRAY, {"channels": [4, 0]}, "channels must be a whole number >= 1, got 0"),
        ("pooled_cnn", (1, 15, 28), {}, "at least 16x16"),
        ("pooled_cnn", (1, 7, 8), {"channels": [[4, 8]]}, "at least 8x8"),
        ("pooled_cnn", GRAY, {"channels": []}, "channels must name at least one convolution in every block, got"),
        ("pooled_cnn", GRAY, {"channels": [[4], []]}, "channels must name at least one convolution in every block"),
        ("pooled_cnn", GRAY, {"channels": [[4, 0]]}, "channels must be a whole number >= 1, got 0"),
        ("pooled_cnn", GRAY, {"hidden": 0}, "hidden must be a whole number >= 1, got 0"),
        ("pooled_cnn", GRAY, {"channels": [32, 64]}, r"lists of widths, one a block, .* got \[32, 64\]"),
        ("pooled_cnn", GRAY, {"channels": None}, "channels must be lists of widths, one a block, .* got None"),
        ("pooled_cnn", GRAY, {"channels": ["32"]}, "channels must be a list of whole numbers >= 1, got '32'"),
        ("small_cnn", GRAY, {"channels": 32}, "channels must be a list of whole numbers >= 1, got 32"),
        ("small_cnn", GRAY, {"channels": [[32]]}, r"channels must be a whole number >= 1, got \[32\]"),
        ("small_cnn", GRAY, {"hidden": "x"}, "hidden must be a whole number >= 1, got 'x'"),
        ("mlp", (4,), {"hidden_sizes": 3}, "hidden_sizes must be a list of whole numbers >= 1, got 3"),
        ("torchvision/resnet18", GRAY, {}, "3 channels, got shape .1, 28, 28."),
        ("test_vit", (3, 30, 30), {}, r"network test_vit cannot take inputs of shape \(3, 30, 30\)"),
        ("torchvision/alexnet", (3, 8, 8), {}, "network torchvision/alexnet cannot take inputs of shape"),
        ("cifar_resnet20", RGB, {"depth": 56}, "has no argument 'depth'; it takes: none"),
        ("mlp", (4,), {"width": 5}, "has no argument 'width'; it takes: hidden_sizes"),
        ("mlp", (4,), {"hidden_sizes": [0]}, "hidden_sizes must be a whole number >= 1"),
        ("timm/test_resnet", RGB, {"bogus": 1}, "network timm/test_resnet refused its arguments"),
        ("cifar_resnet20", (3, 0, 32), {}, "shape must be a whole number >= 1, got 0"),
        ("low_resolution", (3, 33, 32), {}, "pool must divide"),
        ("low_resolution", (4,), {}, "pool must divide"),
        ("low_resolution", RGB, {"pool": 0}, "pool must be a whole number >= 1"),
        ("low_resolution", RGB, {"base": "cifar_resnet19"}, "near: cifar_resnet"),
        ("low_resolution", RGB, {"base": "mlp", "width": 3}, "mlp has no argument 'width'"),
        ("null_coded", (4,), {}, "network null_coded takes images of shape"),
        ("null_coded", GRAY, {"base": "mnist_lenett"}, "near: mnist_lenet"),
        ("null_coded", GRAY, {"width": 3}, "small_cnn has no argument 'width'"),
    ],
)
def test_shapes_and_arguments_that_do_not_fit(name, shape, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 10, shape, **kwargs)


def test_number_of_classes_must_be_positive():
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 1, got 0"):
        build_network("digits_cnn", 0, DIGIT)


def test_available_networks_can_all_be_resolved():
    from lightning_rs.networks.build import _find_builder

    names = available_networks()
    assert names[:3] == ["cifar_resnet20", "cifar_resnet56", "cifar_resnet110"]
    assert len(names) > 1000
    assert available_networks("torchvision/resnet1?") == ["torchvision/resnet18"]
    for name in [*available_networks("*_*net*"), "timm/hf-hub:someone/model"]:
        _find_builder(name)


def test_pretrained_without_a_connection_is_one_message(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RuntimeError, match=r"no pretrained weights for torchvision/resnet18: .*no route"):
        build_network("torchvision/resnet18", 10, RGB, pretrained=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"no pretrained weights for timm/test_resnet: .*set pretrained to false"):
        build_network("timm/test_resnet", 10, RGB, pretrained=True)


def test_torchvision_weights_load_and_get_a_new_head(monkeypatch):
    from torchvision import models

    stored = models.resnet18(weights=None)
    with torch.no_grad():
        stored.conv1.weight.fill_(0.125)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: stored.state_dict())
    for num_classes in (1000, 10):
        net = build_network("torchvision/resnet18", num_classes, (3, 64, 64), pretrained=True).get_submodule("net")
        assert torch.equal(net.conv1.weight, stored.conv1.weight)
        assert torch.equal(net.fc.weight, stored.fc.weight) == (num_classes == 1000)


def test_torchvision_heads_that_are_not_linear_are_refused(monkeypatch):
    from torchvision import models

    stored = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: stored)
    with pytest.raises(
        ValueError, match="torchvision/squeezenet1_1 refused its arguments: its last layer is not linear"
    ):
        build_network("torchvision/squeezenet1_1", 10, (3, 64, 64), pretrained=True)


def test_auxiliary_heads_are_off():
    network = build_network("torchvision/googlenet", 10, (3, 64, 64))
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 10)  # in training mode, where they would answer too


def test_digits_cnn_learns_digits_in_seconds():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, test = order[360:], order[:360]
    network = build_network("digits_cnn", 10, DIGIT, mean=0.305, std=0.376)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40 * 23)
    for _ in range(40):
        for batch in train[torch.randperm(len(train))].split(64):
            noisy = images[batch] + 0.25 * torch.randn_like(images[batch])
            loss = nn.functional.cross_entropy(network(noisy), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        accuracy = (network.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
    assert accuracy >= 0.97
