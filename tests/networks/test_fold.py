"""Folding: the same function to rounding, nothing folded that must not be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from lightning_rs.engine.compile.fold import fold_batchnorm
from lightning_rs.networks import Normalize, build_network
from lightning_rs.networks.normalize import Center

PADDED = "the mean is still subtracted"


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and affine maps that a fold can get wrong."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def assert_same(network: nn.Module, folded: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, got = network(x), folded(x)
    assert not folded.training
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


# name, shape, BatchNorm layers left, what is left of the normalisation
CASES = [
    ("cifar_resnet20", (3, 32, 32), 0, Center),
    ("cifar_resnet110", (3, 32, 32), 0, Center),
    ("wide_resnet40_2", (3, 32, 32), 18, Center),  # conv1 -> bn of the first block and the 18 inner ones fold
    ("mnist_lenet", (1, 28, 28), 0, nn.Identity),
    ("digits_cnn", (2, 8, 8), 0, nn.Identity),
    ("small_cnn", (3, 32, 32), 0, nn.Identity),
    ("pooled_cnn", (1, 28, 28), 0, nn.Identity),
    ("mlp", (2, 7, 7), 0, nn.Identity),
    ("mlp", (10,), 0, nn.Identity),
    ("low_resolution", (3, 32, 32), 0, Center),
    ("timm/test_resnet", (3, 32, 32), 0, Center),
    ("timm/test_efficientnet", (3, 32, 32), 0, Center),  # BatchNorm with an activation of its own
    ("torchvision/resnet18", (3, 32, 32), 0, Center),
]


@pytest.mark.parametrize(("name", "shape", "left", "normalize"), CASES)
def test_networks_fold_to_the_same_function(name, shape, left, normalize):
    mean, std = [0.1 * (c + 1) for c in range(shape[0])], [0.2 + 0.1 * c for c in range(shape[0])]
    network = randomise(build_network(name, 10, shape, mean=mean, std=std))
    before = copy.deepcopy(network.state_dict())
    folded, remark = fold_batchnorm(network)
    assert batchnorms(folded) == left
    assert type(folded.get_submodule("normalize")) is normalize
    assert (f"{left} BatchNorm layers left" in remark) == (left > 0)
    assert (PADDED in remark) == (normalize is Center)
    x = torch.rand(4, *shape)
    assert_same(network, folded, x)
    again, _ = fold_batchnorm(folded)
    assert_same(folded, again, x)
    after = network.state_dict()  # the original is untouched
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_network_in_training_mode_is_folded_as_it_evaluates():
    network = randomise(build_network("digits_cnn", 10, (1, 8, 8), mean=0.3, std=0.4)).train()
    folded, remark = fold_batchnorm(network)
    assert remark == ""
    assert network.training
    assert_same(copy.deepcopy(network).eval(), folded, torch.rand(4, 1, 8, 8))


def test_half_precision_folds_in_double():
    network = randomise(build_network("digits_cnn", 10, (1, 8, 8))).bfloat16()
    folded, _ = fold_batchnorm(network)
    conv, norm = network.get_submodule("net.conv1"), network.get_submodule("net.bn1")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = conv.weight.double() * scale.view(-1, 1, 1, 1)
    assert torch.equal(folded.get_submodule("net.conv1").weight, exact.bfloat16())


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_only_zero_padding_keeps_the_mean(padding_mode):
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding_mode)
    network = nn.Sequential(Normalize([0.3, 0.5], [0.2, 0.4]), conv).eval()
    folded, remark = fold_batchnorm(network)
    assert type(folded[0]) is (Center if padding_mode == "zeros" else nn.Identity)
    assert (PADDED in remark) == (padding_mode == "zeros")
    assert_same(network, folded, torch.rand(3, 2, 6, 6))


@pytest.mark.parametrize("padding", ["same", "valid", 0, (0, 1)])
def test_padding_in_every_notation(padding):
    network = nn.Sequential(Normalize([0.3, 0.5], [0.2, 0.4]), nn.Conv2d(2, 4, 3, padding=padding)).eval()
    folded, _ = fold_batchnorm(network)
    assert type(folded[0]) is (nn.Identity if padding in ("valid", 0) else Center)
    assert_same(network, folded, torch.rand(3, 2, 6, 6))


def test_zero_mean_folds_through_padding():
    network = nn.Sequential(Normalize(0.0, [0.2, 0.4], num_channels=2), nn.Conv2d(2, 4, 3, padding=1)).eval()
    folded, remark = fold_batchnorm(network)
    assert type(folded[0]) is nn.Identity
    assert remark == ""
    assert_same(network, folded, torch.rand(3, 2, 6, 6))


def test_one_constant_for_all_channels():
    for layer in (nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(108, 5))):
        network = nn.Sequential(Normalize(0.4, 0.3), layer).eval()
        folded, _ = fold_batchnorm(network)
        assert type(folded[0]) is nn.Identity
        assert_same(network, folded, torch.rand(3, 3, 6, 6))


class SharedConv(nn.Module):
    """One convolution before two BatchNorm layers, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(self.bn1(self.conv(x))))


class TwoReaders(nn.Module):
    """The convolution's output is used beside BatchNorm as well; so is the standardised image."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize([0.3, 0.5], [0.2, 0.4])
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x)
        y = self.conv(x)
        return self.bn(y) + y + x


class ReadsWeights(nn.Module):
    """The convolution's weights are used beside its call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv.weight.sum()


class ControlFlow(nn.Module):
    """Not traceable: what it computes depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.mean() > 0 else x


class OwnConv(nn.Conv2d):
    """A convolution that is not quite one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def _hooked() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    network[0].register_forward_hook(lambda module, inputs, output: output.square())
    return network


def _parametrised() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2))


LEFT_INTACT = [
    (SharedConv, 2),
    (TwoReaders, 1),
    (ReadsWeights, 1),
    (ControlFlow, 1),
    (_hooked, 1),
    (_parametrised, 1),
    (lambda: nn.Sequential(OwnConv(2, 2, 1), nn.BatchNorm2d(2)), 1),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)), 1),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), 1),
    (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)), 1),
    (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 1), nn.BatchNorm2d(2)), 1),
]


@pytest.mark.parametrize(("make", "left"), LEFT_INTACT)
def test_what_cannot_be_folded_is_left_intact(make, left):
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
    network.eval()
    folded, remark = fold_batchnorm(network)
    assert remark
    assert batchnorms(folded) == left
    x = torch.rand(4, 2, 5, 5)
    with torch.no_grad():
        assert torch.equal(network(x), folded(x))
    assert all(torch.equal(v, folded.state_dict()[k]) for k, v in network.state_dict().items())


def test_untraceable_models_say_why():
    folded, remark = fold_batchnorm(ControlFlow())
    assert remark.startswith("not folded, since torch.fx cannot trace it: TraceError")
    assert isinstance(folded, ControlFlow)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ReLU(), nn.Conv2d(2, 3, 1)],
        [nn.AvgPool2d(2, padding=1), nn.Conv2d(2, 3, 1)],
        [nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(2, 3, 1)],
        [nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(2, 3, 1)],
        [nn.Linear(5, 3)],  # acts on columns, not on channels
        [nn.Flatten(2), nn.Linear(25, 3)],
        [nn.Conv2d(2, 4, 1, groups=2)],
    ],
)
def test_normalisation_stays_where_the_next_layer_does_not_commute(layers):
    network = nn.Sequential(Normalize([0.3, 0.5], [0.2, 0.4]), *layers).eval()
    folded, remark = fold_batchnorm(network)
    assert isinstance(folded[0], Normalize)
    assert remark.startswith("Normalize left")
    x = torch.rand(3, 2, 5, 5)
    assert torch.equal(network(x), folded(x))


def test_a_linear_layer_over_columns_is_not_one_over_channels():
    network = nn.Sequential(Normalize([0.3, 0.5], [0.2, 0.4]), nn.Linear(2, 3)).eval()
    folded, _ = fold_batchnorm(network)
    x = torch.rand(4, 2, 5, 2)  # as many columns as channels
    assert torch.equal(network(x), folded(x))


def test_a_module_under_two_names_folds_under_both():
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
            self.same_conv, self.same_bn = self.conv, self.bn

        def forward(self, x: Tensor) -> Tensor:
            return self.same_bn(self.same_conv(x))

    network = randomise(Alias())
    folded, remark = fold_batchnorm(network)
    assert remark == ""
    assert batchnorms(folded) == 0
    assert_same(network, folded, torch.rand(2, 2, 4, 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_one_and_three_dimensions_with_and_without_parameters(bias, affine):
    for conv, norm, shape in (
        (nn.Conv1d(2, 3, 2, bias=bias), nn.BatchNorm1d(3, affine=affine), (2, 7)),
        (nn.Conv3d(2, 4, 2, bias=bias, groups=2), nn.BatchNorm3d(4, affine=affine), (2, 3, 4, 5)),
    ):
        network = randomise(nn.Sequential(conv, norm))
        folded, remark = fold_batchnorm(network)
        assert remark == ""
        assert batchnorms(folded) == 0
        assert_same(network, folded, torch.rand(3, *shape))
