"""Is the base network one fixed function of one row?

Every theorem smooths one function f: f(x + w) must depend on x + w alone. Batch statistics, state kept between calls,
positions, companions, threads and randomness make votes dependent, and Clopper-Pearson's bound void. So layers known
to do that are refused when the network is prepared, and before the first image one micro-batch of noisy rows runs
again and again (:func:`examine`): repeated, at other positions, among other rows, in memory used before, on every
thread. What moves logits by more than rounding is refused, and the layer named where it starts. So is a network that
answers otherwise to whoever asks in another way (:func:`check_asking`), or later (:class:`Witness`).
:mod:`recheck` does the same with some samples of every image.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_rs.engine.workers import one_thread

if TYPE_CHECKING:
    from lightning_rs.engine.runtime import PreparedNetwork

RULE = "the network must be one fixed function of one row"
# Largest movement of a logit, relative to the largest logit, that is taken for rounding.
_ROUNDING = {"32-true": 1e-4, "int8": 1e-4}
_COARSE_ROUNDING = 0.02
# Rows that are asked for in other ways.
_ASKED = 3
# Threads that disturb each other do so by chance: they meet more than once.
_MEETINGS = 4


def rounding(precision: str) -> float:
    """Return the relative movement of logits that is taken for rounding at a precision."""
    return _ROUNDING.get(precision, _COARSE_ROUNDING)


def check_layers(network: nn.Module, stochastic: bool) -> None:
    """Refuse layers that cannot be functions of one row in a network that was put into evaluation mode.

    Raises:
        ValueError: naming the first layer that normalises by the statistics of its batch, or drops at random.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, _NormBase) and not isinstance(layer, _InstanceNorm) and layer.running_mean is None:
            why = "normalises by the statistics of its batch (track_running_stats=False)"
        elif isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None:
            why = "stays in training mode and normalises by the statistics of its batch"
        elif isinstance(layer, _DropoutNd) and layer.training and layer.p > 0 and not stochastic:
            why = "stays in training mode and drops at random"
        else:
            continue
        raise ValueError(f"{RULE}, but layer {name!r} ({type(layer).__name__}) {why}")


def foreign(rows: Tensor, bright: bool) -> Tensor:
    """Return other rows (m, d) than these, darker or brighter, each coordinate within the range of them all."""
    low, high = rows.amin(), rows.amax()
    shift = 0.25 * (high - low)
    other = rows.flip(1) * (1.5 if bright else 0.5) + (shift if bright else -shift)
    return torch.minimum(torch.maximum(other, low), high)


@dataclass(frozen=True)
class Movement:
    """How far logits moved when the same rows ran again.

    Attributes:
        deviation: the largest movement.
        scale: the largest logit.
        cause: what was different the first time that logits moved most; empty if nothing moved.
        layer: where the movement starts, if it was looked for.
        random: the network drew random numbers.
    """

    deviation: float
    scale: float
    cause: str = ""
    layer: str = ""
    random: bool = False

    def check(self, precision: str, stochastic: bool) -> None:
        """Raise ``ValueError``, naming the layer, unless rounding explains what moved."""
        if stochastic:
            return
        if self.random:
            raise ValueError(
                f"{RULE}, but it draws random numbers{self.layer}: set stochastic_network of the runtime if "
                "they belong to the classifier"
            )
        if self.deviation > rounding(precision) * self.scale:
            raise ValueError(
                f"{RULE}, but its logits move by {self.deviation:.3g} (the largest is {self.scale:.3g}) "
                f"with {self.cause}{self.layer}"
            )


@dataclass(frozen=True)
class _Arrangement:
    """Rows in another order or company: row ``new[i]`` of them is row ``own[i]`` of the first micro-batch."""

    cause: str
    rows: Tensor
    new: Tensor
    own: Tensor


def examine(prepared: PreparedNetwork, rows: Tensor, stochastic: bool) -> Movement:
    """Run one micro-batch of rows, flat float32 (m, d), in several arrangements and return how its logits moved.

    Raises:
        ValueError: if a logit is NaN or infinite.
    """
    before = _random_state(prepared.device)
    own = _run(prepared, rows)
    drew = before != _random_state(prepared.device)
    scale = float(own.abs().max())
    if stochastic:
        return Movement(0.0, scale, random=drew)
    worst, culprit = Movement(0.0, scale, random=drew), _Arrangement("", rows, *(torch.arange(len(rows)),) * 2)
    for arrangement in _arrangements(rows):
        found = float((_run(prepared, arrangement.rows)[arrangement.new] - own[arrangement.own]).abs().max())
        if found > worst.deviation:
            worst, culprit = Movement(found, scale, arrangement.cause, random=drew), arrangement
    for cause, again in (("memory that is used again", _reused), ("threads", _everywhere)):
        found = max((float((logits - own).abs().max()) for logits in again(prepared, rows)), default=0.0)
        if found > worst.deviation:
            worst = Movement(found, scale, cause, random=drew)
    if drew or worst.deviation > rounding(prepared.config.precision) * scale:
        layer = _first_layer(prepared, rows, culprit, drew)
        return Movement(worst.deviation, scale, worst.cause, layer, drew)
    return worst


@dataclass(frozen=True)
class _Asking:
    """A way of calling the network that is not the engine's.

    Attributes:
        cause: what is different, as words for an error.
        arrange: makes the input from images, a copy that may be kept.
        rows: number of images.
        outside: outside inference mode.
        grad: with gradients.
        threads: on as many threads as torch is set to.
    """

    cause: str
    arrange: Callable[[Tensor], Tensor] = lambda images: images
    rows: int = _ASKED
    outside: bool = False
    grad: bool = False
    threads: bool = False


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


# A product instead of a leaf that requires gradients: leaves may not be written over.
_ASKINGS = (
    _Asking("the number of rows", rows=1),
    _Asking("the number of rows"),
    _Asking("the memory format of its input", _channels_last),
    _Asking("the strides of its input", lambda images: images.repeat_interleave(2, 0)[1::2]),
    _Asking("torch's number of threads", threads=True),
    _Asking("inference mode", outside=True),
    _Asking("the strides of its input", lambda images: images.repeat_interleave(2, 0)[1::2], outside=True),
    _Asking("gradients", outside=True, grad=True),
    _Asking("gradients", lambda images: images.requires_grad_() * 1, outside=True, grad=True),
)


def check_asking(plain: PreparedNetwork, rows: Tensor, expected: Tensor) -> None:
    """Refuse a network whose answer depends on how it is asked: what is certified must be what its user calls.

    A few rows are asked for by themselves, in other memory, on other threads, and outside inference mode with
    gradients, as an attacker would. A call that the network refuses is no other answer.

    Args:
        plain: the network as it was given, in fp32.
        rows: flat float32, (m, d).
        expected: its logits (m, C) as the engine asks for them.

    Raises:
        ValueError: if its logits move by more than rounding.
    """
    few, scale = plain.view(rows[:_ASKED]), float(expected.abs().max())
    # Kernels for another number of rows may round more coarsely on an accelerator, or where torch may use bfloat16.
    exact = plain.device.type == "cpu" and not plain.flags
    allowed = scale * (_ROUNDING["32-true"] if exact else _COARSE_ROUNDING)
    for asking in _ASKINGS:
        try:
            answer = _ask(plain, few[: asking.rows], asking).flatten()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # networks refuse inputs in as many ways as there are networks
            continue
        own = expected[: min(asking.rows, len(few))].flatten()
        moved = float((answer.float() - own).abs().max()) if answer.shape == own.shape else math.inf
        if not moved <= allowed:  # nan, too
            raise ValueError(
                f"{RULE}, but its logits move by {moved:.3g} (the largest is {scale:.3g}) with {asking.cause}"
            )


class Witness:
    """The network as it was given, which is asked again whether it is still what it was at the start.

    A form that was traced never changes by itself; the network that it stands for may: with the clock, with calls,
    with what its class or module keeps. And what drifts slowly moves no sample that runs again a moment later.

    Args:
        plain: the network as it was given, in fp32.
        rows: flat float32, (m, d), of which a few are kept; all, if it refuses to be asked for a few.
    """

    def __init__(self, plain: PreparedNetwork, rows: Tensor) -> None:
        self._plain = plain
        for count in (*range(_ASKED, 0, -1), len(rows)):
            self._images = plain.view(rows[:count].clone())
            try:
                self._answer = self._ask()
                break
            except torch.OutOfMemoryError:
                raise
            except Exception:  # see `check_asking`
                if count == len(rows):
                    raise

    def check(self) -> None:
        """Raise ``ValueError`` if its logits are not what they were."""
        answer, scale = self._ask(), float(self._answer.abs().max())
        moved = float((answer - self._answer).abs().max()) if answer.shape == self._answer.shape else math.inf
        exact = self._plain.device.type == "cpu" and not self._plain.flags
        if not moved <= scale * (_ROUNDING["32-true"] if exact else _COARSE_ROUNDING):  # nan, too
            raise ValueError(
                f"{RULE}, but its logits have moved by {moved:.3g} (the largest is {scale:.3g}) since the start"
            )

    def _ask(self) -> Tensor:
        return _ask(self._plain, self._images, _Asking("")).float()


def _ask(plain: PreparedNetwork, images: Tensor, asking: _Asking) -> Tensor:
    """Return the logits that a network answers to one way of asking."""
    threads = contextlib.nullcontext() if asking.threads else one_thread()
    cast = torch.autocast(plain.device.type, enabled=False)  # whatever its caller has set
    with threads, cast, torch.inference_mode(not asking.outside), torch.set_grad_enabled(asking.grad):
        return plain.eager(asking.arrange(images.clone())).detach().clone()


def _run(prepared: PreparedNetwork, rows: Tensor) -> Tensor:
    """Return logits of a copy of the rows: a network may write over its input."""
    return prepared.logits(rows.to(prepared.dtype, copy=True)).clone()


def _arrangements(rows: Tensor) -> Iterator[_Arrangement]:
    count = len(rows)
    every = torch.arange(count, device=rows.device)
    yield _Arrangement("repeated calls", rows, every, every)
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(rows.device)
    for order in (every.roll(1), every.flip(0), mixed):
        yield _Arrangement("position", rows[order], every, order)
    for bright in (False, True):
        kept = every[int(bright) :: 2]
        company = foreign(rows, bright)
        company[kept] = rows[kept]
        yield _Arrangement("companions", company, kept, kept)
    lonely = rows[:1].roll(1, 1).expand_as(rows) * 0.5
    yield _Arrangement("companions", torch.cat([rows[:1], lonely[1:]]), every[:1], every[:1])
    yield _Arrangement("call order", rows, every, every)


def _reused(prepared: PreparedNetwork, rows: Tensor) -> Iterator[Tensor]:
    """Yield logits of the rows in memory that held other rows in the call before."""
    buffer = foreign(rows, True).to(prepared.dtype)
    prepared.logits(buffer)
    buffer.copy_(rows)
    yield prepared.logits(buffer).clone()


def _everywhere(prepared: PreparedNetwork, rows: Tensor) -> Iterator[Tensor]:
    """Yield logits of the rows from every thread, each at work on another order of them: what threads share shows."""

    @torch.inference_mode()
    def rolled() -> Tensor:
        by = prepared.workers.number
        return _run(prepared, rows.roll(by, 0)).roll(-by, 0)

    for _ in range(_MEETINGS):
        yield from prepared.workers.everywhere(rolled)


def _random_state(device: torch.device) -> tuple[Any, ...]:
    on_device = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (what an old network would draw from)
    return (
        torch.get_rng_state().numpy().tobytes(),
        on_device,
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2],
    )


def _first_layer(prepared: PreparedNetwork, rows: Tensor, other: _Arrangement, drew: bool) -> str:
    """Return where the logits part, as words for an error; empty if no layer by itself shows it."""
    network = copy.deepcopy(prepared.eager)
    first, second = (_outputs(prepared, network, each) for each in (rows, other.rows))
    for (name, kind, output, moved), (_, _, again, _) in zip(first, second, strict=False):
        if drew:
            apart = moved
        else:
            comparable = output.shape == again.shape and len(output) == len(rows) and output.is_floating_point()
            difference = (again[other.new] - output[other.own]).abs().float() if comparable else torch.zeros(1)
            size = output.abs().max() if comparable else 0.0
            apart = bool(difference.max() > rounding(prepared.config.precision) * size)
        if apart:
            return f" in layer {name!r} ({kind})" if name else f" in the forward of {kind} itself"
    return ""


def _outputs(prepared: PreparedNetwork, network: nn.Module, rows: Tensor) -> list[tuple[str, str, Tensor, bool]]:
    """Return name, type and output of every module of a network, and whether it drew: children before parents."""
    found: list[tuple[str, str, Tensor, bool]] = []
    started: list[tuple[Any, ...]] = []
    handles = []
    for name, module in network.named_modules():

        def before(*_: Any) -> None:
            started.append(_random_state(prepared.device))

        def after(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            moved = started.pop() != _random_state(prepared.device)
            kept = output.clone() if isinstance(output, Tensor) else torch.zeros(0)
            found.append((name, type(module).__name__, kept, moved))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        prepared.run(network, rows.to(prepared.dtype, copy=True))
    finally:
        for handle in handles:
            handle.remove()
    return found
