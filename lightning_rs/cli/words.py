"""What people write, as the parser wants it: whole numbers in any usual writing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_rs.cli.numbers import LARGEST, whole

# Options whose value is a name, even where it looks like a number.
_NAMES = re.compile(r"(^-c|config|records|ckpt_path|shard|root|dir|name|project|id|version|path)$")


def with_whole_numbers(words: Sequence[str]) -> list[str]:
    """Return a command's words with whole numbers written plainly; values of options that take a name stay."""
    plain, option = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            found = None if _NAMES.search(name) else whole(value)
            plain.append(word if found is None else f"{name}={found}")
        else:
            found = whole(word) if option.startswith("-") and not _NAMES.search(option) else None
            plain.append(word if found is None else str(found))
        option = word
    return plain


def told(words: Sequence[str], group: str, names: Sequence[str]) -> dict[str, Any]:
    """Return which arguments of a group, as ``model``, are written in the words or in the files that they name.

    The parser fills in the defaults of a class, so that afterwards nobody knows what was asked for.
    """
    found: dict[str, Any] = {}
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not equals:
            value = words[position + 1] if position + 1 < len(words) else ""
        if option in ("-c", "--config") and Path(value).is_file():
            part = read_config(value).get(group)
            arguments = part.get("init_args") if isinstance(part, dict) else None
            if isinstance(arguments, dict):
                found |= {name: arguments[name] for name in names if name in arguments}
        head, _, name = option.removeprefix("--").rpartition(".")
        if head in (group, f"{group}.init_args") and name in names:
            found[name] = yaml.safe_load(value)
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """Return what a configuration file says.

    Raises:
        ValueError: naming the file, and the line where it is not YAML, if it is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path} is no text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"config {path}{line} is no YAML that can be read: {problem}") from error
    except RecursionError as error:
        raise ValueError(f"config {path} is nested too deeply") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"config {path} must be a mapping with keys such as model, data and trainer, got {kind}")
    return content


@contextmanager
def whole_numbers_in_files() -> Iterator[None]:
    """Within it, ``n: 1e5`` in a configuration is the whole number; where a float is wanted it becomes one again."""
    load = get_loader("yaml")
    set_loader("yaml", lambda stream: _plain(load(stream)))
    try:
        yield
    finally:
        set_loader("yaml", load)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and 2 <= value < LARGEST:
        return int(value)
    return value
