"""Networks and parts of networks named in a configuration: by class path, by name, from a checkpoint.

A configuration and a checkpoint hold plain values. Among the arguments of a network, a mapping of one of these forms
stands for a module (anything else is passed on as it is)::

    {class_path: mynet.MyNet, init_args: {width: 8}, weights: mynet.pth}
    {network: mnist_lenet, network_args: {}, weights: lenet.pth}         a network of `build_network`, normalised
    {checkpoint: runs/checkpoints/last.ckpt, part: denoiser}            of a classifier trained here, or a part of it

A checkpoint of ours must rebuild its network without other files. `self_contained` therefore leaves out ``weights``
and puts what a checkpoint says of its network in place of ``{checkpoint: ...}``; the values come from the state dict.

Only classes of modules are called, and functions that are annotated to return one: a hostile checkpoint may name what
it likes, and ``os.system`` is a class path as well.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from lightning_rs.networks.files import read_own_part

# What is no module and may be an argument of one, by the name of a base class: the schedulers of diffusers.
_ALSO_ALLOWED = ("SchedulerMixin",)
_FORMS = (
    ({"class_path"}, {"init_args", "weights"}),
    ({"network"}, {"network_args", "mean", "std", "normalize", "num_classes", "shape", "weights"}),
    ({"checkpoint"}, {"part"}),
)


def is_part(value: Any) -> bool:
    """Say whether a value of a configuration stands for a module."""
    return isinstance(value, Mapping) and any(needed <= set(value) <= needed | optional for needed, optional in _FORMS)


def self_contained(value: Any) -> Any:
    """Return the arguments of a network as its own checkpoint keeps them: plain values that need no other file.

    Raises:
        ValueError: for a value that a checkpoint cannot hold, such as a module.
    """
    if isinstance(value, Mapping):
        if is_part(value) and "checkpoint" in value:
            return self_contained(read_own_part(value["checkpoint"], value.get("part"))[0])
        dropped = {"weights"} if is_part(value) else set()
        return {str(key): self_contained(item) for key, item in value.items() if key not in dropped}
    if isinstance(value, (list, tuple)):
        return [self_contained(item) for item in value]
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if isinstance(value, np.generic) and type(value.item()) in (bool, int, float, str):
        return value.item()
    raise ValueError(
        f"network_args must hold plain values (numbers, texts, lists, mappings), got {type(value).__name__}: a module "
        "is named by {class_path: ..., init_args: {...}}"
    )


def import_part(path: str, argument: str = "class_path") -> Callable[..., Any]:
    """Import the class of modules (or function that returns one) at ``package.module.Name``.

    The current folder counts as installed, however the program was started.

    Raises:
        ValueError: naming the module that is missing, what the module lacks, or what the name is instead of a class of
            modules.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{argument} must be 'module.Class', got {path!r}")
    module = _import(module_name, path, argument)
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, vars(module), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"{argument} {path!r}: module {module_name!r} has no {name!r}{hint}")
    if not _makes_modules(found):
        kind = type(found).__name__ if not inspect.isclass(found) else "class"
        raise ValueError(
            f"{argument} {path!r} must name a subclass of torch.nn.Module (or a function annotated to return one), "
            f"got a {kind}"
        )
    return found


def call_part(make: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    """Call a class or function with arguments from a configuration.

    Raises:
        ValueError: if it does not take them, naming an unknown argument and those that it has.
    """
    parameters = inspect.signature(make).parameters
    unknown = [key for key in arguments if key not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(f"network {name} has no argument {unknown[0]!r}; it takes: {', '.join(parameters) or 'none'}")
    needed = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and key not in arguments
    ]
    if needed:
        raise ValueError(f"network {name} needs the argument {needed[0]!r}: give it in network_args or init_args")
    try:
        return make(**arguments)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"network {name} refused its arguments: {error}") from error


def _import(module_name: str, path: str, argument: str) -> Any:
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):  # the console script does not look in the current folder, python -m does
        sys.path.append(folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = f"in {folder} and among the installed packages"
            raise ValueError(f"{argument} {path!r}: there is no module {error.name!r} {where}") from error
        raise ValueError(f"{argument} {path!r}: module {module_name!r} needs {error.name!r}: {error}") from error
    except Exception as error:  # whatever a user's file does when it is run
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{argument} {path!r}: module {module_name!r} cannot be imported: {reason!s}") from error


def _makes_modules(found: Any) -> bool:
    if inspect.isclass(found):
        return issubclass(found, nn.Module) or any(base.__name__ in _ALSO_ALLOWED for base in found.__mro__)
    if not inspect.isfunction(found):
        return False
    try:
        returned = typing.get_type_hints(found).get("return")
    except Exception:  # annotations that name what is not imported
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)
