"""The command ``configs``: the configurations and checkpoints that come with the package, listed and copied out."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_rs import shipped
from lightning_rs.checks import folder_for, naming
from lightning_rs.cli.console import shorten
from lightning_rs.cli.parser import Parser

_CONFIGS = (
    "List the configurations that come with the package, or copy them out to be changed. "
    "Use one by name: `fit -c fit/mnist_lenet`, `certify -c certify/fast --ckpt_path digits_gaussian_0.25`."
)


def configs_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs configs`` and return its exit code."""
    parser = Parser("configs", _CONFIGS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="certify/fast, 'fit/mnist*', ...; default: all")
    parser.add_argument("--to", metavar="DIR", help="copy them into this folder, as DIR/certify/fast.yaml")
    args = parser.parse(argv)
    try:
        chosen = _chosen(args.names)
        print(_listed(chosen, whole=not args.names) if args.to is None else _copied(chosen, Path(args.to)))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {shorten(str(error))}", file=sys.stderr)
        return 1
    return 0


def _chosen(patterns: Sequence[str]) -> dict[str, Path]:
    known = shipped.names("configs")
    if not patterns:
        return known
    chosen: dict[str, Path] = {}
    for pattern in patterns:
        wanted = pattern.removeprefix("configs/").removesuffix(".yaml")
        found = [name for name in known if fnmatch.fnmatch(name, wanted) or name.startswith(f"{wanted.rstrip('/')}/")]
        if not found:
            shipped.config_path(wanted)  # says what is near
        chosen |= {name: known[name] for name in found}
    return chosen


def _listed(chosen: dict[str, Path], whole: bool) -> str:
    width = max(map(len, chosen))
    lines = [f"{name:{width}}  {_about(file)}" for name, file in chosen.items()]
    if whole:
        lines += ["", "checkpoints (--ckpt_path NAME):"]
        lines += [
            f"{entry['file'].removesuffix('.ckpt'):{width}}  {entry['data']}, {entry['noise']}"
            for entry in shipped.manifest()
        ]
    return "\n".join(lines)


def _about(file: Path) -> str:
    """Return the first sentence of the comment that opens a configuration."""
    comment: list[str] = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(comment)
    return text if len(text) <= 100 else f"{text[:97].rsplit(' ', 1)[0]} ..."


def _copied(chosen: dict[str, Path], target: Path) -> str:
    places = {target / f"{name}.yaml": file for name, file in chosen.items()}
    folder_for(target, "--to")
    there = [place for place in places if place.exists()]
    if there:
        raise FileExistsError(f"--to must not overwrite files, but {there[0]} exists")
    for place, file in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        with naming(place):
            shutil.copyfile(file, place)
    return "\n".join(f"wrote {place}" for place in places)


def with_shipped(words: Sequence[str]) -> list[str]:
    """Return a command line whose ``-c NAME`` and ``--ckpt_path NAME`` name files, shipped ones where none is there.

    Raises:
        FileNotFoundError: for a configuration that is no file and not shipped, naming the nearest ones.
    """
    made: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if equals and option in ("-c", "--config", "--ckpt_path"):
            made.append(f"{option}={_file(option, value)}")
        elif made and made[-1] in ("-c", "--config", "--ckpt_path"):
            made.append(_file(made[-1], word))
        else:
            made.append(word)
    return made


def _file(option: str, value: str) -> str:
    if option == "--ckpt_path":
        return shipped.checkpoint_path(value)
    inline = not value or value.startswith("-") or any(sign in value for sign in ":{\n")  # YAML itself, or an error
    return value if inline else shipped.config_path(value)
