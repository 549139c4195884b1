"""What gradient information costs: one pass for five certificates beside the pass for votes alone.

Both collect evidence and compute radii by the same engine, in one process and taking turns.

    python -m benchmarks.one_pass [--networks cifar_resnet20 ...] [--precision bf16-true] [--threads 1]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, alternate, environment, finish, parser, show, spread
from benchmarks.throughput import SHAPES, SIGMA, network_of
from lightning_rs.budgets import FixedSamples, Group, Selection
from lightning_rs.certificates import (
    Certificate,
    ChannelL2,
    FirstOrderL1,
    FirstOrderLinf,
    GaussianL2,
    SecondOrderL2,
    Setting,
)
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.evidence import GradientSums, Votes
from lightning_rs.noise import GaussianNoise
from lightning_rs.session import Session

N = 100_000  # of the evidence on which radii alone are timed


def certificates(shape: tuple[int, ...]) -> dict[str, list[Certificate]]:
    """Return the two sets that are compared; the channel is the first one, which every image has."""
    gradient = [SecondOrderL2(), FirstOrderL1(), FirstOrderLinf(), ChannelL2("red" if shape[0] == 3 else "top")]
    return {"votes": [GaussianL2()], "five": [GaussianL2(), *gradient]}


def one_image(session: Session, image: torch.Tensor) -> Callable[[int], int]:
    """Return the certification of one image from its selected class on: evidence, bounds and radii."""
    chosen = Selection.known([0], [1])

    def work(samples: int) -> int:
        samples += samples % 2
        outcome = FixedSamples().run(
            replace(session.task, setting=replace(session.setting, n=samples)), Group(image, [0]), chosen
        )
        return int(outcome.used.sum())

    return work


def solving(own: Sequence[Certificate], shape: tuple[int, ...], images: int) -> float:
    """Return the milliseconds an image that the radii alone take, for p = 0.9 and a gradient that helps."""
    dim = int(np.prod(shape))
    hits = np.full(images, N * 9 // 10)
    halves = torch.full((images, 2, dim), 0.08 * SIGMA * (N // 2) / dim**0.5, dtype=torch.float64)
    top = np.zeros(images, dtype=np.int64)
    evidence = {
        Votes: Votes.of(np.stack([hits, N - hits], axis=1)),
        GradientSums: GradientSums(halves, torch.from_numpy(top), N // 2, (N // 2, N // 2), None),
    }
    setting = Setting(GaussianNoise(SIGMA), 0.001, N, shape, selection=Selection(top, top + 1))
    start = time.perf_counter()
    for certificate in own:
        certificate.certify(evidence, setting)
    return 1e3 * (time.perf_counter() - start) / images


def measure(name: str, shape: tuple[int, int, int], runtime: Runtime, args: Any) -> Row:
    """Measure one network."""
    network, image = network_of(name, shape).to(args.device), torch.rand(1, *shape)
    works = {}
    for label, own in certificates(shape).items():
        session = Certifier(own, n=100, runtime=runtime).session(network, GaussianNoise(SIGMA), shape, args.device)
        works[label] = one_image(session, image)
    rates = alternate(works, args.seconds, args.rounds)
    five = certificates(shape)["five"]
    return {
        "network": name,
        "runtime": session.prepared.describe(),
        "rates": rates,
        "ms": {count: solving(five, shape, count) for count in (1, 32)},
    }


def summary(row: Row) -> Row:
    """Return a measured row for people: the ratio is taken round by round."""
    rates = row["rates"]
    ratio = [votes / five for votes, five in zip(rates["votes"], rates["five"], strict=True)]
    return {
        "network": row["network"],
        "precision": row["runtime"]["precision"] + (" compiled" if row["runtime"]["compiled"] else ""),
        "votes alone /s": f"{statistics.median(rates['votes']):,.0f}",
        "five /s": f"{statistics.median(rates['five']):,.0f}",
        "cost of five": spread(ratio, 3),
        "radii alone, ms an image": f"{row['ms'][1]:.1f}",
        "in groups of 32": f"{row['ms'][32]:.1f}",
    }


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument("--networks", nargs="+", default=["cifar_resnet20"], help=f"of {', '.join(SHAPES)}, small_cnn")
    own.add_argument("--precision", default="bf16-true")
    own.add_argument("--compile", action="store_true")
    own.add_argument("--threads", type=int, help="micro-batches at work at a time")
    own.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    own.add_argument("--rounds", type=int, default=5)
    args = own.parse_args(argv)
    if args.quick:
        args.networks, args.seconds, args.rounds = ["digits_cnn"], min(args.seconds, 0.02), min(args.rounds, 2)
    runtime = Runtime(precision=args.precision, compile=args.compile, threads=args.threads)
    print(environment())
    rows = [measure(name, SHAPES.get(name, (1, 28, 28)), runtime, args) for name in args.networks]
    shown = [summary(row) for row in rows]
    show("One pass for five certificates beside the pass for votes alone, samples a second", shown)
    return finish(args.out, one_pass=rows, summary=shown)


if __name__ == "__main__":
    main()
