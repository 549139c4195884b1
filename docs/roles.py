"""Griffe extension: docstrings use Sphinx roles (:func:`x`), which Markdown would print as they are."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([^`]+)`")


def _short(match: re.Match[str]) -> str:
    name = match[2]
    return f"`{name.rpartition('.')[2] if match[1] else name}`"


class Roles(griffe.Extension):
    """Replace roles by code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of every object."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_short, obj.docstring.value)
