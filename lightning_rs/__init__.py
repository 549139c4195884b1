"""Certify image classifiers by randomized smoothing, and train them for it.

Without Lightning, three lines::

    from lightning_rs import Certifier, GaussianNoise
    records = Certifier(n=10_000).certify(network, GaussianNoise(sigma=0.25), images, labels)
    print(records[0])

Names are looked up when they are first used (PEP 562): ``import lightning_rs`` and the commands on record files load
neither torch nor Lightning. Besides the names of ``__all__``, every module of the package is an attribute:
``lightning_rs.functional`` holds the theorems as pure functions.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names by the module that defines them; the two packages say themselves what is public in them.
_NAMES = {
    "budgets": ("DecideGridRadius", "DecideRadius", "FixedSamples", "RandomizedBound", "StagedSamples"),
    "certifier": ("Certifier",),
    "engine.runtime": ("Runtime",),
    "networks": ("available_networks", "build_network", "load_checkpoint", "load_cohen_checkpoint"),
    "records": ("Certification", "read_records"),
    "routed": ("AtSigma", "CascadeClassifier", "RoutedClassifier"),
    "session": ("Session",),
    "smoothed": ("SmoothedClassifier",),
    "trainer": ("Trainer",),
}
_PACKAGES = ("certificates", "noise")
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

if TYPE_CHECKING:
    from lightning_rs import functional as functional
    from lightning_rs.budgets import DecideGridRadius as DecideGridRadius
    from lightning_rs.budgets import DecideRadius as DecideRadius
    from lightning_rs.budgets import FixedSamples as FixedSamples
    from lightning_rs.budgets import RandomizedBound as RandomizedBound
    from lightning_rs.budgets import StagedSamples as StagedSamples
    from lightning_rs.certificates import *  # noqa: F403
    from lightning_rs.certifier import Certifier as Certifier
    from lightning_rs.engine.runtime import Runtime as Runtime
    from lightning_rs.networks import available_networks as available_networks
    from lightning_rs.networks import build_network as build_network
    from lightning_rs.networks import load_checkpoint as load_checkpoint
    from lightning_rs.networks import load_cohen_checkpoint as load_cohen_checkpoint
    from lightning_rs.noise import *  # noqa: F403
    from lightning_rs.records import Certification as Certification
    from lightning_rs.records import read_records as read_records
    from lightning_rs.routed import AtSigma as AtSigma
    from lightning_rs.routed import CascadeClassifier as CascadeClassifier
    from lightning_rs.routed import RoutedClassifier as RoutedClassifier
    from lightning_rs.session import Session as Session
    from lightning_rs.smoothed import SmoothedClassifier as SmoothedClassifier
    from lightning_rs.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    """Import what a name stands for; a module of the package is found by its name, too."""
    if name == "__all__":
        value: Any = sorted(name for package in _PACKAGES for name in _module(package).__all__) + sorted(_HOMES)
    elif name in _HOMES:
        value = getattr(_module(_HOMES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    elif importlib.util.find_spec(f"{__name__}.{name}") is not None:
        value = _module(name)
    else:
        package = next((package for package in _PACKAGES if name in _module(package).__all__), None)
        if package is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_module(package), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, for completion."""
    return sorted({*globals(), *__getattr__("__all__"), "functional"})


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
