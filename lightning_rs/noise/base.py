"""The interface of every noise: how one input becomes a distribution over noisy copies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lightning_rs.class_paths import from_dict, to_dict
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.noise.lattice_laws import rounded_to_lattice

Domain = tuple[float, float] | None


class Noise(ABC):
    """A law by which an input is randomised.

    A law is split in two: random *variates* are drawn without looking at the input, then a deterministic
    rule combines input and variates. Additive noise adds them; splitting noise compares with them. All
    tensors are flat, one row a noisy copy, so that the sampling engine chooses the memory layout.

    Subclasses declare ``spec()`` and implement :meth:`draw_` and :meth:`apply`.

    Attributes:
        domain: the interval that inputs must lie in, or None for all of R^d.
        symmetric: the law of the variates equals that of their negatives and is added to the input, so
            that antithetic sampling is allowed.
        exchangeable: permuting the coordinates does not change the law. When false, the law has
            per-coordinate parameters and :meth:`arranged` must be overridden.
        arithmetic: what a statement says of its arithmetic where the law is not drawn on a lattice.
        threshold: of enumerated laws: an outcome votes for every class whose softmax score is at least this, for
            several or for none; None: for the class of its largest logit.
    """

    domain: ClassVar[Domain] = None
    symmetric: ClassVar[bool] = False
    exchangeable: ClassVar[bool] = True
    arithmetic: ClassVar[str] = "noise and image are combined in floating point, which the theorem does not know"
    threshold: float | None = None

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return the canonical parameters as plain values; ``type(self)(**spec)`` rebuilds the law."""

    @property
    @abstractmethod
    def sigma(self) -> float:
        """The scale by which tables list the law: the standard deviation of one coordinate, in input units."""

    @abstractmethod
    def draw_(self, out: Float32[Tensor, "m d"], generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with fresh variates, one row a noisy copy."""

    @abstractmethod
    def apply(self, x: Float32[Tensor, "*m d"], variates: Float32[Tensor, "m d"], out: Float[Tensor, "m d"]) -> None:
        """Write the noisy copies of ``x`` into ``out``.

        Args:
            x: the clean input, for all rows or one a row.
            variates: what :meth:`draw_` filled; left unchanged.
            out: float32 or the network's dtype; the rounding to it is the first operation of the base classifier.
        """

    def arranged(self, order: Int64[Tensor, " d"]) -> Noise:
        """Return the same law for inputs whose coordinates were permuted by ``order``."""
        del order
        if not self.exchangeable:
            raise NotImplementedError(f"{type(self).__name__} has per-coordinate parameters: override arranged")
        return self

    def on_lattice(self, grid: int | None) -> LatticeNoise | None:
        """Return the law in whole numbers on the lattice of the data, or None if it has to stay in floating point.

        Args:
            grid: the number q of steps of the data, whose inputs are multiples of 1/q; None: any inputs.
        """
        del grid
        return None

    def check_shape(self, shape: tuple[int, ...]) -> None:  # noqa: B027 (most laws take any shape)
        """Raise ``ValueError`` if the law is not defined for inputs of this shape."""

    @final
    def check_input(self, x: Float[Tensor, "m ..."], domain: Domain = None, grid: int | None = None) -> None:
        """Refuse inputs that the law, the declared domain or the declared grid does not allow.

        Args:
            x: a batch of inputs.
            domain: the interval declared by the data; the law's own domain is checked as well.
            grid: the number q of steps declared by the data: inputs must be k/q.

        Raises:
            ValueError: naming the first offending row, its value and what would be right; for integers, and for what
                looks like pixels in 0..255 where no domain is declared.
        """
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floats in the units of the noise, got {x.dtype}: divide 8-bit pixels by 255 "
                "(images.float() / 255) and declare domain (0, 1) and grid 255"
            )
        self.check_shape(tuple(x.shape[1:]))
        flat = x.detach().flatten(1)
        _refuse(flat, ~torch.isfinite(flat), "images must be finite")
        if domain is None and self.domain is None:
            _refuse_pixels(x)
        for interval in {domain, self.domain} - {None}:
            low, high = interval  # type: ignore[misc]
            _refuse(flat, (flat < low) | (flat > high), f"images must lie in [{low:g}, {high:g}]")
        steps = self.grid or grid
        if steps is not None:
            scaled = flat.double() * steps
            # A pixel k/q stored in float32 is off by at most half an ulp.
            _refuse(flat, (scaled - scaled.round()).abs() > 1e-6 * steps, f"images must be multiples of 1/{steps}")

    @property
    def outcomes(self) -> int | None:
        """The number of equally likely outcomes that are all evaluated, or None where noisy copies are sampled."""
        return None

    def split(self, x: Tensor, outcomes: Tensor, out: Tensor) -> None:
        """Write outcome ``outcomes[i]`` of the flat input ``x``, shape (d,) or (m, d), into ``out[i]``."""
        raise NotImplementedError(f"{type(self).__name__} is sampled and has no numbered outcomes")

    @property
    def grid(self) -> int | None:
        """The number of steps in [0, 1] that the law's statement is restricted to, or None."""
        return None

    @final
    def __call__(self, x: Float[Tensor, "m ..."], generator: torch.Generator | None = None) -> Float[Tensor, "m ..."]:
        """Return one fresh noisy copy of every row of ``x``: ``at(x, variates(x, generator))``."""
        return self.at(x, self.variates(x, generator))

    @final
    def variates(self, x: Float[Tensor, "m ..."], generator: torch.Generator | None = None) -> Float32[Tensor, "m d"]:
        """Return fresh variates for the rows of ``x``, one row a noisy copy."""
        drawn = torch.empty(len(x), math.prod(x.shape[1:]), device=x.device)
        self.draw_(drawn, generator)
        return drawn

    @final
    def at(self, x: Float[Tensor, "m ..."], variates: Float32[Tensor, "m d"]) -> Float[Tensor, "m ..."]:
        """Return the noisy copies of the rows of ``x`` that ``variates`` name; differentiable in ``x``.

        The derivative of a copy by its input is taken as the identity. That is exact for additive noise. Splitting
        noise is piecewise constant in ``x``, with a mean that is affine in every coordinate with one slope: there it
        is the straight-through estimate, the right direction in each coordinate, of a scale that has no meaning.

        Args:
            x: inputs, one a row; their shape, dtype and memory layout are kept, the arithmetic is
                float32. For exchangeable laws a channels_last batch meets its variates in the order of memory.
            variates: from :meth:`variates` of a batch of this shape and layout; left unchanged.
        """
        return _Randomised.apply(x, variates, self)

    def __eq__(self, other: object) -> bool:
        """Two noises are equal if they are the same law with the same parameters."""
        return type(self) is type(other) and isinstance(other, Noise) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash((type(self).__name__, repr(sorted(self.spec().items()))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.spec().items())})"


class _Randomised(torch.autograd.Function):
    """Apply a noise; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, variates: Tensor, noise: Noise) -> Tensor:
        channels_last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        if channels_last and noise.exchangeable:
            moved = x.permute(0, 2, 3, 1)  # a view in the order of memory: nothing is copied
            return _applied(noise, moved, variates).permute(0, 3, 1, 2)
        noisy = _applied(noise, x, variates)
        return noisy.contiguous(memory_format=torch.channels_last) if channels_last else noisy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def _applied(noise: Noise, x: Tensor, variates: Tensor) -> Tensor:
    flat = x.flatten(1).float()
    out = torch.empty_like(flat)
    noise.apply(flat, variates, out)
    return out.view(x.shape).to(x.dtype)


class AdditiveNoise(Noise):
    """Noise that is added to the input: ``x + variates``.

    Variates are drawn independently for every noisy copy. A shared or correlated draw over copies is
    refused by design: correlated additive uniform noise has no certificate (Levine and Feizi 2021,
    Proposition 1).
    """

    symmetric = True

    @final
    def on_lattice(self, grid: int | None) -> LatticeNoise | None:
        """Return the law on the lattice: exact where the class has tables for it, else its draws, rounded.

        A subclass that draws in its own way does not inherit the tables; one that does not add has no lattice.
        """
        if type(self).apply is not AdditiveNoise.apply:
            return None
        if self._owner("draw_") is self._owner("exact_on_lattice"):
            return self.exact_on_lattice(grid)
        return rounded_to_lattice(self.sigma, grid, self.draw_)

    def exact_on_lattice(self, grid: int | None) -> LatticeNoise:
        """Return the law in whole numbers, exact to a stated total variation; beside the ``draw_`` it stands for."""
        raise NotImplementedError(f"{type(self).__name__} has no tables for {grid}")

    def _owner(self, name: str) -> type:
        return next(cls for cls in type(self).__mro__ if name in vars(cls))

    def apply(self, x: Tensor, variates: Tensor, out: Tensor) -> None:
        """Write ``x + variates`` into ``out``; the sum is formed in float32."""
        if out.dtype == torch.float32:
            torch.add(variates, x, out=out)
        else:
            out.copy_(variates + x)


class EnumeratedNoise(Noise):
    """A finite law whose outcomes are all evaluated, each once: statements about it are exact.

    The outcome numbered ``b`` in ``range(size)`` is written by :meth:`split`; training draws ``b`` at random.
    """

    arithmetic = ""  # every outcome is a function of the grid's own numbers

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of equally likely outcomes."""

    @property
    @final
    def outcomes(self) -> int:
        """All of them are evaluated."""
        return self.size

    @abstractmethod
    def split(self, x: Float32[Tensor, "*m d"], outcomes: Int64[Tensor, " m"], out: Float[Tensor, "m d"]) -> None:
        """Write outcome ``outcomes[i]`` of the flat input ``x``, for all rows or one a row, into ``out[i]``."""

    @final
    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Draw one outcome a row; it is stored in every coordinate of the row."""
        outcome = torch.randint(self.size, (len(out), 1), generator=generator, device=out.device)
        out.copy_(outcome.expand_as(out))

    @final
    def apply(self, x: Tensor, variates: Tensor, out: Tensor) -> None:
        """Write the outcomes stored in ``variates`` into ``out``."""
        self.split(x, variates[:, 0].long(), out)


def noise_to_dict(noise: Noise) -> dict[str, Any]:
    """Return ``{"class": class path, **parameters}``, plain values that go into checkpoints and record headers."""
    return to_dict(noise, noise.spec())


def noise_from_dict(spec: Mapping[str, Any]) -> Noise:
    """Rebuild a noise from :func:`noise_to_dict`; a law of somebody else's is imported.

    Raises:
        ValueError: if the class is unknown, cannot be imported, or its parameters are not accepted.
    """
    return from_dict(spec, Noise, "noise")  # type: ignore[type-abstract]


def _refuse_pixels(x: Tensor) -> None:
    """Refuse images that nobody divided by 255: sigma would mean something 255 times smaller."""
    if x.ndim < 4 or not x.numel():
        return
    low, high = float(x.min()), float(x.max())
    if low >= 0 and 2 < high <= 255:
        raise ValueError(
            f"images look like pixels in 0..255 (from {low:g} to {high:g}), and the noise would be in those units: "
            "divide by 255, or declare the domain, for instance (0, 255)"
        )


def _refuse(flat: Tensor, bad: Tensor, message: str) -> None:
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        value = float(flat[row, column])
        shown = "NaN" if math.isnan(value) else repr(value)
        raise ValueError(f"{message}, got {shown} at coordinate {column} of image {row} of the batch")
