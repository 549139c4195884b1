"""Denoised smoothing: a denoiser before a classifier (Salman et al., 2020; Carlini et al., 2023).

The network that is certified is the composition: noisy pixels -> denoiser -> classifier. Noise is added outside, in
pixel units, and the statement is about the composition, whatever the denoiser is worth: a bad one, or one told another
sigma, costs accuracy and never soundness. Every adapter below maps noisy pixels and sigma to clean pixels, whatever
units and conventions the network inside has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_rs.checks import check_choice, check_positive
from lightning_rs.networks.schedules import alphas_cumprod as published_schedule
from lightning_rs.networks.schedules import check_alphas_cumprod, denoising_timestep

PredictionType = Literal["epsilon", "sample", "v_prediction"]
Part = Literal["denoiser", "classifier"]
Sigma = float | Tensor
# An output this many times beyond its input is in other units than pixels (0..255, as a rule).
_FAR = 10.0


class Denoiser(nn.Module, ABC):
    """Noisy pixels and the noise's sigma to clean pixels, both in [0, 1] units: what `DenoisedNetwork` needs.

    Attributes:
        cuts: the estimate is cut to [0, 1], as diffusion models do; training sees it uncut, where gradients live.
    """

    cuts: ClassVar[bool] = False

    @abstractmethod
    def estimate(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return the estimate of the clean images, (N, C, H, W), for noisy ones at one sigma or one a row, (N,)."""

    def forward(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoised images, (N, C, H, W)."""
        found = self.estimate(z, sigma)
        return found.clamp(0, 1) if self.cuts else found

    def constants(self) -> list[float]:
        """Return the numbers beside the weights that decide the function: they enter the checkpoint."""
        return []


class PlainDenoiser(Denoiser):
    """A denoiser of one noise level that maps noisy pixels to clean pixels: `DnCNN`.

    Args:
        net: (N, C, H, W) -> (N, C, H, W) in pixel units.
    """

    def __init__(self, net: nn.Module) -> None:
        """Keep the network."""
        super().__init__()
        self.net = net

    def estimate(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return ``net(z)``."""
        del sigma
        return _tensor(self.net(z))


class NoiseMapDenoiser(Denoiser):
    """A denoiser that is told the noise level, as a number an image or as a constant channel (FFDNet style).

    Args:
        net: ``net(z, level)`` with ``level`` (N,) in pixel units, or, with ``as_channel``, ``net`` on C + 1 channels,
            the last of which is the level.
        as_channel: append the level to the image as one more channel.
        predicts: "image" if the output is the clean image, "noise" if it is what to subtract.
        max_sigma: largest level that the network was trained for (FFDNet: .29); beyond it image and level are
            scaled down together, and the result up again.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        as_channel: bool = False,
        predicts: Literal["image", "noise"] = "image",
        max_sigma: float | None = None,
    ) -> None:
        """Keep the network."""
        super().__init__()
        check_choice("predicts", predicts, ("image", "noise"))
        self.net = net
        self.as_channel = as_channel
        self.predicts = predicts
        self.max_sigma = None if max_sigma is None else float(check_positive("max_sigma", max_sigma))

    def estimate(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoised pixels."""
        level = _levels(sigma, z)
        shrink = torch.ones_like(level) if self.max_sigma is None else (self.max_sigma / level).clamp(max=1)
        factor = shrink.view(-1, 1, 1, 1)
        scaled, level = z * factor, level * shrink
        if self.as_channel:
            channel = level.view(-1, 1, 1, 1).expand_as(scaled[:, :1])
            output = self.net(torch.cat([scaled, channel], dim=1))
        else:
            output = self.net(scaled, level)
        found = _tensor(output)
        return (scaled - found if self.predicts == "noise" else found) / factor

    def constants(self) -> list[float]:
        """Return what was chosen."""
        return [float(self.as_channel), float(self.predicts == "noise"), self.max_sigma or 0.0]


class SigmaDenoiser(Denoiser):
    """A denoiser of EDM and k-diffusion: ``net(u, s)`` in model units ``u = 2z - 1``, noise level ``s = 2 sigma``.

    Args:
        net: maps (N, C, H, W) and the levels (N,) to the clean image in model units: `SigmaUNet`,
            ``k_diffusion.layers.Denoiser``, ``k_diffusion.external.OpenAIDenoiser``, EDM's networks.
    """

    cuts = True

    def __init__(self, net: nn.Module) -> None:
        """Keep the network."""
        super().__init__()
        self.net = net

    def estimate(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoised pixels."""
        return (_tensor(self.net(2 * z - 1, 2 * _levels(sigma, z))) + 1) / 2


class EpsilonDenoiser(Denoiser):
    r"""One step of a diffusion model (Carlini et al., 2023), with diffusers' conventions.

    With ``u = 2z - 1``, t the step trained at the noise level closest to ``2 sigma`` (`denoising_timestep`) and
    :math:`x_t = \sqrt{\bar\alpha_t} u`, the clean image is :math:`u - \sigma_t \epsilon(x_t, t)` for a network that
    predicts epsilon, the output itself for "sample", and :math:`\sqrt{\bar\alpha_t} x_t - \sqrt{1 - \bar\alpha_t} v`
    for "v_prediction"; it is cut to [-1, 1]. A single step draws no noise, so that the network stays a function.

    Args:
        net: ``net(x_t, t)`` with t (N,): ``diffusers.UNet2DModel``, the U-Nets of improved and guided diffusion.
        alphas_cumprod: the schedule that the network was trained with: numbers (T,), an object that has them (a
            scheduler of diffusers), or the arguments of `lightning_rs.networks.alphas_cumprod` as a mapping.
        learned_variance: the output has 2C channels, of which the first C are the prediction.
        timestep_scale: factor on t (improved diffusion rescales to 1000 steps: .25 for 4000).
        prediction_type: "epsilon", "sample" or "v_prediction".

    Raises:
        ValueError: without a schedule, or if an argument is out of range; in use, for another number of channels.
    """

    cuts = True

    def __init__(
        self,
        net: nn.Module,
        alphas_cumprod: Any = None,
        learned_variance: bool = False,
        timestep_scale: float = 1.0,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        """Read the schedule and keep the network."""
        super().__init__()
        check_choice("prediction_type", prediction_type, get_args(PredictionType))
        self.net = net
        self.alphas = _schedule(alphas_cumprod)
        self.learned_variance = learned_variance
        self.timestep_scale = float(check_positive("timestep_scale", timestep_scale))
        self.prediction_type = prediction_type

    def estimate(self, z: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoised pixels."""
        wanted = sigma.detach().cpu().numpy() if isinstance(sigma, Tensor) else sigma
        step = denoising_timestep(wanted, self.alphas)
        signal, noise = _column(self.alphas[step] ** 0.5, z), _column((1 - self.alphas[step]) ** 0.5, z)
        noisy = (2 * z - 1) * signal
        output = self._predict(noisy, torch.from_numpy(np.array(step)).to(z.device).expand(len(z)))
        if self.prediction_type == "epsilon":
            output = (noisy - noise * output) / signal
        elif self.prediction_type == "v_prediction":
            output = signal * noisy - noise * output
        return (output + 1) / 2

    def constants(self) -> list[float]:
        """Return schedule and conventions."""
        kind = get_args(PredictionType).index(self.prediction_type)
        return [float(kind), float(self.learned_variance), self.timestep_scale, *self.alphas.tolist()]

    def _predict(self, noisy: Tensor, step: Tensor) -> Tensor:
        time = step if self.timestep_scale == 1 else step.to(noisy.dtype) * self.timestep_scale
        output = _tensor(self.net(noisy, time))
        channels = noisy.shape[1]
        expected = (2 if self.learned_variance else 1) * channels
        if output.ndim < 2 or output.shape[1] != expected:
            raise ValueError(
                f"the diffusion model must return {expected} channels with learned_variance={self.learned_variance}, "
                f"got shape {tuple(output.shape)} for images of {channels}"
            )
        return output[:, :channels]


class DenoisedNetwork(nn.Module):
    """A denoiser before a classifier: one network, to be smoothed as any other.

    Args:
        denoiser: a `Denoiser`; any other module is taken for a `PlainDenoiser`.
        classifier: maps clean images to logits; its normalisation belongs to it.
        sigma: standard deviation of the noise that the denoiser is told, in pixel units. It is part of the state
            dict, and so of the checkpoint and of the fingerprint. Another sigma than that of the noise costs accuracy.
        to_classifier: ``(scale, shift)`` from pixels in [0, 1] to what the classifier takes: ``scale x + shift``; a
            number, or one a channel. (2, -1) for [-1, 1].
        resize: side or (height, width) to which the denoised image is brought (bicubic, antialiased) before it.
        freeze: "denoiser" or "classifier" stays as it is in training: no gradient to its weights, evaluation mode.

    Shapes: ``(N, C, H, W) -> (N, num_classes)``. Gradients reach the pixels as far as the denoiser lets them (FFDNet's
    published code cuts them).

    Raises:
        ValueError: if an argument is out of range; on the first images, if the denoiser returns another shape, or
            values far from pixels in [0, 1].
    """

    def __init__(
        self,
        denoiser: nn.Module,
        classifier: nn.Module,
        sigma: float,
        to_classifier: Sequence[float | Sequence[float]] = (1.0, 0.0),
        resize: int | Sequence[int] | None = None,
        freeze: Part | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.denoiser = denoiser if isinstance(denoiser, Denoiser) else PlainDenoiser(denoiser)
        self.classifier = classifier
        self.sigma = float(check_positive("sigma", sigma))
        self.to_classifier = _affine(to_classifier)
        self.resize = None if resize is None else ((resize,) * 2 if isinstance(resize, int) else tuple(resize))
        self.freeze: Part | None = None
        self._units_are_pixels = False
        if freeze is not None:
            self.freeze_part(freeze)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits of noisy images."""
        return self.classify(self.denoise(z))

    def classify(self, clean: Tensor) -> Tensor:
        """Return the classifier's logits, (N, num_classes), for images in pixel units that need no denoising."""
        scale, shift = self.to_classifier
        if (scale, shift) != ([1.0], [0.0]):
            clean = clean * _per_channel(scale, clean) + _per_channel(shift, clean)
        if self.resize is not None:
            clean = nn.functional.interpolate(clean, self.resize, mode="bicubic", antialias=True)
        return self.classifier(clean)

    def denoise(self, z: Tensor, sigma: Sigma | None = None, cut: bool = True) -> Tensor:
        """Return the denoised images in pixel units, (N, C, H, W).

        Args:
            z: noisy images.
            sigma: noise level, or one a row, where it is not the network's own.
            cut: cut to [0, 1] where the denoiser does; training does without.
        """
        level = self.sigma if sigma is None else sigma
        clean = self.denoiser(z, level) if cut else self.denoiser.estimate(z, level)
        if clean.shape != z.shape:
            raise ValueError(f"the denoiser must keep the shape {tuple(z.shape)}, got {tuple(clean.shape)}")
        if not (self._units_are_pixels or torch.compiler.is_compiling()):
            self._check_units(z, clean)
        return clean

    def freeze_part(self, part: Part) -> None:
        """Hold a part in evaluation mode and without gradient to its weights from now on."""
        check_choice("freeze", part, get_args(Part))
        self.freeze = part
        self.get_submodule(part).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DenoisedNetwork:
        """Set the mode, except of the frozen part."""
        super().train(mode)
        if self.freeze is not None:
            self.get_submodule(self.freeze).eval()
        return self

    # What decides the function beside the weights goes into the state dict as one float64 tensor: a buffer would be
    # rounded with the weights when the network runs in bfloat16.
    def get_extra_state(self) -> Tensor:
        """Return sigma, the map to the classifier and the denoiser's constants."""
        scale, shift = self.to_classifier
        size = [float(side) for side in self.resize or ()]
        return torch.tensor([self.sigma, *scale, *shift, *size, *self.denoiser.constants()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take sigma from a checkpoint; refuse one of a network with another map or other constants."""
        mine, theirs = self.get_extra_state(), state.cpu()
        if mine.shape != theirs.shape or not torch.equal(mine[1:], theirs[1:]):
            raise ValueError(
                "the checkpoint's DenoisedNetwork has other constants (to_classifier, resize, schedule) than this one"
            )
        self.sigma = float(theirs[0])

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"sigma={self.sigma:g}, to_classifier={self.to_classifier}, resize={self.resize}, freeze={self.freeze}"

    def _check_units(self, z: Tensor, clean: Tensor) -> None:
        given, found = float(z.detach().abs().max()), float(clean.detach().abs().max())
        if not found <= _FAR * max(1.0, given):
            raise ValueError(
                f"the denoiser must return pixels in [0, 1] units as it gets them, got values up to {found:g} for "
                f"inputs up to {given:g}"
            )
        self._units_are_pixels = given > 0  # zeros, with which a network is tried when it is built, tell nothing


def _schedule(given: Any) -> Any:
    if given is None:
        raise ValueError(
            "alphas_cumprod must be the schedule that the diffusion model was trained with (numbers, a scheduler, or "
            "e.g. {schedule: linear, steps: 1000}), got None: without it no timestep belongs to sigma"
        )
    if isinstance(given, Mapping):
        return published_schedule(**given)
    own = getattr(given, "alphas_cumprod", given)
    return check_alphas_cumprod(own.detach().cpu().double().numpy() if isinstance(own, Tensor) else own)


def _tensor(output: Any) -> Tensor:
    """Return the prediction of a network that returns a tensor, or wraps it as the first of several outputs."""
    first = output if isinstance(output, Tensor) else output[0] if hasattr(output, "__getitem__") else output
    if not isinstance(first, Tensor):
        raise ValueError(f"the denoiser must return a tensor of images, got {type(output).__name__}")
    return first


def _levels(sigma: Sigma, images: Tensor) -> Tensor:
    return torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(len(images))


def _column(values: Any, images: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)


def _affine(pair: Sequence[float | Sequence[float]]) -> tuple[list[float], list[float]]:
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"to_classifier must be (scale, shift), got {pair!r}")
    scale, shift = ([float(v) for v in cast("Any", side if isinstance(side, Sequence) else [side])] for side in pair)
    return scale, shift


def _per_channel(values: list[float], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
