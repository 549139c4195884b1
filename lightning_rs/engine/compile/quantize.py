"""A fused network on 8-bit integers: convolutions and wide linear layers multiply codes of weights and activations.

Rounding to 8 bits only defines another base classifier, so certificates stay valid for what ran. The grids are chosen
once, from inputs that are drawn with fixed seeds and not from data: the same network and noise give the same
classifier in ``certify`` and ``predict``, on every rank and shard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_rs.engine.compile.fused_layers import FusedConv2d, PairedConv2d, flatten_as_stored, max_of_squares
from lightning_rs.engine.compile.quantized_layers import Dequantize, Grid, Quantize, QuantizedConv2d, QuantizedLinear
from lightning_rs.networks.normalize import Normalize

# Activations may be that much larger on data than on the inputs of the calibration before they are clipped.
HEADROOM = 1.5
# Functions that only move or compare numbers, so that they act on codes as on what these stand for.
_ON_CODES = (max_of_squares, flatten_as_stored)


@dataclass
class _Seen:
    """Smallest and largest value, and the shape, of what a node gave."""

    low: float
    high: float
    shape: tuple[int, ...]

    def grid(self) -> Grid:
        return Grid.covering(HEADROOM * self.low, HEADROOM * self.high)


class _Ranges(fx.Interpreter):
    """Runs a network and notes the range of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            # From zero: every grid holds 0 exactly, which is what padding and ReLU give.
            old = self.seen.get(n, _Seen(0.0, 0.0, tuple(found.shape)))
            self.seen[n] = _Seen(min(old.low, float(found.min())), max(old.high, float(found.max())), old.shape)
        return found


@dataclass
class _Rewriter:
    """Replaces layers in graph order; ``codes`` maps nodes of the float network to nodes that give their codes."""

    traced: fx.GraphModule
    seen: dict[fx.Node, _Seen]
    codes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    grids: dict[fx.Node, Grid] = field(default_factory=dict)
    replaced: set[fx.Node] = field(default_factory=set)
    added: int = 0

    def add(self, module: nn.Module, node: fx.Node, *inputs: fx.Node) -> fx.Node:
        self.added += 1
        name = f"integer_{self.added}"
        self.traced.add_submodule(name, module)
        with self.traced.graph.inserting_before(node):
            return self.traced.graph.call_module(name, inputs)

    def coded(self, node: fx.Node, reader: fx.Node) -> tuple[fx.Node, Grid]:
        """Return the node that gives the codes of ``node``, made before ``reader`` if there is none yet."""
        # Once for all readers, before the first of them in graph order.
        if node not in self.codes:
            self.grids[node] = self.seen[node].grid()
            self.codes[node] = self.add(Quantize(self.grids[node]), reader, node)
        return self.codes[node], self.grids[node]

    def convolution(self, node: fx.Node, module: FusedConv2d | PairedConv2d) -> None:
        sources = [argument for argument in node.args if isinstance(argument, fx.Node)]
        inputs = [self.coded(source, node) for source in sources]
        grids = [grid for _, grid in inputs]
        self.grids[node] = self.seen[node].grid()
        inner = module.conv if isinstance(module, PairedConv2d) else module
        assert isinstance(inner, FusedConv2d)
        shape = self.seen[sources[0]].shape
        if isinstance(module, PairedConv2d):
            shape = (shape[0], 2, shape[2], shape[3] // 2)  # two columns of pixels as two channels
        layer = QuantizedConv2d(inner, shape, grids[0], self.grids[node], next(iter(grids[1:]), None))
        # A second grid is that of the shortcut: both summands are codes, on grids of their own.
        whole = module.around(layer) if isinstance(module, PairedConv2d) else layer
        self.codes[node] = self.add(whole, node, *(code for code, _ in inputs))
        self.replaced.add(node)

    def moved(self, node: fx.Node) -> None:
        # Maxima and moves commute with an increasing code, so the grid stays, and nothing is rounded a second time.
        source = node.args[0]
        assert isinstance(source, fx.Node)
        assert callable(node.target)
        with self.traced.graph.inserting_before(node):
            self.codes[node] = self.traced.graph.call_function(node.target, (self.codes[source], *node.args[1:]))
        self.grids[node] = self.grids[source]
        self.replaced.add(node)

    def plain(self, node: fx.Node) -> None:
        """Give a layer that stays in float32 the numbers instead of the codes."""
        for source in node.all_input_nodes:
            if source in self.replaced:
                numbers = self.add(Dequantize(self.grids[source]), node, self.codes[source])
                node.replace_input_with(source, numbers)


def quantize_for_cpu(fused: fx.GraphModule, examples: Tensor, rows: int) -> fx.GraphModule:
    """Return ``fused`` with its convolutions, and the linear layers that read them, on 8-bit integers.

    Args:
        fused: what :func:`~lightning_rs.engine.compile.fuse.fuse_for_cpu` returns for float32 weights.
        examples: inputs (N, C, H, W) in channels-last memory, N a multiple of ``rows``, from which ranges are taken.
        rows: number of rows of every later call.

    Raises:
        ValueError: if there is no convolution to run on integers.
    """
    ranges = _Ranges(fused)
    for batch in examples.split(rows):
        ranges.run(batch)
    # Graph order again: a layer's codes exist before its readers are asked what they read. Old float nodes stay in the
    # graph until the end, and die with their last reader.
    rewriter = _Rewriter(fused, ranges.seen)
    for node in list(fused.graph.nodes):
        module = fused.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FusedConv2d | PairedConv2d):
            rewriter.convolution(node, module)
        elif node.op == "call_function" and node.target in _ON_CODES and node.args[0] in rewriter.replaced:
            rewriter.moved(node)
        elif type(module) is nn.Linear and node.args[0] in rewriter.replaced:
            code, grid = rewriter.coded(node.args[0], node)
            node.replace_all_uses_with(rewriter.add(QuantizedLinear(module, rows, grid), node, code))
        else:
            rewriter.plain(node)
    if not rewriter.codes:
        raise ValueError("precision int8 needs a network with convolutions that fuse, found none")
    fused.graph.eliminate_dead_code()
    fused.graph.lint()
    fused.recompile()
    fused.delete_all_unused_submodules()
    return fused


def fingerprint(quantized: nn.Module) -> str:
    """Return the SHA-256 of all grids: it tells two quantised classifiers of the same weights apart."""
    layers = (QuantizedConv2d, QuantizedLinear, Quantize, Dequantize)
    grids = [
        (name, type(module).__name__, [getattr(module, key, None) for key in ("source", "target", "other", "grid")])
        for name, module in quantized.named_modules()
        if isinstance(module, layers)
    ]
    return hashlib.sha256(repr(grids).encode()).hexdigest()


def synthetic_images(network: nn.Module, shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Return smooth random images (count, C, H, W), in the range of pixels that ``network`` standardises.

    Sums of random fields at several scales, with the mean and standard deviation of the network's first `Normalize`
    (1/2 and 1/4 if it has none), clipped to [0, 1] where those describe pixels.

    Raises:
        ValueError: if ``shape`` is not that of an image.
    """
    generator = torch.Generator().manual_seed(seed)
    normalize = next((module for module in network.modules() if isinstance(module, Normalize)), None)
    mean = torch.full((1,), 0.5) if normalize is None else normalize.mean.detach().float().cpu()
    std = torch.full((1,), 0.25) if normalize is None else normalize.std.detach().float().cpu()
    if len(shape) != 3:
        raise ValueError(f"precision int8 needs images of shape (C, H, W), got inputs of shape {tuple(shape)}")
    channels, height, width = shape
    field_ = torch.zeros(count, channels, height, width)
    for size in (3, 6, 12):
        coarse = torch.randn(count, channels, size, size, generator=generator)
        coarse += torch.randn(count, 1, size, size, generator=generator)  # colours go together
        field_ += F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    field_ /= field_.std()
    images = mean.view(-1, 1, 1) + std.view(-1, 1, 1) * field_
    pixels = bool(((mean >= 0) & (mean <= 1)).all())
    return images.clamp_(0, 1) if pixels else images
