"""Networks on 8-bit integers: layer by layer against floats, whole networks, what the grids are chosen from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rs import Certifier, GaussianNoise
from lightning_rs.certificates import DeterministicSplittingL1
from lightning_rs.engine.compile.fused_layers import FusedConv2d
from lightning_rs.engine.compile.quantize import synthetic_images
from lightning_rs.engine.compile.quantized_layers import (
    Grid,
    QuantizedConv2d,
    QuantizedLinear,
    integer_weights,
    weight_limit,
)
from lightning_rs.engine.runtime import PreparedNetwork, Runtime
from lightning_rs.networks import build_network
from lightning_rs.noise.splitting import DeterministicSplittingNoise

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qconv2d_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this build of torch has no 8-bit convolutions",
)
INT8 = Runtime(precision="int8", micro_batch=16)


def randomised(name: str, shape: tuple[int, ...], **kwargs: object) -> nn.Module:
    torch.manual_seed(1)
    network = build_network(name, 10, shape, mean=0.4, std=0.25, **kwargs)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return network.eval()


def logits(network: nn.Module, shape: tuple[int, ...], runtime: Runtime, rows: Tensor) -> Tensor:
    prepared = runtime.prepare(network, shape)
    if runtime.precision == "int8":
        prepared.calibrate(rows.repeat(2, 1))
    return prepared.logits(rows)


def images_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def integers_of(prepared: PreparedNetwork) -> int:
    return sum(isinstance(module, QuantizedConv2d | QuantizedLinear) for module in prepared._forward.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0), (0.0, 1e-30)])
def test_a_grid_holds_zero_and_covers_its_range(low: float, high: float) -> None:
    grid = Grid.covering(low, high)
    ends = grid.values(torch.tensor([0, 255], dtype=torch.uint8))
    assert 0 <= grid.zero <= 255
    assert ends[0] <= min(low, 0) + grid.scale / 2
    assert ends[1] >= max(high, 0) - grid.scale / 2
    assert float(grid.values(grid.codes(torch.zeros(1)))) == 0.0
    inside = torch.linspace(low, high, 100)
    assert (grid.values(grid.codes(inside)) - inside).abs().max() <= grid.scale * 0.5001 + 1e-6 * abs(high)
    if high > low:
        assert grid.scale <= (max(high, 0) - min(low, 0)) / 255 * (1 + 2**-7)


def test_scales_do_not_see_rounding_errors() -> None:
    assert Grid.covering(0.0, 1.03) == Grid.covering(0.0, 1.03 * (1 + 1e-7))


def limits() -> list[int]:
    """The weights that this processor sums exactly: those of 7 bits everywhere, those of 8 with VNNI."""
    return sorted({64, weight_limit()})


@pytest.mark.parametrize("limit", [64, 127])
def test_weights_are_rounded_by_output(limit: int) -> None:
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 0.0, 1.0]).view(5, 1, 1, 1)
    codes, scales = integer_weights(weight, limit)
    assert codes.dtype == torch.int8
    assert codes.abs().max() == limit
    error = (codes.float() * scales.view(5, 1, 1, 1) - weight).abs().flatten(1).amax(1)
    assert (error <= scales * 0.5001).all()
    assert codes[3].abs().max() == 0


def saturates(limit: int) -> bool:
    """Say whether this processor's sums of the largest codes and weights go wrong."""
    linear = nn.Linear(32, 1, bias=False).requires_grad_(False)
    linear.weight.fill_(1.0)
    codes = torch.full((2, 32), 255, dtype=torch.uint8)
    return not torch.allclose(QuantizedLinear(linear, 2, Grid(1.0), limit)(codes), torch.full((2, 1), 255.0 * 32))


def test_the_limit_is_the_largest_that_does_not_saturate() -> None:
    assert weight_limit() in (64, 127)
    assert not saturates(weight_limit())
    if weight_limit() < 127:
        assert saturates(127)
        assert saturates(65), "one more would be too much already"


@pytest.mark.parametrize("limit", limits())
def test_the_largest_sums_do_not_saturate(limit: int) -> None:
    torch.manual_seed(3)
    for features in (8, 33, 512):
        linear = nn.Linear(features, 24).requires_grad_(False)
        linear.weight.copy_(torch.randint(0, 2, (24, features)) * 2.0 - 1)
        codes = torch.full((4, features), 255, dtype=torch.uint8)
        exact = 255.0 * linear.weight.sum(1) + linear.bias
        found = QuantizedLinear(linear, 4, Grid(1.0), limit)(codes)
        torch.testing.assert_close(found, exact.expand(4, -1), rtol=1e-5, atol=1e-2)
    for channels, outputs, kernel in ((2, 12, 3), (8, 8, 3), (32, 64, 1), (16, 16, 5)):
        conv = nn.Conv2d(channels, outputs, kernel).requires_grad_(False)
        conv.weight.copy_(torch.randint(0, 2, conv.weight.shape) * 2.0 - 1)
        x = torch.full((4, channels, 8, 8), 255.0).contiguous(memory_format=torch.channels_last)
        exact = F.conv2d(x, conv.weight, conv.bias)
        target = Grid.covering(float(exact.min()), float(exact.max()))
        layer = QuantizedConv2d(FusedConv2d(conv, x), tuple(x.shape), Grid(1.0), target, limit=limit)
        assert (target.values(layer(x.to(torch.uint8))) - exact).abs().max() <= target.scale * 0.51


@pytest.mark.parametrize("limit", limits())
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("residual", [False, True])
def test_a_convolution_of_codes_is_that_of_the_numbers_they_stand_for(
    relu: bool, padding: int, residual: bool, limit: int
) -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(6, 8, 3, padding=padding).requires_grad_(False)
    x, other = images_last(4, 6, 9, 9), images_last(4, 8, 7 + 2 * padding, 7 + 2 * padding).relu()
    source, summand, target = (
        Grid.covering(-3.0, 4.0),
        Grid.covering(0.0, 4.0),
        Grid.covering(0.0 if relu else -5.0, 5.0),
    )
    codes, kept = source.codes(x), summand.codes(other)
    kept_grid = summand if residual else None
    layer = QuantizedConv2d(FusedConv2d(conv, x, relu), tuple(x.shape), source, target, kept_grid, limit)
    weights, scales = integer_weights(conv.weight, limit)
    exact = F.conv2d(source.values(codes), weights.float() * scales.view(-1, 1, 1, 1), conv.bias, padding=padding)
    exact = exact + (summand.values(kept) if residual else 0)
    exact = exact.relu() if relu else exact
    given = kept.clone(memory_format=torch.channels_last)
    found = target.values(layer(codes, given) if residual else layer(codes))
    inside = (exact > target.values(torch.zeros(1))) & (exact < target.values(torch.full((1,), 255.0)))
    assert inside.float().mean() > (0.3 if relu else 0.9)
    assert (found - exact)[inside].abs().max() <= target.scale * 0.51
    assert torch.equal(given, kept), "the shortcut is still needed"


@pytest.mark.parametrize("limit", limits())
def test_a_linear_layer_of_codes(limit: int) -> None:
    linear = nn.Linear(40, 7).requires_grad_(False)
    grid = Grid.covering(-2.0, 3.0)
    codes = grid.codes(torch.randn(6, 40))
    weights, scales = integer_weights(linear.weight, limit)
    exact = F.linear(grid.values(codes), weights.float() * scales[:, None], linear.bias)
    assert torch.allclose(QuantizedLinear(linear, 6, grid, limit)(codes), exact, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [
        ("cifar_resnet20", (3, 32, 32), 21),
        ("mnist_lenet", (1, 28, 28), 3),
        ("small_cnn", (1, 28, 28), 3),
        ("pooled_cnn", (1, 28, 28), 4),
        ("digits_cnn", (1, 8, 8), 3),
        ("torchvision/squeezenet1_1", (3, 40, 40), 26),  # concatenations
        pytest.param("wide_resnet40_2", (3, 32, 32), 40, marks=pytest.mark.slow),
        pytest.param("torchvision/mobilenet_v2", (3, 32, 32), 35, marks=pytest.mark.slow),  # grouped convolutions
        pytest.param("timm/test_resnet", (3, 32, 32), 15, marks=pytest.mark.slow),
    ],
)
def test_networks_on_integers_are_close(name: str, shape: tuple[int, ...], layers: int) -> None:
    network = randomised(name, shape)
    rows = torch.randn(16, torch.Size(shape).numel()) * 0.25 + 0.4
    exact = logits(network, shape, Runtime(micro_batch=16), rows)
    prepared = INT8.prepare(network, shape)
    prepared.calibrate(rows.repeat(2, 1))
    assert integers_of(prepared) == layers
    error = (prepared.logits(rows) - exact).pow(2).mean().sqrt() / exact.std()
    # 8 bits a layer; a wrong grid anywhere gives an error of order one.
    assert 1e-5 < float(error) < 0.08
    assert prepared.probe(network, rows).invariant


def test_the_classifier_depends_on_network_and_noise_only() -> None:
    network, shape = randomised("small_cnn", (1, 28, 28)), (1, 28, 28)
    one = Certifier(n=10, seed=0, runtime=INT8).session(network, GaussianNoise(0.25), shape)
    two = Certifier(n=99, seed=5, runtime=INT8).session(network, GaussianNoise(0.25), shape)
    other = Certifier(n=10, runtime=INT8).session(network, GaussianNoise(1.0), shape)
    assert one.prepared.describe() == two.prepared.describe()
    assert one.prepared.describe()["scales"] != other.prepared.describe()["scales"]
    rows = torch.rand(16, 784)
    assert torch.equal(one.prepared.logits(rows), two.prepared.logits(rows))
    assert one.prepared.describe()["weight_limit"] == weight_limit()
    assert not {"scales", "weight_limit"} & set(Runtime().prepare(network, shape).describe())


def test_splitting_noise_and_votes_run_on_integers() -> None:
    network, shape = randomised("digits_cnn", (1, 8, 8)), (1, 8, 8)
    images = torch.randint(0, 17, (3, *shape)) / 16
    noise = DeterministicSplittingNoise(lam=1.5, shape=shape, q=16)
    exact = Certifier([DeterministicSplittingL1()], runtime=INT8).certify(network, noise, images)
    assert [sum(record.counts) for record in exact] == [noise.size] * 3
    assert all("doubtful" not in record.note for record in exact), "integers do not depend on companions"
    sampled = Certifier(n0=20, n=64, runtime=INT8).certify(network, GaussianNoise(0.5), images)
    assert [sum(record.counts) for record in sampled] == [64] * 3


def test_synthetic_images_are_seeded_pixels() -> None:
    network = build_network("small_cnn", 10, (3, 32, 32), mean=[0.5, 0.4, 0.3], std=0.2)
    images = synthetic_images(network, (3, 32, 32), 64)
    assert torch.equal(images, synthetic_images(network, (3, 32, 32), 64))
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0.5, 0.4, 0.3], abs=0.05)
    outside = build_network("small_cnn", 10, (1, 12, 12), mean=3.0, std=2.0)
    assert float(synthetic_images(outside, (1, 12, 12), 64).max()) > 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("channels_last", False, True), ("fold", False, True), ("fuse", False, True), ("compile", True, False)],
)
def test_settings_that_int8_needs(name: str, value: bool, expected: bool) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {expected} for precision 'int8', got {value}"):
        Runtime(precision="int8", **{name: value})


def test_networks_that_cannot_run_on_integers() -> None:
    with pytest.raises(
        ValueError, match=r"precision int8 needs images of shape \(C, H, W\), got inputs of shape \(5,\)"
    ):
        INT8.prepare(build_network("mlp", 3, (5,)), (5,))
    with pytest.raises(ValueError, match="precision int8 needs a network with convolutions that fuse, found none"):
        INT8.prepare(build_network("mlp", 3, (1, 7, 7)), (1, 7, 7))

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * (2 if x.sum() > 0 else 1)

    with pytest.raises(
        ValueError, match=r"precision int8 needs a network whose layers fuse: .*layers not fused: TraceError"
    ):
        INT8.prepare(Branching(), (1, 7, 7))
    with pytest.raises(ValueError, match="precision 'int8' is supported on the CPU only, got meta"):
        INT8.prepare(nn.Flatten(), (1, 7, 7), "meta")
