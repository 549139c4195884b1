"""Random streams by key."""

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_rs.engine.streams import Streams, chunk_size, fresh_seed


def draw(streams: Streams, image: int, part: int = 0, chunk: int = 0, size: int = 1000) -> torch.Tensor:
    return torch.randn(size, generator=streams.seed_(torch.Generator(), image, part, chunk))


def test_a_key_always_gives_the_same_numbers() -> None:
    streams = Streams(0, "abc", "selection")
    assert torch.equal(draw(streams, 3, 0, 7), draw(streams, 3, 0, 7))


@pytest.mark.parametrize(
    "other",
    [
        draw(Streams(1, "abc", "selection"), 3, 0, 7),
        draw(Streams(0, "abd", "selection"), 3, 0, 7),
        draw(Streams(0, "abc", "estimation"), 3, 0, 7),
        draw(Streams(0, "abc", "selection"), 4, 0, 7),
        draw(Streams(0, "abc", "selection"), 3, 1, 7),
        draw(Streams(0, "abc", "selection"), 3, 0, 8),
        draw(Streams(2**32, "abc", "selection"), 3, 0, 7),
    ],
)
def test_every_part_of_the_key_gives_independent_numbers(other: torch.Tensor) -> None:
    own = draw(Streams(0, "abc", "selection"), 3, 0, 7)
    correlation = float((own * other).mean())
    assert abs(correlation) < 5 / np.sqrt(1000)
    assert not torch.equal(own[:10], other[:10])


def test_reseeding_forgets_the_cached_normal() -> None:
    streams, generator = Streams(0, "abc", "selection"), torch.Generator()
    streams.seed_(generator, 0, 0, 0)
    torch.randn(3, generator=generator)  # an odd number leaves half a Box-Muller pair behind
    streams.seed_(generator, 0, 0, 0)
    assert torch.equal(torch.randn(3, generator=generator), draw(streams, 0, size=3))


def test_chunks_together_are_standard_normal() -> None:
    streams = Streams(5, "abc", "estimation")
    values = torch.cat([draw(streams, 0, 0, chunk, 500) for chunk in range(40)]).numpy()
    assert scipy.stats.kstest(values, "norm").pvalue > 1e-4
    first = np.array([float(draw(streams, 0, 0, chunk, 1)) for chunk in range(2000)])
    assert scipy.stats.kstest(first, "norm").pvalue > 1e-4


def test_seeds_beyond_32_bits_do_not_collide() -> None:
    streams = Streams(0, "abc", "estimation")
    firsts = {
        float(torch.rand(1, generator=streams.seed_(torch.Generator(), 0, 0, c), dtype=torch.float64))
        for c in range(5000)
    }
    assert len(firsts) == 5000


def test_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"purpose must be one of .*'selection'.* got 'training'"):
        Streams(0, "abc", "training")  # type: ignore[arg-type]


def test_chunk_size_is_an_even_power_of_two_that_shrinks_with_the_dimension() -> None:
    sizes = [chunk_size(d) for d in (1, 2, 64, 784, 3072, 150_528, 10**9)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size % 2 == 0 and size & (size - 1) == 0 for size in sizes)


def test_fresh_seeds_differ() -> None:
    assert fresh_seed() != fresh_seed()
