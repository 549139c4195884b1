"""Fewer passes over memory on a CPU: a convolution adds and rectifies in place, pooling and flattening are cheap.

The function computed is that of the folded network up to rounding: what is fused is rounded once, at the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_rs.engine.compile.fused_layers import (
    FusedConv2d,
    PairedConv2d,
    flatten_as_stored,
    max_of_squares,
    pairs_columns,
)
from lightning_rs.engine.replicas import attributes, replica
from lightning_rs.networks.normalize import Center, Normalize

_RELU: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_ADD: tuple[Any, ...] = (operator.add, torch.add, "add", "add_")  # fx traces += as operator.add
_FLATTEN: tuple[Any, ...] = (torch.flatten, "flatten")
# Layers that return new memory, never their input or a view of it.
_OWN_MEMORY = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
# Largest difference of logits between two forms of a network, relative to the largest, that is taken for rounding.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def fuse_for_cpu(network: nn.Module, example: Tensor) -> nn.Module:
    """Return ``network``, in eval mode and folded, with fused layers for inputs like ``example``.

    torch.fx traces the network. Convolutions without groups absorb a ReLU, or the sum of a residual block and its
    ReLU, and write over the shortcut where nobody reads it any more; max-pooling of disjoint squares, flattening and
    the subtraction of a mean are rewritten for channels-last memory. Everything else stays as it is.

    Args:
        network: maps (N, C, H, W) to logits; float32 or bfloat16 weights; left untouched.
        example: a batch (N, C, H, W) in channels-last memory, of the dtype and size that will be seen.

    Returns:
        a module that shares the parameters of ``network``.

    Raises:
        ValueError: if the result disagrees with ``network`` on the example by more than rounding explains, or if a call
            of ``network`` changes an attribute: what it does later, the traced network would never do.
        Exception: anything else, if torch.fx cannot trace the network or this torch lacks the fused operations.
    """
    before = attributes(network)
    plain = network(example.clone())  # a network may write over its input
    written = sorted(name for name, value in attributes(network).items() if before.get(name) != value)
    if written:
        raise ValueError(f"tracing would freeze what the network writes down while it works: {', '.join(written)}")
    network = replica(network)  # what it keeps on itself while it works would be left as a symbol of the tracer
    graph = _Tracer().trace(network)
    traced = fx.GraphModule(network, graph)
    _drop_identities(traced)
    # Shapes and strides are seen, not derived: rewriting by them is right for inputs like the example, which the engine
    # never departs from (one micro-batch shape), and would be wrong for others.
    _Shapes(traced).run(example.clone())
    # In this order: a ReLU has to stand behind its convolution before convolutions absorb what follows them, and pools
    # and flattening look at what memory the fused layers give.
    for rewrite in (_rectify_before_pooling, _fuse_convolutions, _replace_pools, _flatten_without_copy, _spread_means):
        rewrite(traced)
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    # What this build of torch cannot run shows here, and control flow that tracing does not see.
    apart, size = (traced(example.clone()) - plain).abs().max(), plain.abs().max()
    if not apart <= size * ROUNDING[example.dtype]:
        raise ValueError(f"fused layers must give the same logits, got a difference of {apart:g} in {size:g}")
    return traced


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize | Center) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes at every node the tensor that it gives, as an empty one of equal shape, dtype and strides."""

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            n.meta["seen"] = torch.empty_like(found, device="meta")
        return found


def _module(traced: fx.GraphModule, node: object) -> nn.Module | None:
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = traced.get_submodule(str(node.target))
    # A hook is code that a rewritten graph would no longer run.
    return None if module._forward_hooks or module._forward_pre_hooks else module


def _seen(node: fx.Node) -> Tensor:
    return node.meta["seen"]


def _source(node: fx.Node) -> fx.Node:
    """Return the node that ``node`` reads first; only asked of calls of layers on one tensor."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _calls(node: object, targets: tuple[Any, ...]) -> bool:
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in targets


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    return type(_module(traced, node)) is nn.ReLU or (_calls(node, _RELU) and len(node.args) == 1)


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if type(_module(traced, node)) in (nn.Identity, nn.Dropout):
            node.replace_all_uses_with(_source(node))
            traced.graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _stored_by_pixel(node: object) -> bool:
    """Say whether a node gives images in channels-last memory."""
    seen = node.meta.get("seen") if isinstance(node, fx.Node) else None
    return seen is not None and seen.ndim == 4 and seen.is_contiguous(memory_format=torch.channels_last)


def _rectify_before_pooling(traced: fx.GraphModule) -> None:
    """Swap pooling and ReLU, which commute, so that a convolution can absorb the ReLU."""
    nodes: list[fx.Node] = list(traced.graph.nodes)
    for pool in nodes:
        relu = _only_user(pool)
        if relu is None or not _is_pooling(traced, pool) or not _is_relu(traced, relu):
            continue
        conv = _source(pool)
        if _only_user(conv) is pool and type(_module(traced, conv)) is nn.Conv2d:
            with traced.graph.inserting_before(pool):
                rectified = traced.graph.call_function(F.relu, (conv,))
            rectified.meta["seen"] = _seen(conv)
            pool.replace_input_with(conv, rectified)
            relu.replace_all_uses_with(pool)
            traced.graph.erase_node(relu)


def _fuse_convolutions(traced: fx.GraphModule) -> None:
    # Graph order: when a convolution asks whether its shortcut may be overwritten, all that comes before is rewritten.
    fused: set[fx.Node] = set()
    for number, node in enumerate(list(traced.graph.nodes)):
        conv = _module(traced, node)
        if type(conv) is not nn.Conv2d or not _fusible(conv) or not _stored_by_pixel(node.args[0]):
            continue
        source, (last, other) = _source(node), _tail(traced, node)
        relu = last is not node and _is_relu(traced, last)
        overwrite = other is not None and other is not source and _is_free(traced, other, last, fused)
        name = f"fused_{number}"
        if other is None and pairs_columns(conv, _seen(source).shape[3]):
            traced.add_submodule(name, PairedConv2d(conv, torch.empty_like(_seen(source), device="cpu"), relu))
        else:
            traced.add_submodule(name, FusedConv2d(conv, _seen(source), relu, overwrite))
        # At the place of the last node it absorbs, because the other summand may be made between the two.
        with traced.graph.inserting_before(last):
            new = traced.graph.call_module(name, (source,) if other is None else (source, other))
        new.meta["seen"] = last.meta["seen"]
        last.replace_all_uses_with(new)
        for old in _chain(node, last):  # from the end: fx erases only what nobody reads
            traced.graph.erase_node(old)
        fused.add(new)


def _fusible(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1


def _tail(traced: fx.GraphModule, conv: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the last node that the convolution can absorb, and what it adds on the way."""
    # conv, conv + x, relu(conv) or relu(conv + x), and only while each step has no other reader.
    last, other = conv, None
    user = _only_user(last)
    if user is not None and _calls(user, _ADD) and len(user.args) == 2 and not user.kwargs:
        first, second = user.args
        found = second if first is conv else first
        if isinstance(found, fx.Node) and found is not conv and _alike(found, conv):
            # x.add_(conv(y)) changes x for whoever reads it later under its old name.
            in_place = user.target == "add_" and found is first
            if not in_place or not any(user < reader for reader in found.users):
                last, other, user = user, found, _only_user(user)
    if user is not None and _is_relu(traced, user):
        last = user
    return last, other


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Say whether two nodes give channels-last images of one shape and dtype, so that a sum broadcasts nothing."""
    if not (_stored_by_pixel(one) and _stored_by_pixel(other)):
        return False
    return _seen(one).shape == _seen(other).shape and _seen(one).dtype == _seen(other).dtype


def _is_free(traced: fx.GraphModule, other: fx.Node, last: fx.Node, fused: set[fx.Node]) -> bool:
    """Say whether ``other`` may be overwritten at ``last``: own memory, all readers done, no view of it left."""
    # Writing over a tensor changes every view of it. What a layer of _OWN_MEMORY or a fused one returns is nobody's
    # view, and such readers return no view either; anything else (a slice, a reshape, the input) is left alone.
    readers = [user for user in other.users if user is not last and last not in user.users]
    own = {node for node in (other, *readers) if node in fused or type(_module(traced, node)) in _OWN_MEMORY}
    return len(own) == len(readers) + 1 and all(user < last for user in readers)


def _chain(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    nodes = [first]
    while nodes[-1] is not last:
        nodes.append(next(iter(nodes[-1].users)))
    return nodes[::-1]


def _replace_pools(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if _is_pooling(traced, node):
            _substitute(traced, node, max_of_squares, _pair(getattr(_module(traced, node), "kernel_size", 1))[0])


def _is_pooling(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node takes the maxima of disjoint squares of channels-last images."""
    pool = _module(traced, node)
    if type(pool) is not nn.MaxPool2d or not _stored_by_pixel(node.args[0]):
        return False
    height, width = _pair(pool.kernel_size)
    plain = not pool.ceil_mode and not pool.return_indices and _pair(pool.dilation) == (1, 1)
    return plain and height == width > 1 and _pair(pool.stride) == (height, height) and _pair(pool.padding) == (0, 0)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _flatten_without_copy(traced: fx.GraphModule) -> None:
    for number, node in enumerate(list(traced.graph.nodes)):
        layer = _module(traced, _only_user(node))
        if type(layer) is not nn.Linear or not _flattens(traced, node) or not _stored_by_pixel(node.args[0]):
            continue
        # Flattening channels-last memory in its own order costs nothing; the columns of the weights move instead, once.
        shape = _seen(_source(node)).shape[1:]
        order = torch.arange(shape.numel(), device=layer.weight.device).view(shape).permute(1, 2, 0).flatten()
        rearranged = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        rearranged.weight = nn.Parameter(layer.weight.detach()[:, order].contiguous(), requires_grad=False)
        rearranged.bias = layer.bias
        user = _only_user(node)
        assert user is not None
        user.target = f"rearranged_{number}"
        traced.add_submodule(user.target, rearranged)
        _substitute(traced, node, flatten_as_stored)


def _flattens(traced: fx.GraphModule, node: fx.Node) -> bool:
    module = _module(traced, node)
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    return _calls(node, _FLATTEN) and node.args[1:] == (1,) and not node.kwargs


def _spread_means(traced: fx.GraphModule) -> None:
    """Subtract the mean as a whole image: few channels, broadcast over channels-last pixels, are ten times slower."""
    for number, node in enumerate(list(traced.graph.nodes)):
        center = _module(traced, node)
        if type(center) is Center and _stored_by_pixel(node.args[0]):
            mean = center.mean.view(1, -1, 1, 1).expand(1, *_seen(node).shape[1:])
            traced.register_buffer(f"mean_{number}", mean.contiguous(memory_format=torch.channels_last))
            with traced.graph.inserting_before(node):
                image = traced.graph.get_attr(f"mean_{number}")
                new = traced.graph.call_function(torch.sub, (_source(node), image))
            new.meta["seen"] = node.meta["seen"]
            node.replace_all_uses_with(new)
            traced.graph.erase_node(node)


def _substitute(traced: fx.GraphModule, node: fx.Node, function: Callable[..., Tensor], *more: int) -> None:
    with traced.graph.inserting_before(node):
        new = traced.graph.call_function(function, (_source(node), *more))
    new.meta["seen"] = node.meta.get("seen")
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)
