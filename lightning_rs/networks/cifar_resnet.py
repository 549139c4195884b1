"""The CIFAR ResNets of He et al. (2015), in the layout of the checkpoints that Cohen et al. released."""

from __future__ import annotations

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the image size (stride apart) and has no bias: BatchNorm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def init_like_he(module: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out) (He et al., 2015), as the literature's recipes do."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: ``relu(x' + bn2(conv2(relu(bn1(conv1(x))))))``.

    ``x'`` is ``x`` itself, or a 1x1 convolution with BatchNorm of it where size or width change. He et al.
    pad with zeros there (option A); the projection (option B) is what Cohen et al. trained, and costs less
    than one per cent more parameters.

    Shapes: ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Build the block; attribute names are the keys of the released checkpoints."""
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth ``6 n + 2`` for small images: three stages of ``n`` blocks with 16, 32 and 64 channels.

    Reference: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2015), section 4.2:
    0.27M, 0.85M and 1.7M parameters at depth 20, 56 and 110. The last layer averages over whatever image
    is left (8x8 for a 32x32 input), so any image size works.

    Args:
        depth: 20, 56, 110 or any other ``6 n + 2`` with ``n >= 1``.
        num_classes: number of logits.
        in_channels: channels of the image.

    Shapes: ``(N, in_channels, H, W) -> (N, num_classes)``.

    Raises:
        ValueError: if the depth is not of that form.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        """Build and initialise the network."""
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ..., 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        init_like_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))
