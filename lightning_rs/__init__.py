"""Certify image classifiers by randomized smoothing, and train them for it.

Without Lightning, three lines::

    from lightning_rs import Certifier, GaussianNoise
    records = Certifier(n=10_000).certify(network, GaussianNoise(sigma=0.25), images, labels)
    print(records[0])
"""

from lightning_rs.budgets import DecideGridRadius, DecideRadius, FixedSamples, RandomizedBound, StagedSamples
from lightning_rs.certificates import *  # noqa: F403  (its __all__ is explicit)
from lightning_rs.certificates import __all__ as _certificates
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks import available_networks, build_network, load_checkpoint, load_cohen_checkpoint
from lightning_rs.noise import *  # noqa: F403
from lightning_rs.noise import __all__ as _noises
from lightning_rs.records import Certification, read_records
from lightning_rs.session import Session
from lightning_rs.smoothed import SmoothedClassifier

__version__ = "0.1.0"

__all__ = [
    *_certificates,
    *_noises,
    "Certification",
    "Certifier",
    "DecideGridRadius",
    "DecideRadius",
    "FixedSamples",
    "RandomizedBound",
    "Runtime",
    "Session",
    "SmoothedClassifier",
    "StagedSamples",
    "available_networks",
    "build_network",
    "load_checkpoint",
    "load_cohen_checkpoint",
    "read_records",
]
