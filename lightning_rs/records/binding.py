"""What a record file must bind: without it, its records would be statements about nobody knows what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Version of the format that is written: it binds the function, every image, the noise law as drawn and the runtime.
VERSION = 2
_SETTING = ("noise", "certificates", "n0", "n", "alpha", "budget", "data")
_RUN = ("seed", "stage", "classifier", "function", "num_classes", "shape", "runtime", "lattice", "subset")
REQUIRED = (*_SETTING, *_RUN, "shared_noise")
REQUIRED_OF_IMPORTS = (*_SETTING, "independent")
REQUIRED_OF_COMBINATIONS = (*_SETTING, "combined", "num_classes", "shape", "subset", "shared_noise")
#: What the header must say for radii to be recomputed from votes.
RECOMPUTED_FROM = ("noise", "certificates", "n", "alpha", "budget", "shape")
_INSIDE = {"function": ("class", "logits"), "noise": ("class",), "runtime": (), "budget": ("mode",), "data": ()}


def flaw(binding: Mapping[str, Any]) -> str | None:
    """Return what a binding of version 2 lacks, or holds that cannot be: the key and what is wrong; None if nothing."""
    imported = binding.get("imported", False)
    if not isinstance(imported, bool):
        return f"binding.imported must be true or false, got {imported!r}"
    if "combined" in binding and (wrong := _not_combined(binding)) is not None:
        return wrong
    combined = REQUIRED_OF_COMBINATIONS if "combined" in binding else REQUIRED
    for key in REQUIRED_OF_IMPORTS if imported else combined:
        if key not in binding:
            return f"binding.{key} is missing, which files of version {VERSION} bind"
    for key, inside in _INSIDE.items():
        if key not in binding:
            continue
        if not isinstance(binding[key], Mapping):
            return f"binding.{key} must be an object, got {binding[key]!r}"
        for name in inside:
            if name not in binding[key]:
                return f"binding.{key}.{name} is missing, which files of version {VERSION} bind"
    return _impossible(binding)


def wrong_kind(binding: Mapping[str, Any]) -> str | None:
    """Return what of a binding of any version is no list, object or number where the reader takes it for one."""
    entries = binding.get("certificates", [])
    named = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("class"), str) for entry in entries
    )
    if not named:
        return f"binding.certificates must be a list of objects with a class, got {entries!r}"
    subset = binding.get("subset")
    numbers: Any = None
    if isinstance(subset, dict):
        names = ("start", "stop", "step")
        numbers = subset["indices"] if "indices" in subset else [subset.get(name) for name in names]
    whole = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    if subset is not None and not (whole and subset.get("step") != 0):
        return f"binding.subset must be indices, or start, stop and step, whole numbers, got {subset!r}"
    return None


def _not_combined(binding: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parts that a combination lists: each binds what its own file bound."""
    combined = binding["combined"]
    parts = combined.get("parts") if isinstance(combined, Mapping) else None
    if not isinstance(parts, list) or not parts or binding.get("imported"):
        return f"binding.combined must be an object with a list of parts, got {combined!r}"
    for number, part in enumerate(parts):
        if part is None:
            continue
        if not isinstance(part, Mapping) or "combined" in part:
            return f"binding.combined.parts[{number}] must be what the file of a classifier binds, or null"
        wrong = flaw(part)
        if wrong is not None:
            return f"binding.combined.parts[{number}]: {wrong}"
    return None


def _impossible(binding: Mapping[str, Any]) -> str | None:
    """Return which number of a binding cannot be."""
    alpha, lattice = binding["alpha"], binding.get("lattice")
    if not (isinstance(alpha, int | float) and 0 <= alpha < 1):
        return f"binding.alpha must lie in [0, 1), got {alpha!r}"
    for key, least in (("n", 1), ("n0", 0), ("num_classes", 1)):
        value = binding.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            return f"binding.{key} must be a whole number >= {least}, got {value!r}"
    if lattice is None:
        return None
    if not isinstance(lattice, Mapping) or not {"grid", "alpha_noise", "arithmetic"} <= lattice.keys():
        return f"binding.lattice must be null or have grid, alpha_noise and arithmetic, got {lattice!r}"
    spent = lattice["alpha_noise"]
    if not (isinstance(spent, int | float) and math.isfinite(spent) and 0 <= spent < alpha):
        return f"binding.lattice.alpha_noise must lie in [0, alpha = {alpha!r}), got {spent!r}"
    return None


def not_bound(binding: Mapping[str, Any]) -> str:
    """Return what files of version 1 (lightning_rs 0.1) leave unsaid, as a list in words."""
    lacking = {"function": "the function beyond its weights", "lattice": "how noise and image were added"}
    return ", ".join([*(words for key, words in lacking.items() if key not in binding), "the images"])
