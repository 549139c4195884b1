"""Where gradient evidence points: the direction in which a class loses votes, from votes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rs.certificates.base import read
from lightning_rs.evidence import GradientSums, PairGradientSums
from lightning_rs.session import Session
from lightning_rs.setting import Selection


def uphill_of_evidence(session: Session, images: Tensor, classes: Tensor, n: int, seed: int) -> Tensor | None:
    """Return minus the estimated gradient of each class's hard vote, flat, (B, d); None without gradient evidence.

    Certificates of gradients rest on sums of w (f - 1/2), whose mean is sigma^2 times the gradient of the smoothed
    probability of the hard vote. Records keep bounds of its norms only, so the sums are taken again, on noise that
    nothing else sees. No gradient of the network is needed. In d coordinates the estimate has an error of about
    sqrt(d / n) beside a gradient of at most .4.

    Args:
        session: the prepared network; what its certificates rest on decides.
        images: (B, *shape).
        classes: classes to leave, (B,).
        n: samples an image.
        seed: of their noise.
    """
    needed = {kind for certificate in session.certifier.certificates for kind in certificate.evidence}
    kind = next((each for each in (PairGradientSums, GradientSums) if each in needed), None)
    if kind is None:
        return None
    count = max(4, 4 * (n // 4))
    known = Selection.known(classes.cpu().numpy())
    sampler = session.sampler.named(seed, count)
    sums = read(sampler.collect(images, range(len(images)), "attack", count, [kind], known), kind)
    first, second = sums.means(session.noise.sigma)
    return torch.from_numpy(-(first + second)).to(images)
