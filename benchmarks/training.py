"""Images a second of a training: `fit`, the loop of the published scripts, and forward and backward alone.

All in one run and taking turns. `fit` is a whole `Trainer.fit` with data, noise, loss, optimizer, scheduler, log and
progress hooks, from its first step to its last; the published loop is fp32, NCHW, images read and converted one by one,
noise by `randn_like`, accuracies and losses fetched from the device at every step; the last is the network that `fit`
has prepared, on one noisy batch that is already there, without optimizer. The published loop has a process of its own,
because `fit` changes how its process keeps memory (`lightning_rs.classifiers.memory`). A second table says which share
of a training validation, certification at epoch ends and checkpoints take with the default callbacks.

    OMP_NUM_THREADS=1 python -m benchmarks.training [--networks mnist_lenet cifar_resnet20] [--cpu-time]
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from benchmarks.common import Row, environment, finish, parser, show, spread
from benchmarks.throughput import SHAPES, SIGMA
from lightning_rs.callbacks import EpochEndCertification
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.sources import ArraySource, Source
from lightning_rs.noise import GaussianNoise
from lightning_rs.trainer import Trainer

BATCH = 256  # of the published scripts
Timed = Callable[[int], tuple[int, float]]
Now = Callable[[], float]


class RandomImages(ImageDataModule):
    """8-bit noise in memory: what a training costs does not depend on what the images show."""

    name = "random"
    num_classes = 10
    shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names = tuple("0123456789")

    def __init__(self, shape: tuple[int, ...], size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.size = shape, size
        self.mean, self.std = (0.5,) * shape[0], (0.25,) * shape[0]

    def arrays(self) -> tuple[Any, Any]:
        """Return images (n, C, H, W), uint8, and labels (n,)."""
        stream = np.random.default_rng(0)
        return stream.integers(0, 256, (self.size, *self.shape), dtype=np.uint8), stream.integers(0, 10, self.size)

    def _load(self, split: Literal["train", "test"]) -> Source:
        return ArraySource(*self.arrays(), scale=255)


class _OneByOne(Dataset[Any]):
    """Images as the data sets of torchvision give them: a PIL image each, converted to a tensor."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.images[index].transpose(1, 2, 0)
        return to_tensor(Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)), int(
            self.labels[index]
        )


class _Clock(pl.Callback):
    """Seconds from the first training step to the end of the training, and in validation; must stand first."""

    def __init__(self, now: Now) -> None:
        self.now = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.validation, self.start = 0.0, self.now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.seconds = self.now() - self.start

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._began = self.now()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop; what checkpoints cost comes after it."""
        self.validation += self.now() - self._began


class _Certification(EpochEndCertification):
    seconds = 0.0
    now: Now

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began = self.now()
        super().on_validation_epoch_end(trainer, pl_module)
        self.seconds += self.now() - began


class _Checkpoint(ModelCheckpoint):
    seconds = 0.0
    now: Now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began = self.now()
        super().on_train_epoch_end(trainer, pl_module)
        self.seconds += self.now() - began

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began = self.now()
        super().on_validation_end(trainer, pl_module)
        self.seconds += self.now() - began


def clock_of(args: Any) -> Now:
    """Return the clock that is asked for."""
    return time.process_time if args.cpu_time else time.perf_counter


def classifier(name: str, args: Any) -> NoiseAugmentation:
    """Return an untrained classifier and its optimizer's settings, as published."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    return NoiseAugmentation(
        name,
        noise=GaussianNoise(SIGMA),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4),
        shape=shape,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        grid=255,
        compile=args.compile,
    )


def trainer(folder: str, args: Any, **kwargs: Any) -> Trainer:
    """Return a trainer without logger and bar, which a benchmark cannot use."""
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": args.device}
    return Trainer(default_root_dir=folder, devices=1, precision=args.precision, **plain, **kwargs)


def fitting(name: str, args: Any, folder: str) -> Timed:
    """Return a `Trainer.fit` without validation, timed from its first step to its last."""
    data = RandomImages(SHAPES[name], 8 * BATCH, batch_size=BATCH, val_size=0)

    def work(images: int) -> tuple[int, float]:
        clock, steps = _Clock(clock_of(args)), -(-images // BATCH)
        plain = {"callbacks": [clock], "enable_checkpointing": False, "limit_val_batches": 0}
        run = trainer(folder, args, max_steps=steps, max_epochs=-1, **plain)
        run.fit(classifier(name, args), datamodule=data)
        return steps * BATCH, clock.seconds

    return work


def published_loop(name: str, args: Any) -> Timed:
    """Return the training loop of the published scripts (Cohen et al. 2019)."""
    network = classifier(name, args).network.to(args.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    data = _OneByOne(*RandomImages(SHAPES[name], 8 * BATCH).arrays())
    now = clock_of(args)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)

    def work(images: int) -> tuple[int, float]:
        start, done, told = now(), 0, [0.0, 0.0, 0.0]
        while done < images:
            for inputs, targets in loader:
                rows, labels = inputs.to(args.device), targets.to(args.device)
                noisy = rows + torch.randn_like(rows, device=args.device) * SIGMA
                outputs = network(noisy)
                loss = nn.functional.cross_entropy(outputs, labels)
                hits = outputs.topk(5, 1).indices.t() == labels.view(1, -1)
                told[0] += loss.item()
                told[1] += hits[:1].float().sum().item()
                told[2] += hits.float().sum().item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += len(labels)
                if done >= images:
                    break
        return done, now() - start

    return work


@contextmanager
def apart(make: Callable[[str, Any], Timed], name: str, args: Any) -> Iterator[Timed]:
    """Give a work in a process of its own, which waits while others have their turns."""
    if args.quick:  # starting Python takes longer than all the rest
        yield make(name, args)
        return
    mine, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs, make, name, args), daemon=True)
    process.start()
    theirs.close()

    def work(images: int) -> tuple[int, float]:
        mine.send(images)
        done, took = mine.recv()
        return done, took

    try:
        yield work
    finally:
        mine.close()
        process.join()


def _serve(orders: Connection, make: Callable[[str, Any], Timed], name: str, args: Any) -> None:
    torch.set_num_threads(args.threads)
    work = make(name, args)
    while True:
        try:
            images = orders.recv()
        except EOFError:
            return
        orders.send(work(images))


def passes_alone(name: str, args: Any) -> Timed:
    """Return forward and backward of the network in the layout and precision of `fit`, on one noisy batch."""
    model = classifier(name, args).to(args.device).train()
    model.lay_out()
    rows = model.laid_out(torch.randn(BATCH, *SHAPES[name], device=args.device))
    labels = torch.zeros(BATCH, dtype=torch.int64, device=args.device)
    now = clock_of(args)
    mixed = args.precision != "32-true"

    def work(images: int) -> tuple[int, float]:
        start, steps = now(), -(-images // BATCH)
        for _ in range(steps):
            model.network.zero_grad()
            with torch.autocast(args.device, torch.bfloat16, enabled=mixed):
                logits = model.network(rows)
            nn.functional.cross_entropy(logits.float(), labels).backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return steps * BATCH, now() - start

    return work


def measure(name: str, args: Any, folder: str) -> Row:
    """Measure one network: every turn runs each work once, for about ``args.seconds``."""
    with apart(published_loop, name, args) as published:
        works = {"fit": fitting(name, args, folder), "published": published, "alone": passes_alone(name, args)}
        rates: dict[str, list[float]] = {label: [] for label in works}
        sizes = {}
        for label, work in works.items():
            work(BATCH)  # what is done once: kernels chosen, memory taken, perhaps compiled
            done, took = work(2 * BATCH)
            sizes[label] = max(2 * BATCH, round(args.seconds * done / took))
        for _ in range(args.rounds):
            for label, work in works.items():
                done, took = work(sizes[label])
                rates[label].append(done / took)
    return {"network": name, "precision": args.precision, "compiled": args.compile, "rates": rates}


def shares(name: str, args: Any, folder: str) -> Row:
    """Return the seconds of a training with the default callbacks, and of what is no training in it."""
    clock, certification = _Clock(clock_of(args)), _Certification(images=64, every_n_epochs=10)
    kept = _Checkpoint(dirpath=folder, monitor="val/loss_noisy", mode="min", save_last=True)
    certification.now = kept.now = clock_of(args)
    data = RandomImages(SHAPES[name], args.images, batch_size=BATCH)
    run = trainer(folder, args, max_epochs=args.epochs, callbacks=[clock, certification, kept], num_sanity_val_steps=0)
    run.fit(classifier(name, args), datamodule=data)
    return {
        "network": name,
        "images": args.images,
        "epochs": args.epochs,
        "seconds": clock.seconds,
        "validation": clock.validation - certification.seconds,
        "certification": certification.seconds,
        "checkpoints": kept.seconds,
    }


def summary(row: Row) -> Row:
    """Return a measured row for people: ratios are taken round by round."""
    rates = row["rates"]
    to_published = [fit / other for fit, other in zip(rates["fit"], rates["published"], strict=True)]
    to_alone = [fit / other for fit, other in zip(rates["fit"], rates["alone"], strict=True)]
    return {
        "network": row["network"],
        "precision": row["precision"] + (" compiled" if row["compiled"] else ""),
        "published loop /s": f"{statistics.median(rates['published']):,.0f}",
        "forward + backward /s": f"{statistics.median(rates['alone']):,.0f}",
        "fit /s": f"{statistics.median(rates['fit']):,.0f}",
        "fit / published": spread(to_published),
        "fit / forward + backward": spread(to_alone),
    }


def told_shares(row: Row) -> Row:
    """Return a row of shares for people."""
    parts = {part: row[part] / row["seconds"] for part in ("validation", "certification", "checkpoints")}
    return {
        "network": row["network"],
        "images": f"{row['images']:,}",
        "epochs": row["epochs"],
        "seconds": f"{row['seconds']:.1f}",
        **{part: f"{share:.1%}" for part, share in parts.items()},
        "together": f"{sum(parts.values()):.1%}",
    }


def main(argv: Sequence[str] | None = None) -> Row:
    own = parser(__doc__ or "")
    own.add_argument("--networks", nargs="+", default=["mnist_lenet", "cifar_resnet20"], help=f"of {', '.join(SHAPES)}")
    own.add_argument("--precision", default="32-true", help="of fit; bf16-mixed where the CPU has bfloat16")
    own.add_argument("--compile", action="store_true")
    own.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
    own.add_argument("--cpu-time", action="store_true", help="instead of wall time: for a shared CPU")
    own.add_argument("--rounds", type=int, default=5)
    own.add_argument("--epochs", type=int, default=10, help="of the training whose shares are told; 0: none")
    own.add_argument("--images", type=int, default=60_000, help="of its data, a tenth of which is held out")
    args = own.parse_args(argv)
    args.threads = torch.get_num_threads()
    if args.quick:
        args.networks, args.seconds, args.rounds = ["digits_cnn"], min(args.seconds, 0.02), min(args.rounds, 2)
        args.epochs, args.images = min(args.epochs, 2), 4 * BATCH
    print(environment())
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and on trainings without end
        rows = [measure(name, args, folder) for name in args.networks]
        parts = [shares(name, args, str(Path(folder, name))) for name in args.networks] if args.epochs else []
    show("Images a second in training", [summary(row) for row in rows])
    show("Shares of a training", [told_shares(row) for row in parts])
    return finish(args.out, training=rows, shares=parts)


if __name__ == "__main__":
    main()
