"""Samples a second under deterministic splitting noise: whole enumerations beside the forward pass alone.

All in one process and taking turns; Gaussian sampling of the same network is the yardstick.

    python -m benchmarks.splitting [--networks cifar_resnet20 ...] [--sigmas 0.5 3.5] [--precisions bf16-true]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Row, alternate, environment, finish, parser, show, spread
from benchmarks.throughput import SHAPES as SHAPES_OF_ALL
from benchmarks.throughput import engine, forward_only, network_of
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import EnumeratedVotes
from lightning_rs.noise import DeterministicSplittingNoise, GaussianNoise

# A network so cheap that the noise is a good part of the work.
SHAPES = {**SHAPES_OF_ALL, "small_cnn": (3, 32, 32)}


def gray_image(shape: Sequence[int]) -> Tensor:
    """Return one random 8-bit image, (1, *shape), multiples of 1/255."""
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(1, *shape)) / 255).float()


def enumeration(sampler: Sampler, image: Tensor) -> Callable[[int], int]:
    """Return whole enumerations of as many copies of the image as fill the samples."""
    assert isinstance(sampler.noise, DeterministicSplittingNoise)
    size = sampler.noise.size

    def work(samples: int) -> int:
        images = image.expand(-(-samples // size), *image.shape[1:])
        found = sampler.collect(images, range(len(images)), "estimation", 1, [EnumeratedVotes])[EnumeratedVotes]
        assert isinstance(found, EnumeratedVotes)
        return int(found.counts.sum())

    return work


def measure(
    name: str, sigmas: Sequence[float], runtime: Runtime, device: str, seconds: float, rounds: int
) -> list[Row]:
    """Measure one network at each sigma, all in one set of turns."""
    shape = SHAPES[name]
    network, image = network_of(name, shape).to(device), gray_image(shape)
    prepared = runtime.prepare(network, shape, device)
    laws = {sigma: DeterministicSplittingNoise(sigma=sigma, shape=shape) for sigma in sigmas}
    works = {
        "forward": forward_only(prepared),
        "gaussian": engine(Sampler(prepared, GaussianNoise(0.5), "benchmark", 0), image),
        **{
            f"sigma {sigma:g}": enumeration(Sampler(prepared, law, "benchmark", 0), image)
            for sigma, law in laws.items()
        },
    }
    rates = alternate(works, seconds, rounds)
    shared = {
        "network": name,
        "runtime": prepared.describe(),
        "forward": rates["forward"],
        "gaussian": rates["gaussian"],
    }
    return [
        {**shared, "sigma": sigma, "levels": law.levels, "dssn": rates[f"sigma {sigma:g}"]}
        for sigma, law in laws.items()
    ]


def summary(row: Row) -> Row:
    """Return a measured row for people: ratios are taken round by round."""
    ratios = {
        name: [own / bare for own, bare in zip(row[name], row["forward"], strict=True)] for name in ("dssn", "gaussian")
    }
    runtime = row["runtime"]
    return {
        "network": row["network"],
        "precision": runtime["precision"] + (" compiled" if runtime["compiled"] else ""),
        "micro-batch": runtime["micro_batch"],
        "sigma": row["sigma"],
        "K": row["levels"],
        "forward /s": f"{statistics.median(row['forward']):,.0f}",
        "DSSN /s": f"{statistics.median(row['dssn']):,.0f}",
        "DSSN / forward": spread(ratios["dssn"]),
        "Gaussian / forward": spread(ratios["gaussian"]),
        "s an image": f"{row['levels'] / statistics.median(row['dssn']):.4f}",
    }


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument(
        "--networks", nargs="+", default=["cifar_resnet20", "small_cnn", "mnist_lenet"], choices=sorted(SHAPES)
    )
    own.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 1.0, 3.5])
    own.add_argument("--precisions", nargs="+", default=["32-true", "bf16-true"])
    own.add_argument("--compile", action="store_true", help="with torch.compile")
    own.add_argument("--micro-batch", type=int)
    own.add_argument("--threads", type=int, help="micro-batches at work at a time")
    own.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    own.add_argument("--rounds", type=int, default=5)
    args = own.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.networks, args.seconds, args.rounds = ["digits_cnn"], 0.02, 2
    print(environment())
    rows = []
    for name in args.networks:
        for precision in args.precisions:
            runtime = Runtime(precision=precision, compile=args.compile, micro_batch=args.micro_batch or "auto")
            rows += measure(name, args.sigmas, runtime, args.device, args.seconds, args.rounds)
        show("Samples a second", [summary(row) for row in rows])
    return finish(args.out, splitting=rows, summary=[summary(row) for row in rows])


if __name__ == "__main__":
    main()
