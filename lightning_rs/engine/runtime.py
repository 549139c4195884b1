"""How a network is prepared and run: precision, memory layout, folding, compilation, one micro-batch shape.

Rounding inside the network only defines another base classifier, so certificates stay valid *for what ran*.
What ran is therefore part of every record (:meth:`PreparedNetwork.describe`), and another runtime refuses to
resume it.
"""

from __future__ import annotations

import copy
import functools
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from lightning_rs.checks import check_at_least, check_choice
from lightning_rs.engine.compile.fold import fold_batchnorm
from lightning_rs.engine.compile.fuse import ROUNDING, fuse_for_cpu
from lightning_rs.engine.compile.quantize import fingerprint, quantize_for_cpu, synthetic_images
from lightning_rs.engine.compile.quantized_layers import weight_limit
from lightning_rs.engine.flags import unusual_flags
from lightning_rs.engine.purity import RULE, Witness, check_asking, check_layers, examine
from lightning_rs.engine.replicas import replica
from lightning_rs.engine.workers import Workers, one_thread

Precision = Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed", "16-true", "int8"]

# Numbers of one micro-batch of inputs that keep activations of small networks in one core's cache, or fill a GPU.
_CPU_NUMBERS = 1 << 18
_GPU_NUMBERS = 1 << 25
_CANDIDATES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Runtime:
    """Configuration of inference for certification and prediction; Lightning's ``precision`` governs training.

    Args:
        precision: ``32-true``, ``bf16-true`` (weights in bfloat16), ``bf16-mixed``, ``16-mixed`` (autocast),
            ``16-true``, or ``int8`` (weights and activations of convolutions on 8 bits, see
            ``engine.compile.quantize``; CPU only). On a CPU with bfloat16 instructions ``bf16-true`` is
            usually fast, on one with VNNI instructions and without AMX ``int8`` faster.
        channels_last: run convolutions on images in (H, W, C) memory order.
        fold: fold BatchNorm into the preceding convolution.
        fuse: let convolutions add and rectify in place, and use oneDNN's weight layout (CPU only, without ``compile``;
            see :func:`~lightning_rs.engine.compile.fuse.fuse_for_cpu`).
        compile: compile with ``torch.compile`` for the one micro-batch shape; a failure falls back with a warning.
        micro_batch: rows of the one shape that the network ever sees; ``auto`` derives it from device and input
            size, so that two runs agree; ``tune`` times candidates at start and records the winner.
        threads: micro-batches at work at a time on a CPU, each on one thread; None takes torch's number of threads.
            Results do not depend on it.
        cuda_graph: replay the forward pass as a CUDA graph (CUDA only; ignored elsewhere).
        stochastic_network: the network draws random numbers of its own, independently for every row, and they belong
            to the classifier: probabilities are over the noise and over them, and runs do not repeat. Otherwise such
            networks are refused.
    """

    precision: Precision = "32-true"
    channels_last: bool = True
    fold: bool = True
    fuse: bool = True
    compile: bool = False
    micro_batch: int | Literal["auto", "tune"] = "auto"
    threads: int | None = None
    cuda_graph: bool = False
    stochastic_network: bool = False

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
        if isinstance(self.micro_batch, str):
            check_choice("micro_batch", self.micro_batch, ("auto", "tune"))
        else:
            check_at_least("micro_batch", self.micro_batch, 2)
        if self.threads is not None:
            check_at_least("threads", self.threads, 1)
        if self.precision == "int8":
            for name, needed in (("channels_last", True), ("fold", True), ("fuse", True), ("compile", False)):
                if getattr(self, name) != needed:
                    raise ValueError(f"{name} must be {needed} for precision 'int8', got {getattr(self, name)}")

    def prepare(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        micro_batch: int | None = None,
    ) -> PreparedNetwork:
        """Return a private copy of ``network``, ready to label micro-batches of inputs of ``shape``.

        Args:
            network: maps (m, *shape) to logits (m, C); left untouched.
            shape: shape of one input.
            device: where to run.
            micro_batch: overrides the configured size (a resumed record dictates it).

        Raises:
            ValueError: if the precision is not supported on the device, or the network does not map inputs of
                this shape to finite logits.
        """
        return PreparedNetwork(self, network, shape, torch.device(device), micro_batch)


@dataclass(frozen=True)
class Probe:
    """What a prepared network was seen to do at start.

    Attributes:
        changed: share of noisy inputs whose label differs from the fp32 network's.
        invariant: logits did not depend on the position in the micro-batch or on its companions.
        deviation: largest difference of a logit between positions and companions.
        rows: number of inputs compared.
        cause: what was different when logits moved most; empty if they did not.
        scale: the largest logit.
    """

    changed: float
    invariant: bool
    deviation: float
    rows: int
    cause: str = ""
    scale: float = field(default=0.0, compare=False)


class PreparedNetwork:
    """A network at one micro-batch shape, dtype and layout. Built by :meth:`Runtime.prepare`.

    Attributes:
        micro_batch: number of rows of every call.
        dtype: dtype of the input buffer.
        order: permutation with ``row = image.flatten()[order]``, or None for the identity (C, H, W).
        num_classes: number of logits.
        compiled: whether the compiled network runs; false if compilation was not asked for or failed.
        folded: whether what can be folded is; false where torch.fx cannot trace the network or folding gives another.
        fused: whether the fused network runs; false where it does not apply, see ``remarks``.
        workers: the threads on which micro-batches may be run side by side.
        remarks: what differs from the configuration, and why.
    """

    def __init__(
        self, config: Runtime, network: nn.Module, shape: tuple[int, ...], device: torch.device, micro_batch: int | None
    ) -> None:
        _check_supported(config.precision, device)
        self.config = config
        self.shape = tuple(shape)
        self.device = device
        self.remarks: list[str] = []
        self.workers = Workers(config.threads or torch.get_num_threads()) if device.type == "cpu" else Workers()
        if device.type == "cpu":
            _keep_freed_memory()
            self.remarks += _slow_precision(config.precision)
        self.channels_last = config.channels_last and len(shape) == 3
        self.dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(config.precision, torch.float32)
        self.order = _channels_last_order(self.shape, device) if self.channels_last else None
        self.folded = config.fold
        self.eager = self._copy(network)
        self._replicas: dict[int, Callable[[Tensor], Tensor]] = {}
        self._copying = threading.Lock()
        self._use(self.eager)
        self.flags = unusual_flags(device.type)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self.num_classes = self._count_classes()
        self._graph: _CudaGraph | None = None
        self._witness: Witness | None = None
        self.resize(network, self._choose_micro_batch() if micro_batch is None else micro_batch)

    def resize(self, network: nn.Module, micro_batch: int) -> None:
        """Run micro-batches of so many rows from now on, one more if that is odd; ``network`` is the given one."""
        size = check_at_least("micro_batch", micro_batch, 2)
        self.micro_batch = size + size % 2  # even: both members of an antithetic pair share a micro-batch
        self._graph = None
        self.compiled = self.config.compile and self._compile()
        self._scales = ""
        self.fused = self.config.fuse and not self.compiled and self._fuse(self.micro_batch)
        if self.config.precision == "int8":
            self.calibrate(self.flatten(synthetic_images(network, self.shape, 4 * self.micro_batch)))
        if self.config.cuda_graph and self.device.type == "cuda":
            self._graph = _CudaGraph(self._logits, self.buffer())

    def buffer(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return an empty flat buffer, (rows or micro_batch, d), in the input dtype."""
        dim = int(torch.Size(self.shape).numel())
        return torch.zeros(rows or self.micro_batch, dim, dtype=dtype or self.dtype, device=self.device)

    def flatten(self, images: Tensor) -> Tensor:
        """Return images (B, *shape) as float32 rows (B, d) in the engine's coordinate order, on the device."""
        flat = images.to(self.device, torch.float32).flatten(1)
        return flat if self.order is None else flat[:, self.order]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits (m, C) in float32 of one full micro-batch, flat (m, d) in the engine's order.

        Raises:
            ValueError: if a logit is NaN or infinite; where that would wait for the device, `check_finite` does.
        """
        if self.device.type != "cpu":
            found = self._logits(rows) if self._graph is None else self._graph(rows)
            self._finite.logical_and_(torch.isfinite(found).all())
            return found
        with one_thread():  # on more threads the rounding could differ
            found = self._logits(rows)
        if not torch.isfinite(found).all():
            raise ValueError(self._not_finite())
        return found

    def check_finite(self) -> None:
        """Raise ``ValueError`` if any logit so far was NaN or infinite; waits for the device."""
        if not self._finite:
            raise ValueError(self._not_finite())

    def _not_finite(self) -> str:
        return f"the network gives NaN or infinite logits at precision {self.config.precision}"

    def labels(self, rows: Tensor) -> Tensor:
        """Return the labels (m,) of one full micro-batch; ties go to the lowest index."""
        return self.logits(rows).argmax(1)

    @torch.inference_mode()
    def calibrate(self, rows: Tensor) -> None:
        """Choose the 8-bit grids of precision int8 from the ranges that inputs give; no other precision needs it.

        Args:
            rows: noisy inputs, flat float32 (m, d) in the engine's order, m a multiple of the micro-batch.

        Raises:
            ValueError: if nothing of the network can run on integers.
        """
        if not self._fuse(self.micro_batch) or not isinstance(self._forward, fx.GraphModule):
            raise ValueError(f"precision int8 needs a network whose layers fuse: {'; '.join(self.remarks)}")
        self._use(quantize_for_cpu(self._forward, self.view(rows), self.micro_batch))
        assert isinstance(self._forward, nn.Module)
        self._scales = fingerprint(self._forward)

    def describe(self) -> dict[str, Any]:
        """Return what ran, as plain values: binding for a record file."""
        return {
            "precision": self.config.precision,
            "channels_last": self.channels_last,
            "folded": self.folded,
            "fused": self.fused,
            "compiled": self.compiled,
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            **({"stochastic_network": True} if self.config.stochastic_network else {}),
            **({"flags": self.flags} if self.flags else {}),
            **({"scales": self._scales, "weight_limit": weight_limit()} if self._scales else {}),
        }

    def check_flags(self) -> None:
        """Raise ``ValueError`` if torch's flags are not those with which the network was prepared."""
        now = unusual_flags(self.device.type)
        if now != self.flags:
            raise ValueError(
                f"torch's flags must stay as they were when the network was prepared, {self.flags}, got {now}"
            )

    def check_unchanged(self) -> None:
        """Raise ``ValueError`` if the network, once it is probed, no longer answers what it answered then."""
        if self._witness is not None:
            self._witness.check()

    @torch.inference_mode()
    def probe(self, network: nn.Module, rows: Tensor) -> Probe:
        """Compare labels with the fp32 network's, and logits over positions, companions, calls and threads.

        Args:
            network: the original network.
            rows: one micro-batch of noisy inputs, flat float32 (m, d) in the engine's order.

        Raises:
            ValueError: if a logit is NaN or infinite, or if the network is seen to be no function of one row: its
                logits move by more than rounding, whoever asks and in whatever form, or it draws random numbers
                without leave to.
        """
        stochastic = self.config.stochastic_network
        own = self.logits(rows.to(self.dtype, copy=True)).clone()
        self.check_finite()
        reference, plain = self._plainly(network, rows)
        expected = reference.logits(plain.clone()).clone()
        seen = examine(self, rows, stochastic)
        if self.fused:  # tracing runs Python once: what would change later only shows without it
            examine(reference, plain, stochastic).check("32-true", stochastic)
        self.check_finite()
        seen.check(self.config.precision, stochastic)
        if not stochastic:
            check_asking(reference, plain, expected)
            self._witness = Witness(reference, plain)
        changed = float((expected.argmax(1) != own.argmax(1)).float().mean())
        return Probe(changed, seen.deviation == 0, seen.deviation, len(rows), seen.cause, seen.scale)

    def _plainly(self, network: nn.Module, rows: Tensor) -> tuple[PreparedNetwork, Tensor]:
        """Return the network prepared as it was given, in fp32, and the rows in its order of coordinates."""
        config = Runtime(channels_last=False, fold=False, fuse=False, stochastic_network=self.config.stochastic_network)
        with torch.inference_mode(False):  # what is made within it cannot be called outside of it
            reference = PreparedNetwork(config, network, self.shape, self.device, self.micro_batch)
        plain = rows.clone() if self.order is None else torch.empty_like(rows).index_copy_(1, self.order, rows)
        return reference, plain

    def _copy(self, network: nn.Module) -> nn.Module:
        prepared = copy.deepcopy(network).eval().requires_grad_(False)
        check_layers(prepared, self.config.stochastic_network)
        if self.config.fold:
            prepared = self._fold(prepared)
        prepared = prepared.to(self.device, self.dtype)
        if self.channels_last:
            prepared = prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return prepared

    def _fold(self, network: nn.Module) -> nn.Module:
        """Return the folded network, or the given one where folding gives another: tracing sees one branch of it."""
        folded, remark = fold_batchnorm(network)
        self.folded = not remark.startswith("not folded")
        if not self.config.stochastic_network:
            held = next(network.parameters(), torch.zeros(()))
            try:
                _check_same(network, folded, self._example(2).to(held), "32-true")
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a network that does not run at all is refused by `_count_classes`
                self.folded = False
                folded, remark = network, f"not folded: {(str(error).splitlines() or [''])[0]}"
        self.remarks += [remark] if remark else []
        return folded

    def _example(self, count: int) -> Tensor:
        """Return images (count, *shape) with negative numbers, too: a layer that rectifies them must be seen to."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    def _use(self, forward: Callable[[Tensor], Tensor]) -> None:
        """Run another form of the network from now on."""
        self._forward = forward
        self._replicas.clear()

    def _own_forward(self) -> Callable[[Tensor], Tensor]:
        """Return the calling thread's own copy of what runs: what one thread keeps in a module no other reads."""
        number = self.workers.number
        if number == 0:
            return self._forward
        if number not in self._replicas:
            with self._copying:
                made = replica(self.eager if self.compiled else self._forward)
                self._replicas[number] = self._compiler(made) if self.compiled else made
        return self._replicas[number]

    def _compiler(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        return torch.compile(network, fullgraph=False, dynamic=False)

    def _logits(self, rows: Tensor) -> Tensor:
        found = self.run(self._own_forward(), rows)
        if not isinstance(found, Tensor):  # tracing left a symbol where no copy of the network looks
            raise ValueError(f"{RULE}, but what it keeps of one call, a {type(found).__name__}, comes back in another")
        return found.float()

    def run(self, network: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return what a network makes of flat rows (m, d), whatever autocast its caller has set."""
        with self._autocast():
            return network(self.view(rows))

    def view(self, rows: Tensor) -> Tensor:
        """Return flat rows (m, d) as images (m, *shape), in the memory format that runs."""
        if not self.channels_last:
            return rows.view(-1, *self.shape)
        channels, height, width = self.shape
        return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, kind, enabled=kind is not None)

    @torch.inference_mode()
    def _count_classes(self) -> int:
        rows = self.buffer(2)
        try:
            logits = self.run(self._forward, rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # layers refuse wrong shapes with RuntimeError, ValueError, IndexError, TypeError
            raise ValueError(f"the network does not accept inputs of shape {self.shape}: {error}") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(rows) or logits.shape[1] < 2:
            seen = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must map (m, *shape) to logits (m, C), C >= 2, got {seen} for m = 2")
        return int(logits.shape[1])

    def _choose_micro_batch(self) -> int:
        configured = self.config.micro_batch
        if isinstance(configured, int):
            return configured
        if configured == "tune":
            return self.tune()
        return usual_micro_batch(self.shape, self.device)

    @torch.inference_mode()
    def tune(self) -> int:
        """Return the micro-batch at which rows go through fastest, by the clock; :meth:`resize` before more is run."""
        self._graph = None
        return max(_CANDIDATES, key=self._rate)

    def _rate(self, size: int) -> float:
        rows = self.buffer(size)
        try:
            if self.config.fuse:
                self._fuse(size)
            self.logits(rows)
            self._synchronize()
            best = 0.0
            for _ in range(3):
                start = time.perf_counter()
                self.logits(rows)
                self._synchronize()
                best = max(best, size / (time.perf_counter() - start))
        except torch.OutOfMemoryError:
            return 0.0
        return best

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def _fuse(self, size: int) -> bool:
        """Run the fused network from now on, made for micro-batches of ``size`` rows, if that can be done."""
        self._use(self.eager)
        if self.device.type != "cpu" or not self.channels_last or self.config.precision == "bf16-mixed":
            return False
        try:
            # Negative numbers too: a layer that rectifies its input must be seen to.
            rows = torch.randn(size, self.buffer(1).shape[1], generator=torch.Generator().manual_seed(0))
            self._use(fuse_for_cpu(self.eager, self.view(rows.to(self.dtype))))
            return True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch.fx fails in as many ways as models have control flow
            reason = (str(error).splitlines() or [""])[0]
            remark = f"layers not fused: {type(error).__name__}: {reason}"
            self.remarks += [] if remark in self.remarks else [remark]
            return False

    @torch.inference_mode()
    def _compile(self) -> bool:
        try:
            self._use(self._compiler(self.eager))
            rows = self.flatten(self._example(self.micro_batch)).to(self.dtype)
            if self.config.stochastic_network:
                self.logits(rows)
            else:
                _check_same(lambda x: self.run(self.eager, x).float(), self.logits, rows, self.config.precision)
            return True
        except Exception as error:  # the compiler raises anything from a missing g++ to internal errors
            self._use(self.eager)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.remarks.append(f"compile failed, running eagerly: {reason}")
            warnings.warn(f"torch.compile failed and the network runs eagerly: {reason}", stacklevel=2)
            return False


def usual_micro_batch(shape: tuple[int, ...], device: torch.device | str) -> int:
    """Return the rows of a micro-batch of inputs of this shape on a device, where the configuration says "auto"."""
    cuda = torch.device(device).type == "cuda"
    dim = int(torch.Size(shape).numel())
    size = 1 << max(5, ((_GPU_NUMBERS if cuda else _CPU_NUMBERS) // dim).bit_length() - 1)
    return min(size, 4096 if cuda else 2048)


@dataclass
class _CudaGraph:
    """A forward pass captured once and replayed."""

    forward: Callable[[Tensor], Tensor]
    static_input: Tensor
    static_output: Tensor = field(init=False)
    graph: Any = field(init=False)

    def __post_init__(self) -> None:
        with torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.forward(self.static_input)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.static_output = self.forward(self.static_input)

    def __call__(self, rows: Tensor) -> Tensor:
        self.static_input.copy_(rows)
        self.graph.replay()
        return self.static_output


def _check_supported(precision: str, device: torch.device) -> None:
    if device.type == "cpu" and precision in ("16-mixed", "16-true"):
        raise ValueError(
            f"precision {precision!r} is not supported on the CPU: use 32-true, bf16-true, bf16-mixed or int8"
        )
    if device.type != "cpu" and precision == "int8":
        raise ValueError(f"precision 'int8' is supported on the CPU only, got {device.type}: use bf16-true")
    if device.type == "cuda" and precision.startswith("bf16") and not torch.cuda.is_bf16_supported():
        raise ValueError(f"precision {precision!r} is not supported on this GPU: use 32-true or 16-mixed")
    if device.type == "mps" and precision != "32-true":
        raise ValueError(f"precision {precision!r} is not supported on MPS: use 32-true")


@torch.inference_mode()
def _check_same(
    given: Callable[[Tensor], Tensor], form: Callable[[Tensor], Tensor], rows: Tensor, precision: str
) -> None:
    """Raise ``ValueError`` unless another form of a network gives the same logits, up to its rounding."""
    own, other = given(rows.clone()).clone(), form(rows.clone())  # a network may write over its input
    apart, size = float((other - own).abs().max()), float(own.abs().max())
    exact = rows.device.type == "cpu" and precision in ("32-true", "int8")
    if not apart <= size * ROUNDING[torch.float32 if exact else torch.bfloat16]:
        raise ValueError(f"it must give the same logits, got a difference of {apart:g} in {size:g}")


def _channels_last_order(shape: tuple[int, ...], device: torch.device) -> Tensor:
    positions = torch.arange(int(torch.Size(shape).numel()), device=device)
    return positions.view(shape).permute(1, 2, 0).flatten()


def _slow_precision(precision: str) -> list[str]:
    """Say when a CPU has no instructions for the precision that was asked for."""
    features = torch.cpu.get_capabilities()
    fast = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    if not precision.startswith("bf16") or fast:
        return []
    return [f"this CPU has no bfloat16 instructions: precision {precision} may be slower than 32-true"]


@functools.cache
def _keep_freed_memory() -> None:
    """Let freed activations be used again instead of going back to the system, a page fault each 4 KiB.

    Freeing a block just below 32 MiB raises the sizes from which glibc maps blocks one by one and trims its heap;
    without it page faults take 7-11% of a small network's time. It does nothing on other systems.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
