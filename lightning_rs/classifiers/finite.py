"""A loss that is not a number ends the training, before it reaches the weights or a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

# Looking at a number waits for the GPU: there the loss is looked at so often only, and before every checkpoint.
_EVERY = 50


class FiniteLoss:
    """Watches the losses of a training for one that is infinite or not a number."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, int, int]] = []
        self._looked = False

    def watch(self, loss: Tensor, batch: int, epoch: int) -> None:
        """Note the loss of a batch; on a CPU, and the first one, is looked at at once: loggers begin with it.

        Raises:
            ValueError: naming the first bad batch and its epoch.
        """
        self._seen.append((loss.detach(), batch, epoch))
        if not self._looked or loss.device.type == "cpu" or len(self._seen) >= _EVERY:
            self.check()

    def check(self) -> None:
        """Look at the losses noted since the last look.

        Raises:
            ValueError: naming the first bad batch and its epoch.
        """
        seen, self._seen, self._looked = self._seen, [], True
        if not seen:
            return
        finite = torch.isfinite(torch.stack([loss.float() for loss, _, _ in seen])).tolist()
        for good, (loss, batch, epoch) in zip(finite, seen, strict=True):
            if not good:
                raise ValueError(
                    f"loss must be finite, got {float(loss)} at batch {batch} of epoch {epoch}: training stops, and "
                    "the last checkpoint stays as it is; a smaller learning rate or gradient_clip_val often helps"
                )
