"""The parser of the commands that need no model: a mistake is one line, with what was probably meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning_rs.cli.suggest import near


class Parser(argparse.ArgumentParser):
    """As of argparse, but an error is one line, without the usage that ``--help`` shows."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"lightning_rs {command}", description=description)
        self._words: list[str] = []

    def parse(self, words: Sequence[str] | None) -> argparse.Namespace:
        """Parse the words, None for those of the program, and remember them for an error.

        Files may stand behind options: ``report a.jsonl --paired b.jsonl``.
        """
        self._words = list(sys.argv[1:] if words is None else words)
        return self.parse_intermixed_args(self._words)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        # Beginnings of an option stand for it.
        unknown = [name for name in given if len(name) > 2 and not any(option.startswith(name) for option in known)]
        hints = "".join(dict.fromkeys(near(name, known) or f"; {name} is no option" for name in unknown))
        line = " ".join(message.replace("unrecognized arguments:", "these words mean nothing here:").split())
        self.exit(2, f"{self.prog}: error: {line}{hints} (see --help)\n")
