"""Networks of timm and torchvision by name; both are imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

# Their auxiliary heads change the type of the output in training, and draw weights slowly unless told not to.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_HUB_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


def timm_names() -> list[str]:
    """Return the architectures that timm knows, without pretrained tags."""
    import timm

    return timm.list_models()


def torchvision_names() -> list[str]:
    """Return torchvision's image classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def is_timm_name(name: str) -> bool:
    """Say whether timm knows ``name``: an architecture, with or without a pretrained tag, or a hub address."""
    import timm

    return name.startswith(_HUB_SCHEMES) or timm.is_model(name)


def build_timm(name: str, num_classes: int, shape: Sequence[int], **kwargs: Any) -> nn.Module:
    """Build a timm model for images of ``shape``; ``pretrained`` and all else go to ``timm.create_model``.

    timm adapts the first layer to the number of channels and the last to the number of classes, pretrained
    or not. Models with a fixed image size (most transformers) need ``img_size``.

    Raises:
        ValueError: if timm refuses an argument.
        RuntimeError: if pretrained weights cannot be had.
    """
    import timm

    def create() -> nn.Module:
        return timm.create_model(name, num_classes=num_classes, in_chans=shape[0], **kwargs)

    return _create(f"timm/{name}", create, pretrained=bool(kwargs.get("pretrained")))


def build_torchvision(
    name: str, num_classes: int, shape: Sequence[int], pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """Build a torchvision classifier; ``pretrained`` loads its default weights, the rest go to ``get_model``.

    With pretrained weights for another number of classes the last linear layer is replaced by a fresh one.

    Raises:
        ValueError: if the images are not RGB, or torchvision refuses an argument.
        RuntimeError: if pretrained weights cannot be had.
    """
    from torchvision import models

    if shape[0] != 3:
        raise ValueError(
            f"torchvision/{name} takes images of 3 channels, got shape {tuple(shape)}; timm's take any number"
        )
    if name in _WITH_AUXILIARY_HEADS:
        kwargs = {"aux_logits": False, "init_weights": True, **kwargs}

    def create() -> nn.Module:
        if pretrained:
            return _with_classes(models.get_model(name, weights="DEFAULT", **kwargs), num_classes)
        return models.get_model(name, weights=None, num_classes=num_classes, **kwargs)

    return _create(f"torchvision/{name}", create, pretrained)


def _create(name: str, create: Callable[[], nn.Module], pretrained: bool) -> nn.Module:
    try:
        return create()
    except (TypeError, AssertionError) as error:
        raise ValueError(f"network {name} refused its arguments: {error}") from error
    except Exception as error:
        # Without a network each library fails in its own way (URLError, hub errors, RuntimeError).
        if not pretrained:
            raise
        raise RuntimeError(
            f"no pretrained weights for {name}: {error}. They are downloaded on first use: connect to the "
            "network once, fill the cache, or set pretrained to false"
        ) from error


def _with_classes(network: nn.Module, num_classes: int) -> nn.Module:
    """Return ``network`` with its last linear layer replaced, unless it already has ``num_classes`` outputs."""
    heads = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise TypeError("its last layer is not linear, so its pretrained classes cannot be replaced")
    name, head = heads[-1]
    if head.out_features == num_classes:
        return network
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Linear(head.in_features, num_classes))
    return network
