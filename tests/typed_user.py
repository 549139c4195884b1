"""What a type checker sees of the package, under strict rules: checked by mypy (`make lint`), never run.

Names of the package are looked up when they are used; were one of them unknown to mypy, it would be Any, nothing below
would be an error, and mypy would complain of an ignore that is not needed.
"""

from typing import assert_type

import lightning_rs
from lightning_rs import Certification, Certifier, GaussianL2, GaussianNoise, Trainer, functional
from lightning_rs.certifier import Certifier as Defined


def certified(trainer: Trainer) -> None:
    """Use names in both ways: from the package, and as its attributes."""
    assert_type(Certifier(n=100), Defined)
    assert_type(lightning_rs.GaussianL2(), GaussianL2)
    assert_type(GaussianNoise(0.25).sigma, float)
    trainer.nothing()  # type: ignore[attr-defined]
    functional.gaussian_l2_radius(nothing=1)  # type: ignore[call-arg]
    Certification(nothing=1)  # type: ignore[call-arg]
    lightning_rs.Certifier(nothing=1)  # type: ignore[call-arg]
    lightning_rs.SmoothedClassifier(nothing=1)  # type: ignore[call-arg]
