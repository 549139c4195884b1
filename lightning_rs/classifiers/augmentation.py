"""Training by noise augmentation."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_rs.classifiers.base import BaseClassifier


class NoiseAugmentation(BaseClassifier):
    """Cross-entropy on one fresh noisy copy of every image (Cohen et al. 2019; Lecuyer et al. 2019).

    The noise is fresh for each sample, step, epoch and rank, and named by the seed (see :meth:`noisy`). Any noise.
    Cost: one forward and one backward pass an image.
    """

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of noisy images (m, *shape) against labels (m,)."""
        images, labels = batch
        logits = self(self.noisy(self.laid_out(images), batch_idx)).float()
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy_noisy", (logits.argmax(1) == labels).float().mean(), on_step=False, on_epoch=True)
        return loss
