"""The hot loop: every sample once, the same answer however micro-batches fall."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import (
    Evidence,
    GradientSums,
    Observation,
    PairGradientSums,
    PairProducts,
    PairVotes,
    Plan,
    Votes,
)
from lightning_rs.noise import GaussianNoise
from lightning_rs.setting import Selection
from tests.helpers import HalfSpace, tiny_cnn

SHAPE = (2, 6, 6)


def sampler(network: nn.Module, shape: tuple[int, ...] = SHAPE, sigma: float = 0.5, **runtime: Any) -> Sampler:
    prepared = Runtime(**{"micro_batch": 64, **runtime}).prepare(network, shape)
    return Sampler(prepared, GaussianNoise(sigma), "abc", seed=1)


def images(count: int = 3, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def votes(found: dict[type[Evidence], Evidence]) -> np.ndarray[Any, Any]:
    seen = found[Votes]
    assert isinstance(seen, Votes)
    return seen.counts


class Recorder(Evidence):
    """Keeps everything it is shown."""

    scheme = "iid"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows: dict[int, list[tuple[int, torch.Tensor, int]]] = {b: [] for b in range(plan.images)}

    @classmethod
    def empty(cls, plan: Plan) -> Recorder:
        return cls(plan)

    def update(self, seen: Observation) -> None:
        for segment in seen.segments:
            for offset in range(segment.stop - segment.start):
                row = segment.start + offset
                assert int(seen.owner[row]) == segment.image
                entry = (segment.first + offset, seen.variates[row].clone(), int(seen.labels[row]))
                self.rows[segment.image].append(entry)

    def merge(self, other: Recorder) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("n", [1, 5, 64, 65, 1000])
def test_every_sample_is_seen_once_and_in_order(n: int) -> None:
    found = sampler(tiny_cnn()).collect(images(), [4, 5, 9], "estimation", n, [Recorder])[Recorder]
    assert isinstance(found, Recorder)
    for rows in found.rows.values():
        assert [index for index, _, _ in rows] == list(range(n))
    first = torch.stack([variates for _, variates, _ in found.rows[0]])
    assert len(first.unique(dim=0)) == n


def test_labels_are_those_of_the_network_on_image_plus_noise() -> None:
    network, clean = tiny_cnn(), images()
    engine = sampler(network)
    found = engine.collect(clean, [0, 1, 2], "estimation", 50, [Recorder])[Recorder]
    assert isinstance(found, Recorder)
    order = engine.prepared.order
    for b, rows in found.rows.items():
        noise = torch.stack([variates for _, variates, _ in rows])
        chw = torch.empty_like(noise).index_copy_(1, order, noise).view(-1, *SHAPE)
        expected = network(clean[b] + chw).argmax(1).tolist()
        assert [label for _, _, label in rows] == expected


def test_results_do_not_depend_on_the_batch_of_images() -> None:
    network, clean = tiny_cnn(), images(7)
    engine = sampler(network)
    together = votes(engine.collect(clean, range(7), "estimation", 301, [Votes]))
    alone = [votes(engine.collect(clean[i : i + 1], [i], "estimation", 301, [Votes]))[0] for i in range(7)]
    assert (together == np.stack(alone)).all()
    backwards = votes(engine.collect(clean.flip(0), range(6, -1, -1), "estimation", 301, [Votes]))
    assert (backwards[::-1] == together).all()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    # 301 is no multiple of the chunk: rows are carried from one micro-batch into the next, between threads.
    kinds: list[type[Evidence]] = [Votes, GradientSums, PairProducts, Recorder]
    top = Selection.known([0, 1, 2, 0, 1])
    alone, together = (
        sampler(tiny_cnn(), threads=t).collect(images(5), range(5), "estimation", 302, kinds, top) for t in (1, threads)
    )
    assert (votes(alone) == votes(together)).all()
    assert torch.equal(alone[GradientSums]._sums, together[GradientSums]._sums)  # type: ignore[attr-defined]
    assert (alone[PairProducts].mean == together[PairProducts].mean).all()  # type: ignore[attr-defined]
    for b in range(5):
        one, other = (found[Recorder].rows[b] for found in (alone, together))  # type: ignore[attr-defined]
        assert [(i, label) for i, _, label in one] == [(i, label) for i, _, label in other]
        assert all(torch.equal(v, w) for (_, v, _), (_, w, _) in zip(one, other, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_worker_is_raised_and_the_engine_can_go_on(threads: int) -> None:
    engine = sampler(tiny_cnn(), threads=threads)
    expected = votes(engine.collect(images(), range(3), "estimation", 500, [Votes]))
    forward, calls = engine.prepared._forward, []

    def fail(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return forward(x)

    engine.prepared._use(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.collect(images(), range(3), "estimation", 500, [Votes])
    engine.prepared._use(forward)
    assert (votes(engine.collect(images(), range(3), "estimation", 500, [Votes])) == expected).all()


def test_every_image_may_have_its_own_number_of_samples_and_part() -> None:
    engine, clean = sampler(tiny_cnn(), threads=2), images(4)
    sizes, parts = [40, 1, 133, 64], [0, 3, 1, 0]
    found = engine.collect(clean, [5, 6, 7, 8], "estimation", sizes, [Votes, Recorder], part=parts)
    recorder = found[Recorder]
    assert isinstance(recorder, Recorder)
    assert votes(found).sum(1).tolist() == sizes
    for b, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        alone = engine.collect(clean[b : b + 1], [5 + b], "estimation", size, [Votes, Recorder], part=part)
        assert (votes(alone)[0] == votes(found)[b]).all()
        assert [i for i, _, _ in recorder.rows[b]] == list(range(size))
        other = alone[Recorder]
        assert isinstance(other, Recorder)
        for mine, theirs in zip(recorder.rows[b], other.rows[0], strict=True):
            assert torch.equal(mine[1], theirs[1])


def test_an_error_while_drawing_keeps_no_thread_waiting() -> None:
    class Broken(GaussianNoise):
        def draw_(self, out: torch.Tensor, generator: torch.Generator | None = None) -> None:
            raise RuntimeError("no noise")

    prepared = Runtime(micro_batch=64, threads=2).prepare(tiny_cnn(), SHAPE)
    with pytest.raises(RuntimeError, match="no noise"):
        Sampler(prepared, Broken(0.5), "abc", 1).collect(images(), range(3), "estimation", 301, [Votes])


def test_the_thread_count_of_the_process_is_put_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine = sampler(tiny_cnn())
        assert engine.prepared.workers.count == 2
        engine.collect(images(), range(3), "estimation", 100, [Votes])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_selection_and_estimation_never_share_noise() -> None:
    engine, seen = sampler(tiny_cnn()), {}
    for purpose in ("selection", "estimation", "epoch-end", "epoch-end-selection"):
        found = engine.collect(images(1), [0], purpose, 40, [Recorder])[Recorder]  # type: ignore[arg-type]
        assert isinstance(found, Recorder)
        seen[purpose] = torch.stack([variates for _, variates, _ in found.rows[0]])
    stacked = torch.cat(list(seen.values()))
    assert len(stacked.unique(dim=0)) == len(stacked)


def test_counts_follow_the_known_probability() -> None:
    dim, sigma, n = 12, 0.5, 40_000
    network, x = HalfSpace(torch.ones(dim), offset=6.5), torch.full((1, dim), 0.5)
    p = float(scipy.stats.norm.cdf((6.0 - 6.5) / (sigma * np.sqrt(dim))))
    found = votes(sampler(network, (dim,), sigma).collect(x, [0], "estimation", n, [Votes]))
    assert scipy.stats.binomtest(int(found[0, 1]), n, p).pvalue > 1e-4


def test_antithetic_pairs_and_their_gradient() -> None:
    dim, sigma, n = 6, 0.5, 4000
    weight = torch.linspace(-1, 1, dim)
    network, x = HalfSpace(weight), torch.full((1, dim), 0.5)
    engine = sampler(network, (dim,), sigma, channels_last=False)
    kinds: list[type[Evidence]] = [PairVotes, PairGradientSums]
    found = engine.collect(x, [0], "estimation", n, kinds, Selection.known([1]))
    pairs, sums = found[PairVotes], found[PairGradientSums]
    assert isinstance(pairs, PairVotes)
    assert isinstance(sums, PairGradientSums)
    assert pairs.both.sum() * 2 + pairs.exactly_one.sum() == n
    # x lies on the hyperplane: w and -w always fall on different sides.
    assert pairs.both.sum() == 0
    first, second = sums.means(sigma)
    norm = float(weight.norm())
    truth = weight.numpy() / norm * scipy.stats.norm.pdf(0)
    for half in (first[0], second[0]):
        assert np.abs(half - truth).max() < 6 * 0.5 / np.sqrt(n / 4)


def test_gradient_halves_are_disjoint_and_estimate_the_gradient() -> None:
    dim, sigma, n = 6, 0.5, 20_001
    weight = torch.linspace(-1, 1, dim)
    x = torch.zeros(2, dim)
    x[1] = 0.3 * weight
    engine = sampler(HalfSpace(weight), (dim,), sigma)
    found = engine.collect(x, [0, 1], "estimation", n, [Votes, GradientSums], Selection.known([1, 1]))
    sums = found[GradientSums]
    assert isinstance(sums, GradientSums)
    assert sum(sums.sizes) == n
    first, second = sums.means(sigma)
    unit = weight.numpy() / float(weight.norm())
    for b in range(2):
        distance = float(x[b] @ weight / weight.norm()) / sigma
        truth = unit * scipy.stats.norm.pdf(distance)
        for half in (first[b], second[b]):
            assert np.abs(half - truth).max() < 6 * 0.5 / np.sqrt(n / 2)


def test_gradient_is_reported_in_channel_first_order() -> None:
    weight = torch.zeros(SHAPE)
    weight[1, 2, 3] = 1.0
    engine = sampler(HalfSpace(weight.flatten()), SHAPE)
    assert engine.prepared.order is not None
    found = engine.collect(torch.zeros(1, *SHAPE), [0], "estimation", 4000, [GradientSums], Selection.known([1]))
    sums = found[GradientSums]
    assert isinstance(sums, GradientSums)
    assert int(np.abs(sums.means(0.5)[0][0]).argmax()) != -1
    # HalfSpace reads the channels-last view through its logical (C, H, W) order.
    assert np.unravel_index(int(np.abs(sums.means(0.5)[0][0]).argmax()), SHAPE) == (1, 2, 3)


def test_pair_products_match_a_direct_sum() -> None:
    engine, clean = sampler(tiny_cnn()), images(2)
    top = torch.tensor([0, 1])
    kinds: list[type[Evidence]] = [Recorder, PairProducts]
    found = engine.collect(clean, [0, 1], "estimation", 130, kinds, Selection.known(top))
    recorder, products = found[Recorder], found[PairProducts]
    assert isinstance(recorder, Recorder)
    assert isinstance(products, PairProducts)
    for b in range(2):
        rows = recorder.rows[b]
        weighted = [variates.double() * (label == int(top[b])) for _, variates, label in rows]
        direct = sum(float(weighted[2 * i] @ weighted[2 * i + 1]) for i in range(65)) / 65
        assert products.mean[b] == pytest.approx(direct, rel=1e-9, abs=1e-12)


def test_progress_counts_all_samples() -> None:
    seen: list[int] = []
    engine = sampler(tiny_cnn())
    engine.on_samples = seen.append
    engine.collect(images(), range(3), "estimation", 101, [Votes])
    assert sum(seen) == 303


def test_memory_of_buffers_does_not_grow_with_n() -> None:
    engine = sampler(tiny_cnn())
    buffers = [id(buffer) for slot in engine._slots for buffer in (slot.inputs, slot.variates)]
    engine.collect(images(1), [0], "estimation", 5000, [Votes])
    assert [id(buffer) for slot in engine._slots for buffer in (slot.inputs, slot.variates)] == buffers
    assert len(engine._slots) <= 2 * engine.prepared.workers.count
    assert all(len(slot.inputs) <= 2 * engine.prepared.micro_batch for slot in engine._slots)


@pytest.mark.parametrize(
    ("kinds", "n", "message"),
    [
        ([Votes, PairVotes], 10, "one sampling scheme, got Votes \\(iid\\), PairVotes \\(antithetic\\)"),
        ([Votes], 0, "n must be a whole number >= 1, got 0"),
        ([PairVotes], 11, "n must be even for antithetic pairs, got 11"),
        ([PairVotes], [10, 12, 7], "n must be even for antithetic pairs, got 7"),
        ([Votes], [10, 0, 7], "n must be a whole number >= 1, got 0"),
        ([Votes], [10, 7], "n must be one number, or one for each of 3 images, got 2"),
        ([Votes, GradientSums], [10, 10, 7], "n must be the same for all images for Votes, GradientSums"),
    ],
)
def test_bad_requests(kinds: list[type[Evidence]], n: int | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(tiny_cnn()).collect(images(), range(3), "estimation", n, kinds)


def test_evidence_merges() -> None:
    engine, clean = sampler(tiny_cnn()), images(2)
    top = torch.tensor([0, 1])
    parts = [
        engine.collect(clean, [0, 1], "estimation", 40, [Votes, GradientSums], Selection.known(top), part=k)
        for k in (0, 1)
    ]
    counts = [votes(part) for part in parts]
    means = []
    for part in parts:
        sums = part[GradientSums]
        assert isinstance(sums, GradientSums)
        means.append(sums.means(1.0)[0])
    for kind in (Votes, GradientSums):
        parts[0][kind].merge(parts[1][kind])
    assert (votes(parts[0]) == counts[0] + counts[1]).all()
    merged = parts[0][GradientSums]
    assert isinstance(merged, GradientSums)
    assert np.allclose(merged.means(1.0)[0], (means[0] + means[1]) / 2)
    assert sum(merged.sizes) == 80


def test_a_sampler_of_another_name_shares_the_buffers_and_nothing_else() -> None:
    engine = sampler(tiny_cnn())
    other = engine.named(seed=9, planned=300)
    assert other._slots is engine._slots
    assert other.rechecks is not engine.rechecks
    assert other.doubtful is not engine.doubtful
    kinds = [Votes]
    fresh = Sampler(engine.prepared, engine.noise, "abc", seed=9, planned=300)
    wanted = votes(fresh.collect(images(), range(3), "prediction", 300, kinds))
    assert (votes(other.collect(images(), range(3), "prediction", 300, kinds)) == wanted).all()
    assert not (votes(engine.collect(images(), range(3), "prediction", 300, kinds)) == wanted).all()
    # Whoever comes second waits for the buffers: votes of one would otherwise be those of the other's rows.
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: votes(other.collect(images(), range(3), "prediction", 300, kinds)), range(8))
        assert all((each == wanted).all() for each in found)
