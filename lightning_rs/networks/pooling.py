"""Average pooling before a low-resolution classifier (Cohen et al., 2019, Proposition 6)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_rs.checks import check_at_least


class LowResolution(nn.Module):
    r"""Average ``k x k`` squares of pixels, then apply a classifier of low-resolution images.

    Statement (Cohen, Rosenfeld and Kolter, 2019, Proposition 6, there for ``k = 2``): let
    :math:`g'` be the smoothed classifier of a base classifier :math:`f'` at noise :math:`\sigma'`, and let
    :math:`f = f' \circ \mathrm{AvgPool}_k`, smoothed at :math:`\sigma = k \sigma'` to give :math:`g`. Then
    :math:`g(x) = g'(\mathrm{AvgPool}_k(x))` for every high-resolution image, with the same class
    probabilities, and by Theorem 1 the certified l2 radius of :math:`g` is :math:`k` times that of
    :math:`g'`.

    Why: the mean of :math:`k^2` independent :math:`N(0, k^2 \sigma'^2)` is :math:`N(0, \sigma'^2)`, and the
    squares do not overlap, so the pooled noise is again white. The statement needs Gaussian noise; with any
    other noise this is an ordinary network.

    So train and certify it on the high-resolution images with ``sigma`` multiplied by ``pool``: this equals
    training and certifying ``net`` on the pooled images with ``sigma`` itself.

    Args:
        net: classifier of images of shape ``(C, H / pool, W / pool)``.
        pool: side ``k`` of the squares.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``. Build it by name (`build_network`), which checks that
    ``pool`` divides ``H`` and ``W``.

    Raises:
        ValueError: if ``pool`` is not a whole number >= 1.
    """

    def __init__(self, net: nn.Module, pool: int = 2) -> None:
        """Put the pooling before ``net``."""
        super().__init__()
        self.pool = nn.AvgPool2d(check_at_least("pool", pool, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the pooled images."""
        return self.net(self.pool(x))


def pooled_shape(shape: tuple[int, ...], pool: int) -> tuple[int, ...]:
    """Return the shape after pooling ``(C, H, W)`` by ``pool``.

    Raises:
        ValueError: if ``pool`` is not a whole number >= 1 or does not divide height and width: border pixels
            would drop out of the image unnoticed.
    """
    check_at_least("pool", pool, 1)
    if len(shape) != 3 or shape[1] % pool or shape[2] % pool:
        raise ValueError(f"pool must divide the image's height and width, got pool={pool} for shape {shape}")
    return (shape[0], shape[1] // pool, shape[2] // pool)
