"""Small networks: the LeNet of the MNIST literature, a CNN for 8x8 digits, strided and pooled CNNs, a perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_rs.checks import check_at_least


class MnistLeNet(nn.Module):
    """LeNet as the randomized-smoothing papers use it on MNIST (Zhai et al., 2020; Jeong and Shin, 2020).

    Convolution 5x5 with 20 channels, ReLU, 2x2 max-pooling, convolution 5x5 with 50 channels, ReLU, 2x2
    max-pooling, a hidden layer of 500 with ReLU, and the logits: 431,080 parameters for 28x28 digits.

    Args:
        num_classes: number of logits.
        shape: ``(C, H, W)`` with ``H, W >= 16``.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``.

    Raises:
        ValueError: if the image is too small.
    """

    def __init__(self, num_classes: int, shape: Sequence[int] = (1, 28, 28)) -> None:
        """Build the network; attribute names are the keys of published checkpoints."""
        super().__init__()
        channels, height, width = _at_least_wide("mnist_lenet", shape, 16)
        height, width = (((size - 4) // 2 - 4) // 2 for size in (height, width))
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(50 * height * width, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        # ReLU and max-pooling commute exactly; in this order ReLU sees a quarter of the numbers.
        x = self.relu(self.pool(self.conv1(x)))
        x = self.relu(self.pool(self.conv2(x)))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


class DigitsCNN(nn.Module):
    """Two 3x3 convolutions (16 and 32 channels, BatchNorm, ReLU) and a linear layer: 9,978 parameters.

    Made for scikit-learn's 8x8 digits, where it learns in seconds. Neither convolution pads, so that the
    standardisation before it and the BatchNorm behind it fold into the weights exactly (see `fold`).

    Args:
        num_classes: number of logits.
        shape: ``(C, H, W)`` with ``H, W >= 5``.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``.

    Raises:
        ValueError: if the image is too small.
    """

    def __init__(self, num_classes: int, shape: Sequence[int] = (1, 8, 8)) -> None:
        """Build the network."""
        super().__init__()
        channels, height, width = _at_least_wide("digits_cnn", shape, 5)
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(32 * (height - 4) * (width - 4), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


class _Convolutions(nn.Module):
    """Layers on images, a hidden layer with ReLU, the logits."""

    def __init__(self, layers: Sequence[nn.Module], features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(features, check_at_least("hidden", hidden, 1))
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.fc2(self.relu(self.fc1(self.features(x).flatten(1))))


class SmallCNN(_Convolutions):
    """Strided convolutions (5x5, then 3x3, each with BatchNorm and ReLU), a hidden layer, the logits.

    Made for studies on one CPU: halving the image in the first layer makes it several times cheaper than LeNet. No
    convolution pads, so that standardisation and BatchNorm fold into the weights exactly (see `fold`).

    Args:
        num_classes: number of logits.
        shape: ``(C, H, W)``, large enough for every convolution: ``H, W >= 9`` for two of them.
        channels: width of each convolution, at least one.
        hidden: width of the hidden layer.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``.

    Raises:
        ValueError: if the image is too small, or a width is not a whole number >= 1.
    """

    def __init__(
        self, num_classes: int, shape: Sequence[int], channels: Sequence[int] = (16, 32), hidden: int = 128
    ) -> None:
        """Build the network."""
        widths = _widths("channels", channels)
        if not widths:
            raise ValueError("channels must name at least one convolution, got none")
        kernels = [5] + [3] * (len(widths) - 1)
        least = 1
        for kernel in reversed(kernels):
            least = 2 * (least - 1) + kernel
        before, *size = _at_least_wide("small_cnn", shape, least)
        layers: list[nn.Module] = []
        for width, kernel in zip(widths, kernels, strict=True):
            layers += [nn.Conv2d(before, width, kernel, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before, size = width, [(side - kernel) // 2 + 1 for side in size]
        super().__init__(layers, before * math.prod(size), hidden, num_classes)


class PooledCNN(_Convolutions):
    """Convolutions with BatchNorm and ReLU in blocks that end with 2x2 max-pooling, a hidden layer, the logits.

    The first convolution is 5x5, the others 3x3; none pads, so that standardisation and BatchNorm fold into the
    weights exactly (see `fold`). Made for training under much noise on one CPU: by default, for 28x28 digits, it has
    321,000 weights, fewer than LeNet, and takes 2.4 times its time an image; what it certifies beside LeNet stands in
    `benchmarks/results/training_mnist.md`.

    Args:
        num_classes: number of logits.
        shape: ``(C, H, W)``, large enough for every convolution and pooling: ``H, W >= 16`` by default.
        channels: width of each convolution, block by block.
        hidden: width of the hidden layer.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``.

    Raises:
        ValueError: if the image is too small, or a width is not a whole number >= 1.
    """

    def __init__(
        self,
        num_classes: int,
        shape: Sequence[int],
        channels: Sequence[Sequence[int]] = ((32,), (64, 64)),
        hidden: int = 256,
    ) -> None:
        """Build the network."""
        if not isinstance(channels, Sequence) or not all(isinstance(block, Sequence) for block in channels):
            raise ValueError(f"channels must be lists of widths, one a block, [[32], [64, 64]], got {channels!r}")
        blocks = [_widths("channels", block) for block in channels]
        if not blocks or not all(blocks):
            raise ValueError(f"channels must name at least one convolution in every block, got {channels}")
        least = 1
        for number, block in reversed(list(enumerate(blocks))):
            least = 2 * least + 2 * len(block) + (2 if number == 0 else 0)
        before, *size = _at_least_wide("pooled_cnn", shape, least)
        layers: list[nn.Module] = []
        for block in blocks:
            for width in block:
                kernel = 3 if layers else 5
                layers += [nn.Conv2d(before, width, kernel, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before, size = width, [side - kernel + 1 for side in size]
            # ReLU and max-pooling commute exactly; in this order ReLU sees a quarter of the numbers.
            layers.insert(-1, nn.MaxPool2d(2))
            size = [side // 2 for side in size]
        super().__init__(layers, before * math.prod(size), hidden, num_classes)


class MLP(nn.Module):
    """Fully connected network with ReLU, for 7x7 digits, principal components and toy data.

    Args:
        num_classes: number of logits.
        shape: shape of one input, of any rank; it is flattened.
        hidden_sizes: width of each hidden layer; empty for a linear classifier.

    Shapes: ``(N, *shape) -> (N, num_classes)``.

    Raises:
        ValueError: if a width is not a whole number >= 1.
    """

    def __init__(self, num_classes: int, shape: Sequence[int], hidden_sizes: Sequence[int] = (256, 256)) -> None:
        """Build the network."""
        super().__init__()
        widths = [math.prod(shape), *_widths("hidden_sizes", hidden_sizes)]
        self.flatten = nn.Flatten()
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.flatten(x)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


def _widths(name: str, widths: Sequence[int]) -> list[int]:
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise ValueError(f"{name} must be a list of whole numbers >= 1, got {widths!r}")
    return [check_at_least(name, width, 1) for width in widths]


def _at_least_wide(name: str, shape: Sequence[int], size: int) -> tuple[int, int, int]:
    channels, height, width = shape
    if min(height, width) < size:
        raise ValueError(f"network {name} needs images of at least {size}x{size}, got shape {tuple(shape)}")
    return channels, height, width
