"""Photographs under noise (Cohen et al. 2019, Figures 12, 17 and 18; Levine and Feizi 2021, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_rs.checks import check_at_least, naming
from lightning_rs.noise import Noise
from lightning_rs.plots import image_grid
from lightning_rs.studies.base import Row, Say, Study, StudyResult

EMBEDDED = ("china.jpg", "flower.jpg")  # come with scikit-learn


class NoisyImages(Study):
    """Images at several sizes, clean and under each noise; the table is of the noise as drawn.

    Args:
        noises: laws, one column each; a law of fixed shape goes with one size only.
        images: files, or "china.jpg" and "flower.jpg", the photographs that come with scikit-learn; cut to squares.
        sizes: heights and widths to which they are reduced.
        rescaled: noisy copies are squeezed into [0, 1] to be shown, instead of clipped.
        seed: seed of the noise.
    """

    def __init__(
        self,
        noises: Sequence[Noise],
        images: Sequence[str] = EMBEDDED,
        sizes: Sequence[int] = (224,),
        rescaled: bool = False,
        seed: int = 0,
    ) -> None:
        self.noises, self.images = list(noises), [str(image) for image in images]
        if not self.noises or not self.images:
            raise ValueError("noises and images must not be empty")
        self.sizes = [check_at_least("sizes", size, 2) for size in sizes]
        self.rescaled, self.seed = rescaled, check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Tabulate how far the noise moves each image, in input units; draw them, one figure a size."""
        rows: list[Row] = []
        figures = {}
        for size in self.sizes:
            clean = torch.stack([_square(image, size) for image in self.images])
            columns = {"clean": clean.numpy()}
            for noise in self.noises:
                noisy = noise(clean, torch.Generator().manual_seed(self.seed))
                name = f"{type(noise).__name__.removesuffix('Noise')}, sigma {noise.sigma:g}"
                columns[name] = (_squeezed(noisy) if self.rescaled else noisy).numpy()
                moved = (noisy - clean).flatten(1).norm(dim=1)
                rows += [
                    {"image": Path(image).name, "size": size, "noise": name, "l2 distance": float(distance)}
                    for image, distance in zip(self.images, moved, strict=True)
                ]
            figures[f"noisy_images_{size}"] = image_grid(columns, title=f"{size} x {size}")
        return StudyResult({"noisy_images": rows}, figures)


def _squeezed(images: Tensor) -> Tensor:
    low, high = min(0.0, float(images.min())), max(1.0, float(images.max()))
    return (images - low) / (high - low)


def _square(image: str, size: int) -> Tensor:
    """Return the middle of an image, (3, size, size) in [0, 1]; on the grid of 8-bit images."""
    from PIL import Image

    if image in EMBEDDED and not Path(image).exists():
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image(image))
    else:
        with naming(image):
            picture = Image.open(image).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    reduced = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(reduced, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()
