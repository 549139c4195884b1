"""How the cost of certification grows: with n, with images, with the size of an image, with ranks.

python -m benchmarks.scaling [--network mnist_lenet] [--ranks 1 2]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, environment, finish, parser, show
from benchmarks.throughput import SHAPES, SIGMA, network_of
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import GaussianNoise
from lightning_rs.session import Session


def session_of(name: str, shape: tuple[int, ...], n: int, args: Any, n0: int = 100) -> Session:
    """Return a session of Cohen's certificate at fixed n, probed and warm."""
    certifier = Certifier(n0=n0, n=n, runtime=Runtime(precision=args.precision))
    session = certifier.session(network_of(name, shape).to(args.device), GaussianNoise(SIGMA), shape)
    list(session.certify(images_of(1, shape)))
    return session


def images_of(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return images that do not depend on their number."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def seconds_of(session: Session, images: torch.Tensor, indices: Sequence[int] | None = None) -> float:
    """Certify and return how long it took."""
    start = time.perf_counter()
    for _ in session.certify(images, indices=indices):
        pass
    return time.perf_counter() - start


def peak_memory() -> float:
    """Return the largest memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):  # getrusage counts what the process was forked from, too
            return int(line.split()[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def cost(session: Session, images: torch.Tensor) -> Row:
    """Return what certifying took: in all, and a sample."""
    took = seconds_of(session, images)
    samples = len(images) * session.samples_per_image
    return {"seconds": took, "us a sample": took / samples * 1e6, "peak MiB": peak_memory()}


def against_n(args: Any) -> list[Row]:
    shape = SHAPES[args.network]
    images = images_of(2, shape)
    return [{"n": n, **cost(session_of(args.network, shape, n, args), images)} for n in args.n]


def against_images(args: Any) -> list[Row]:
    shape, rows = SHAPES[args.network], []
    for count in args.images:
        rows.append(
            {"images": count, **cost(session_of(args.network, shape, args.n[0], args), images_of(count, shape))}
        )
    return rows


def against_size(args: Any) -> list[Row]:
    rows = []
    for size in args.sizes:
        session = session_of("cifar_resnet20", (3, size, size), 8 * 32, args, n0=32)
        row = cost(session, images_of(1, (3, size, size)))
        pixels = {"us a sample and 1000 pixels": row["us a sample"] * 1000 / size**2}
        rows.append({"side": size, "micro-batch": session.prepared.micro_batch, **row, **pixels})
    return rows


def _one_large_image(n: int, args: Any) -> Row:
    shape = (3, 224, 224)
    certifier = Certifier(n0=32, n=n, runtime=Runtime(precision=args.precision))
    session = certifier.session(network_of("small_cnn", shape).to(args.device), GaussianNoise(SIGMA), shape)
    prepared = peak_memory()
    return {"n": n, "MiB before sampling": prepared, **cost(session, images_of(1, shape))}


def against_n_at_imagenet_size(args: Any) -> list[Row]:
    """One 3x224x224 image through a network that is cheap at that size, each n in a process of its own."""
    start, rows = multiprocessing.get_context("spawn"), []
    for n in args.large:
        with ProcessPoolExecutor(1, start) as own:
            rows.append(own.submit(_one_large_image, n, args).result())
    return rows


def _rank(rank: int, ranks: int, args: Any, gate: Any, times: Any) -> None:
    torch.set_num_threads(max(1, args.threads // ranks))
    shape = SHAPES[args.network]
    session, images = session_of(args.network, shape, args.n[0], args), images_of(args.shared, shape)
    own = list(range(rank, args.shared, ranks))
    gate.wait()
    times.put(seconds_of(session, images[own], own))


def against_ranks(args: Any) -> list[Row]:
    """Certify the same images on several processes that share the cores, every image once."""
    rows, start = [], multiprocessing.get_context("spawn")
    for ranks in args.ranks:
        gate, times = start.Barrier(ranks), start.Queue()
        jobs = [start.Process(target=_rank, args=(rank, ranks, args, gate, times)) for rank in range(ranks)]
        for job in jobs:
            job.start()
        slowest = max(times.get(timeout=600) for _ in jobs)
        for job in jobs:
            job.join()
        rows.append({"ranks": ranks, "threads each": max(1, args.threads // ranks), "slowest rank, seconds": slowest})
    return rows


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return rows for people."""
    return [
        {k: f"{v:,.3g}" if isinstance(v, float) and v < 1000 else f"{v:,.0f}" for k, v in row.items()} for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument("--network", default="mnist_lenet", choices=list(SHAPES))
    own.add_argument("--precision", default="bf16-true")
    own.add_argument("--n", type=int, nargs="+", default=[1000, 10_000, 100_000])
    own.add_argument("--images", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    own.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128])
    own.add_argument("--large", type=int, nargs="*", default=[1000, 10_000, 100_000], help="n at 3x224x224")
    own.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    own.add_argument("--shared", type=int, default=64, help="images that the ranks share")
    own.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads that the ranks share")
    args = own.parse_args(argv)
    if args.quick:
        args.n, args.images, args.sizes, args.shared = [50, 100], [1, 3], [8, 12], 3
        args.large = [32, 64][: len(args.large)]
    print(environment(), f"{args.network}, {args.precision}", sep="\n")
    tables: dict[str, list[Row]] = {}
    titles = {
        "n": "Against n (2 images)",
        "images": f"Against images (n = {args.n[0]})",
        "size": "Against the side of an image (ResNet-20)",
        "large": "Against n at 3x224x224 (one image, small CNN)",
        "ranks": f"Against ranks ({args.shared} images, n = {args.n[0]})",
    }
    measures = (against_n, against_images, against_size, against_n_at_imagenet_size, against_ranks)
    for (key, title), measure in zip(titles.items(), measures, strict=True):
        tables[key] = measure(args)
        show(title, shown(tables[key]))
    return finish(args.out, network=args.network, precision=args.precision, **tables)


if __name__ == "__main__":
    main()
