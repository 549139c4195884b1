"""Which images belong to which split and which of them are certified: pure functions of labels and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def stratified_quota(counts: IntArray, size: int) -> IntArray:
    """Share ``size`` images among classes in proportion to ``counts``.

    Largest remainders, ties to the lower class, so that the shares add up to ``size`` exactly and each is
    within one of its exact proportion.
    """
    total = max(int(counts.sum()), 1)
    share, remainder = np.divmod(size * counts, total)
    late = np.argsort(-remainder, kind="stable")[: size - int(share.sum())]
    share[late] += 1
    return share.astype(np.int64)


def stratified_sample(labels: IntArray, size: int, seed: int) -> IntArray:
    """Draw ``size`` positions without replacement, in proportion to the classes of ``labels``.

    The draw uses NumPy's ``RandomState``, whose streams are frozen (NEP 19): the same labels, size and seed give
    the same positions on every machine and NumPy version.

    Args:
        labels: class of each image, shape ``(n,)``.
        size: number of positions, ``0 <= size <= n``.
        seed: any non-negative integer below 2**32.

    Returns:
        Sorted positions, shape ``(size,)``.

    Raises:
        ValueError: if ``size`` lies outside ``[0, n]``.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if not 0 <= size <= len(labels):
        raise ValueError(f"size must lie in [0, {len(labels)}] (the number of images), got {size}")
    classes, counts = np.unique(labels, return_counts=True)
    random = np.random.RandomState(seed)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:share]
        for label, share in zip(classes, stratified_quota(counts, size), strict=True)
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def hold_out(labels: IntArray, size: int, seed: int) -> tuple[IntArray, IntArray]:
    """Split positions into ``(kept, held_out)``: disjoint, sorted, ``size`` of them held out, stratified."""
    held_out = stratified_sample(labels, size, seed)
    kept = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    return kept, held_out


def certification_indices(
    available: IntArray, skip: int = 1, max: int | None = None, indices: Sequence[int] | None = None
) -> IntArray:
    """Choose the images to certify, by their own index in the data set.

    Without ``indices``, image ``i`` is taken when ``i % skip == 0``, in order, until ``max`` images are taken:
    ``max`` bounds the *number of images*, whatever ``skip`` is. (Cohen et al. 2019 compare it with the index.)

    Args:
        available: own indices of the split, sorted, shape ``(n,)``.
        skip: take every ``skip``-th index.
        max: at most so many images; ``None`` for all.
        indices: take exactly these instead.

    Returns:
        Own indices, sorted.

    Raises:
        ValueError: if an explicit index is not in the split or occurs twice, or if nothing is left.
    """
    if indices is None:
        chosen = available[available % skip == 0][:max]
    else:
        chosen = np.sort(np.asarray(indices, dtype=np.int64))
        unknown = np.setdiff1d(chosen, available)
        if unknown.size:
            raise ValueError(
                f"indices must lie in the certified split ({_span(available)}), got {unknown[:8].tolist()}"
            )
        if np.unique(chosen).size != chosen.size:
            raise ValueError(f"indices must not repeat, got {_repeated(chosen)[:8].tolist()} more than once")
    if not chosen.size:
        raise ValueError(f"nothing to certify: no index of the split ({_span(available)}) is a multiple of skip={skip}")
    return chosen


def _repeated(values: IntArray) -> IntArray:
    unique, counts = np.unique(values, return_counts=True)
    return unique[counts > 1]


def _span(available: IntArray) -> str:
    if not available.size:
        return "which is empty"
    return f"{available.size} images with indices from {available[0]} to {available[-1]}"
