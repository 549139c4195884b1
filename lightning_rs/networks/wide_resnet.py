"""Wide residual networks (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_rs.networks.cifar_resnet import conv3x3, init_like_he


class PreActivationBlock(nn.Module):
    """Pre-activation block: ``x' + conv2(drop(relu(bn2(conv1(o)))))`` with ``o = relu(bn1(x))``.

    ``x'`` is ``x``, or a 1x1 convolution of the *activated* input ``o`` where the width changes.

    Shapes: ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        """Build the block."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        activated = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.dropout(self.relu(self.bn2(self.conv1(activated))))
        return shortcut + self.conv2(out)


class WideResNet(nn.Module):
    """Wide ResNet of depth ``6 n + 4``: three stages of ``n`` blocks with ``16 k``, ``32 k``, ``64 k`` channels.

    Reference: Zagoruyko and Komodakis, "Wide residual networks" (2016): WRN-40-2 has 2.2M parameters. It is
    the CIFAR-10 network of the l1 literature (Yang et al., 2020; Levine and Feizi, 2021).

    Args:
        depth: 40 or any other ``6 n + 4`` with ``n >= 1``.
        widen_factor: the ``k`` above, 2 for WRN-40-2.
        num_classes: number of logits.
        in_channels: channels of the image.
        dropout: probability of dropping an activation between the convolutions of a block, in training.

    Shapes: ``(N, in_channels, H, W) -> (N, num_classes)``; any image size.

    Raises:
        ValueError: if the depth is not of that form.
    """

    def __init__(
        self, depth: int, widen_factor: int, num_classes: int, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        """Build and initialise the network."""
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, ..., 40), got {depth}")
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = conv3x3(in_channels, widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, 1, dropout)
        self.layer2 = _stage(widths[1], widths[2], blocks, 2, dropout)
        self.layer3 = _stage(widths[2], widths[3], blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        init_like_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivationBlock(in_channels, out_channels, stride, dropout)
    rest = (PreActivationBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
