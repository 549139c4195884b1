"""What every trained classifier shares: a base network, a noise, evaluation, provenance in the checkpoint."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_rs.checks import check_choice
from lightning_rs.classifiers.arguments import constructor_arguments, plain_arguments, revived
from lightning_rs.classifiers.finite import FiniteLoss
from lightning_rs.classifiers.initial import load_initial_weights
from lightning_rs.classifiers.memory import keep_freed_memory
from lightning_rs.classifiers.schedule import Cosine
from lightning_rs.data.base import ImageDataModule
from lightning_rs.networks import build_network
from lightning_rs.networks.build import network_arguments
from lightning_rs.networks.checkpoints import adopt_weights
from lightning_rs.noise import GaussianNoise, Noise, noise_from_dict, noise_to_dict
from lightning_rs.noise.rebuilt import check_rebuilt

# What the checkpoint says about itself, beside Lightning's own entries.
CHECKPOINT_KEY = "lightning_rs"


class BaseClassifier(pl.LightningModule, ABC):
    """A base network and the noise that it is trained for; subclasses add a training objective.

    The noise is added to pixels; the network normalises inside. Checkpoints hold plain values and tensors only,
    load with ``weights_only=True`` and rebuild the classifier by themselves: with all arguments of a subclass's own
    constructor that are plain values (numbers, strings, lists and mappings of them), which its author need not save. A
    loss that is not finite ends the training before it reaches the weights.

    Args:
        network: name for :func:`lightning_rs.networks.build_network`, or the class path of your own ``nn.Module``.
        network_args: further arguments of the network; those of `lightning_rs.networks.parts` may name files, which
            the checkpoint then does not need.
        noise: law under which the classifier is trained, validated and, by default, certified. A plain mapping as
            in a checkpoint is accepted.
        optimizer: from the parameters to an optimizer.
        scheduler: "cosine" lowers the learning rate to zero over the whole training, whatever its length; otherwise
            from the optimizer to a scheduler that is stepped once an epoch; None for a constant rate.
        monitor: metric that a plateau scheduler watches.
        num_classes: number of classes; the command line takes it from the data.
        shape: shape of one input; from the data.
        mean: mean of each channel for the network's normalisation; from the data.
        std: standard deviation of each channel; from the data.
        domain: interval of the pixels, None for R^d; from the data.
        grid: number of grey levels minus one, None if the inputs lie on no grid; from the data.
        init_from: checkpoint, or the name of a shipped one, whose network's weights a training starts from (warm
            start, for instance from another sigma); None starts from random weights. A resumed training does not read
            it.
        channels_last: keep weights and images of a training channels_last where inputs are images.
        compile: train the network through ``torch.compile``.
    """

    # Whether training batches are {"index", "image", "label"}, with the images' own indices.
    needs_index: ClassVar[bool] = False

    _arguments: Any
    _left_out: dict[str, str]  # arguments that no checkpoint can hold, and what they are

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the constructor's arguments before any code of a subclass can change them."""
        made = super().__new__(cls)
        object.__setattr__(made, "_arguments", constructor_arguments(cls, args, kwargs))
        return made

    # jsonargparse reads a class's arguments from its own __new__ if it has one, and would lose those that subclasses
    # pass on; it unwraps decorated ones first.
    __new__.__wrapped__ = object.__new__  # type: ignore[attr-defined]

    def __init__(
        self,
        network: str = "digits_cnn",
        network_args: dict | None = None,  # not dict[str, Any]: jsonargparse would build the modules that it names
        noise: Noise | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | Literal["cosine"] | None = "cosine",
        monitor: str = "val/loss_noisy",
        num_classes: int = 10,
        shape: Sequence[int] = (1, 8, 8),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        domain: tuple[float, float] | None = (0.0, 1.0),
        grid: int | None = None,
        init_from: str | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(network, str):  # of an enum of texts a text, which a checkpoint can hold
            network = str.__str__(network)
        law = noise_from_dict(noise) if isinstance(noise, Mapping) else noise or GaussianNoise(0.25)
        arguments, kept = network_arguments(network, network_args, law.sigma)
        super().save_hyperparameters(
            self._own_arguments()
            | {
                "network": network,
                "network_args": kept,
                "noise": noise_to_dict(law),
                "num_classes": int(num_classes),
                "shape": [int(size) for size in shape],
                "mean": None if mean is None else [float(m) for m in mean],
                "std": None if std is None else [float(s) for s in std],
                "domain": None if domain is None else [float(end) for end in domain],
                "grid": None if grid is None else int(grid),
                "init_from": None if init_from is None else str(init_from),
            }
        )
        self.noise = law
        self.shape = tuple(int(size) for size in shape)
        self.num_classes = num_classes = int(num_classes)
        self.domain = None if domain is None else (float(domain[0]), float(domain[1]))
        self.grid = grid = None if grid is None else int(grid)
        law.check_shape(self.shape)
        check_rebuilt(law, self.shape)
        if None not in (grid, law.grid) and grid != law.grid:
            raise ValueError(f"q of the noise must be the grid of the data, {grid}, got {law.grid}: {law!r}")
        self.network = build_network(network, num_classes, self.shape, mean=mean, std=std, **arguments)
        self.weights_path: str | None = None  # of the file of others that the weights came from
        self.data_spec: dict[str, Any] | None = None  # set by the command line, kept in the checkpoint
        self.argument_specs: Mapping[str, Any] = {}  # how the command line builds its arguments, likewise
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._monitor = monitor
        self._init_from = None if init_from is None else str(init_from)
        self._channels_last = channels_last and len(self.shape) == 3
        self._compile = compile
        self._finite = FiniteLoss()
        self._seed: int | None = None
        if isinstance(scheduler, str):
            check_choice("scheduler", scheduler, ("cosine",))
        kinds = [f"{split}_{kind}" for split in ("val", "test") for kind in ("clean", "noisy")]
        self.accuracies = nn.ModuleDict({kind: MulticlassAccuracy(num_classes, average="micro") for kind in kinds})

    @abstractmethod
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch of clean images (m, *shape) and labels (m,)."""

    @property
    def objective(self) -> dict[str, Any]:
        """The training objective: its class and what its constructor adds to this class's, as plain values."""
        mine = set(inspect.signature(BaseClassifier.__init__).parameters)
        own = {name: value for name, value in self.hparams.items() if name not in mine}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **own}

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        return 1, 1

    @property
    def cost(self) -> str:
        """What one training image costs, in words, as the training says it at its start."""
        return passes_told(*self.passes, "an image")

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: every argument of the constructor is saved already, as a plain value.

        Lightning's own method would put objects into the checkpoint, which then could not be loaded without trust.
        """

    def _own_arguments(self) -> dict[str, Any]:
        base = set(inspect.signature(BaseClassifier.__init__).parameters)
        arguments = {name: value for name, value in self._arguments.items() if name not in base}
        plain, objects = plain_arguments(type(self), arguments)
        if objects:
            warnings.warn(
                f"{type(self).__name__}: a checkpoint holds plain values only, so not {', '.join(objects)}: give "
                "it again when you load one",
                stacklevel=4,
            )
        self._left_out = {name: type(arguments[name]).__name__ for name in objects}
        del self._arguments
        return plain

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Rebuild a classifier from a checkpoint, as Lightning does; nothing in the file is run.

        Raises:
            ValueError: if the checkpoint could not hold an argument, and it is not given.
        """
        if isinstance(checkpoint_path, (str, Path)) and Path(checkpoint_path).is_file():
            contents = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
            kept, own = contents.get("hyper_parameters", {}), contents.get(CHECKPOINT_KEY) or {}
            lost = {name: kind for name, kind in own.get("left_out", {}).items() if name not in kwargs}
            if lost:
                name, kind = next(iter(lost.items()))
                raise ValueError(
                    f"{name} must be given, load_from_checkpoint(..., {name}=...): the checkpoint {checkpoint_path} "
                    f"could not hold it, a {kind}"
                )
            again = revived(cls, kept)
            kwargs = {name: value for name, value in again.items() if value is not kept[name]} | kwargs
        return super().load_from_checkpoint(  # type: ignore[return-value]
            checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )

    def forward(self, images: Float[Tensor, "m ..."]) -> Float[Tensor, "m C"]:
        """Return the base network's logits, (m, C), for images of shape (m, *shape)."""
        return self.network(images)

    def adopt_weights(self, path: str | Path) -> str:
        """Load weights that another code has trained, and return a line that says which normalisation is at work.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read without running code from it, or has other weights than this network.
        """
        told = adopt_weights(path, self.network)
        self.weights_path = str(path)
        return told

    def noisy(self, images: Float[Tensor, "m ..."], batch_idx: int, copy: int = 0) -> Float[Tensor, "m ..."]:
        """Return one fresh noisy copy of every training image, see :meth:`variates`."""
        return self.noise.at(images, self.variates(images, batch_idx, copy))

    def variates(self, images: Float[Tensor, "m ..."], batch_idx: int, copy: int = 0) -> Float32[Tensor, "m d"]:
        """Return the variates of one fresh noisy copy of every training image, for ``noise.at``.

        The stream is keyed by seed, rank, epoch, batch and ``copy``: no two samples, steps or ranks share noise, and a
        resumed training draws what an uninterrupted one would have drawn.

        Args:
            images: clean images, (m, *shape).
            batch_idx: number of the batch in its epoch.
            copy: number of the copy, for objectives that need several of one batch.

        Returns:
            (m, d), float32.

        Raises:
            ValueError: in the first batch of an epoch, for images off the grid that the noise is defined on.
        """
        if self.noise.grid is not None and batch_idx == 0:  # it would round them; one look an epoch costs nothing
            self.noise.check_input(images, self.domain)
        key = ("training", self.seed, self.global_rank, self.current_epoch, batch_idx, copy)
        return self.noise.variates(images, _generator(images.device, *key))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on clean and on noisy validation images."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on clean and on noisy test images."""
        self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Any:
        """Certify or predict a batch ``{"index", "image", "label"}``, as the trainer's stage says.

        Raises:
            TypeError: with a Trainer that has no stage: predictions of a smoothed classifier need one.
        """
        stage = getattr(self.trainer, "smoothing_stage", None)
        if stage is None:
            raise TypeError(
                "predict runs the smoothed classifier and needs lightning_rs.Trainer (without Lightning: "
                f"Certifier.session(...).predict), got {type(self.trainer).__module__}.{type(self.trainer).__name__}"
            )
        return stage.step(batch)

    def configure_optimizers(self) -> Any:
        """Build optimizer and scheduler from the configuration."""
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        if self._scheduler == "cosine":
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise ValueError(
                    "scheduler 'cosine' needs an end of training: set max_epochs or max_steps of the trainer"
                )
            cosine = Cosine(optimizer, max(1, int(steps)))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        scheduler = self._scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self._monitor}}

    def setup(self, stage: str) -> None:
        """Lightning hook: start a new training from the weights that ``init_from`` names; choose layout and allocator.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if it holds another network.
        """
        if stage != "fit":
            return
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if self._init_from is not None and self.trainer.ckpt_path is None:
            load_initial_weights(self.network, self._init_from)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.keyed_training = self.needs_index
        self.lay_out()
        if self._compile:
            self.network.compile()

    def lay_out(self) -> None:
        """Bring the weights into the memory layout of a training."""
        if self._channels_last:
            self.network.to(memory_format=torch.channels_last)

    def laid_out(self, images: Tensor) -> Tensor:
        """Return training images in the memory layout of the weights, for :meth:`variates` and the network."""
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images

    @property
    def seed(self) -> int:
        """The seed of the training: what ``seed_everything`` set before it."""
        return torch.initial_seed() if self._seed is None else self._seed

    def on_fit_start(self) -> None:
        """Lightning hook: note the seed."""
        self._seed = torch.initial_seed()

    def on_train_start(self) -> None:
        """Lightning hook: say where a schedule of torch's would raise the rate again."""
        length = self.trainer.max_epochs or 0
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if not isinstance(schedule, CosineAnnealingLR) or config.interval != "epoch" or schedule.T_max >= length:
                continue
            warnings.warn(  # also where the configuration names another one: the checkpoint's is at work
                f"CosineAnnealingLR ends after T_max = {schedule.T_max:g} epochs, then its rate rises again until "
                f"epoch {length}: scheduler 'cosine' falls to the end of a training that is made longer, too",
                stacklevel=2,
            )

    def on_train_epoch_start(self) -> None:
        """Lightning hook: start torch's default generator anew, by seed, rank and epoch.

        So a resumed training shuffles, augments and drops out as an uninterrupted one would have.
        """
        torch.manual_seed(_stream_seed("epoch", self.seed, self.global_rank, self.current_epoch))

    def on_fit_end(self) -> None:
        """Lightning hook: give the default generator its seed back, and the weights the layout that is saved."""
        torch.manual_seed(self.seed)
        self._seed = None
        if self._channels_last:  # another layout rounds in another order: what was trained is what is loaded
            self.network.to(memory_format=torch.contiguous_format)

    def on_before_backward(self, loss: Tensor) -> None:
        """Lightning hook: refuse a loss that is not finite."""
        self._finite.watch(loss, self.trainer.fit_loop.batch_idx, self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild the classifier without its configuration."""
        self._finite.check()
        checkpoint[CHECKPOINT_KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "noise": noise_to_dict(self.noise),
            "init_args": dict(self.hparams),
            "data": self.data_spec,
            "left_out": dict(self._left_out),
            "specs": {name: spec for name, spec in self.argument_specs.items() if name in self._left_out},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the noise of the checkpoint, except when training goes on under another one on purpose.

        Raises:
            ValueError: if the checkpoint belongs to another network.
        """
        own = checkpoint.get(CHECKPOINT_KEY) or {}
        self._check_fits(own.get("init_args", {}), checkpoint["state_dict"])
        self._say_if_other_objective(own)
        if "noise" not in own:
            warnings.warn(f"the checkpoint does not say its noise; taking the configured {self.noise!r}", stacklevel=2)
            return
        theirs = noise_from_dict(own["noise"])
        if theirs == self.noise:
            return
        if self._trainer is not None and self._trainer.training:
            warnings.warn(
                f"training goes on with {self.noise!r}; the checkpoint was trained with {theirs!r}", stacklevel=2
            )
            return
        warnings.warn(f"the checkpoint's noise {theirs!r} replaces the configured {self.noise!r}", stacklevel=2)
        self.noise = theirs
        self.hparams["noise"] = noise_to_dict(theirs)

    def _say_if_other_objective(self, own: Mapping[str, Any]) -> None:
        """Warn that training goes on with another objective than the checkpoint's."""
        if self._trainer is None or not self._trainer.training or "class_path" not in own:
            return
        theirs = {"class": own["class_path"], **own["init_args"]}
        mine = {name: value for name, value in self.objective.items() if value != theirs.get(name)}
        if mine:
            was = ", ".join(f"{name} {theirs.get(name)!r}" for name in mine)
            now = ", ".join(f"{name} {value!r}" for name, value in mine.items())
            warnings.warn(f"training goes on with {now}; the checkpoint was trained with {was}", stacklevel=3)

    def _check_fits(self, trained: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        for name in ("network", "num_classes", "shape"):
            if name in trained and trained[name] != self.hparams[name]:
                raise ValueError(
                    f"{name} of the checkpoint is {trained[name]!r}, but {self.hparams[name]!r} is configured"
                )
        mine = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        theirs = {key: tuple(value.shape) for key, value in weights.items()}
        odd = [key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key)]
        if odd and self.strict_loading:
            raise ValueError(
                f"the checkpoint does not hold the weights of network {self.hparams['network']!r} "
                f"{self.hparams['network_args'] or ''}: {odd[0]} has shape {theirs.get(odd[0], 'none')} there and "
                f"{mine.get(odd[0], 'none')} here ({len(set(odd))} such weights)"
            )

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        # Own stream, the same at every evaluation: it must not advance the training's, and epochs are comparable.
        stream = _generator(images.device, split, self.global_rank, batch_idx)
        for kind, inputs in (("clean", images), ("noisy", self.noise(images, stream))):
            logits = self(inputs)
            metric = cast(Metric, self.accuracies[f"{split}_{kind}"])
            metric(logits, labels)
            self.log(f"{split}/accuracy_{kind}", metric, on_step=False, on_epoch=True, prog_bar=split == "val")
            if kind == "noisy":
                loss = nn.functional.cross_entropy(logits, labels)
                self.log(
                    f"{split}/loss_noisy", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels)
                )


def passes_told(forward: int, backward: int, of: str) -> str:
    """Return "1 forward and 1 backward pass ..." in words."""
    return f"{forward} forward and {backward} backward pass{'' if backward == 1 else 'es'} {of}"


def _generator(device: torch.device, *key: object) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(_stream_seed(*key))


def _stream_seed(*key: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "little")
