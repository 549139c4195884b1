"""This engine beside that of another checkout: two processes take turns with whole certifications.

python -m benchmarks.before OLD_CHECKOUT [--networks mnist_lenet] [--precisions 32-true int8] [--n 20000]

Only one process works at a time: each waits for a line on its standard input. CPU seconds say what a certificate costs;
wall seconds say what a user waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Row, environment, finish, median_interval, parser, show

# Runs in either checkout, so only with what both have.
_WORKER = """
import json, sys, time
import torch
from benchmarks.throughput import SHAPES, network_of
from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import GaussianNoise

task = json.loads(sys.argv[1])
torch.manual_seed(0)
shape = SHAPES[task["network"]]
network = network_of(task["network"], shape)
images = torch.randint(0, 256, (task["images"], *shape)) / 255
certifier = Certifier([GaussianL2()], n=task["n"], runtime=Runtime(precision=task["precision"]))
session = certifier.session(network.eval(), GaussianNoise(task["sigma"]), shape, grid=255)
list(session.certify(images))
print("ready", flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    list(session.certify(images))
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)
"""


class _Engine:
    """A process of one checkout that certifies when it is told to."""

    def __init__(self, checkout: Path, task: Row) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _old_names(checkout, _WORKER), json.dumps(task)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the engine ended with {self._process.wait()}; its error is above")
        return line

    def turn(self) -> Row:
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return json.loads(self._answer())


def _old_names(checkout: Path, code: str) -> str:
    """Return the code with the module names of a checkout from before the engine had a folder."""
    old = (checkout / "lightning_rs/runtime.py").exists()
    return code.replace("lightning_rs.engine.", "lightning_rs.") if old else code


def measure(checkouts: dict[str, Path], task: Row, turns: int) -> Row:
    """Return the seconds of every turn of every checkout."""
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_Engine(path, task)) for name, path in checkouts.items()}
        seen: dict[str, list[Row]] = {name: [] for name in engines}
        for _ in range(turns):
            for name, engine in engines.items():
                seen[name].append(engine.turn())
    return {"task": task, "turns": seen}


def summary(row: Row) -> Row:
    """Return a measured row for people: ratios of speeds, turn by turn."""
    task, before, now = row["task"], row["turns"]["before"], row["turns"]["now"]
    ratio = {kind: [b[kind] / n[kind] for b, n in zip(before, now, strict=True)] for kind in ("cpu", "wall")}
    return {
        "what": f"{task['network']}, {task['precision']}, sigma {task['sigma']:g}, n = {task['n']:,}",
        "now / before, CPU": median_interval(ratio["cpu"], 3),
        "now / before, wall": median_interval(ratio["wall"], 3),
    }


def main(argv: Sequence[str] | None = None) -> Row:
    """Measure, show, and write what is asked for."""
    own = parser("This engine beside that of another checkout")
    own.add_argument("checkout", type=Path)
    own.add_argument("--networks", nargs="+", default=["mnist_lenet", "cifar_resnet20"])
    own.add_argument("--precisions", nargs="+", default=["32-true", "int8"])
    own.add_argument("--sigma", type=float, default=0.25)
    own.add_argument("--n", type=int, default=20_000)
    own.add_argument("--images", type=int, default=1)
    own.add_argument("--turns", type=int, default=21)
    args = own.parse_args(argv)
    if args.quick:
        args.networks, args.precisions, args.n, args.turns = ["digits_cnn"], ["32-true"], 200, 2
    checkouts = {"before": args.checkout.resolve(), "now": Path(__file__).parents[1]}
    rows = []
    for network in args.networks:
        for precision in args.precisions:
            task = {"network": network, "precision": precision, "sigma": args.sigma, "n": args.n, "images": args.images}
            rows.append(measure(checkouts, task, args.turns))
    show("before", [summary(row) for row in rows])
    print(environment())
    return finish(args.out, before=rows, summary=[summary(row) for row in rows])


if __name__ == "__main__":
    main()
