"""The command ``levels``: one training a noise level, certified at its own level or at several.

Levels that differ between training and certification are Figure 15 of Cohen et al. (2019). What is done is kept: the
same command goes on after an interruption.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_rs.checks import check_positive, folder_for, naming
from lightning_rs.cli.configs import with_shipped
from lightning_rs.cli.lightning import SmoothingCLI
from lightning_rs.cli.words import whole_numbers_in_files, with_whole_numbers
from lightning_rs.loggers import metric_radii
from lightning_rs.metrics import average_certified_radius, certified_accuracy
from lightning_rs.records import Certification, nearest_decimals

_LEVELS = "Train at several noise levels, certify each at its own or at several, and compare."
Row = dict[str, str]


@dataclass
class Levels:
    """Trainings at several noise levels.

    Args:
        fit: configuration of ``fit``: a file, or the name of a shipped one.
        train: noise levels of the trainings, in the order in which they run.
        certify: noise levels at which each is certified; None: at its own.
        noise: class path of the law, which has the parameter ``sigma``.
        warm_start: every training but the first starts from the weights of the one before.
        fit_words: more options of ``fit``: ``[--data.init_args.root=data]``.
        certify_words: more options of ``certify``.
    """

    fit: str
    train: list[float]
    certify: list[float] | None = None
    noise: str = "lightning_rs.noise.GaussianNoise"
    warm_start: bool = False
    fit_words: list[str] = field(default_factory=list)
    certify_words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse levels that are no noise, or named twice."""
        for name, levels in (("train", self.train), ("certify", self.certify)):
            if levels is None:
                continue
            check_positive(name, levels)
            if not levels or len(set(levels)) < len(levels):
                raise ValueError(f"{name} must hold noise levels, each once, got {levels}")

    def pairs(self) -> list[tuple[float, float]]:
        """Return what is certified: levels of training and certification."""
        return [(own, other) for own in self.train for other in self.certify or [own]]

    def training(self, sigma: float, folder: Path) -> list[str]:
        """Return the command that trains at a level; ``folder`` is that of all results."""
        before = self.train[max(0, self.train.index(sigma) - 1)]
        warm = [f"--model.init_args.init_from={_checkpoint(folder, before)}"] if before != sigma else []
        return [
            *("fit", "-c", self.fit, f"--model.init_args.noise={self._law(sigma)}", "--certifier=null"),
            *(f"--trainer.default_root_dir={folder / f'train_{sigma:g}'}", "--trainer.logger=false"),
            *(warm if self.warm_start else []),
            *self.fit_words,
        ]

    def certification(self, pair: tuple[float, float], folder: Path) -> list[str]:
        """Return the command that certifies the classifier of one level at another."""
        own, other = pair
        law = [] if own == other else [f"--certifier.init_args.noise={self._law(other)}"]
        return [
            *("certify", "--ckpt_path", str(_checkpoint(folder, own))),
            *(f"--records={folder / f'train_{own:g}_certify_{other:g}.jsonl'}", "--trainer.logger=false"),
            *(f"--trainer.default_root_dir={folder / f'train_{own:g}'}", *law, *self.certify_words),
        ]

    def _law(self, sigma: float) -> str:
        return json.dumps({"class_path": self.noise, "init_args": {"sigma": sigma}})


def levels_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs levels`` and return its exit code."""
    parser = ArgumentParser(prog="lightning_rs levels", description=_LEVELS, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML with the levels, see configs/levels")
    parser.add_class_arguments(Levels, "levels")
    parser.add_argument("--out", type=str, required=True, help="folder of the results; the same levels goes on there")
    with whole_numbers_in_files():
        config = parser.parse_args(with_whole_numbers(sys.argv[1:] if argv is None else argv))
    settings = parser.dump(Namespace(levels=config.levels), skip_validation=True)
    levels = parser.instantiate(config).levels  # before the folder is taken, which a refusal must not do
    folder = claimed(Path(config.out), settings)
    rows = run(levels, folder)
    with naming(folder / "levels.md"):
        (folder / "levels.md").write_text(_table(rows))
    with naming(folder / "levels.csv"), open(folder / "levels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{_table(rows)}\nwrote {folder / 'levels.md'}, levels.csv\nmore: python -m lightning_rs report {folder}")
    return 0


def claimed(folder: Path, settings: str) -> Path:
    """Return the folder, which from now on belongs to these settings.

    Raises:
        ValueError: if it holds something else, other levels for instance.
    """
    own = folder / "levels.yaml"
    # A command that was refused before it trained leaves nothing else, and may be put right.
    if own.is_file() and own.read_text() != settings and any(file != own for file in folder.iterdir()):
        raise ValueError(f"out must be a new folder, or that of the same levels; {own} has other settings")
    if not own.is_file() and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"out must be a new folder, or that of the same levels, got {str(folder)!r}, which is neither")
    folder_for(folder)
    with naming(own):
        own.write_text(settings)
    return folder


def run(levels: Levels, folder: Path, cli: Callable[[list[str]], Any] = SmoothingCLI) -> list[Row]:
    """Train and certify what is missing, and return a row for each pair of levels.

    Args:
        levels: of training and certification.
        folder: where checkpoints and records are kept.
        cli: runs a command line and has the ``trainer`` that did it.
    """
    for sigma in levels.train:
        kept = _checkpoint(folder, sigma)
        if kept.is_file():
            print(f"trained already: {kept}", file=sys.stderr)
            continue
        trainer = cli(with_shipped(levels.training(sigma, folder))).trainer
        if trainer.interrupted:
            raise KeyboardInterrupt
        partial = kept.with_suffix(".part")
        shutil.copyfile(trainer.checkpoint_callback.best_model_path, partial)
        partial.replace(kept)
    radii = metric_radii(max(other for _, other in levels.pairs()))
    rows = []
    for pair in levels.pairs():
        records = cli(levels.certification(pair, folder)).trainer.certifications
        rows.append(_row(pair, records, radii))
    return rows


def _checkpoint(folder: Path, sigma: float) -> Path:
    return folder / f"train_{sigma:g}.ckpt"


def _row(pair: tuple[float, float], records: Sequence[Certification], radii: Sequence[float]) -> Row:
    accuracies = certified_accuracy(records, radii)
    return {
        "trained at": f"{pair[0]:g}",
        "certified at": f"{pair[1]:g}",
        "images": str(len(records)),
        "ACR": nearest_decimals(average_certified_radius(records), 4),
        **{f"at {radius:g}": nearest_decimals(share, 3) for radius, share in zip(radii, accuracies, strict=True)},
    }


def _table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["--:"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
