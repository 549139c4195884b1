"""Samples a second: our engine, the loop of the reference implementations, and the forward pass alone.

All in one process and taking turns, so that the ratios mean something on a busy machine.

    python -m benchmarks.throughput [--networks cifar_resnet20 ...] [--precisions bf16-true 32-true] [--compile]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Row, alternate, environment, finish, parser, show, spread
from lightning_rs.engine.runtime import PreparedNetwork, Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.workers import one_thread
from lightning_rs.evidence import Votes
from lightning_rs.networks import build_network
from lightning_rs.noise import GaussianNoise

SIGMA = 0.5
SHAPES: dict[str, tuple[int, int, int]] = {
    "cifar_resnet20": (3, 32, 32),
    "cifar_resnet110": (3, 32, 32),
    "mnist_lenet": (1, 28, 28),
    "digits_cnn": (1, 8, 8),
    "torchvision/resnet50": (3, 224, 224),
}
ON_CPU = ["cifar_resnet20", "cifar_resnet110", "mnist_lenet", "digits_cnn"]


def network_of(name: str, shape: tuple[int, ...]) -> nn.Module:
    """Return a network with random weights: cost does not depend on them."""
    torch.manual_seed(0)
    classes = 1000 if shape[-1] > 100 else 10
    return build_network(name, classes, shape, mean=[0.5] * shape[0], std=[0.25] * shape[0]).eval()


def reference_loop(network: nn.Module, image: Tensor, classes: int, batch: int = 400) -> Callable[[int], int]:
    """Return the sampling of the reference implementations: one image repeated, float32, votes counted in Python."""

    @torch.no_grad()
    def work(samples: int) -> int:
        counts = np.zeros(classes, dtype=np.int64)
        for _ in range(-(-samples // batch)):
            repeated = image.repeat(batch, 1, 1, 1)
            noisy = repeated + torch.randn_like(repeated) * SIGMA
            for label in network(noisy).argmax(1).cpu().numpy():
                counts[label] += 1
        return int(counts.sum())

    return work


def forward_only(prepared: PreparedNetwork) -> Callable[[int], int]:
    """Return the same prepared network on constant micro-batches, on as many threads as the engine uses."""
    count = prepared.workers.count
    batches = [torch.rand_like(prepared.buffer(dtype=torch.float32)).to(prepared.dtype) for _ in range(count)]

    @torch.inference_mode()
    def run(rows: Tensor, times: int) -> None:
        for _ in range(times):
            prepared.logits(rows)

    def work(samples: int) -> int:
        times = -(-samples // (prepared.micro_batch * count))
        for done in [prepared.workers.submit(run, rows, times) for rows in batches]:
            done.result()
        if prepared.device.type == "cuda":
            torch.cuda.synchronize()
        return times * count * prepared.micro_batch

    return work


def engine(sampler: Sampler, images: Tensor) -> Callable[[int], int]:
    """Return our sampling loop, from keyed noise to counts on the host."""

    def work(samples: int) -> int:
        each = -(-samples // len(images))
        found = sampler.collect(images, range(len(images)), "estimation", each, [Votes])[Votes]
        assert isinstance(found, Votes)
        return int(found.counts.sum())

    return work


def measure(name: str, shape: tuple[int, int, int], runtimes: Sequence[Runtime], args: Any) -> list[Row]:
    """Measure one network under each runtime, beside one reference loop."""
    network = network_of(name, shape).to(args.device)
    image = torch.randint(0, 256, (1, *shape)) / 255
    lattice = GaussianNoise(SIGMA).on_lattice(255)
    rows = []
    for runtime in runtimes:
        prepared = runtime.prepare(network, shape, args.device)
        sampler = Sampler(prepared, GaussianNoise(SIGMA), "benchmark", 0, lattice=lattice)
        works = {
            "reference": reference_loop(network, image.to(args.device), prepared.num_classes, args.reference_batch),
            "forward": forward_only(prepared),
            "ours": engine(sampler, image),
        }
        rates = alternate(works, args.seconds, args.rounds)
        rows.append({"network": name, "runtime": prepared.describe(), "remarks": prepared.remarks, "rates": rates})
        rows[-1]["changed"] = prepared.probe(network, sampler.draw_rows(image)).changed
        if args.profile:
            where_time_goes(name, network, replace(runtime, threads=1), image, args.device)
    return rows


def where_time_goes(name: str, network: nn.Module, runtime: Runtime, image: Tensor, device: str) -> None:
    """Print the operations that take most of the engine's time, on one thread: the profiler sees no other."""
    prepared = runtime.prepare(network, tuple(image.shape[1:]), device)
    law = GaussianNoise(SIGMA)
    work = engine(Sampler(prepared, law, "benchmark", 0, lattice=law.on_lattice(255)), image)
    samples = 8 * prepared.micro_batch
    kinds = [ProfilerActivity.CUDA] if prepared.device.type == "cuda" else []
    with one_thread():
        work(samples)
        with profile(activities=[ProfilerActivity.CPU, *kinds]) as seen:
            work(samples)
    on_gpu = prepared.device.type == "cuda"
    times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in seen.key_averages()}
    total = sum(times.values())
    top = sorted(times.items(), key=lambda item: -item[1])[:8]
    show(
        f"{name}, {prepared.config.precision}: where the time goes",
        [{"operation": key, "us a sample": f"{t / samples:.3f}", "share": f"{t / total:.1%}"} for key, t in top],
    )


def summary(row: Row) -> Row:
    """Return a measured row for people: ratios are taken round by round."""
    rates, runtime = row["rates"], row["runtime"]
    ratio = {
        other: [own / their for own, their in zip(rates["ours"], rates[other], strict=True)]
        for other in ("reference", "forward")
    }
    return {
        "network": row["network"],
        "precision": runtime["precision"] + (" compiled" if runtime["compiled"] else ""),
        "micro-batch": runtime["micro_batch"],
        "reference /s": f"{statistics.median(rates['reference']):,.0f}",
        "forward /s": f"{statistics.median(rates['forward']):,.0f}",
        "ours /s": f"{statistics.median(rates['ours']):,.0f}",
        "ours / reference": spread(ratio["reference"]),
        "ours / forward": spread(ratio["forward"]),
        "labels changed": f"{row['changed']:.2%}",
    }


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument("--networks", nargs="+", help=f"of {', '.join(SHAPES)}, or any name with --shape")
    own.add_argument("--shape", type=int, nargs=3, help="shape of the input of a network that is not listed")
    own.add_argument("--precisions", nargs="+", help="32-true, bf16-true and, on a CPU, int8 unless told otherwise")
    own.add_argument("--compile", action="store_true", help="also with torch.compile")
    own.add_argument("--plain", action="store_true", help="also without fused layers")
    own.add_argument("--cuda-graph", action="store_true")
    own.add_argument("--micro-batch", type=int)
    own.add_argument("--threads", type=int, help="micro-batches at work at a time, and threads of the reference loop")
    own.add_argument("--reference-batch", type=int, default=400)
    own.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    own.add_argument("--rounds", type=int, default=5)
    own.add_argument("--profile", action="store_true", help="show where the engine's time goes")
    args = own.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.seconds, args.rounds = min(args.seconds, 0.02), min(args.rounds, 2)
    usual = ["digits_cnn"] if args.quick else ON_CPU + (["torchvision/resnet50"] if args.device == "cuda" else [])
    common = {"micro_batch": args.micro_batch or "auto", "cuda_graph": args.cuda_graph}
    precisions = args.precisions or ["32-true", "bf16-true", *(["int8"] if args.device == "cpu" else [])]
    floats = [precision for precision in precisions if precision != "int8"]  # int8 is always fused, never compiled
    runtimes = [Runtime(precision=p, **common) for p in precisions]
    if args.plain:
        runtimes += [Runtime(precision=p, fuse=False, **common) for p in floats]
    if args.compile:
        runtimes += [Runtime(precision=p, compile=True, **common) for p in floats]
    print(environment())
    rows = []
    for name in args.networks or usual:
        shape = tuple(args.shape) if args.shape else SHAPES[name]
        rows += measure(name, shape, runtimes, args)
        show("Samples a second", [summary(row) for row in rows])
    return finish(args.out, throughput=rows, summary=[summary(row) for row in rows])


if __name__ == "__main__":
    main()
