"""Folding of BatchNorm and of the normalisation layer into the convolutions beside them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_rs.networks.normalize import Center, Normalize

_BATCHNORM_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
# timm's BatchNorm with an activation of its own; by name, because importing timm takes a second.
_BATCHNORM_ACT = "timm.layers.norm_act.BatchNormAct2d"


def fold_batchnorm(network: nn.Module) -> tuple[nn.Module, str]:
    r"""Fold every Conv-BatchNorm pair, and the normalisation layer, of a deep copy in eval mode.

    In eval mode BatchNorm is affine, so with :math:`s = \gamma / \sqrt{v + \epsilon}` a convolution
    :math:`(W, b)` followed by it is the convolution :math:`(s W, s (b - m) + \beta)`. Likewise `Normalize`
    before the first convolution is :math:`(W / \mathrm{std}, b - \sum W \mathrm{mean} / \mathrm{std})`, exact
    only where that convolution does not pad: zeros beside a *standardised* image are pixels of value ``mean``
    beside a raw one. Where it does pad, the std alone is folded and a subtraction of the mean stays (`Center`).

    torch.fx finds the pairs: the convolution and the BatchNorm must each be called once, and nothing else may
    read what lies between them; pre-activation BatchNorm thus stays. The arithmetic is in float64, rounded
    once to the parameters' dtype, so the result equals the original up to rounding (1e-5 relative in fp32).
    Fold before casting to a lower precision. ``network`` itself is not touched.

    Returns:
        the copy, and a remark: why something was left as it is, empty if nothing was. A network that fx
        cannot trace comes back unfolded, with the reason.
    """
    copied = copy.deepcopy(network).eval()
    try:
        calls = _Calls(copied)
    except Exception as error:  # fx fails in as many ways as models have control flow
        detail = (str(error).splitlines() or [""])[0]
        return copied, f"not folded, since torch.fx cannot trace it: {type(error).__name__}: {detail}"
    for conv, norm in calls.conv_batchnorm_pairs():
        _fold_into_conv(conv, norm)
        _replace(copied, norm, _rest_of(norm))
    remark = _fold_normalize(copied, calls)
    left = sum(isinstance(module, _BatchNorm) for module in copied.modules())
    remarks = [f"{left} BatchNorm layers left, since no plain convolution feeds them alone"] if left else []
    return copied, "; ".join([*remarks, remark] if remark else remarks)


class _Tracer(fx.Tracer):
    """Stops at BatchNorm and at our normalisation layers instead of looking inside them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, Normalize | Center) or _qualified(m) == _BATCHNORM_ACT
        return leaf or super().is_leaf_module(m, module_qualified_name)


class _Calls:
    """Which module is called on what, in one traced forward pass of a network in eval mode."""

    def __init__(self, network: nn.Module) -> None:
        # A copy: what a network keeps on itself while it works would be left as a symbol of the tracer.
        self.graph = _Tracer().trace(copy.deepcopy(network))
        self.modules = dict(network.named_modules(remove_duplicate=False))
        calls = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]
        reads = [str(node.target) for node in self.graph.nodes if node.op == "get_attr"]
        self.counts = Counter(id(self.modules[target]) for target in calls)
        # Parameters read directly, past their module's forward: changing them would be felt elsewhere.
        self.bypassed = {id(self.modules.get(target.rpartition(".")[0])) for target in reads}

    def module(self, node: object) -> nn.Module | None:
        """Return the module that ``node`` calls on one positional argument and nothing else, if it does."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        return self.modules[str(node.target)]

    def private(self, module: nn.Module) -> bool:
        """Say whether changing ``module`` is felt nowhere but in its one plain call."""
        hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        return self.counts[id(module)] == 1 and id(module) not in self.bypassed and not hooked

    def conv_batchnorm_pairs(self) -> list[tuple[_ConvNd, _BatchNorm]]:
        """Return the (convolution, BatchNorm) pairs of which the second alone reads the first."""
        pairs = []
        for node in self.graph.nodes:
            norm = self.module(node)
            conv = self.module(node.args[0]) if norm is not None else None
            if not isinstance(conv, _ConvNd) or not isinstance(norm, _BatchNorm):
                continue
            alone = len(node.args[0].users) == 1 and self.private(conv) and self.private(norm)
            if alone and _match(conv, norm):
                pairs.append((conv, norm))
        return pairs

    def reader_of_normalize(self) -> tuple[Normalize, _ConvNd | nn.Linear, bool] | None:
        """Return the normalisation layer, the first weights behind it, and whether a flattening lies between.

        None if there is no such pair with nothing between but steps that commute with an affine map of the
        channels: identity, dropout in eval mode, average pooling without padding, flattening.
        """
        for node in self.graph.nodes:
            normalize, flat = self.module(node), False
            if not isinstance(normalize, Normalize) or not self.private(normalize):
                continue
            while len(node.users) == 1:
                node = next(iter(node.users))
                reader = self.module(node)
                if _takes(reader, flat) and isinstance(reader, _ConvNd | nn.Linear):
                    return (normalize, reader, flat) if self.private(reader) else None
                if reader is None or not _commutes(reader):
                    break
                flat = flat or isinstance(reader, nn.Flatten)
        return None


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _match(conv: _ConvNd, norm: _BatchNorm) -> bool:
    """Say whether ``norm`` normalises the channels of ``conv`` by stored statistics.

    Exact types: a subclass or a parametrisation may compute something else from the same weights.
    """
    expected = _BATCHNORM_OF.get(type(conv))
    plain = type(norm) is expected or (expected is nn.BatchNorm2d and _qualified(norm) == _BATCHNORM_ACT)
    return plain and norm.running_mean is not None and norm.num_features == conv.out_channels


def _rest_of(norm: nn.Module) -> nn.Module:
    """Return what a BatchNorm still does once its affine map is folded away."""
    if _qualified(norm) != _BATCHNORM_ACT:
        return nn.Identity()
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))


def _takes(reader: nn.Module | None, flat: bool) -> bool:
    """Say whether ``reader`` weighs channels (a convolution) or flattened pixels (a linear layer)."""
    return type(reader) is nn.Linear if flat else type(reader) in _BATCHNORM_OF


def _commutes(module: nn.Module) -> bool:
    if isinstance(module, nn.AvgPool2d):
        whole_squares = module.padding in (0, (0, 0)) and not module.ceil_mode
        return whole_squares and module.divisor_override is None
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    return type(module) in (nn.Identity, nn.Dropout)


def _fold_into_conv(conv: _ConvNd, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.double()
    bias = -mean if conv.bias is None else conv.bias.double() - mean
    shift = norm.bias.double() if norm.affine else 0.0
    _set_weights(conv, conv.weight.double() * _along(scale, conv.weight, 0), bias * scale + shift)


def _fold_normalize(network: nn.Module, calls: _Calls) -> str:
    """Fold the normalisation layer as far as is exact; return why not more."""
    if not any(isinstance(module, Normalize) for module in network.modules()):
        return ""
    found = calls.reader_of_normalize()
    if found is None:
        return "Normalize left, since no single plain convolution or linear layer reads it"
    normalize, layer, flat = found
    inputs, channels = layer.weight.shape[1], normalize.mean.numel()
    if inputs % channels if flat else channels not in (1, inputs):
        return "Normalize left, since its channels are not those of the layer that reads it"
    # Flattening puts the pixels of a channel side by side; a single constant serves every channel.
    mean = normalize.mean.double().repeat_interleave(inputs // channels)
    std = normalize.std.double().repeat_interleave(inputs // channels)
    weight = layer.weight.double() / _along(std, layer.weight, 1)
    bias = None if layer.bias is None else layer.bias.double()
    if _pads_with_zeros(layer) and mean.any():
        _set_weights(layer, weight, bias)
        _replace(network, normalize, Center(normalize.mean))
        return "the mean is still subtracted, since the first convolution pads the standardised image"
    shift = (weight * _along(mean, weight, 1)).flatten(1).sum(1)
    _set_weights(layer, weight, -shift if bias is None else bias - shift)
    _replace(network, normalize, nn.Identity())
    return ""


def _pads_with_zeros(layer: _ConvNd | nn.Linear) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    padding = layer.padding
    return padding != "valid" if isinstance(padding, str) else any(padding)


def _along(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _set_weights(layer: _ConvNd | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    dtype, trainable = layer.weight.dtype, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=trainable)
    layer.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=trainable)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place where ``old`` is registered (a module may have two names)."""
    for parent in list(network.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            parent._modules[name] = new
