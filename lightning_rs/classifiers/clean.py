"""Training without noise: the classifier to put behind a denoiser, and the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_rs.classifiers.base import BaseClassifier


class CleanTraining(BaseClassifier):
    """Cross-entropy on clean images. The noise is that of validation and certification only.

    Cost per image: one forward and one backward pass.
    """

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of images (m, *shape) against labels (m,)."""
        del batch_idx
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean(), on_step=False, on_epoch=True)
        return loss
