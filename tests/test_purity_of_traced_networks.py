"""Tracing runs Python once: what a network would do later is seen all the same, or the network is not traced."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from lightning_rs import Certifier, GaussianNoise
from lightning_rs.engine.runtime import Precision, Runtime
from tests.helpers import tiny_cnn

SHAPE = (2, 6, 6)


class Traceable(nn.Module):
    """A network of convolutions with something of its own around it; torch.fx can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_cnn()


class OnceInAWhile(Traceable):
    """Every 20th call gives other labels."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x).flip(1) if self.calls % 20 == 0 else self.net(x)


class AfterAWhile(Traceable):
    """Gives other labels from the 40th call on, which its class counts."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.net(x).flip(1) if len(self.calls) > 40 else self.net(x)


class InABuffer(Traceable):
    """Counts in a buffer, and gives other labels every 20th call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.net(x)
        return torch.where(self.calls % 20 == 0, out.flip(1), out)


class CacheByAddress(Traceable):
    """Answers what it answered the last time that its input lay there."""

    cache: ClassVar[dict[int, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = x.data_ptr()
        if key not in self.cache:
            self.cache[key] = self.net(x)
        return self.cache[key]


class Late(Traceable):
    """Gives other labels from some moment on, as by the clock."""

    late: ClassVar[list[bool]] = [False]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flip(1) if self.late[0] else self.net(x)


class LateUntraceable(Late):
    """The same, and torch.fx cannot follow it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > -1e9 else x


class Keeps(Traceable):
    """Keeps a tensor for a later line, and is a function of one row."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.net(x)
        return self.kept * 1


def images() -> Tensor:
    return torch.randint(0, 256, (2, *SHAPE), generator=torch.Generator().manual_seed(0)) / 255


@pytest.fixture(autouse=True)
def fresh() -> None:
    AfterAWhile.calls.clear()
    CacheByAddress.cache.clear()
    Late.late[0] = False


@pytest.mark.parametrize("network", [OnceInAWhile, AfterAWhile, InABuffer, CacheByAddress])
@pytest.mark.parametrize("threads", [1, 2])
def test_state_that_tracing_would_freeze_is_refused(network: type[nn.Module], threads: int) -> None:
    certifier = Certifier(n0=100, n=20_000, runtime=Runtime(micro_batch=64, threads=threads))
    with pytest.raises(ValueError, match="the network must be one fixed function of one row"):
        certifier.certify(network(), GaussianNoise(0.25), images(), grid=255)


@pytest.mark.parametrize("network", [OnceInAWhile, AfterAWhile, InABuffer])
def test_integers_need_a_network_without_state(network: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"tracing would freeze what the network writes down while it works: .*calls"):
        Runtime(precision="int8", micro_batch=64).prepare(network(), SHAPE)


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        (Late, "32-true"),
        (Late, "bf16-true"),
        (Late, "int8"),  # which needs a network that torch.fx can trace
        (LateUntraceable, "32-true"),
        (LateUntraceable, "bf16-true"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_that_drifts_is_refused_from_then_on(
    network: type[nn.Module], precision: Precision, threads: int
) -> None:
    runtime = Runtime(precision=precision, micro_batch=64, threads=threads)
    session = Certifier(n0=100, n=1000, runtime=runtime).session(network(), GaussianNoise(0.25), SHAPE, grid=255)
    assert len(list(session.certify(images()))) == 2
    Late.late[0] = True
    match = "one fixed function of one row, but its logits have moved by .* since the start"
    with pytest.raises(ValueError, match=match):
        list(session.certify(images(), indices=[2, 3]))
    with pytest.raises(ValueError, match=match):
        session.predict(images(), n=100)


def test_a_network_that_drifts_within_an_image_is_refused() -> None:
    session = Certifier(n0=100, n=1000, runtime=Runtime(micro_batch=64, threads=1)).session(
        Late(), GaussianNoise(0.25), SHAPE, grid=255, on_samples=lambda _: Late.late.__setitem__(0, True)
    )
    assert session.prepared.fused
    session.probe(images())
    with pytest.raises(ValueError, match="since the start"):
        list(session.certify(images()))


def test_a_network_that_cannot_be_traced_is_not_said_to_be_folded() -> None:
    described = Runtime(micro_batch=64).prepare(LateUntraceable(), SHAPE).describe()
    assert not described["folded"]
    assert Runtime(micro_batch=64).prepare(Late(), SHAPE).describe()["folded"]


def test_a_tensor_kept_for_a_later_line_is_no_state() -> None:
    runtime = Runtime(micro_batch=64)
    prepared = runtime.prepare(Keeps(), SHAPE)
    assert prepared.fused
    certifier = Certifier(n0=100, n=1000, runtime=runtime)
    kept, plain = (certifier.certify(n, GaussianNoise(0.25), images(), grid=255) for n in (Keeps(), tiny_cnn()))
    # Other names of parameters, other noise: the radii agree up to sampling.
    assert [a.prediction for a in kept] == [b.prediction for b in plain]
    assert [a.radius for a in kept] == pytest.approx([b.radius for b in plain], abs=0.1)
