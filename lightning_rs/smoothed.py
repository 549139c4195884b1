"""The smoothed classifier as an ordinary ``nn.Module``: a differentiable soft vote, predictions, certificates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from jaxtyping import Float, Float32
from torch import Tensor, nn

from lightning_rs.certifier import Certifier
from lightning_rs.checks import check_at_least, check_positive
from lightning_rs.engine.streams import Streams
from lightning_rs.networks import build_network
from lightning_rs.networks.checkpoints import state_dict_sha256
from lightning_rs.networks.weights import load_safetensors, read_own_checkpoint, save_safetensors
from lightning_rs.noise.base import Domain, Noise, noise_from_dict, noise_to_dict
from lightning_rs.records import Certifications
from lightning_rs.session import Predictions, Session, image_shape

_WEIGHTS = "model.safetensors"  # the hub's names
_CONFIG = "config.json"
# What of a checkpoint's arguments rebuilds its network.
_ARCHITECTURE = ("network", "network_args", "num_classes", "shape", "mean", "std")


class SmoothedClassifier(nn.Module, PyTorchModelHubMixin, library_name="lightning_rs", tags=["randomized-smoothing"]):
    """The soft vote of a base network over noisy copies, for whatever takes an ``nn.Module``.

    ``forward`` returns log-probabilities ``log (1/m) sum_i softmax(beta z(x + e_i))``, (B, C), with a gradient in x and
    in the weights. All images see the same m copies of the noise, named by a key, so that it is one fixed function of
    one image until :meth:`renew`: attack libraries may group and repeat images as they like. Through noise that is
    piecewise constant in x (splitting) the gradient is the straight-through one, ``d x~/d x := 1``, whose direction is
    right to first order in each coordinate. :meth:`predict` and :meth:`certify` run the hard vote through the engine,
    on noise of their own.

    Args:
        network: maps (m, *shape) to logits (m, C). It is kept, not copied; put it in eval mode for attacks.
        noise: law of the noisy copies.
        copies: number m of copies in ``forward``; an enumerated law is never asked for more outcomes than it has.
        seed: names the noise of ``forward``.
        common_noise: keep the noise between calls; False renews it at each.
        temperature: factor beta of the logits; large values bring the soft vote near the hard one.
        certifier: for :meth:`predict` and :meth:`certify`; None: the usual certificate of the noise.
        domain: interval of the inputs, None for R^d.
        grid: number q of steps if the inputs are multiples of 1/q.
        architecture: arguments of :func:`lightning_rs.networks.build_network` that rebuild the network, with its name
            as ``network``; None: whoever loads the weights again must bring the network.

    Raises:
        ValueError: for copies < 1, or a temperature that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        noise: Noise,
        copies: int = 32,
        seed: int = 0,
        common_noise: bool = True,
        temperature: float = 1.0,
        certifier: Certifier | None = None,
        domain: Domain = None,
        grid: int | None = None,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.noise = noise
        self.copies = check_at_least("copies", copies, 1)
        self.seed = int(seed)
        self.common_noise = common_noise
        self.temperature = float(check_positive("temperature", temperature))
        self.certifier = certifier or Certifier()
        self.domain = domain
        self.grid = grid
        self.architecture = None if architecture is None else dict(architecture)
        self._drawn = 0  # number of the noise at work
        self._sessions: dict[tuple[str, tuple[int, ...]], Session] = {}

    def forward(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Return log-probabilities of the soft vote, (B, C), for images of shape (B, *shape)."""
        scores = self.copy_logits(images)
        if not self.common_noise:
            self.renew()
        each = torch.log_softmax(self.temperature * scores, dim=-1)
        return torch.logsumexp(each, dim=0) - math.log(len(each))

    def copy_logits(
        self, images: Float[Tensor, "B ..."], variates: Float32[Tensor, "m d"] | None = None
    ) -> Float[Tensor, "m B C"]:
        """Return the base network's logits on the noisy copies, (m, B, C); differentiable.

        Args:
            images: (B, *shape).
            variates: the noise of the copies as the law draws it, (m, d); None: those at work.
        """
        shape = image_shape(images)
        drawn = self.variates(math.prod(shape), images.device) if variates is None else variates
        flat = images.flatten(1)
        rows = flat.repeat(len(drawn), 1)
        noisy = through_noise(self.noise, rows, drawn.repeat_interleave(len(flat), dim=0))
        logits = self.network(noisy.view(-1, *shape))
        return logits.view(len(drawn), len(flat), -1)

    def variates(self, dim: int, device: torch.device | str = "cpu") -> Float32[Tensor, "m d"]:
        """Return the noise at work as the law draws it, (m, dim), float32: the same until :meth:`renew`."""
        generator = torch.Generator(device=device)
        Streams(self.seed, "soft vote", "attack").seed_(generator, 0, self._drawn, 0)
        size = self.noise.outcomes
        if size is not None:
            chosen = torch.randperm(size, generator=generator, device=device)[: min(self.copies, size)]
            return chosen.float()[:, None].expand(-1, dim)
        drawn = torch.empty(self.copies, dim, device=device)
        self.noise.draw_(drawn, generator)
        return drawn

    def renew(self) -> None:
        """Take the next noise of the stream."""
        self._drawn += 1

    def predict(
        self, images: Float[Tensor, "B ..."], n: int = 1000, alpha: float = 0.001, seed: int | None = None
    ) -> Predictions:
        """Return the abstaining smoothed prediction; see :meth:`lightning_rs.session.Session.predict`.

        The noise is of fresh entropy, which an adaptive attacker cannot foresee, unless a ``seed`` is given.

        Raises:
            ValueError: for images outside the domain or off the grid, n < 1, or alpha outside (0, 1).
        """
        return self.session(image_shape(images)).predict(images, n, alpha, seed)

    def certify(
        self,
        images: Float[Tensor, "B ..."],
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Certifications:
        """Return one certification an image; see :meth:`lightning_rs.certifier.Certifier.certify`.

        Raises:
            ValueError: for images outside the domain or off the grid, or a noise that a certificate is not proved for.
        """
        return Certifications(self.session(image_shape(images)).certify(images, labels, indices))

    def session(self, shape: tuple[int, ...]) -> Session:
        """Return the network prepared for inputs of one shape, prepared anew when its weights have changed."""
        key = (state_dict_sha256(self.network), tuple(shape))
        if key not in self._sessions:
            self._sessions = {
                key: self.certifier.session(self.network, self.noise, shape, domain=self.domain, grid=self.grid)
            }
        return self._sessions[key]

    def export(self, shape: Sequence[int] | None = None) -> torch.export.ExportedProgram:
        """Return the base network as an exported program for any batch size; ``torch.export.save`` writes it.

        Args:
            shape: shape of one input; None: that of the architecture.

        Raises:
            ValueError: if neither says the shape.
        """
        known = shape if shape is not None else (self.architecture or {}).get("shape")
        if known is None:
            raise ValueError("shape must be given, because the architecture does not say it, got None")
        parameter = next(self.network.parameters(), torch.empty(()))
        example = torch.zeros(2, *known, dtype=parameter.dtype, device=parameter.device)
        batch = torch.export.Dim("batch", min=1)
        was_training = self.network.training
        try:
            return torch.export.export(self.network.eval(), (example,), dynamic_shapes=({0: batch},))
        finally:
            self.network.train(was_training)

    @classmethod
    def from_checkpoint(cls, path: str | Path, network: nn.Module | None = None, **kwargs: Any) -> Self:
        """Rebuild network and noise from a checkpoint of ``fit``, in eval mode.

        Args:
            path: the checkpoint.
            network: for an architecture that cannot be rebuilt from the checkpoint; its weights are replaced.
            **kwargs: further arguments of the class; ``noise`` replaces the checkpoint's.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint of lightning_rs, or holds other weights.
        """
        own, weights = read_own_checkpoint(path)
        arguments = own["init_args"]
        config = {
            "noise": own["noise"],
            "domain": arguments.get("domain"),
            "grid": arguments.get("grid"),
            "architecture": {name: arguments.get(name) for name in _ARCHITECTURE},
        }
        return cls._rebuilt(str(path), config, weights, network, kwargs)

    def save_safetensors(self, path: str | Path) -> None:
        """Write the base network's weights, and all that rebuilds the smoothed classifier as metadata."""
        save_safetensors(path, self.network, self._config())

    @classmethod
    def from_safetensors(cls, path: str | Path, network: nn.Module | None = None, **kwargs: Any) -> Self:
        """Read a file of :meth:`save_safetensors`. Arguments and errors as for :meth:`from_checkpoint`."""
        config, weights = load_safetensors(path)
        return cls._rebuilt(str(path), config, weights, network, kwargs)

    def _config(self) -> dict[str, Any]:
        return {
            "noise": noise_to_dict(self.noise),
            "domain": None if self.domain is None else list(self.domain),
            "grid": self.grid,
            "architecture": self.architecture,
        }

    @classmethod
    def _rebuilt(
        cls,
        source: str,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        network: nn.Module | None,
        kwargs: Any,
    ) -> Self:
        architecture = config["architecture"]
        if network is None and (architecture is None or not isinstance(architecture.get("network"), str)):
            raise ValueError(f"network must be given, because {source} does not say how to build it, got None")
        built = network if network is not None else _build(architecture)
        try:
            built.load_state_dict(dict(weights))
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise ValueError(f"{source} does not hold the weights of the network: {reason[:160]}") from error
        domain = config.get("domain")
        arguments = {
            "noise": noise_from_dict(config["noise"]),
            "domain": None if domain is None else (float(domain[0]), float(domain[1])),
            "grid": config.get("grid"),
            "architecture": architecture if network is None else None,
            **kwargs,
        }
        return cls(built, **arguments).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Hook of huggingface_hub: weights with their metadata, and the metadata again for people and the hub."""
        self.save_safetensors(save_directory / _WEIGHTS)
        # One key, because the hub hands entries that are named like arguments of the class to it.
        (save_directory / _CONFIG).write_text(json.dumps({"smoothed_classifier": self._config()}, indent=2))

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        network: nn.Module | None = None,
        **kwargs: Any,
    ) -> Self:
        """Hook of huggingface_hub: a folder, or a repository of the hub."""
        if Path(model_id).is_dir():
            return cls.from_safetensors(Path(model_id) / _WEIGHTS, network, **kwargs)
        file = hf_hub_download(
            repo_id=model_id, filename=_WEIGHTS, revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token,
        )  # fmt: skip
        return cls.from_safetensors(file, network, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the prepared networks behind: they hold threads."""
        return {**super().__getstate__(), "_sessions": {}}

    def extra_repr(self) -> str:
        """Show the noise and the copies."""
        return f"noise={self.noise!r}, copies={self.copies}"


def through_noise(noise: Noise, rows: Float[Tensor, "m d"], variates: Float32[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Return noisy rows exactly as the engine makes them, with the identity as their derivative in ``rows``.

    For additive noise that is the derivative; for splitting noise it is the straight-through estimator.

    Args:
        noise: the law.
        rows: clean inputs, flat, (m, d).
        variates: what the law draws, (m, d).
    """
    fixed = rows.detach().float()
    out = torch.empty_like(fixed)
    noise.apply(fixed, variates, out)
    return out.to(rows.dtype) + (rows - rows.detach())  # the difference is 0


def _build(architecture: Mapping[str, Any]) -> nn.Module:
    arguments = {name: architecture[name] for name in ("num_classes", "shape", "mean", "std")}
    return build_network(architecture["network"], **arguments, **(architecture.get("network_args") or {}))
