"""What every noise promises: one table of all laws, one set of tests. A law that is missing from the table fails."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import lightning_rs.noise as noise_package
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import EnumeratedVotes, Votes
from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import AdditiveNoise, EnumeratedNoise, Noise, noise_from_dict, noise_to_dict
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerNoise, PureLinfNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from tests.helpers import HalfSpace

SHAPE = (2, 3, 4)
DIM = 24


@dataclass(frozen=True)
class Example:
    """A law on inputs of ``SHAPE``, and constructor arguments that must be refused with a message."""

    build: Callable[[], Noise]
    bad: list[tuple[dict[str, Any], str]] = field(default_factory=list)


EXAMPLES: dict[type[Noise], list[Example]] = {
    GaussianNoise: [
        Example(
            lambda: GaussianNoise(0.5),
            [
                ({"sigma": 0.0}, "sigma must be finite and > 0, got 0.0"),
                ({"sigma": -1.0}, "sigma must be finite and > 0, got -1.0"),
                ({"sigma": float("nan")}, "sigma must not be NaN"),
                ({"sigma": float("inf")}, "sigma must be finite and > 0, got inf"),
            ],
        )
    ],
    LaplaceNoise: [
        Example(
            lambda: LaplaceNoise(0.3),
            [
                ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
                ({"scale": float("nan")}, "scale must not be NaN"),
            ],
        )
    ],
    UniformNoise: [
        Example(
            lambda: UniformNoise(0.7),
            [
                ({"lam": -0.1}, "lam must be finite and > 0, got -0.1"),
                ({"sigma": 0.0}, "sigma must be finite and > 0, got 0.0"),
                ({}, "exactly one of lam and sigma .* got lam=None, sigma=None"),
                ({"lam": 1.0, "sigma": 1.0}, "exactly one of lam and sigma .* got lam=1.0, sigma=1.0"),
            ],
        ),
        Example(lambda: UniformNoise(sigma=0.25)),
    ],
    SplittingNoise: [
        Example(
            lambda: SplittingNoise(0.8),
            [
                ({"lam": 0.0}, "lam must be finite and > 0, got 0.0"),
                ({"lam": 1.0, "sigma": 1.0}, "exactly one of lam and sigma"),
            ],
        ),
        Example(lambda: SplittingNoise(0.2)),
    ],
    DeterministicSplittingNoise: [
        Example(
            lambda: DeterministicSplittingNoise(0.6, shape=SHAPE, q=16, seed=3),
            [
                ({"lam": 0.0, "shape": SHAPE}, "lam must be finite and > 0, got 0.0"),
                ({"lam": 0.01, "shape": SHAPE, "q": 16}, r"lam must be at least 1/\(2q\) = 0.03125 .* got 0.01"),
                ({"lam": 0.6, "shape": (0,)}, "shape must be a whole number >= 1, got 0"),
                ({"lam": 0.6, "shape": SHAPE, "q": 0}, "q must be a whole number >= 1, got 0"),
                ({"lam": 0.6, "shape": SHAPE, "seed": -1}, "seed must be a whole number >= 0, got -1"),
                ({"lam": 0.6, "shape": SHAPE, "v_sha256": "no"}, "v_sha256 must be [0-9a-f]{64} .* got no"),
            ],
        )
    ],
    BandNoise: [
        Example(
            lambda: BandNoise(2, shape=SHAPE),
            [
                ({"kept": 0, "shape": SHAPE}, "kept must be a whole number >= 1, got 0"),
                ({"kept": 5, "shape": SHAPE}, "kept must be at most 4 .* got 5"),
                ({"kept": 1, "shape": (4,)}, r"shape must be \(C, H, W\), got \(4,\)"),
                ({"kept": 1, "shape": SHAPE, "threshold": 0}, r"threshold must lie in \(0, 1\), got 0"),
                ({"kept": 1, "shape": SHAPE, "threshold": 1.0}, r"threshold must lie in \(0, 1\), got 1.0"),
                ({"kept": 1, "shape": SHAPE, "threshold": 1.5}, r"threshold must lie in \(0, 1\), got 1.5"),
                ({"kept": 1, "shape": SHAPE, "threshold": float("nan")}, "threshold must not be NaN, got nan"),
            ],
        ),
        Example(lambda: BandNoise(2, shape=SHAPE, threshold=0.6)),
    ],
    BlockNoise: [
        Example(lambda: BlockNoise(2, shape=SHAPE), [({"kept": 4, "shape": SHAPE}, "kept must be at most 3 .* got 4")])
    ],
    AblationNoise: [
        Example(
            lambda: AblationNoise(5, shape=SHAPE),
            [
                ({"k": 0, "shape": SHAPE}, "k must be a whole number >= 1, got 0"),
                ({"k": 13, "shape": SHAPE}, "k must be at most the number of pixels, 12, got 13"),
            ],
        )
    ],
    NormPowerNoise: [
        Example(
            lambda: NormPowerNoise(0.5, k=6.0, dim=DIM),
            [
                ({"sigma": 0.0, "k": 1.0, "dim": 4}, "sigma must be finite and > 0, got 0.0"),
                ({"sigma": 1.0, "k": -1.0, "dim": 4}, "k must be >= 0, got -1.0"),
                ({"sigma": 1.0, "k": 4.0, "dim": 4}, "k must be at most dim - 0.25, got 4.0"),
                ({"sigma": 1.0, "k": 1.0, "dim": 1}, "dim must be a whole number >= 2, got 1"),
                ({"sigma": 1.0, "k": 1.0, "dim": 4, "match": "norm"}, "rule must be one of .* got 'norm'"),
            ],
        ),
        Example(lambda: NormPowerNoise(0.5, k=0.0, dim=DIM, match="none")),
    ],
    MixedNormNoise: [
        Example(
            lambda: MixedNormNoise(0.5, k_inf=4.0, dim=DIM, k_2=2.0),
            [
                ({"sigma": -2.0, "k_inf": 1.0, "dim": 4}, "sigma must be finite and > 0, got -2.0"),
                ({"sigma": 1.0, "k_inf": -1.0, "dim": 4}, "k_inf must be >= 0, got -1.0"),
                ({"sigma": 1.0, "k_inf": 3.0, "dim": 4, "k_2": 1.0}, "k_inf .* must be at most dim - 0.25, got 4.0"),
            ],
        )
    ],
    PureLinfNoise: [
        Example(
            lambda: PureLinfNoise(0.5, k=5.0, dim=DIM),
            [
                ({"sigma": 0.0, "k": 1.0, "dim": 4}, "sigma must be finite and > 0, got 0.0"),
                ({"sigma": 1.0, "k": 9.0, "dim": 4}, "k must be at most dim - 0.25, got 9.0"),
                ({"sigma": 1.0, "k": 1.0, "dim": 4, "match": "mode"}, "match must be one of 'rms', 'none', got 'mode'"),
            ],
        )
    ],
}
ALL = [pytest.param(e.build(), id=f"{cls.__name__}-{i}") for cls, es in EXAMPLES.items() for i, e in enumerate(es)]
BAD = [
    pytest.param(cls, arguments, message, id=f"{cls.__name__}-{arguments}")
    for cls, examples in EXAMPLES.items()
    for example in examples
    for arguments, message in example.bad
]
every = pytest.mark.parametrize("noise", ALL)


def concrete_laws() -> set[type[Noise]]:
    for module in pkgutil.iter_modules(noise_package.__path__):
        importlib.import_module(f"{noise_package.__name__}.{module.name}")
    found, queue = set(), [Noise]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if not inspect.isabstract(cls) and cls.__module__.startswith("lightning_rs."):
            found.add(cls)
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(noise: Noise, seed: int = 1) -> Tensor:
    """An image that the law accepts, flat."""
    steps = noise.grid or 16
    return torch.randint(steps + 1, (DIM,), generator=generator(seed)) / steps


def variates(noise: Noise, rows: int, seed: int = 2) -> Tensor:
    drawn = torch.empty(rows, DIM)
    noise.draw_(drawn, generator(seed))
    return drawn


def copies(noise: Noise, x: Tensor, drawn: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    out = torch.full(drawn.shape, torch.nan, dtype=dtype)
    noise.apply(x, drawn, out)
    return out


def test_no_law_is_missing_from_the_table() -> None:
    assert concrete_laws() == set(EXAMPLES)


def test_records_are_readable_without_knowing_where_their_law_lives() -> None:
    # A report imports the package only; in this process the tests imported every module by hand.
    code = (
        "from lightning_rs.noise import noise_from_dict\n"
        "try: noise_from_dict({'class': '?'})\n"
        "except ValueError as error: print(error)"
    )
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = set(known.removeprefix("noise must be one of ").partition(", or a class path")[0].split(", "))
    assert names == {cls.__name__ for cls in EXAMPLES}


@pytest.mark.parametrize(("cls", "arguments", "message"), BAD)
def test_bad_parameters_are_refused_by_name_and_value(
    cls: type[Noise], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@every
def test_survives_a_record_header(noise: Noise) -> None:
    spec = noise_to_dict(noise)
    plain = json.loads(json.dumps(spec))
    assert plain == spec  # nothing but plain values
    again = noise_from_dict(plain)
    assert type(again) is type(noise)
    assert again == noise
    assert hash(again) == hash(noise)
    assert noise_to_dict(again) == spec
    assert torch.equal(variates(again, 50), variates(noise, 50))
    assert repr(noise).startswith(f"{type(noise).__name__}({next(iter(noise.spec()))}=")


@every
def test_differs_from_other_laws_and_parameters(noise: Noise) -> None:
    same = [other for other in (p.values[0] for p in ALL) if other == noise]
    assert same == [noise]
    with pytest.raises(ValueError, match=f"noise {type(noise).__name__} does not take the parameters .*colour"):
        noise_from_dict({**noise_to_dict(noise), "colour": "red"})


def test_an_unknown_law_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"noise must be one of .*GaussianNoise.* got 'PinkNoise'"):
        noise_from_dict({"class": "PinkNoise", "sigma": 1.0})


@every
def test_draws_are_reproducible_and_leave_the_global_generator_alone(noise: Noise) -> None:
    before = torch.get_rng_state()
    first = variates(noise, 40)
    assert torch.equal(first, variates(noise, 40))
    assert not torch.equal(first, variates(noise, 40, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.isfinite(first).all()


@every
def test_copies_are_independent_draws(noise: Noise) -> None:
    drawn = variates(noise, 4000)
    distinct = 0.99 * len(drawn)
    if isinstance(noise, EnumeratedNoise):
        distinct = noise.size - 1
    elif isinstance(noise, AblationNoise):
        distinct = 0.97 * math.comb(noise.pixels, noise.k)
    assert len(drawn.unique(dim=0)) > distinct
    follows = np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]
    assert abs(follows) < 5 / np.sqrt(len(drawn))


@every
def test_a_law_says_whether_its_outcomes_are_numbered(noise: Noise) -> None:
    if isinstance(noise, EnumeratedNoise):
        assert noise.outcomes == noise.size >= 1
    else:
        assert noise.outcomes is None
        with pytest.raises(NotImplementedError, match="is sampled and has no numbered outcomes"):
            noise.split(image(noise), torch.zeros(1, dtype=torch.int64), torch.empty(1, DIM))


@every
def test_apply_changes_neither_variates_nor_input_and_fills_all_rows(noise: Noise) -> None:
    x, drawn = image(noise), variates(noise, 30)
    kept_x, kept = x.clone(), drawn.clone()
    out = copies(noise, x, drawn)
    assert torch.equal(x, kept_x)
    assert torch.equal(drawn, kept)
    assert torch.isfinite(out).all()
    assert torch.equal(out, copies(noise, x.expand(30, DIM), drawn))  # one input a row
    assert torch.equal(out, copies(noise, x, drawn))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_float32_result_rounded_once(noise: Noise, dtype: torch.dtype) -> None:
    x, drawn = image(noise), variates(noise, 300)
    assert torch.equal(copies(noise, x, drawn, dtype), copies(noise, x, drawn).to(dtype))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_call_keeps_shape_and_dtype(noise: Noise, dtype: torch.dtype) -> None:
    x = image(noise).view(1, *SHAPE).repeat(5, 1, 1, 1)
    noisy = noise(x.to(dtype), generator(4))
    assert noisy.shape == x.shape
    assert noisy.dtype == dtype
    assert torch.equal(noisy, noise(x.to(dtype), generator(4)))
    assert len(noisy.flatten(1).unique(dim=0)) > 1  # fresh noise for each row


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_noisy_copy_passes_the_gradient_of_its_input(noise: Noise, dtype: torch.dtype) -> None:
    # The derivative of additive noise; for the others the straight-through estimate.
    x = image(noise).view(1, *SHAPE).repeat(3, 1, 1, 1).to(dtype).requires_grad_(True)
    drawn = noise.variates(x, generator(4))
    noisy, weight = noise.at(x, drawn), torch.randn(3, *SHAPE, generator=generator(5), dtype=dtype)
    with torch.no_grad():
        assert torch.equal(noisy, noise(x, generator(4)))
    (noisy * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    if isinstance(noise, AdditiveNoise):
        moved = noise.at(x.detach() + 0.25, drawn) - noisy.detach()
        assert torch.allclose(moved, torch.full_like(moved, 0.25), atol=1e-6)


@every
def test_channels_last_batches_keep_their_layout_and_the_law(noise: Noise) -> None:
    x = image(noise).view(1, *SHAPE).repeat(500, 1, 1, 1)
    wide = x.contiguous(memory_format=torch.channels_last)
    noisy = noise(wide, generator(7))
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    assert not noisy.is_contiguous()
    # The copies of another layout are those of the law for coordinates in the order of memory, or the very same.
    order = torch.arange(DIM).view(SHAPE).permute(1, 2, 0).flatten() if noise.exchangeable else torch.arange(DIM)
    expected = copies(noise.arranged(order), x[0].flatten()[order], variates(noise, 500, seed=7))
    assert torch.equal(noisy.flatten(1)[:, order], expected)


def test_the_straight_through_direction_is_that_of_the_mean() -> None:
    noise, x = SplittingNoise(0.8), torch.full((200_000, 1), 0.4)
    drawn = noise.variates(x, generator(1))
    slope = (noise.at(x + 0.1, drawn) - noise.at(x, drawn)).mean() / 0.1
    assert float(slope) == pytest.approx(1 / (4 * 0.8), rel=0.05)


@every
def test_arranged_is_the_same_law_for_permuted_coordinates(noise: Noise) -> None:
    order = torch.randperm(DIM, generator=generator(5))
    x, drawn = image(noise), variates(noise, 200)
    moved = noise.arranged(order)
    assert moved == noise
    assert torch.equal(copies(moved, x[order], drawn[:, order]), copies(noise, x, drawn)[:, order])
    # Arranging must not have changed the law it started from.
    assert torch.equal(copies(noise, x, drawn), copies(noise_from_dict(noise_to_dict(noise)), x, drawn))


@every
def test_exchangeable_laws_treat_all_coordinates_alike(noise: Noise) -> None:
    if not noise.exchangeable:
        with pytest.raises(NotImplementedError, match="override arranged"):
            Noise.arranged(noise, torch.arange(DIM))
        return
    drawn = variates(noise, 6000).numpy()
    for other in (1, DIM - 1):
        assert scipy.stats.ks_2samp(drawn[:, 0], drawn[:, other]).pvalue > 1e-5


@every
def test_symmetric_laws_are_additive_and_symmetric(noise: Noise) -> None:
    assert noise.symmetric == isinstance(noise, AdditiveNoise)
    if noise.symmetric:
        drawn = variates(noise, 20_000)
        x = image(noise)
        assert torch.equal(copies(noise, x, drawn), x + drawn)
        assert scipy.stats.ks_2samp(drawn[:, 0].numpy(), -drawn[:, 0].numpy()).pvalue > 1e-5


@every
def test_sigma_is_the_standard_deviation_of_a_coordinate(noise: Noise) -> None:
    if isinstance(noise, AdditiveNoise):
        drawn = variates(noise, 20_000).double()
        assert float(drawn.square().mean().sqrt()) == pytest.approx(noise.sigma, rel=0.02)
    assert noise.sigma > 0


@every
def test_inputs_are_refused_by_row_and_coordinate(noise: Noise) -> None:
    good = image(noise).repeat(3, 1)
    good = good.view(3, *SHAPE)
    noise.check_input(good)
    bad = good.clone()
    bad[2, 1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="images must be finite, got NaN at coordinate 13 of image 2"):
        noise.check_input(bad)
    bad[2, 1, 0, 1] = -torch.inf
    with pytest.raises(ValueError, match="images must be finite, got -inf at coordinate 13 of image 2"):
        noise.check_input(bad)
    bad[2, 1, 0, 1] = 2.0
    if noise.domain is None:
        noise.check_input(bad)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got 2.0 at coordinate 13 of image 2"):
        noise.check_input(bad, domain=(0.0, 1.0))
    if noise.domain is not None:
        with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got 2.0"):
            noise.check_input(bad)
    bad[2, 1, 0, 1] = 0.2
    with pytest.raises(ValueError, match=r"images must be multiples of 1/16, got 0\.2\d* at coordinate 13 of image 2"):
        noise.check_input(bad, grid=16)
    if noise.grid is None:
        noise.check_input(bad)


@every
def test_engine_gives_the_same_answer_in_both_layouts(noise: Noise) -> None:
    x = image(noise)
    weight = torch.randn(DIM, generator=generator(6))
    scores = copies(noise, x, variates(noise, 2000)) @ weight
    network = HalfSpace(weight, offset=float(scores.quantile(0.35)))
    kind: type[Votes] = EnumeratedVotes if isinstance(noise, EnumeratedNoise) else Votes
    counts = []
    for channels_last in (True, False):
        prepared = Runtime(micro_batch=128, channels_last=channels_last).prepare(network, SHAPE)
        assert (prepared.order is None) != channels_last
        found = Sampler(prepared, noise, "x", seed=channels_last).collect(
            x.view(1, *SHAPE), [0], "estimation", 5000, [kind]
        )[kind]
        assert isinstance(found, Votes)
        counts.append(found.counts[0])
    if isinstance(noise, EnumeratedNoise):
        assert (counts[0] == counts[1]).all()
        assert counts[0].sum() == noise.size or noise.threshold is not None
    else:
        assert counts[0].sum() == 5000
        assert scipy.stats.chi2_contingency(np.stack(counts)).pvalue > 1e-5
    assert counts[0].min() > 0
