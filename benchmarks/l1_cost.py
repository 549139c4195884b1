"""Seconds an image of the l1 noises: uniform and SSN with n samples, DSSN with its enumeration.

One network, one runtime, one process, taking turns.

    python -m benchmarks.l1_cost [--network small_cnn] [--shape 1 28 28] [--sigmas 1 2 3.5] [--n 100000]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.common import Row, alternate, environment, finish, parser, show, spread
from benchmarks.splitting import gray_image
from benchmarks.throughput import network_of
from lightning_rs.certificates import Certificate, DeterministicSplittingL1, SplittingL1, UniformL1
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import DeterministicSplittingNoise, Noise, SplittingNoise, UniformNoise
from lightning_rs.session import Session


def images_of(session: Session, shape: Sequence[int]) -> Callable[[int], int]:
    """Return the certification of as many copies of an image as it is told to, a number of images."""
    image = gray_image(shape)
    # `alternate` starts at 64 units of work; sampled noises would need minutes for so many images.
    per_image = session.samples_per_image

    def work(samples: int) -> int:
        images = image.expand(-(-samples // per_image), *shape)
        return per_image * len(list(session.certify(images)))

    return work


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument("--network", default="small_cnn")
    own.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    own.add_argument("--sigmas", type=float, nargs="+", default=[1.0, 2.0, 3.5])
    own.add_argument("--n", type=int, default=100_000)
    own.add_argument("--precision", default="bf16-true")
    own.add_argument("--compile", action="store_true")
    own.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    own.add_argument("--rounds", type=int, default=3)
    args = own.parse_args(argv)
    if args.quick:
        args.network, args.shape, args.n, args.sigmas = "digits_cnn", [1, 8, 8], 500, [0.25]
        args.seconds, args.rounds = 0.02, 2
    shape = tuple(args.shape)
    network = network_of(args.network, shape).to(args.device)
    runtime = Runtime(precision=args.precision, compile=args.compile)
    laws: list[tuple[str, Noise, Certificate]] = [
        ("uniform", UniformNoise(sigma=args.sigmas[0]), UniformL1()),
        ("SSN", SplittingNoise(sigma=args.sigmas[0]), SplittingL1()),
    ]
    for sigma in args.sigmas:
        law = DeterministicSplittingNoise(sigma=sigma, shape=shape)
        laws.append((f"DSSN {sigma:g}", law, DeterministicSplittingL1()))
    print(environment())
    sessions = {
        name: Certifier([certificate], n=args.n, runtime=runtime).session(network, law, shape)
        for name, law, certificate in laws
    }
    rates = alternate({name: images_of(each, shape) for name, each in sessions.items()}, args.seconds, args.rounds)
    rows = [
        {"noise": name, "samples": session.samples_per_image,
         "seconds": [session.samples_per_image / rate for rate in rates[name]]}
        for name, session in sessions.items()
    ]  # fmt: skip
    base = rows[1]["seconds"]
    shown = [
        {
            "noise": row["noise"],
            "samples an image": f"{row['samples']:,}",
            "s an image": f"{statistics.median(row['seconds']):.4f}",
            "faster than SSN": spread([one / other for one, other in zip(base, row["seconds"], strict=True)], 1),
        }
        for row in rows
    ]
    show("Seconds an image", shown)
    return finish(args.out, l1_cost=rows, summary=shown)


if __name__ == "__main__":
    main()
