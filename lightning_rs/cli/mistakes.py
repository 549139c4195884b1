"""What was probably meant: near matches for options and class names that are unknown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning.callbacks

import lightning_rs.budgets
import lightning_rs.callbacks
import lightning_rs.certificates
import lightning_rs.classifiers
import lightning_rs.data
import lightning_rs.noise
from lightning_rs.certifier import Certifier
from lightning_rs.cli.suggest import near
from lightning_rs.engine.runtime import Runtime

_PACKAGES = (
    lightning_rs.budgets, lightning_rs.callbacks, lightning_rs.certificates, lightning_rs.classifiers,
    lightning_rs.data, lightning_rs.noise, pytorch_lightning.callbacks,
)  # fmt: skip
# Where arguments of classes are written; those of all classes that can stand there are known.
_NESTED = {
    "certifier": (Certifier,),
    "certifier.runtime": (Runtime,),
    "certifier.budget": (lightning_rs.budgets,),
    "certifier.noise": (lightning_rs.noise,),
    "model": (lightning_rs.classifiers,),
    "model.noise": (lightning_rs.noise,),
    "data": (lightning_rs.data,),
}


def meant(words: Sequence[str], message: str, options: Iterable[str]) -> str:
    """Return what to add to the message of a parser's error: near matches of what it complains about.

    Args:
        words: the command's words.
        message: the parser's own account.
        options: those of the command, as "trainer.max_epochs".
    """
    options = {name for name in options if not name.endswith(".help")}
    known = {*options, *(f"{at}.{name}" for at, owners in _NESTED.items() for name in _parameters(owners))}
    given = [
        re.sub(r"\.(init_args|class_path)\b", "", word[2:].partition("=")[0]) for word in words if word[:2] == "--"
    ]
    hints = [near(name, known) for name in given if name not in known and not _within(name, known)]
    classes = {name for package in _PACKAGES for name in _names(package)} | {"Certifier", "Runtime"}
    values = set(re.findall(r"\b[A-Z]\w{3,}", " ".join(word.partition("=")[2] or word for word in words)))
    complained = set(re.findall(r"\b[A-Z]\w{3,}", message)) & values
    # A class may also stand in a configuration file.
    complained |= set(re.findall(r"\b(?:got|but|string:|module|attribute) '?(?:[\w.]+\.)?([A-Z]\w{3,})", message))
    hints += [near(name, classes) for name in sorted(complained - classes)]
    if "but lightning_rs.Noise is abstract" in message:  # an argument of no law in particular
        hints.append("; name the law before its arguments, for instance --certifier.noise=GaussianNoise")
    return "".join(dict.fromkeys(hints))


def _within(name: str, known: Iterable[str]) -> bool:
    """Return whether this is an argument of something that is known but whose own arguments are not."""
    head = name.rpartition(".")[0]
    real = [other for other in known if not other.endswith(".help")]
    groups = {*_NESTED, *(other.rpartition(".")[0] for other in real)}
    return head not in groups and any(head == other or head.startswith(f"{other}.") for other in real)


def _names(package: Any) -> list[str]:
    return [name for name in getattr(package, "__all__", dir(package)) if name[0].isupper()]


def _parameters(owners: Iterable[Any]) -> set[str]:
    kinds = [kind for owner in owners for kind in ([owner] if inspect.isclass(owner) else _classes(owner))]
    # Of __init__, because a class that has a __new__ shows the arguments of that.
    initials: list[Any] = [
        vars(base)["__init__"] for kind in kinds for base in kind.__mro__ if "__init__" in vars(base)
    ]
    found = {name for each in initials if inspect.isfunction(each) for name in inspect.signature(each).parameters}
    return found - {"self"}


def _classes(package: Any) -> list[type]:
    found = [getattr(package, name) for name in _names(package)]
    return [kind for kind in found if inspect.isclass(kind) and not issubclass(kind, BaseException)]
