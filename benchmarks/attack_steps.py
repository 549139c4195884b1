"""Attack success against the number of PGD steps T and of noisy copies m (compare Salman et al. 2019).

On digits (seconds), or ``python benchmarks/attack_steps.py mnist ROOT`` on a LeNet of noise .5 (minutes).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lightning_rs import Certifier, SmoothedClassifier
from lightning_rs.attacks import PGD, Geometry
from lightning_rs.data import MNIST, Digits
from lightning_rs.engine.runtime import Runtime

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def main(name: str = "digits", root: str = "data") -> None:
    large = name == "mnist"
    data = MNIST(root=root, skip=250) if large else Digits(max=120)
    checkpoint = CHECKPOINTS / ("mnist_lenet_gaussian_0.5.ckpt" if large else "digits_gaussian_0.25.ckpt")
    eps, votes = (2.25, 500) if large else (0.75, 2000)
    all_steps = (1, 2, 5, 10, 20, 50, 100) if large else (1, 2, 5, 10, 20)
    data.setup("predict")
    subset = data.certification_subset()
    batch = subset.__getitems__(list(range(len(subset))))
    certifier = Certifier(runtime=Runtime(precision="int8" if large else "32-true"))
    smoothed = SmoothedClassifier.from_checkpoint(checkpoint, certifier=certifier).requires_grad_(False)
    own = torch.from_numpy(smoothed.predict(batch.image, votes).prediction)
    keep = own >= 0
    x, own = batch.image[keep], own[keep]
    geometry = Geometry("l2", (0.0, 1.0), data.grid)
    print(f"share of {len(x)} {name} whose prediction changes within l2 {eps} (abstentions are no success)")
    print("m \\ T |", " | ".join(f"{steps:5d}" for steps in all_steps))
    for copies in (1, 4, 16, 64, 128) if large else (1, 4, 16, 64):
        smoothed.copies = copies
        shares = []
        for steps in all_steps:
            z = PGD(steps=steps)(smoothed, x, own, torch.full((len(x),), eps), geometry)
            found = smoothed.predict(z, votes).prediction
            shares.append(float(((found >= 0) & (found != own.numpy())).mean()))
        print(f"{copies:5d} |", " | ".join(f"{share:5.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
