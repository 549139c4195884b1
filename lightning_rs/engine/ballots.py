"""How an outcome of an enumeration votes where it may vote for several classes, or for none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# More than float64 errs by in a log-softmax of float32 logits of size 1.
_ERROR = 1e-11


def threshold_votes(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return a vote for every class whose softmax score reaches a threshold, and how close the call was.

    Logits that move by at most e move every log-score by at most 2 e, which is what they do to the margin of two
    logits. So one tolerance serves both, and a row whose nearest score is within it could vote otherwise. Levine and
    Feizi (2020), (De)randomized smoothing, section 3.

    Args:
        logits: shape (m, C), float32.
        threshold: theta in (0, 1).

    Returns:
        Votes, 0 or 1, shape (m, C), int64; the distance of the nearest log-score from log theta, shape (m,), float64,
        rounded down: at most 0 where float64 cannot tell.
    """
    exact = logits.double()
    above = torch.log_softmax(exact, dim=1) - math.log(threshold)
    return (above >= 0).long(), above.abs().amin(1) - _ERROR * (1 + exact.abs().amax(1))
