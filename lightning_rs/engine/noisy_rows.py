"""How the rows of a micro-batch are made of an image and noise: in whole numbers, or in floating point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lightning_rs.engine.runtime import PreparedNetwork
from lightning_rs.engine.streams import chunk_size
from lightning_rs.noise._tables import Scratch
from lightning_rs.noise.base import Noise
from lightning_rs.noise.lattice import LatticeNoise


class NoisyRows(ABC):
    """Fills rows with noisy copies of one image.

    Attributes:
        variates: dtype of the variates that gradient evidence reads.
        always: whether variates are made even if no evidence reads them, because the rows are made from them.
        generator_device: where the random streams are drawn.
        chunk: number of rows that are drawn at once, at most.
    """

    variates: ClassVar[torch.dtype]
    always: ClassVar[bool]
    generator_device: torch.device
    chunk: int

    @abstractmethod
    def place(self, images: Float[Tensor, "B ..."]) -> Num[Tensor, "B d"]:
        """Return images as rows in the engine's coordinate order, in the units of the noise."""

    @abstractmethod
    def fill_(
        self,
        x: Num[Tensor, "*m d"],
        inputs: Float[Tensor, "m d"],
        variates: Float[Tensor, "m d"] | None,
        generator: torch.Generator,
        work: Scratch,
        paired: bool,
    ) -> None:
        """Fill ``inputs`` with noisy copies of a placed image, and ``variates`` with their noise.

        Args:
            x: the placed image, or one a row.
            inputs: to be filled, in the dtype of the network.
            variates: to be filled, or None if nobody reads them.
            generator: at the start of the stream of these rows.
            work: buffers of this thread.
            paired: rows 2i and 2i + 1 are x + w and x - w.
        """


class FloatRows(NoisyRows):
    """Variates in float32, combined with the image in floating point."""

    variates = torch.float32
    always = True

    def __init__(self, prepared: PreparedNetwork, noise: Noise) -> None:
        self.generator_device = prepared.device
        self._prepared = prepared
        self._noise = noise
        self.chunk = chunk_size(int(torch.Size(prepared.shape).numel()), prepared.device.type)

    def place(self, images: Float[Tensor, "B ..."]) -> Num[Tensor, "B d"]:
        """Return the images in float32."""
        return self._prepared.flatten(images)

    def fill_(
        self,
        x: Num[Tensor, "*m d"],
        inputs: Float[Tensor, "m d"],
        variates: Float[Tensor, "m d"] | None,
        generator: torch.Generator,
        work: Scratch,
        paired: bool,
    ) -> None:
        """Draw, then combine."""
        # Gradient evidence reads the variates that made the rows, so they are drawn in the buffer that it reads.
        drawn = torch.empty(inputs.shape, device=inputs.device) if variates is None else variates
        if paired:
            half = work.get("half", drawn.numel() // 2, torch.float32, drawn.device).view(-1, drawn.shape[1])
            self._noise.draw_(half, generator)
            _pair_(drawn, half)
        else:
            self._noise.draw_(drawn, generator)
        self._noise.apply(x, drawn, inputs)


class LatticeRows(NoisyRows):
    """Whole numbers of lattice steps, drawn on the CPU: the same stream for every device."""

    variates = torch.float64
    always = False

    def __init__(self, prepared: PreparedNetwork, noise: LatticeNoise) -> None:
        self.generator_device = torch.device("cpu")
        self._prepared = prepared
        self._noise = noise
        self.chunk = chunk_size(int(torch.Size(prepared.shape).numel()))

    def place(self, images: Float[Tensor, "B ..."]) -> Num[Tensor, "B d"]:
        """Return the images in whole lattice steps."""
        order = self._prepared.order
        placed = self._noise.place(images.detach().cpu().flatten(1)).to(self._prepared.device)
        return placed if order is None else placed[:, order]

    def fill_(
        self,
        x: Num[Tensor, "*m d"],
        inputs: Float[Tensor, "m d"],
        variates: Float[Tensor, "m d"] | None,
        generator: torch.Generator,
        work: Scratch,
        paired: bool,
    ) -> None:
        """Draw whole numbers, add, scale to input units; E[w | whole number] are the variates."""
        rows, dim = inputs.shape
        drawn = rows // 2 if paired else rows
        # Whole numbers are drawn on the CPU and moved: the table's look-up is the same on every device, and so are
        # records.
        whole = work.get("whole", drawn * dim, self._noise.dtype).view(drawn, dim)
        means = None if variates is None else work.get("means", drawn * dim, torch.float64).view(drawn, dim)
        self._noise.draw_(whole, generator, work, means)
        moved = whole.to(x.device)
        if paired:
            # The lattice is symmetric, so x - w is exact as well: no second draw, no rounding between the members.
            self._noise.apply(x, moved, inputs[0::2])
            self._noise.apply(x, moved.neg(), inputs[1::2])
        else:
            self._noise.apply(x, moved, inputs)
        # The network saw whole numbers; the gradient estimator needs E[w | whole number], the continuous noise behind
        # it.
        if variates is not None and means is not None:
            if paired:
                _pair_(variates, means)
            else:
                variates.copy_(means)


def _pair_(out: Tensor, half: Tensor) -> None:
    """Write w into the even rows and -w into the odd ones."""
    pairs = out.view(len(half), 2, -1)
    pairs[:, 0] = half
    torch.neg(half, out=pairs[:, 1])
