"""One routed classifier and a cascade on MNIST beside each of their experts alone, on the same images and votes.

The selector learns, on training images, which expert certifies the largest radius for the true class. alpha is shared
before anything is sampled: .3 of it for the selector, the rest in equal parts for the experts; an expert alone has all.

    OMP_NUM_THREADS=1 python -m benchmarks.routed mnist_lenet_gaussian_0.25 mnist_lenet_gaussian_1.0 --root data
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import datasets

from benchmarks.common import Row, finish, parser
from lightning_rs import SmoothedClassifier
from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.functional import gaussian_l2_radius
from lightning_rs.networks import build_network
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import Certification
from lightning_rs.records.combination import Part, combine_records
from lightning_rs.shipped import checkpoint_path
from lightning_rs.statistics.accuracy import paired_difference_interval
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ALPHA = 0.001
SHARE = 0.3


def main(argv: Sequence[str] | None = None) -> Row:
    """Train the selector, certify everything once, print the table and return its rows."""
    own = parser(__doc__ or "")
    own.add_argument("experts", nargs="+", help="checkpoints, Gaussian noise")
    own.add_argument("--root", default="data")
    own.add_argument("--images", type=int, default=200)
    own.add_argument("--n", type=int, default=10_000)
    own.add_argument("--train", type=int, default=1000, help="training images that the selectors learn from")
    own.add_argument("--train_n", type=int, default=200, help="samples by which the best expert is told")
    own.add_argument("--selectors", type=float, nargs="+", default=[0.5, 1.0, 0.25], help="their noise")
    told = own.parse_args(argv)
    if told.quick:
        told.images, told.n, told.train, told.train_n = 8, 200, 16, 100
        told.selectors = told.selectors[:1]
    return finish(told.out, routed=_run(told), n=told.n, alpha=ALPHA)


def _run(told: argparse.Namespace) -> list[Row]:
    start, rows_of_table = time.process_time(), []
    experts = [SmoothedClassifier.from_checkpoint(checkpoint_path(name)) for name in told.experts]
    train, test = (datasets.MNIST(told.root, train=each) for each in (True, False))
    rows = np.linspace(0, len(test) - 1, told.images).astype(int)
    images, labels = _pixels(test, rows), test.targets[rows]
    each = (1 - SHARE) * ALPHA / len(experts)
    parts = []
    for expert in experts:
        parts.append(_part(_smoothed(expert.network, expert.noise.sigma, each, told.n), images, labels.tolist()))
        _say(start, f"expert sigma {expert.noise.sigma:g} certified")
    known = labels.numpy()
    singles = {f"sigma {part.sigma:g}": _alone(part, known) for part in parts}
    rows_of_table += _table(singles, {})
    order = np.argsort([-part.sigma for part in parts])
    for p0 in (0.5, 0.9):
        # A cascade needs no selector: its levels share all of alpha, of which the experts here have only a part.
        made = combine_records("cascade", p0, [parts[k] for k in order], ALPHA)
        rows_of_table += _table({f"cascade {p0:g}": _radii(made, known)}, singles)
    rows = np.linspace(0, len(train) - 1, told.train).astype(int)
    some, their = _pixels(train, rows), train.targets[rows]
    rewards = []
    for expert in experts:
        found = _smoothed(expert.network, expert.noise.sigma, ALPHA, told.train_n).certify(some, their.tolist())
        rewards.append([record.radius if record.correct else 0.0 for record in found])
    best = np.argmax(np.array(rewards), axis=0)
    shares = np.bincount(best, minlength=len(experts)) / len(best)
    _say(start, f"selectors learn from {told.train} images, best expert: {np.round(shares, 3)}")
    for sigma in told.selectors:
        network = _selector(experts[0].network, len(experts), some, torch.from_numpy(best), sigma)
        _say(start, f"selector at {sigma:g} trained")
        selector = _part(_smoothed(network, sigma, SHARE * ALPHA, told.n), images, None)
        chosen = np.bincount(selector.top, minlength=len(experts)) / len(known)
        _say(start, f"selector at {sigma:g} certified, routes taken: {np.round(chosen, 3)}")
        made = combine_records("routed", None, [selector, *parts], ALPHA)
        rows_of_table += _table({f"routed, selector {sigma:g}": _radii(made, known)}, singles)
    _say(start, "done")
    return rows_of_table


def _table(systems: dict[str, NDArray[np.float64]], singles: dict[str, NDArray[np.float64]]) -> list[Row]:
    """Print a row a system, and a row of paired differences from each expert alone; return the systems' rows."""
    rows: list[Row] = []
    for name, radius in systems.items():
        cells = [f"{(radius >= r).mean():.3f}" for r in RADII]
        print(f"| {name} | {radius.clip(0).mean():.3f} | " + " | ".join(cells) + " |", flush=True)
        for other, its in singles.items():
            cells = [_difference(radius >= r, its >= r) for r in RADII]
            print(f"| - {other} | | " + " | ".join(cells) + " |", flush=True)
        accuracy = {f"{r:g}": float((radius >= r).mean()) for r in RADII}
        rows.append({"system": name, "ACR": float(radius.clip(0).mean()), "accuracy": accuracy})
    return rows


def _say(start: float, words: str) -> None:
    print(f"[{time.process_time() - start:.0f} CPU s] {words}", flush=True)


def _pixels(data: datasets.MNIST, rows: NDArray[np.int64]) -> Tensor:
    return data.data[rows].float().div(255).unsqueeze(1)


def _smoothed(network: nn.Module, sigma: float, alpha: float, n: int) -> SmoothedClassifier:
    certifier = Certifier(GaussianL2(), n0=100, n=n, alpha=alpha, runtime=Runtime(precision="int8", threads=1))
    return SmoothedClassifier(network, GaussianNoise(sigma), certifier=certifier, domain=(0.0, 1.0), grid=255)


def _part(own: SmoothedClassifier, images: Tensor, labels: Sequence[int] | None) -> Part:
    records = own.certify(images, labels)
    level = own.session(tuple(images.shape[1:])).setting.alpha
    return Part(records, own.certifier.alpha, level, own.noise.sigma)


def _selector(start: nn.Module, routes: int, images: Tensor, best: Tensor, sigma: float) -> nn.Module:
    torch.manual_seed(0)
    network = build_network("mnist_lenet", routes, (1, 28, 28), 0.1307, 0.3081)
    state = start.state_dict()
    network.load_state_dict({k: state[k] for k in state if "fc2" not in k}, strict=False)
    # The rarer best experts count as much as the others together.
    weight = 1.0 / torch.bincount(best, minlength=routes).clamp(min=1).float().sqrt()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    epochs = 12
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            noisy = images[rows] + sigma * torch.randn_like(images[rows])
            nn.functional.cross_entropy(network(noisy), best[rows], weight).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def _radii(records: Sequence[Certification], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the radius where the answer is right, -1 elsewhere."""
    return np.array([r.radius if r.prediction == label else -1.0 for r, label in zip(records, labels, strict=True)])


def _alone(part: Part, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the radii of one expert that has all of alpha, from the same votes."""
    hits = np.take_along_axis(part.counts, part.top[:, None], axis=1)[:, 0]
    level = ALPHA - (part.alpha - part.level)
    tail = clopper_pearson_tail_upper(hits, part.counts.sum(axis=1), level)
    radius = np.where(part.void, 0.0, np.asarray(gaussian_l2_radius(q_upper=tail, sigma=part.sigma)))
    return np.where((part.top == labels) & (radius > 0), radius, -1.0)


def _difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> str:
    low, high = paired_difference_interval(int((other & ~one).sum()), int((one & ~other).sum()), len(one))
    return f"{one.mean() - other.mean():+.3f} ({float(low):+.3f}, {float(high):+.3f})"


if __name__ == "__main__":
    main()
