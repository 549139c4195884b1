"""Samples an image by budget, on a trained checkpoint through the real engine.

Three tables: samples to decide "certified at r" for r fixed in advance; the staged budget beside fixed n; and the
curve of samples saved against average certified radius (ACR) lost as the staged budget's tolerance grows. The stages
are drawn once by the engine; every tolerance is then replayed on the same counts by the real budget.

    python -m benchmarks.samples --checkpoint checkpoints/mnist_lenet_gaussian_0.25.ckpt --root data
    python -m benchmarks.samples --records runs/certify/certify.jsonl     # the curve alone, without sampling again

With ``--records`` the counts of finished records of fixed n are split into stages at random without replacement:
independent samples come in any order, so the stages are as if they had been drawn one after the other.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.common import Row, environment, finish, parser, show
from lightning_rs.budgets import DecideRadius, Group, Outcome, Selection, StagedSamples, Task
from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.networks import build_network
from lightning_rs.noise.base import Noise, noise_from_dict
from lightning_rs.records import read_records
from lightning_rs.session import Session
from lightning_rs.setting import Setting
from lightning_rs.statistics.sequential import StagedClopperPearson

IntArray = NDArray[np.int64]
TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2)
SIGMAS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Images:
    """Clean images (B, *shape), their labels and their own indices."""

    images: Tensor
    labels: list[int]
    indices: list[int]

    def first(self, count: int) -> Images:
        """Return ``count`` of them, spread evenly."""
        rows = np.linspace(0, len(self.labels) - 1, min(count, len(self.labels))).round().astype(int)
        return Images(self.images[rows], [self.labels[r] for r in rows], [self.indices[r] for r in rows])


class Replay:
    """Stands for a sampler: hands out counts that the engine has already drawn, part by part."""

    def __init__(self, indices: Sequence[int], parts: Sequence[IntArray]) -> None:
        self.prepared = SimpleNamespace(num_classes=parts[0].shape[1])
        self._row = {index: row for row, index in enumerate(indices)}
        self._parts = parts

    def collect(
        self,
        images: Tensor,
        indices: Sequence[int],
        purpose: str,
        n: int,
        kinds: object,
        selection: Selection | None = None,
        part: int = 0,
        outcomes: object = None,
    ) -> dict[type[Evidence], Evidence]:
        """Return the counts of one part for some of the images."""
        counts = self._parts[part][[self._row[int(i)] for i in indices]]
        assert (counts.sum(1) == n).all()
        return {Votes: Votes.of(counts)}


def load(
    checkpoint: Path, root: Path | None, images: int, dataset: str | None = None
) -> tuple[nn.Module, Noise, Images]:
    """Return the network, the noise and the first test images that a checkpoint of ours names.

    Raises:
        ValueError: if neither the checkpoint nor ``dataset`` names a data module.
    """
    held = torch.load(checkpoint, map_location="cpu", weights_only=True)
    own, init = held["lightning_rs"], held["lightning_rs"]["init_args"]
    data = {"class_path": dataset} if dataset else own["data"]
    if not data:
        raise ValueError(f"dataset must be given, since checkpoint {str(checkpoint)!r} does not name its data")
    network = build_network(
        init["network"], init["num_classes"], init["shape"], init["mean"], init["std"], **init["network_args"]
    )
    prefix = "network."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in held["state_dict"].items() if k.startswith(prefix)})
    module, _, name = data["class_path"].rpartition(".")
    given = {**data.get("init_args", {}), "skip": 1, "max": images} | ({"root": root} if root else {})
    datamodule = getattr(importlib.import_module(module), name)(**given)
    datamodule.prepare_data()
    datamodule.setup("predict")
    samples = list(datamodule.certification_subset())
    stacked = torch.stack([torch.as_tensor(sample["image"]) for sample in samples])
    found = Images(stacked, [int(s["label"]) for s in samples], [int(s["index"]) for s in samples])
    return network.eval(), noise_from_dict(own["noise"]), found


def select(session: Session, some: Images) -> Selection:
    """Choose each image's class on selection samples, as the certifier does."""
    certifier = session.certifier
    found = session.sampler.collect(some.images, some.indices, "selection", certifier.n0, [Votes])[Votes]
    assert isinstance(found, Votes)
    return Selection.of(found.counts)


def draw_stages(session: Session, some: Images, budget: StagedSamples) -> list[IntArray]:
    """Draw what every stage of the staged budget would see if no image ever stopped."""
    rule = StagedClopperPearson.geometric(session.certifier.n, session.certifier.alpha, budget.first, budget.factor)
    parts = []
    for stage, (before, size) in enumerate(zip((0, *rule.sizes), rule.sizes, strict=False)):
        votes = session.sampler.collect(
            some.images, some.indices, session.purposes[1], size - before, [Votes], part=stage
        )[Votes]
        assert isinstance(votes, Votes)
        parts.append(votes.counts)
    return parts


def average_radius(outcome: Outcome, labels: Sequence[int]) -> float:
    """Return the average certified radius: wrong and abstained images count as 0."""
    radii = next(iter(outcome.radii.values()))
    return float(np.mean(radii.radius * (radii.prediction == np.asarray(labels))))


def sampled(session: Session, some: Images) -> tuple[Task, Group, Selection, list[IntArray]]:
    """Return what the staged curve replays, drawn by the engine."""
    parts = draw_stages(session, some, StagedSamples())
    replay: Any = Replay(some.indices, parts)
    group = Group(some.images, some.indices, some.labels)
    return replace(session.task, sampler=replay), group, select(session, some), parts


def recorded(path: Path) -> tuple[Task, Group, Selection, list[IntArray]]:
    """Return what the staged curve replays, from a record file.

    Raises:
        ValueError: if the records are not of fixed n, by Cohen's certificate, with their counts and labels.
    """
    header, records = read_records(path)
    if any(
        r.mode != "fixed" or r.certificate != "GaussianL2" or sum(r.counts) != r.n or r.label is None for r in records
    ):
        raise ValueError(f"{path} must hold labelled records of GaussianL2 with all counts of a fixed n")
    counts = np.array([record.counts for record in records])
    n, alpha, rng = records[0].n, records[0].alpha, np.random.default_rng(0)
    indices, budget = [record.index for record in records], StagedSamples()
    sizes = StagedClopperPearson.geometric(n, alpha, budget.first, budget.factor).sizes
    parts, left = [], counts
    for before, size in zip((0, *sizes), sizes, strict=False):
        parts.append(np.array([rng.multivariate_hypergeometric(row, size - before) for row in left]))
        left = left - parts[-1]
    replay: Any = Replay(indices, parts)
    top, runner_up = (np.array([getattr(r, name) for r in records]) for name in ("top", "runner_up"))
    noise, shape = noise_from_dict(header.binding["noise"]), tuple(header.binding["shape"])
    task = Task(replay, "estimation", (GaussianL2(),), Setting(noise, alpha, n, shape))
    labels = [int(record.label or 0) for record in records]
    return task, Group(torch.zeros(len(records), 1), indices, labels), Selection(top, runner_up, None), parts


def staged_curve(
    task: Task, group: Group, selection: Selection, parts: Sequence[IntArray], tolerances: Sequence[float]
) -> list[Row]:
    """Replay fixed n and the staged budget at each tolerance on one set of counts."""
    certificate, n, labels = task.certificates[0], task.setting.n, group.labels or []
    setting = replace(task.setting, selection=selection)
    radii = certificate.certify({Votes: Votes.of(sum(parts, np.zeros_like(parts[0])))}, setting)
    used = np.full(len(labels), n)
    fixed = Outcome({certificate.name: radii}, parts[0], n, used)
    best = average_radius(fixed, labels)
    rows = [_staged_row("fixed", fixed, best, best, n)]
    for tolerance in tolerances:
        outcome = StagedSamples(tolerance).run(task, group, selection)
        rows.append(_staged_row(f"staged, tolerance {tolerance:g}", outcome, average_radius(outcome, labels), best, n))
    return [{"sigma": task.setting.noise.sigma, **row} for row in rows]


def _staged_row(name: str, outcome: Outcome, radius: float, best: float, n: int) -> Row:
    return {
        "budget": name,
        "median samples": float(np.median(outcome.used)),
        "mean samples": float(outcome.used.mean()),
        "times fewer (mean)": n / float(outcome.used.mean()),
        "ACR": radius,
        "ACR lost": 1 - radius / best if best else 0.0,
    }


def decisions(session: Session, some: Images, sigma: float, radii: Sequence[float]) -> list[Row]:
    """Decide "certified at r" for each r, in units of sigma, with the real budget and the real engine."""
    selection, group = select(session, some), Group(some.images, some.indices, some.labels)
    rows = []
    for r in radii:
        start = time.perf_counter()
        outcome = DecideRadius(r * sigma).run(session.task, group, selection)
        seconds = time.perf_counter() - start
        status = np.asarray(outcome.status)
        rows.append(
            {
                "sigma": sigma,
                "r / sigma": r,
                "median samples": float(np.median(outcome.used)),
                "mean samples": float(outcome.used.mean()),
                "times fewer (median)": session.certifier.n / float(np.median(outcome.used)),
                "times fewer (mean)": session.certifier.n / float(outcome.used.mean()),
                "certified": float((status == "decided").mean()),
                "undecided": float((status == "undecided").mean()),
                "samples /s": float(outcome.used.sum()) / seconds,
            }
        )
    return rows


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return rows for people."""
    shares = ("ACR lost", "certified", "undecided")
    return [
        {
            key: value
            if isinstance(value, str)
            else f"{value:.2%}"
            if key in shares
            else f"{value:.4f}"
            if key == "ACR"
            else f"{value:,.4g}"
            if abs(value) < 1000
            else f"{value:,.0f}"
            for key, value in row.items()
        }
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    source = own.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--records", type=Path, help="records of fixed n: the staged curve alone")
    own.add_argument("--root", type=Path, help="folder of the data, if not where the checkpoint says")
    own.add_argument("--dataset", help="data module, such as lightning_rs.data.MNIST, if not the checkpoint's own")
    own.add_argument("--n", type=int, default=100_000)
    own.add_argument("--n0", type=int, default=100)
    own.add_argument("--alpha", type=float, default=0.001)
    own.add_argument("--images", type=int, default=50, help="images for the staged curve, n samples each")
    own.add_argument("--decided", type=int, default=500, help="images for the decisions")
    own.add_argument("--precision", default="bf16-true")
    args = own.parse_args(argv)
    if args.records:
        staged = staged_curve(*recorded(args.records), TOLERANCES)
        show(f"Staged Clopper-Pearson beside fixed n, {args.records}", shown(staged))
        return finish(args.out, staged=staged, records=str(args.records))
    if args.quick:
        args.n, args.images, args.decided = min(args.n, 1000), min(args.images, 4), min(args.decided, 4)
    network, noise, images = load(args.checkpoint, args.root, max(args.images, args.decided), args.dataset)
    certifier = Certifier(n0=args.n0, n=args.n, alpha=args.alpha, runtime=Runtime(precision=args.precision))
    session = certifier.session(network.to(args.device), noise, tuple(images.images.shape[1:]))
    print(environment(), f"{noise!r}, n0 = {args.n0}, n = {args.n}, alpha = {args.alpha}", sep="\n")
    decided = decisions(session, images.first(args.decided), noise.sigma, SIGMAS)
    show(f"Decide 'certified at r', {min(args.decided, len(images.labels))} images", shown(decided))
    staged = staged_curve(*sampled(session, images.first(args.images)), TOLERANCES)
    show(f"Staged Clopper-Pearson beside fixed n, {min(args.images, len(images.labels))} images", shown(staged))
    return finish(args.out, decisions=decided, staged=staged, checkpoint=str(args.checkpoint), n=args.n)


if __name__ == "__main__":
    main()
