"""How many samples an image needs before anything can be said of it, whatever the network answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lightning_rs.certificates.base import Certificate, Selection, Setting
from lightning_rs.certifier import Certifier
from lightning_rs.evidence import Votes
from lightning_rs.noise import Noise
from lightning_rs.statistics.binomial import top_class_p_value

_LARGEST = 1 << 30


def smallest_n_to_certify(certifier: Certifier, noise: Noise, shape: tuple[int, ...], classes: int) -> int:
    """Return the least n at which the first certificate gives an image a radius, if all samples agree.

    For certificates that read more than votes it is a bound from below: alpha^(1/n) must exceed 1/2 (Clopper and
    Pearson 1934, all of n successes). 1 for exact certificates, and where samples are not of fixed number.
    """
    certificate = certifier.for_noise(noise).certificates[0]
    if certificate.exact or not certifier.budget.recomputable:
        return 1
    if not certificate.votes_only or certificate.evidence != (Votes,):
        return math.floor(math.log(certifier.alpha) / math.log(0.5)) + 1
    return _least(lambda n: _certifies(certificate, certifier.alpha, noise, shape, classes, n))


def smallest_n_to_predict(alpha: float) -> int:
    """Return the least n at which a prediction is not an abstention, if all samples agree."""
    return _least(lambda n: float(top_class_p_value(n, 0)) <= alpha)


def _certifies(
    certificate: Certificate, alpha: float, noise: Noise, shape: tuple[int, ...], classes: int, n: int
) -> bool:
    counts = np.zeros((1, max(classes, 2)), dtype=np.int64)
    counts[0, 0] = n
    setting = Setting(noise, alpha, n, shape, selection=Selection.known([0], [1]))
    return bool(certificate.certify({Votes: Votes.of(counts)}, setting).prediction[0] >= 0)


def _least(enough: Callable[[int], bool]) -> int:
    """Return the least n that is enough, where every larger one is, too."""
    high = 1
    while not enough(high) and high < _LARGEST:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
