"""Whole-number noise beside floating-point noise: the same engine, taking turns, and the draws alone.

python -m benchmarks.lattice [--networks mnist_lenet cifar_resnet20] [--precisions 32-true int8] [--sigma 0.25]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.common import Row, alternate, environment, finish, median_interval, parser, show
from benchmarks.throughput import SHAPES, engine, network_of
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.workers import one_thread
from lightning_rs.noise import GaussianNoise
from lightning_rs.noise._tables import Scratch

GRID = 255


def draws(noise: GaussianNoise, numbers: int = 1 << 18) -> dict[str, Callable[[int], int]]:
    """Return the making of rows alone, in numbers: ``normal_`` and add, or table, add and scale; one chunk a time."""
    lattice = noise.on_lattice(GRID)
    assert lattice is not None
    shape = (numbers // 784, 784)
    generator, scratch, out = torch.Generator(), Scratch(), torch.empty(shape)
    real, whole = torch.empty(shape), torch.empty(shape, dtype=lattice.dtype)
    x = torch.randint(0, 256, (784,)) / GRID
    placed = lattice.place(x)

    def floating() -> None:
        noise.draw_(real, generator)
        noise.apply(x, real, out)

    def integer() -> None:
        lattice.draw_(whole, generator, scratch)
        lattice.apply(placed, whole, out)

    def repeated(step: Callable[[], None]) -> Callable[[int], int]:
        def work(count: int) -> int:
            times = -(-count // numbers)
            with one_thread():
                for _ in range(times):
                    step()
            return times * numbers

        return work

    return {"float": repeated(floating), "lattice": repeated(integer)}


def measure(name: str, precision: str, noise: GaussianNoise, seconds: float, rounds: int) -> Row:
    """Measure both engines on one prepared network."""
    shape = SHAPES[name]
    prepared = Runtime(precision=precision).prepare(network_of(name, shape), shape, "cpu")  # type: ignore[arg-type]
    image = torch.randint(0, 256, (1, *shape)) / GRID
    works = {
        kind: engine(Sampler(prepared, noise, "benchmark", 0, lattice=lattice), image)
        for kind, lattice in (("float", None), ("lattice", noise.on_lattice(GRID)))
    }
    # Whole micro-batches: padding would weigh on small numbers, and not on both alike.
    size = prepared.micro_batch
    filled = {kind: lambda n, work=work: work(-(-n // size) * size) for kind, work in works.items()}  # type: ignore[misc]
    return {"what": f"{name}, {precision}", "rates": alternate(filled, seconds, rounds), "remarks": prepared.remarks}


def summary(row: Row) -> Row:
    """Return a measured row for people: ratios are taken round by round."""
    rates = row["rates"]
    ratio = [own / other for own, other in zip(rates["lattice"], rates["float"], strict=True)]
    return {
        "what": row["what"],
        "float /s": f"{statistics.median(rates['float']):,.0f}",
        "lattice /s": f"{statistics.median(rates['lattice']):,.0f}",
        "lattice / float": median_interval(ratio, 3),
    }


def main(argv: Sequence[str] | None = None) -> Row:
    """Measure, show, and write what is asked for."""
    own = parser("Whole-number noise beside floating-point noise")
    own.add_argument("--networks", nargs="+", default=["mnist_lenet", "cifar_resnet20"])
    own.add_argument("--precisions", nargs="+", default=["32-true", "int8"])
    own.add_argument("--sigma", type=float, default=0.25)
    own.add_argument("--seconds", type=float, default=0.5)
    own.add_argument("--rounds", type=int, default=41)
    args = own.parse_args(argv)
    if args.quick:
        args.networks, args.precisions, args.seconds, args.rounds = ["digits_cnn"], ["32-true"], 0.05, 3
    noise = GaussianNoise(args.sigma)
    rows: list[Row] = [
        {"what": "draw, add, scale: numbers", "rates": alternate(draws(noise), args.seconds, args.rounds)},
        *(measure(n, p, noise, args.seconds, args.rounds) for n in args.networks for p in args.precisions),
    ]
    show("lattice", [summary(row) for row in rows])
    print(environment())
    return finish(args.out, lattice=rows, summary=[summary(row) for row in rows])


if __name__ == "__main__":
    main()
