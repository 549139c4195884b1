"""A researcher's own module: a law, its theorem, an objective and a budget, each outside the package.

``write`` copies it into a folder, from where the command line imports it by class path.
"""

from __future__ import annotations

from pathlib import Path

MODULE = "ownparts"
SOURCE = '''
"""Noise of one coordinate that is Gaussian, under another name, and all that goes with it."""
import numpy as np
import torch
from scipy.special import ndtri

from lightning_rs.budgets import FixedSamples
from lightning_rs.certificates import TopVoteCertificate
from lightning_rs.certificates.natural import usual_for
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.noise import AdditiveNoise, GaussianNoise


class MyNoise(AdditiveNoise):
    def __init__(self, width):
        self.width = width

    def spec(self):
        return {"width": self.width}

    @property
    def sigma(self):
        return self.width

    def draw_(self, out, generator=None):
        out.normal_(0.0, self.width, generator=generator)


class Softer(MyNoise):
    """Inherits the certificate."""


class Bare(AdditiveNoise):
    """A law without a theorem."""

    def __init__(self, width=0.5):
        self.width = width

    spec, sigma, draw_ = MyNoise.spec, MyNoise.sigma, MyNoise.draw_


@usual_for(MyNoise)
class MyCertificate(TopVoteCertificate):
    norm = "l2"
    noises = (MyNoise,)

    def __init__(self, share=1.0):
        self.share = share

    def radius_of_tail(self, q_upper, setting):
        return self.share * setting.noise.sigma * np.maximum(-ndtri(q_upper), 0.0)


class MyObjective(NoiseAugmentation):
    def training_step(self, batch, batch_idx):
        return 0.5 * super().training_step(batch, batch_idx)


class MyBudget(FixedSamples):
    def __init__(self, ledger="spring"):
        self.ledger = ledger


class Forgetful(FixedSamples):
    def __init__(self, ledger="spring"):
        pass
'''


def write(folder: Path, module: str = MODULE) -> None:
    """Put the module into ``folder``."""
    (folder / f"{module}.py").write_text(SOURCE)
