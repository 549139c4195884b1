"""Laws of somebody else's: files name them by their description, which has to give the same law back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_rs.noise.base import Noise, noise_from_dict, noise_to_dict


def check_rebuilt(noise: Noise, shape: Sequence[int]) -> None:
    """Check that ``spec()`` of a law that is not ours gives the law back: by its parameters, and by what it draws.

    A checkpoint or a record file would otherwise speak of another law than the one that was sampled. Its parameters
    alone do not show what is missing among them.

    Raises:
        ValueError: if it does not, or if the law draws otherwise from a generator in the same state.
    """
    spec = noise_to_dict(noise)
    if "." not in spec["class"]:
        return
    again = noise_from_dict(spec)
    if again != noise:
        raise ValueError(f"spec() of {noise!r} must give the law back, got {again!r}")
    first, second, rebuilt = (_noisy(law, shape) for law in (noise, noise, again))
    if not torch.equal(first, second):
        raise ValueError(
            f"draw_ of {noise!r} must draw from the generator that it is given: from one state it drew two things"
        )
    if not torch.equal(first, rebuilt):
        raise ValueError(
            f"spec() of {noise!r} must give the law back, but the one that it gives draws otherwise: does it name all "
            "arguments?"
        )


def _noisy(noise: Noise, shape: Sequence[int]) -> Tensor:
    return noise(torch.full((2, *shape), 0.5), torch.Generator().manual_seed(0))
