"""Augmentation of whole batches of small images, still in their integer form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CropFlip:
    """Random translation (zero-pad, then crop back to size) and random horizontal flip, one draw per image.

    The law is that of torchvision's ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip()``; the draws come
    from torch's default generator, so Lightning's seed governs them.

    Args:
        padding: largest shift in pixels, in each direction.
        flip: mirror each image with probability one half.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Augment ``images`` of shape ``(b, c, h, w)``; values and dtype are kept."""
        if self.padding:
            images = random_shift(images, self.padding)
        return random_flip(images) if self.flip else images


def random_shift(images: Tensor, padding: int) -> Tensor:
    """Shift each image of ``(b, c, h, w)`` by its own uniform offset in ``[-padding, padding]^2``."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (b, c, 2p+1, 2p+1, h, w)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, count))
    return windows[torch.arange(count), :, rows, columns]


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image of ``(b, c, h, w)`` left to right with probability one half."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)
