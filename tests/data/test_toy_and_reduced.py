"""Digits, MNIST at 7 x 7, its principal components, and the Swiss roll."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from lightning_rs.data import MNIST, MNISTPCA, Digits, SwissRoll
from lightning_rs.data.mnist import principal_components
from tests.data import formats

SHARED = Path(os.environ.get("LIGHTNING_RS_SHARED", Path(__file__).parents[2].parent / "shared"), "data")
real_mnist = pytest.mark.skipif(
    not (SHARED / "MNIST" / "raw" / "train-images-idx3-ubyte").exists(),
    reason=f"no MNIST in {SHARED}; set LIGHTNING_RS_SHARED to the folder above data/MNIST/raw",
)


def test_digits_are_scikit_learns() -> None:
    module, raw = Digits(), load_digits()
    train, test = module.positions("train"), module.positions("test")
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train) & set(test)
    for split, positions in (("train", train), ("test", test)):
        source = module.source(split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(source.labels, raw.target[positions])
        pixels = source.images(np.arange(len(source))).numpy()[:, 0]
        np.testing.assert_array_equal(pixels, raw.images[positions] / 16)
    assert np.bincount(module.source("test").labels).min() >= 34
    np.testing.assert_allclose(raw.images.mean() / 16, module.mean[0], atol=1e-3)
    np.testing.assert_allclose(raw.images.std() / 16, module.std[0], atol=1e-3)


def test_pooling_is_the_exact_average(tmp_path: Path) -> None:
    written = formats.write_idx(tmp_path)
    module = MNIST(root=tmp_path, average_pool=4, val_size=20)
    assert (module.shape, module.grid, module.domain) == ((1, 7, 7), None, (0.0, 1.0))
    images = written["test"][0][:, None]
    pooled = module.source("test").images(np.arange(50))
    exact = torch.nn.functional.avg_pool2d(torch.from_numpy(images).double(), 4) / 255
    torch.testing.assert_close(pooled, exact.float(), rtol=0, atol=0)


def test_pooled_images_can_be_moved(tmp_path: Path) -> None:
    formats.write_idx(tmp_path)
    source = MNIST(root=tmp_path, average_pool=4, shift=1, val_size=20).source("train")
    assert not torch.equal(source.images(np.arange(9), augment=True), source.images(np.arange(9)))


def test_pool_must_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="average_pool must be one of 1, 2, 4, 7, 14, got 3"):
        MNIST(average_pool=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="components must not exceed the 49 pixels, got 50"):
        MNISTPCA(components=50)


def test_components_are_those_of_the_training_split_only(tmp_path: Path) -> None:
    written = formats.write_idx(tmp_path, train=400)
    module = MNISTPCA(root=tmp_path, val_size=100, components=5)
    pooled = {
        split: images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49) / 255
        for split, (images, _) in written.items()
    }
    reference = PCA(5, svd_solver="full").fit(pooled["train"][module.split_indices("train")])
    for split in ("train", "test"):
        ours = module.source(split).images(np.arange(len(pooled[split]))).numpy()  # type: ignore[arg-type]
        theirs = reference.transform(pooled[split])
        signs = np.sign((ours * theirs).sum(axis=0))
        np.testing.assert_allclose(ours, theirs * signs, atol=2.0**-16)
    everything = PCA(5, svd_solver="full").fit(pooled["train"]).transform(pooled["test"])
    assert abs(np.abs(ours) - np.abs(everything)).max() > 1e-3  # so the test above can tell the two fits apart


def test_components_are_orthonormal_with_fixed_signs() -> None:
    data = np.random.default_rng(0).normal(size=(100, 6)) * np.arange(1, 7)
    mean, basis = principal_components(data, 3)
    np.testing.assert_allclose(mean, data.mean(axis=0))
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(3)] > 0).all()
    variances = ((data - mean) @ basis).var(axis=0)
    assert (np.diff(variances) < 0).all()


def test_swiss_roll_lies_on_the_spiral() -> None:
    module = SwissRoll(classes=3, train_size=3000, test_size=100)
    points = module.source("train").images(np.arange(3000)).double().numpy()
    radius = 10 * np.linalg.norm(points, axis=1)  # t, since the point is (t cos t, t sin t) / 10
    np.testing.assert_allclose(points, np.stack([np.cos(radius), np.sin(radius)], 1) * radius[:, None] / 10, atol=1e-3)
    labels = module.source("train").labels
    edges = np.pi * np.array([1.5, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(labels, np.clip(np.digitize(radius, edges) - 1, 0, 2))
    assert np.bincount(labels).min() > 900
    np.testing.assert_allclose(points.mean(axis=0), module.mean, atol=0.05)
    np.testing.assert_allclose(points.std(axis=0), module.std, atol=0.05)


def test_swiss_roll_seeds_and_jitter() -> None:
    plain, same, other = SwissRoll(), SwissRoll(), SwissRoll(data_seed=1)
    assert plain.source("test").fingerprint() == same.source("test").fingerprint()
    assert plain.source("test").fingerprint() != other.source("test").fingerprint()
    rows = np.arange(100)
    assert not torch.equal(plain.source("train").images(rows), plain.source("test").images(rows))
    jittered = SwissRoll(train_size=4000, jitter=0.2).source("train").images(np.arange(4000))
    assert jittered.var() > plain.source("train").images(np.arange(4000)).var() + 0.02
    with pytest.raises(ValueError, match="jitter must be >= 0"):
        SwissRoll(jitter=-1.0)


@real_mnist
def test_real_mnist() -> None:
    module = MNIST(root=SHARED, skip=20, max=500)
    assert (len(module.dataset("train")), len(module.dataset("val"))) == (55_000, 5_000)
    subset = module.certification_subset()
    assert subset.indices.tolist() == list(range(0, 10_000, 20))
    assert module.source("test").labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    np.testing.assert_array_equal(subset.labels, module.source("test").labels[::20])
    pixels = module.source("train").images(np.arange(60_000))
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [module.mean[0], module.std[0]], atol=1e-4)


@real_mnist
@pytest.mark.parametrize("pool", [2, 4, 7, 14])
def test_statistics_of_reduced_mnist(pool: int) -> None:
    module = MNIST(root=SHARED, average_pool=pool)  # type: ignore[arg-type]
    pixels = module.source("train").images(np.arange(60_000))
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [module.mean[0], module.std[0]], atol=1e-4)


@real_mnist
def test_statistics_of_mnists_components() -> None:
    module = MNISTPCA(root=SHARED)
    vectors = module.source("train").images(module.split_indices("train"))
    np.testing.assert_allclose(vectors.mean(dim=0), 0, atol=1e-4)
    np.testing.assert_allclose(vectors.pow(2).mean().sqrt(), module.std[0], atol=1e-3)
