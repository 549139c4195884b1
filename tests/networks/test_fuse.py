"""Fused layers compute what the plain network computes, and touch neither its input nor its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rs.engine.compile.fold import fold_batchnorm
from lightning_rs.engine.compile.fuse import fuse_for_cpu
from lightning_rs.engine.compile.fused_layers import FusedConv2d, PairedConv2d, flatten_as_stored, max_of_squares
from lightning_rs.networks import build_network


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def randomised(network: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that are felt."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.eval().requires_grad_(False)


def named(name: str, shape: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(name, 10, shape, mean=0.4, std=0.3)
    return fold_batchnorm(randomised(network))[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fused_layers(network: nn.Module) -> list[FusedConv2d]:
    return [module for module in network.modules() if isinstance(module, FusedConv2d)]


@pytest.mark.parametrize(
    ("name", "shape", "convolutions", "in_place"),
    [
        ("cifar_resnet20", (3, 32, 32), 21, 9),
        ("mnist_lenet", (1, 28, 28), 2, 0),
        ("mnist_lenet", (3, 29, 31), 2, 0),
        ("digits_cnn", (1, 8, 8), 2, 0),
        ("small_cnn", (1, 28, 28), 2, 0),
        ("pooled_cnn", (1, 28, 28), 3, 0),
        ("torchvision/resnet18", (3, 32, 32), 20, 8),
        ("torchvision/mobilenet_v2", (3, 32, 32), 35, 10),
        pytest.param("wide_resnet40_2", (3, 32, 32), 40, 18, marks=pytest.mark.slow),
        pytest.param("torchvision/resnet50", (3, 64, 64), 53, 16, marks=pytest.mark.slow),
        pytest.param("torchvision/squeezenet1_1", (3, 64, 64), 26, 0, marks=pytest.mark.slow),
        pytest.param("timm/resnet10t", (3, 64, 64), 14, 4, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_known_networks(name: str, shape: tuple[int, ...], convolutions: int, in_place: int) -> None:
    network = named(name, shape)
    before = copy.deepcopy(network.state_dict())
    x = batch(4, *shape)
    kept = x.clone()
    fused = fuse_for_cpu(network, x)
    torch.testing.assert_close(fused(x), network(x), rtol=1e-4, atol=1e-4)
    other = batch(7, *shape)[3:] * 2
    torch.testing.assert_close(fused(other), network(other), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert len(fused_layers(fused)) == convolutions
    assert sum(layer.overwrite for layer in fused_layers(fused)) == in_place


@torch.inference_mode()
def test_bfloat16_rounds_a_residual_block_once() -> None:
    torch.manual_seed(0)
    network = Residual(lambda conv, x: F.relu(conv(x) + x)).bfloat16()
    x = batch(2, 4, 32, 32, dtype=torch.bfloat16)
    exact = F.relu(F.conv2d(x.double(), network.conv.weight.double(), network.conv.bias.double(), padding=1) + x)
    half_a_place = exact * 2**-8 * 1.001 + 1e-7
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(RuntimeError, match="bf16 path needs the cpu support"):
            fuse_for_cpu(network, x)
        return
    assert ((fuse_for_cpu(network, x)(x).double() - exact).abs() <= half_a_place).all()
    assert not ((network(x).double() - exact).abs() <= half_a_place).all()


class Residual(nn.Module):
    """One convolution and a rule for what to do with it; the result keeps its image."""

    def __init__(self, rule: Callable[..., Tensor], channels: int = 4, outputs: int = 4, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2).requires_grad_(False)
        self.again = nn.Conv2d(outputs, outputs, 3, padding=1).requires_grad_(False)
        self.rule = rule
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self.conv, x) if self.rule.__code__.co_argcount == 2 else self.rule(self.conv, self.again, x)


def _kept_shortcut(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    shortcut = conv(x)
    return F.relu(again(shortcut) + shortcut) + shortcut


def _twice_the_same(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    shortcut = conv(x)
    return again(shortcut) + shortcut


def _changed_in_place(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    shortcut = conv(x)
    total = shortcut.add_(again(F.relu(shortcut)))
    return total * shortcut


def _changed_under_an_old_name(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    shortcut = conv(x)
    old = shortcut
    shortcut += again(F.relu(shortcut))
    return shortcut * old


def _late_view(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    shortcut = conv(x)
    view = shortcut[:, :, ::2]
    out = again(F.relu(shortcut)) + shortcut
    return out.sum((2, 3)) + view.sum((2, 3))


def _broadcast(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    return again(conv(x)) + conv(x).mean((2, 3), keepdim=True)


def _read_twice(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    out = conv(x)
    return F.relu(out) + again(out)


def _rectified_in_place(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    out = conv(x)
    rectified = F.relu(out, inplace=True)
    return again(rectified) + out


def _chain(conv: nn.Module, again: nn.Module, x: Tensor) -> Tensor:
    one = F.relu(conv(x))
    two = F.relu(again(F.relu(again(one))) + one)
    return F.relu(again(F.relu(again(two))) + two)


@pytest.mark.parametrize(
    "rule",
    [
        lambda conv, x: conv(x) + x,
        lambda conv, x: x + conv(x),
        lambda conv, x: torch.relu(x + conv(x)),
        lambda conv, x: conv(x) + conv(x),
        lambda conv, x: conv(x).add(x, alpha=2),
        lambda conv, x: torch.add(conv(x), x, alpha=2).relu(),
        lambda conv, x: conv(x) + 1.0,
        lambda conv, x: conv(x) + x[:, :1],
        lambda conv, x: conv(x) + x.float().double(),
        lambda conv, x: F.max_pool2d(conv(x), 2),
        _kept_shortcut,
        _twice_the_same,
        _changed_in_place,
        _late_view,
        _broadcast,
        _read_twice,
        _rectified_in_place,
        _chain,
    ],
)
@torch.inference_mode()
def test_sums_and_rectifiers_mean_what_they_meant(rule: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    network, x = Residual(rule), batch(3, 4, 6, 6)
    kept = x.clone()
    fused = fuse_for_cpu(network, x)
    for _ in range(2):
        torch.testing.assert_close(fused(x), network(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)


@torch.inference_mode()
def test_a_chain_of_blocks_writes_over_its_shortcuts() -> None:
    fused = fuse_for_cpu(Residual(_chain), batch(3, 4, 6, 6))
    assert [layer.overwrite for layer in fused_layers(fused)].count(True) == 2


@pytest.mark.parametrize(
    ("conv", "paired"),
    [
        (nn.Conv2d(1, 5, 3), True),
        (nn.Conv2d(1, 5, 3, bias=False), True),
        (nn.Conv2d(1, 5, (2, 5)), True),
        (nn.Conv2d(1, 5, 1), True),
        (nn.Conv2d(1, 5, (3, 5)), True),
        (nn.Conv2d(1, 5, 2), False),
        (nn.Conv2d(1, 5, 3, padding=1), False),
        (nn.Conv2d(1, 5, 3, stride=2), False),
        (nn.Conv2d(1, 5, 3, dilation=2), False),
        (nn.Conv2d(2, 5, 3), False),
    ],
)
@pytest.mark.parametrize("width", [7, 8])
@torch.inference_mode()
def test_columns_in_pairs(conv: nn.Conv2d, paired: bool, width: int) -> None:
    x = batch(2, conv.in_channels, 6, width)
    conv.requires_grad_(False)
    for more in ([], [nn.ReLU()], [nn.MaxPool2d(2)]):
        network = nn.Sequential(conv, *more)
        fused = fuse_for_cpu(network, x)
        torch.testing.assert_close(fused(x), network(x), rtol=1e-5, atol=1e-5)
        found = any(isinstance(module, PairedConv2d) for module in fused.modules())
        assert found == (paired and width % 2 == 0)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.AvgPool2d(2)])
@torch.inference_mode()
def test_a_rectifier_moves_only_before_a_maximum(pool: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.ReLU(), nn.Conv2d(4, 2, 1)).requires_grad_(False)
    x = batch(2, 3, 9, 9)
    fused = fuse_for_cpu(network, x)
    torch.testing.assert_close(fused(x), network(x), rtol=1e-5, atol=1e-5)
    assert fused_layers(fused)[0].relu == (type(pool) is nn.MaxPool2d and pool.stride == 2 and pool.kernel_size == 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, stride=2, dilation=2, bias=False),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3),
        nn.MaxPool2d(4),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, dilation=2, stride=2),
        nn.Identity(),
        nn.Dropout(0.5),
    ],
)
@torch.inference_mode()
def test_layers_of_every_kind(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = batch(2, 4, 7, 9)
    size = int(layer.eval()(x)[0].numel())
    for flatten in (nn.Flatten(), nn.Flatten(2), nn.Flatten(0, 1)):
        width = size if flatten.start_dim == 1 else layer(x).flatten(flatten.start_dim, flatten.end_dim).shape[-1]
        network = nn.Sequential(layer, nn.ReLU(), flatten, nn.Linear(width, 3)).eval().requires_grad_(False)
        torch.testing.assert_close(fuse_for_cpu(network, x)(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (1, 1, 7, 8), (2, 5, 9, 4)])
def test_max_of_squares_is_max_pooling(size: int, shape: tuple[int, ...]) -> None:
    x = batch(*shape)
    x[0, 0, 0, 3] = torch.nan
    assert torch.equal(max_of_squares(x, size).nan_to_num(99), F.max_pool2d(x, size).nan_to_num(99))


def test_flatten_as_stored_copies_nothing() -> None:
    x = batch(2, 3, 4, 5)
    flat = flatten_as_stored(x)
    assert flat.data_ptr() == x.data_ptr()
    assert flat[1, 3 * 7 + 2] == x[1, 2, 7 // 5, 7 % 5]


def test_hooks_are_still_called() -> None:
    calls: list[int] = []
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).requires_grad_(False)
    network[0].register_forward_hook(lambda *_: calls.append(1))
    fused = fuse_for_cpu(network, batch(2, 4, 6, 6))
    calls.clear()
    fused(batch(2, 4, 6, 6))
    assert calls == [1]


class ByTraining(nn.Module):
    """Returns something else once it has been traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * (1 if isinstance(x, torch.fx.Proxy) else 2)


@pytest.mark.parametrize("network", [ByTraining(), Residual(_changed_under_an_old_name)])
@torch.inference_mode()
def test_what_tracing_gets_wrong_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="fused layers must give the same logits, got a difference of"):
        fuse_for_cpu(network, batch(2, 4, 6, 6))


def test_networks_that_cannot_be_traced_are_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(torch.fx.proxy.TraceError):
        fuse_for_cpu(Branches(), batch(2, 4, 6, 6))
