"""Attack success against the number of PGD steps T and of noisy copies m, on digits (compare Salman et al. 2019)."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_rs import SmoothedClassifier
from lightning_rs.attacks import PGD, Geometry
from lightning_rs.data import Digits

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "digits_gaussian_0.25.ckpt"


def main(images: int = 120, eps: float = 0.75, votes: int = 2000) -> None:
    data = Digits(max=images)
    data.setup("predict")
    subset = data.certification_subset()
    batch = subset.__getitems__(list(range(len(subset))))
    smoothed = SmoothedClassifier.from_checkpoint(CHECKPOINT).requires_grad_(False)
    own = torch.from_numpy(smoothed.predict(batch.image, votes).prediction)
    keep = own >= 0
    x, own = batch.image[keep], own[keep]
    geometry = Geometry("l2", (0.0, 1.0), data.grid)
    print(f"share of {len(x)} digits whose prediction changes within l2 {eps} (abstentions are no success)")
    print("m \\ T |", " | ".join(f"{steps:5d}" for steps in (1, 2, 5, 10, 20)))
    for copies in (1, 4, 16, 64):
        smoothed.copies = copies
        shares = []
        for steps in (1, 2, 5, 10, 20):
            z = PGD(steps=steps)(smoothed, x, own, torch.full((len(x),), eps), geometry)
            found = smoothed.predict(z, votes).prediction
            shares.append(float(((found >= 0) & (found != own.numpy())).mean()))
        print(f"{copies:5d} |", " | ".join(f"{share:5.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
