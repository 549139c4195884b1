"""The base network must be one fixed function of one row: what is not is refused, whatever the seed."""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_rs.budgets import Budget, DecideGridRadius, DecideRadius, FixedSamples, StagedSamples
from lightning_rs.certificates import Certificate, DeterministicSplittingL1, GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise
from tests.helpers import HalfSpace, tiny_cnn

SHAPE = (2, 6, 6)
NOISE = GaussianNoise(0.25)
SEEDS = [pytest.param(3, id="3"), pytest.param(40, id="40", marks=pytest.mark.slow)]


def logits(score: Tensor) -> Tensor:
    """Two classes by the sign of a score."""
    return torch.stack([-score, score], dim=1)


class Impure(nn.Module):
    """A network with one parameter, so that it looks like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class OfTheBatch(Impure):
    """The label of the whole micro-batch: the sign of its mean."""

    def forward(self, x: Tensor) -> Tensor:
        return logits((x.mean() - 0.5).expand(len(x)) * self.scale * 1000)


class OfTheCall(Impure):
    """The label changes with every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return logits(torch.full((len(x),), 1.0 - 2.0 * (self.calls % 2)) * self.scale)


class OfTheRow(Impure):
    """The label depends on the position."""

    def forward(self, x: Tensor) -> Tensor:
        return logits((torch.arange(len(x)) % 3 - 1.0) * self.scale)


class OfANeighbour(Impure):
    """Every row answers for the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        return logits((x.roll(1, 0).flatten(1).mean(1) - 0.5) * self.scale)


class OfTheCallBefore(Impure):
    """Answers for the rows of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        answer, self.before = self.before, x.mean()
        return logits((x.flatten(1).mean(1) - answer) * self.scale)


class OverGroups(Impure):
    """Normalises over pairs of rows by a reshape."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1)
        return logits((score - score.view(-1, 2).mean(1).repeat_interleave(2)) * self.scale)


class OfTheProcess(Impure):
    """Counts in a global variable."""

    count = [0]  # noqa: RUF012 (shared by all copies on purpose)

    def forward(self, x: Tensor) -> Tensor:
        self.count[0] += 1
        return logits(torch.full((len(x),), float(self.count[0] % 3) - 1.0) * self.scale)


class OfTheMemory(Impure):
    """Remembers its first answer for every place in memory."""

    answers: dict[int, Tensor] = {}  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - 0.5
        return logits(self.answers.setdefault(x.data_ptr(), score.clone())[: len(x)] * self.scale)


class OfTheThread(Impure):
    """The label depends on which thread asks."""

    def forward(self, x: Tensor) -> Tensor:
        sign = 1.0 if "micro-batch" in threading.current_thread().name else -1.0
        number = float(threading.current_thread().name[-1]) if sign > 0 else 0.0
        return logits(torch.full((len(x),), sign * (1.0 - 2.0 * (number % 2))) * self.scale)


class Dropping(Impure):
    """Drops in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return logits((nn.functional.dropout(x, 0.5, training=True).flatten(1).mean(1) - 0.5) * self.scale)


class Noisy(Impure):
    """Adds noise of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(((x + torch.randn_like(x)).flatten(1).mean(1) - 0.5) * self.scale)


class Gambling(Impure):
    """Draws from Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(torch.tensor([random.random() - 0.5 for _ in x]) * self.scale)


class OldGambling(Impure):
    """Draws from numpy's global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(torch.from_numpy(np.random.rand(len(x)) - 0.5).float() * self.scale)  # noqa: NPY002


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72, track_running_stats=False), nn.Linear(72, 2))


class AlwaysTraining(nn.BatchNorm1d):
    """BatchNorm that does not listen to eval()."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        del mode
        return super().train(True)


def stubborn() -> nn.Module:
    return nn.Sequential(nn.Flatten(), AlwaysTraining(72), nn.Linear(72, 2))


IMPURE: list[tuple[Callable[[], nn.Module], str]] = [
    (OfTheBatch, "logits move"),
    (OfTheCall, "logits move .* repeated calls|logits move"),
    (OfTheRow, "logits move .* position"),
    (OfANeighbour, "logits move"),
    (OfTheCallBefore, "logits move"),
    (OverGroups, "logits move"),
    (OfTheProcess, "logits move"),
    (OfTheMemory, "logits move"),
    (Dropping, "draws random numbers"),
    (Noisy, "draws random numbers"),
    (Gambling, "draws random numbers"),
    (OldGambling, "draws random numbers"),
    (batch_norm, r"layer '1' \(BatchNorm1d\) normalises by the statistics of its batch"),
    (stubborn, r"layer '1' \(AlwaysTraining\) stays in training mode"),
]


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, *SHAPE), generator=torch.Generator().manual_seed(seed)) / 255


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(("build", "message"), IMPURE, ids=[build.__name__ for build, _ in IMPURE])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_seed_certifies_an_impure_network(
    build: Callable[[], nn.Module], message: str, threads: int, seeds: int
) -> None:
    for seed in range(seeds):
        torch.manual_seed(seed)
        runtime = Runtime(micro_batch=64, threads=threads)
        certifier = Certifier(n0=30, n=300, alpha=0.01, seed=seed, runtime=runtime)
        with pytest.raises(ValueError, match=message):
            certifier.certify(build(), NOISE, images(seed=seed), grid=255)
        with pytest.raises(ValueError, match=message):
            certifier.session(build(), NOISE, SHAPE, grid=255).predict(images(seed=seed), n=100)


class OfTheAsking(Impure):
    """The label depends on how the network is asked, not only on what."""

    def __init__(self, seen: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.seen = [seen]

    def forward(self, x: Tensor) -> Tensor:
        return logits(torch.full((len(x),), 1.0 if self.seen[0](x) else -1.0) * self.scale)


def with_numpy(x: Tensor) -> bool:
    """Leave torch, which refuses inputs that require gradients."""
    x.numpy()
    return torch.is_grad_enabled()


ASKED: list[tuple[Callable[[Tensor], bool], str]] = [
    (lambda x: torch.is_grad_enabled(), "gradients"),
    (lambda x: x.requires_grad, "gradients"),
    (with_numpy, "gradients"),
    (lambda x: torch.is_inference_mode_enabled(), "inference mode"),
    (lambda x: x.is_inference(), "inference mode"),
    (lambda x: len(x) > 10, "the number of rows"),
    (lambda x: len(x) == 1, "the number of rows"),
    (lambda x: len(x) % 2 == 1, "the number of rows"),
    (lambda x: x.is_contiguous(), "the memory format of its input"),
    (lambda x: x.storage_offset() > 0, "the strides of its input"),
    (lambda x: x.stride(0) > 72, "the strides of its input"),
    (lambda x: x._base is not None, "the strides of its input"),
    (lambda x: torch.get_num_threads() > 1, "torch's number of threads"),
]


@pytest.mark.parametrize(("seen", "cause"), ASKED)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_certified_is_what_everybody_may_call(
    seen: Callable[[Tensor], bool], cause: str, channels_last: bool
) -> None:
    """Each answers one class to the engine, with all votes, and the other one to whoever calls it otherwise."""
    runtime = Runtime(micro_batch=64, threads=1, channels_last=channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        session = Certifier(n0=30, n=300, runtime=runtime).session(OfTheAsking(seen), NOISE, SHAPE, grid=255)
        with pytest.raises(ValueError, match=f"one fixed function of one row, but its logits move .* with {cause}"):
            list(session.certify(images()))
    finally:
        torch.set_num_threads(before)


class AnsweringOnce(Impure):
    """Answers for one row only, unless many ask."""

    def forward(self, x: Tensor) -> Tensor:
        found = logits(x.flatten(1).mean(1) - 0.5) * self.scale
        return found if len(found) != 3 else found[:1]


def test_an_answer_of_another_shape_is_another_answer() -> None:
    with pytest.raises(ValueError, match=r"logits move by inf .* with the number of rows"):
        Certifier(n0=30, n=300, runtime=Runtime(micro_batch=64)).certify(AnsweringOnce(), NOISE, images(), grid=255)


class Flattening(nn.Module):
    """A pure network that refuses some memory formats, as `view` does."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.rows, self.last = rows, nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.view(len(x) // self.rows, self.rows, -1)).view(-1, 3)  # type: ignore[no-any-return]


class Reshaping(Flattening):
    """The same function, which takes whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_call_that_a_network_refuses_is_no_other_answer(rows: int) -> None:
    """It refuses other memory formats, and other numbers of rows than its multiples."""
    torch.manual_seed(0)
    network, same = Flattening(rows), Reshaping()
    same.load_state_dict(network.state_dict())
    with pytest.raises(RuntimeError, match=r"view size is not compatible|is invalid for input"):
        network(images(3).contiguous(memory_format=torch.channels_last))
    certifier = Certifier(n0=30, n=300, runtime=Runtime(micro_batch=64, threads=1, channels_last=False))
    found, wanted = (certifier.certify(each, NOISE, images(), grid=255) for each in (network, same))
    assert [record.counts for record in found] == [record.counts for record in wanted]


class OfItsForm(nn.Module):
    """BatchNorm behind the convolution only where torch.fx looks: folding it would give another network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
        self.norm.running_var.fill_(9.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.last((self.norm(h) if isinstance(x, torch.fx.Proxy) else h).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_folding_would_change_is_not_folded(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = OfItsForm().to(dtype)
    found = {}
    for fold in (True, False):
        runtime = Runtime(micro_batch=64, threads=1, fold=fold, fuse=False)
        session = Certifier(n0=30, n=300, runtime=runtime).session(network, NOISE, SHAPE, grid=255)
        found[fold] = [record.counts for record in session.certify(images())]
        assert session.describe()["runtime"]["folded"] is False
    assert found[True] == found[False]
    remarks = Runtime().prepare(network, SHAPE).remarks
    assert any("not folded: it must give the same logits" in remark for remark in remarks)
    honest = nn.Sequential(network.conv, network.norm, nn.Flatten(), network.last)
    assert Runtime().prepare(honest, SHAPE).folded
    with pytest.raises(ValueError, match="not folded: it must give the same logits"):
        Runtime(precision="int8").prepare(network, SHAPE)


def test_a_network_that_knows_its_thread_is_refused_on_several() -> None:
    certifier = Certifier(n0=30, n=300, runtime=Runtime(micro_batch=64, threads=2))
    with pytest.raises(ValueError, match=r"logits move .* threads"):
        certifier.certify(OfTheThread(), NOISE, images(), grid=255)


class LateImpurity(Impure):
    """A function of one row on bright images; on dark ones the label is that of the micro-batch."""

    def forward(self, x: Tensor) -> Tensor:
        own = x.flatten(1).mean(1)
        dark = own < 0.3
        return logits(torch.where(dark, torch.sin(1000 * x.sum()), own) * self.scale)


def test_every_image_is_checked_and_not_only_the_first() -> None:
    bright, dark = torch.full((2, *SHAPE), 1.0), torch.full((1, *SHAPE), 0.0)
    certifier = Certifier(n0=30, n=300, runtime=Runtime(micro_batch=64))
    session = certifier.session(LateImpurity(), GaussianNoise(0.05), SHAPE, grid=255)
    assert all(record.radius > 0 for record in session.certify(bright, indices=[0, 1]))
    with pytest.raises(ValueError, match="one fixed function of one row, but logits of image 2 move"):
        list(session.certify(dark, indices=[2]))
    with pytest.raises(ValueError, match="one fixed function of one row, but logits of image 0 move"):
        session.predict(dark, n=100)


class Keeping(nn.Module):
    """Keeps what it needs on itself while it works, as published networks do."""

    def forward(self, x: Tensor) -> Tensor:
        self.h = x.flatten(1).mean(1)
        for _ in range(20):
            x = torch.tanh(x)
        return logits(self.h - 0.5)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_see_what_another_keeps_in_the_module(threads: int) -> None:
    """A copy a thread makes it one function of one row again: the same records on any number of threads."""

    def run(count: int) -> list[Any]:
        certifier = Certifier(n0=30, n=600, alpha=0.01, runtime=Runtime(micro_batch=32, threads=count))
        return [r.counts for r in certifier.certify(Keeping(), NOISE, images(6), grid=255)]

    assert run(threads) == run(1)


def work(both: threading.Barrier) -> None:
    """Work until another thread of the engine has come in; the main thread is alone."""
    if "micro-batch" in threading.current_thread().name:
        both.wait(timeout=60)


class Sharing(Impure):
    """Keeps what it needs where all copies of it, and all threads, find it."""

    kept: dict[str, Tensor] = {}  # noqa: RUF012
    both = threading.Barrier(2)

    def forward(self, x: Tensor) -> Tensor:
        self.kept["h"] = x.flatten(1).mean(1)
        work(self.both)
        return logits((self.kept["h"] - 0.5) * self.scale)


def closure() -> Callable[[Tensor], Tensor]:
    """The same in a plain function, of which there is no copy."""
    kept, both = [torch.zeros(())], threading.Barrier(2)

    def forward(x: Tensor) -> Tensor:
        kept[0] = x.flatten(1).mean(1)
        work(both)
        return logits(kept[0] - 0.5)

    return forward


class Calling(Impure):
    """A module around a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.scale


@pytest.mark.parametrize("build", [Sharing, lambda: Calling(closure())], ids=["class", "closure"])
def test_what_all_copies_share_is_refused_on_several_threads(build: Callable[[], nn.Module]) -> None:
    # Not fused: what is traced once keeps nothing, and is a function of one row.
    own = {"micro_batch": 64, "fuse": False, "fold": False}
    with pytest.raises(ValueError, match="one fixed function of one row, but its logits move"):
        Certifier(n0=30, n=300, runtime=Runtime(threads=2, **own)).certify(build(), NOISE, images(), grid=255)
    alone = Certifier(n0=30, n=300, runtime=Runtime(threads=1, **own))
    assert len(alone.certify(build(), NOISE, images(), grid=255)) == 3


def remembering() -> list[Callable[[], nn.Module]]:
    """Networks that answer with the call before, kept where a copy or a trace may not look."""
    place = types.SimpleNamespace(h=torch.zeros(()))

    class InAGlobal(Impure):
        def forward(self, x: Tensor) -> Tensor:
            before, place.h = place.h, x.mean()
            return logits((x.flatten(1).mean(1) - before) * self.scale)

    class InAnObject(Impure):
        def __init__(self) -> None:
            super().__init__()
            self.kept = types.SimpleNamespace(h=torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            before, self.kept.h = self.kept.h, x.mean()
            return logits((x.flatten(1).mean(1) - before) * self.scale)

    class DeepDown(Impure):
        def __init__(self) -> None:
            super().__init__()
            self.kept = {"a": {"h": torch.zeros(())}}

        def forward(self, x: Tensor) -> Tensor:
            before, self.kept["a"]["h"] = self.kept["a"]["h"], x.mean()
            return logits((x.flatten(1).mean(1) - before) * self.scale)

    return [InAGlobal, InAnObject, DeepDown]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("which", range(3))
def test_memory_is_found_wherever_it_is_kept(which: int, fuse: bool) -> None:
    runtime = Runtime(micro_batch=64, threads=1, fuse=fuse, fold=fuse)
    with pytest.raises(ValueError, match=r"the network (must be one fixed function of one row|does not accept)"):
        Certifier(n0=30, n=300, runtime=runtime).certify(remembering()[which](), NOISE, images(), grid=255)


class InPlace(nn.Module):
    """Writes over its input."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(nn.functional.relu_(x.sub_(0.5)).flatten(1).mean(1) - 0.05)


class OutOfPlace(nn.Module):
    """The same function."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(nn.functional.relu(x - 0.5).flatten(1).mean(1) - 0.05)


def test_a_network_that_writes_over_its_input_is_judged_by_what_it_says() -> None:
    found = [
        Certifier(n0=30, n=500, runtime=Runtime(micro_batch=64, threads=2)).certify(net, NOISE, images(4), grid=255)
        for net in (InPlace(), OutOfPlace())
    ]
    assert [record.counts for record in found[0]] == [record.counts for record in found[1]]


@pytest.mark.parametrize("runtime", [{}, {"fuse": False}, {"fold": False}, {"precision": "int8"}, {"threads": 2}])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_pure_networks_lose_nothing(runtime: dict[str, Any], norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(128, 3))
    if runtime.get("precision") == "int8" and not isinstance(network[1], nn.BatchNorm2d):
        return
    certifier = Certifier(n0=30, n=500, runtime=Runtime(micro_batch=64, **runtime))
    session = certifier.session(network, NOISE, SHAPE, grid=255)
    for record in session.certify(images(3)):
        assert record.extra["rechecked"] == 16 + 1 + 2  # of samples 0..255, of 256..499, of the selection's 30
        assert "doubtful" not in record.extra
        assert sum(record.counts) == 500
    assert session.probed is not None
    assert session.probed.invariant
    assert "samples of every image ran again" in str(session.purity)


def test_randomness_of_its_own_needs_leave() -> None:
    runtime = Runtime(micro_batch=64, stochastic_network=True)
    session = Certifier(n0=30, n=500, runtime=runtime).session(Dropping(), NOISE, SHAPE, grid=255)
    assert len(list(session.certify(images()))) == 3
    assert session.describe()["runtime"]["stochastic_network"] is True
    assert "runs do not repeat" in str(session.purity)


def test_the_callers_autocast_changes_nothing() -> None:
    certifier = Certifier(n0=30, n=500, runtime=Runtime(micro_batch=64))
    plain = certifier.certify(tiny_cnn(), NOISE, images(), grid=255)
    with torch.autocast("cpu", torch.bfloat16):
        cast = certifier.certify(tiny_cnn(), NOISE, images(), grid=255)
    assert [record.to_json() for record in plain] == [record.to_json() for record in cast]


def test_flags_that_change_rounding_bind_and_must_not_change() -> None:
    session = Certifier(n0=30, n=100, runtime=Runtime(micro_batch=64)).session(tiny_cnn(), NOISE, SHAPE, grid=255)
    assert "flags" not in session.describe()["runtime"]
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match=r"torch's flags must stay .*'float32_matmul_precision': 'medium'"):
            list(session.certify(images()))
        other = Certifier(n0=30, n=100).session(tiny_cnn(), NOISE, SHAPE, grid=255)
        assert other.describe()["runtime"]["flags"] == {"float32_matmul_precision": "medium"}
    finally:
        torch.set_float32_matmul_precision("highest")


def micro_batches(budget: Budget, certificate: Certificate, noise: Noise, at_once: int, again: bool) -> tuple[int, Any]:
    """Return how many micro-batches 96 images took, so many handed over at once, and what was voted."""
    certifier = Certifier([certificate], n0=16, n=400, budget=budget, runtime=Runtime(micro_batch=32, threads=1))
    session = certifier.session(HalfSpace(torch.tensor([1.0, 0, 0, 0])), noise, (4,), domain=(0.0, 1.0), grid=255)
    x = torch.linspace(0, 128, 96).round()[:, None].expand(-1, 4) / 255
    session.probe(x)
    if not again:
        session.sampler.rechecks = None
    run, calls = session.prepared.logits, []

    def counted(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return run(rows)

    session.prepared.logits = counted  # type: ignore[method-assign]
    size = at_once or session.images_at_once
    found = [
        (record.counts, record.n_used)
        for start in range(0, len(x), size)
        for record in session.certify(x[start : start + size], indices=range(start, min(start + size, len(x))))
    ]
    return len(calls), found


FEW_SAMPLES = [
    (DecideRadius(0.1), GaussianL2(), GaussianNoise(0.5)),
    (StagedSamples(first=50), GaussianL2(), GaussianNoise(0.5)),
    (DecideGridRadius(0.05), DeterministicSplittingL1(), DeterministicSplittingNoise(0.25, shape=(4,), q=255)),
    (FixedSamples(), DeterministicSplittingL1(), DeterministicSplittingNoise(0.25, shape=(4,), q=255)),
]


@pytest.mark.parametrize(("budget", "certificate", "noise"), FEW_SAMPLES, ids=lambda part: type(part).__name__)
def test_what_runs_again_costs_at_most_a_tenth_where_images_need_few_samples(
    budget: Budget, certificate: Certificate, noise: Noise
) -> None:
    """Counted in micro-batches; a stage's loader hands over so many images at once, and no image gets other samples."""
    with_them, votes = micro_batches(budget, certificate, noise, 0, True)
    without, same = micro_batches(budget, certificate, noise, 0, False)
    one_by_one, alone = micro_batches(budget, certificate, noise, 1, True)
    assert votes == same == alone
    assert with_them <= 1.1 * without
    assert with_them < one_by_one
