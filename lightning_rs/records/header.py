"""The first line of a record file: what was certified, how, and where it ran."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_rs.records.binding import VERSION, flaw, not_bound, wrong_kind
from lightning_rs.records.certification import from_line, to_line

FORMAT = "lightning_rs records"
_PACKAGES = ("lightning_rs", "torch", "torchvision", "timm", "pytorch-lightning", "numpy", "scipy")
_WARNS = ("versions", "git")
# What UniformTwoClassL1 called the events of the grouped bounds before all two-class theorems shared their names.
_OLD_EVENTS = {"p_runner_up": "runner_up_upper", "p_top_two": "others_upper"}
# Of the largest logit. Bit-equality would refuse to resume on another processor; labels alone would not tell apart two
# networks that agree on a few inputs.
_LOGIT_TOLERANCE = 2e-3
_BEHAVIOUR = "function.logits: the network answers otherwise on fixed inputs, so it is another function"


@dataclass(frozen=True)
class Header:
    """What is common to all records of a file.

    Attributes:
        binding: decides the results. A file with another value of any of these is another experiment:
            it is neither resumed nor merged.
        informative: where and when it ran. Other versions or another commit only warn on resume.
        version: version of the format. Files of version 1 (lightning_rs 0.1) are read,
            merged and exported, not resumed.
    """

    binding: Mapping[str, Any]
    informative: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def create(
        cls,
        description: Mapping[str, Any],
        *,
        data: Mapping[str, Any],
        indices: Iterable[int] | None,
        shared_noise: bool = False,
        informative: Mapping[str, Any] | None = None,
    ) -> Header:
        """Return the header of a certification.

        Args:
            description: how images are certified: noise, certificates (each with "class", its parameters, "norm"
                and "alpha_split"), n0, n, alpha, seed, budget, runtime, classifier, num_classes, shape.
            data: fingerprint of the data set: name, split, hash.
            indices: indices of the images to certify; None if unknown (imported).
            shared_noise: whether images saw the same noise, which rules out Theorem 5.
            informative: replaces :func:`environment`.

        Raises:
            ValueError: if an index repeats.
        """
        subset = None if indices is None else pack_indices(indices)
        binding = {**description, "data": dict(data), "subset": subset, "shared_noise": shared_noise}
        return cls(binding, environment() if informative is None else informative)

    @property
    def expected(self) -> list[int] | None:
        """The image indices that a complete file holds, sorted; None if unknown."""
        subset = self.binding.get("subset")
        return None if subset is None else unpack_indices(subset)

    @property
    def alpha_noise(self) -> float:
        """The part of alpha that the noise law's own error takes: statistics have alpha less this."""
        lattice = self.binding.get("lattice") or {}
        return float(lattice.get("alpha_noise", 0.0))

    @property
    def imported(self) -> bool:
        """Whether the file was imported: no raw counts, radii as somebody printed them."""
        return bool(self.binding.get("imported", False))

    @property
    def legacy(self) -> bool:
        """Whether the file is of version 1, which binds less."""
        return self.version < VERSION

    @property
    def remark(self) -> str | None:
        """What a file of version 1 does not bind, as a sentence behind its name; None for others."""
        if not self.legacy:
            return None
        return (
            f"is of record format version {self.version} (lightning_rs 0.1), which does not bind "
            f"{not_bound(self.binding)}: that its records are about what ran is assumed"
        )

    @property
    def flaw(self) -> str | None:
        """What a file of this version must bind and this header does not, None if nothing."""
        return None if self.legacy else flaw(self.binding)

    @property
    def independent(self) -> bool:
        """Whether every image is known to have had noise of its own, which statements about a set of images need."""
        shared = bool(self.binding.get("shared_noise", False))
        return not shared and bool(self.binding.get("independent", not self.imported))

    def difference(self, other: Header) -> list[str]:
        """Return every binding field that differs, each as ``name: this value != other value``.

        What the network answered on fixed inputs differs beyond its rounding: see :func:`same_logits`.
        """
        # The logits are compared by size and all else exactly, so they are taken out of the exact comparison first.
        formats = [] if self.version == other.version else [f"version: {self.version} != {other.version}"]
        plain = formats + _difference(*(_without_logits(head.binding) for head in (self, other)))
        mine, others = (dict(head.binding.get("function") or {}).get("logits") for head in (self, other))
        return plain if same_logits(mine, others) else [*plain, _BEHAVIOUR]

    def warnings(self, other: Header) -> list[str]:
        """Return every informative field that differs and may change results, in the same form."""
        mine, others = ({key: head.informative.get(key) for key in _WARNS} for head in (self, other))
        return _difference(mine, others)

    def to_json(self) -> str:
        """Return the header as one line of JSON."""
        body = {"format": FORMAT, "version": self.version, "binding": self.binding, "informative": self.informative}
        return to_line({key: dict(value) if isinstance(value, Mapping) else value for key, value in body.items()})

    @classmethod
    def from_json(cls, line: str, where: str = "header") -> Header:
        """Read a line of :meth:`to_json`.

        Raises:
            ValueError: naming ``where``, if it is none, or a key is missing that its version binds.
        """
        values = from_line(line, where)
        if values.get("format") != FORMAT:
            raise ValueError(f"{where}: not a record file: the first line must be a header with format {FORMAT!r}")
        version = values.get("version")
        if version not in (1, VERSION) or not isinstance(version, int):
            raise ValueError(f"{where}: record format version must be {VERSION} or 1, got {version!r}")
        binding, informative = (values.get(name) for name in ("binding", "informative"))
        if not isinstance(binding, dict) or not isinstance(informative, dict):
            raise ValueError(f"{where}: the header needs the objects 'binding' and 'informative'")
        if (odd := wrong_kind(binding)) is not None:
            raise ValueError(f"{where}: {odd}")
        # A header that lacks what its version binds would resume or merge with anything: absent equals absent.
        header = cls(_renamed(binding), informative, version)
        if header.flaw is not None:
            raise ValueError(f"{where}: {header.flaw}")
        return header


def environment() -> dict[str, Any]:
    """Return where and when this process runs: versions, host, time (UTC), command line, git commit."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git": _commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }


def pack_indices(indices: Iterable[int]) -> dict[str, Any]:
    """Return a set of indices compactly: a range if it is one, else the sorted list.

    Raises:
        ValueError: if an index occurs twice.
    """
    given = sorted(int(i) for i in indices)
    twice = sorted({a for a, b in pairwise(given) if a == b})
    if twice:
        raise ValueError(f"indices must not repeat, got {twice[:5]} more than once")
    # A range stays one line whatever its length; the general case is a list, because a subset has to bind image by
    # image.
    if len(given) < 3 or len({b - a for a, b in pairwise(given)}) > 1:
        return {"indices": given}
    step = given[1] - given[0]
    return {"start": given[0], "stop": given[-1] + 1, "step": step}


def unpack_indices(packed: Mapping[str, Any]) -> list[int]:
    """Return the sorted indices of :func:`pack_indices`."""
    if "indices" in packed:
        return [int(i) for i in packed["indices"]]
    return list(range(packed["start"], packed["stop"], packed["step"]))


def same_logits(mine: Any, others: Any) -> bool:
    """Return whether two networks answered alike: logits within 2 thousandths of the largest.

    Twice the rounding of what is stored, hundreds of times what processors and thread counts change in single
    precision: no tie at a rounding edge decides.
    """
    left, right = ([value for row in rows or [] for value in row] for rows in (mine, others))
    if len(left) != len(right):
        return False
    numbers = [(float(a), float(b)) for a, b in zip(left, right, strict=True)]
    margin = _LOGIT_TOLERANCE * max((max(abs(a), abs(b)) for a, b in numbers), default=0.0)
    return all(a == b or abs(a - b) <= margin for a, b in numbers)


def _renamed(binding: dict[str, Any]) -> dict[str, Any]:
    """Return what binds, with the events of alpha by the names that they have now."""
    entries = binding.get("certificates")
    if not isinstance(entries, list):
        return binding
    return {**binding, "certificates": [_with_events(entry) for entry in entries]}


def _with_events(entry: Any) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get("alpha_split"), dict):
        return entry
    parts = [(*event.rpartition("."), share) for event, share in entry["alpha_split"].items()]
    return {
        **entry,
        "alpha_split": {f"{of}{dot}{_OLD_EVENTS.get(name, name)}": share for of, dot, name, share in parts},
    }


def _without_logits(binding: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(binding.get("function"), Mapping):
        return dict(binding)
    return {**binding, "function": {key: value for key, value in binding["function"].items() if key != "logits"}}


def _difference(mine: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    # Through JSON: a header in memory and one that was read differ in tuples, integer keys and numpy numbers alone.
    left, right = (_flat(json.loads(to_line(dict(fields)))) for fields in (mine, others))
    names = [*left, *(name for name in right if name not in left)]
    missing = "(absent)"
    return [
        f"{name}: {_short(left.get(name, missing))} != {_short(right.get(name, missing))}"
        for name in names
        if left.get(name, missing) != right.get(name, missing)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        children = [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
    # Lists of plain values are leaves: [3, 32, 32] is one fact; lists of certificates are named entry by entry.
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        children = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for child, item in children for key, leaf in _flat(item, child).items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """Return the commit of the source tree, with "+" if it has local changes, or None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
