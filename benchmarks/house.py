"""How much house there is: what one image passes on its way to a record, and what has to be touched to add a part.

``hops``: one digit is certified through ``Trainer.certify`` under a profile of every Python call, from the moment the
loader of the data module hands its batch to ``predict_step``. Counted are the frames of this package that are on the
stack when the base network runs and when the record is written (the hops), and the distinct functions, classes and
modules of this package that are entered on the way, the preparation of the network among them.

``parts``: each part below is written into a copy of the tree, and the files that change are counted. That the copy then
works (contract tables, training, certification, report) is for ``tests/test_house.py``. In another tree, for instance
an older one, only names are counted: the files in which a part that both trees have is named at all.

::

    python -m benchmarks.house                # this tree
    python -m benchmarks.house --tree FOLDER  # hops of, and names in, the package that lies in another folder
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Edit:
    """One file of a part: new, or with lines put before the first line that begins with ``before``."""

    path: str
    text: str
    before: str = ""

    def apply(self, tree: Path) -> None:
        """Write the file, or put the lines into it."""
        path = tree / self.path
        if not self.before:
            assert not path.exists(), path
            path.write_text(self.text.lstrip("\n"))
            return
        lines = path.read_text().splitlines(keepends=True)
        place = next(i for i, line in enumerate(lines) if line.startswith(self.before))
        path.write_text("".join([*lines[:place], self.text, *lines[place:]]))


NOISE = [
    Edit(
        "lightning_rs/noise/logistic.py",
        '''
"""Additive logistic noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_rs.checks import check_positive
from lightning_rs.noise.base import AdditiveNoise


class LogisticNoise(AdditiveNoise):
    """Additive noise with iid logistic coordinates, distribution function 1 / (1 + exp(-z / scale))."""

    def __init__(self, scale: float) -> None:
        self.scale = float(check_positive("scale", scale))

    @property
    def sigma(self) -> float:
        """Standard deviation pi scale / sqrt(3) of one coordinate, in input units."""
        return math.pi * self.scale / math.sqrt(3.0)

    def spec(self) -> dict[str, Any]:
        """Return the parameter."""
        return {"scale": self.scale}

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with independent draws: with U uniform on (0, 1), log(U / (1 - U))."""
        out.uniform_(generator=generator).clamp_(2.0**-24, 1.0 - 2.0**-24).logit_().mul_(self.scale)
''',
    ),
    Edit("lightning_rs/noise/__init__.py", "from lightning_rs.noise.logistic import LogisticNoise\n", "__all__"),
    Edit("lightning_rs/noise/__init__.py", '    "LogisticNoise",\n', '    "MixedNormNoise",'),
    Edit(
        "tests/test_noise_contract.py",
        "    noise_package.LogisticNoise: [\n"
        "        Example(lambda: noise_package.LogisticNoise(0.3),\n"
        '                [({"scale": 0.0}, "scale must be finite and > 0, got 0.0")])\n'
        "    ],\n",
        "    LaplaceNoise: [",
    ),
]
CERTIFICATE = [
    Edit(
        "lightning_rs/certificates/logistic.py",
        '''
"""The l1 radius of logistic noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import Setting, TopVoteCertificate
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import FloatArray, check_positive, given, tail_of
from lightning_rs.noise import LogisticNoise
from lightning_rs.numerics.rounding import round_down


def logistic_l1_radius(
    p_lower: ArrayLike | None = None, scale: ArrayLike | None = None, *, q_upper: ArrayLike | None = None
) -> FloatArray:
    """Certified l1 radius ``-scale log(2 q_upper)``: the log density has slopes of at most 1 / scale."""
    width, tail = np.broadcast_arrays(check_positive("scale", given("scale", scale)), tail_of(p_lower, q_upper))
    return round_down(np.where(tail < 0.5, -width * np.log(2.0 * np.clip(tail, 1e-300, 0.5)), 0.0))


@usual_for(LogisticNoise)
class LogisticL1(TopVoteCertificate):
    """Open l1 ball of :func:`logistic_l1_radius`, from the one-sided bound on the votes of the top class."""

    norm = "l1"
    noises = (LogisticNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        assert isinstance(setting.noise, LogisticNoise)
        return logistic_l1_radius(scale=setting.noise.scale, q_upper=q_upper)
''',
    ),
    Edit(
        "lightning_rs/certificates/__init__.py", "from lightning_rs.certificates.logistic import LogisticL1\n", "__all"
    ),
    Edit("lightning_rs/certificates/__init__.py", '    "LogisticL1",\n', '    "MixedNormLinf",'),
    Edit(
        "lightning_rs/functional.py", "from lightning_rs.certificates.logistic import logistic_l1_radius\n", "if TYPE"
    ),
    Edit("lightning_rs/functional.py", '    "logistic_l1_radius",\n', '    "macer_loss",'),
    Edit(
        "tests/test_certificate_contract.py",
        "    certificate_package.LogisticL1: [\n"
        "        Example(certificate_package.LogisticL1, certificate_package.LogisticL1.noises[0](0.3))\n"
        "    ],\n",
        "    LaplaceL1: [",
    ),
]
OBJECTIVE = [
    Edit(
        "lightning_rs/classifiers/focal.py",
        '''
"""Noise augmentation with the focal loss (Lin et al. 2017): images that are right already count less."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_rs.checks import check_nonnegative
from lightning_rs.classifiers.copies import NoisyCopies


class Focal(NoisyCopies):
    """Cross-entropy of a noisy copy times ``(1 - p_y)^gamma``. Any noise; one pass each way.

    Args:
        gamma: power, >= 0; 0 is noise augmentation.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.
    """

    def __init__(self, gamma: float = 2.0, **kwargs: Any) -> None:
        super().__init__(copies=1, **kwargs)
        self.gamma = float(check_nonnegative("gamma", gamma))

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        return 1, 1

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (1, B, classes) of the noisy copy."""
        logits = self.logits(images, self.draw(images, batch_idx))
        with self.float32():
            cross_entropy = nn.functional.cross_entropy(logits[0].float(), labels, reduction="none")
            return ((1.0 - (-cross_entropy).exp()) ** self.gamma * cross_entropy).mean(), logits
''',
    ),
    Edit("lightning_rs/classifiers/__init__.py", "from lightning_rs.classifiers.focal import Focal\n", "__all__"),
    Edit("lightning_rs/classifiers/__init__.py", '    "Focal",\n', '    "NoiseAugmentation",'),
    Edit(
        "tests/classifiers/test_objective_contract.py",
        '    package.Focal: [Example({"gamma": 1.0}, (({"gamma": -1.0}, "gamma must be >= 0, got -1.0"),))],\n',
        "    Stability: [",
    ),
]
PARTS: dict[str, list[Edit]] = {"a noise": NOISE, "a certificate": CERTIFICATE, "a training objective": OBJECTIVE}

# A part of each kind that stands in trees old and new, by the words that name it.
NAMED = {
    "a noise": r"LaplaceNoise|laplace\.yaml",
    "a certificate": "RenyiL2|renyi_l2_radius",
    "a training objective": "NoiseAugmentation",
    "a budget": 'StagedSamples|"staged"',
    "an evidence scheme": "antithetic|PairVotes|PairProducts|PairGradientSums",
}


def files(part: str) -> list[str]:
    """Return the files that adding a part touches, in the order of the edits."""
    return list(dict.fromkeys(edit.path for edit in PARTS[part]))


def add(part: str, tree: Path) -> None:
    """Write a part into a tree."""
    for edit in PARTS[part]:
        edit.apply(tree)


def named(words: str, tree: Path) -> list[str]:
    """Return the files of the package that contain one of the words."""
    found = [path for path in sorted((tree / "lightning_rs").rglob("*.py")) if re.search(words, path.read_text())]
    return [str(path.relative_to(tree)) for path in found]


# Runs in a process of its own, with the tree that is looked at before everything else on the path.
PROFILED = """
import inspect, json, os, sys, tempfile, threading
import torch
torch.set_num_threads(1)
import lightning_rs
from lightning_rs.certifier import Certifier
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data import Digits
from lightning_rs.noise import GaussianNoise
from lightning_rs.trainer import Trainer

root = os.path.dirname(lightning_rs.__file__) + os.sep
entered, stacks, handed = set(), {}, False

def ours(frame):
    while frame is not None:
        if frame.f_code.co_filename.startswith(root):
            yield frame.f_code.co_qualname
        frame = frame.f_back

def profile(frame, event, arg):
    global handed
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(root):
        return
    handed = handed or code.co_name == "predict_step"
    if not handed:
        return
    # Comprehensions, lambdas and class bodies are no functions that a reader follows.
    if "<" not in code.co_name:
        entered.add((code.co_filename[len(root):], code.co_qualname))
    if code.co_qualname in ("PreparedNetwork.logits", "RecordFile.append"):
        stacks.setdefault(code.co_qualname, list(ours(frame)))

torch.manual_seed(0)
model = NoiseAugmentation("digits_cnn", noise=GaussianNoise(0.25), grid=16, mean=(0.3,), std=(0.4,))
folder = tempfile.mkdtemp()
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
trainer = Trainer(accelerator="cpu", devices=1, **quiet)
sys.setprofile(profile)
threading.setprofile(profile)
trainer.certify(model, Digits(max=1), Certifier(n=400, n0=40), records=os.path.join(folder, "x.jsonl"))
sys.setprofile(None)
print(json.dumps({"entered": sorted(map(list, entered)), "stacks": stacks}))
"""


@dataclass(frozen=True)
class Passage:
    """What one image passes: the functions entered, as (file, qualified name), and our frames at two of them."""

    entered: list[tuple[str, str]]
    stacks: dict[str, list[str]]

    @property
    def counts(self) -> dict[str, int]:
        """The counts, by what is counted."""
        methods = {(module, name.rpartition(".")[0]) for module, name in self.entered if "." in name}
        return {
            "hops to the network": len(self.stacks["PreparedNetwork.logits"]),
            "hops to the file of records": len(self.stacks["RecordFile.append"]),
            "functions entered": len(self.entered),
            "classes entered": len(methods),
            "modules entered": len({module for module, _ in self.entered}),
        }


def hops(tree: Path) -> Passage:
    """Return what one image passes in the package that lies in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", PROFILED]
    found = subprocess.run(run, cwd=tree, capture_output=True, text=True, check=False, env=environment)
    if found.returncode:
        raise RuntimeError(found.stderr)
    said = json.loads(found.stdout.splitlines()[-1])
    return Passage([(module, name) for module, name in said["entered"]], said["stacks"])


def main(args: list[str] | None = None) -> None:
    """Print both counts as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the folder in which the package lies")
    parser.add_argument("--verbose", action="store_true", help="list what was entered and named")
    given = parser.parse_args(args)
    print("| to add | files that name one | files touched |\n| --- | --: | --: |")
    for part, words in NAMED.items():
        places = named(words, given.tree)
        print(f"| {part} | {len(places)} | {len(files(part)) if part in PARTS and given.tree == ROOT else ''} |")
        if given.verbose:
            print("\n".join(places))
    passed = hops(given.tree)
    print("\n| one image | |\n| --- | --: |")
    print("\n".join(f"| {name} | {count} |" for name, count in passed.counts.items()))
    if given.verbose:
        print("\n".join(f"{module}: {name}" for module, name in passed.entered))
        print(json.dumps(passed.stacks, indent=1))


if __name__ == "__main__":
    main()
