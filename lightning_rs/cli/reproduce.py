"""The command ``reproduce``: the figures and tables of five papers, step by step, from configurations and commands.

An entry is data (``configs/reproduce/PAPER.yaml``): what it shows, and for each scale the commands that make it and
the files that they leave. What is done is known from these files: a step is skipped if they are what the same step
left, from what the steps before it left; an interrupted one goes on; a step whose text has changed is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_rs import shipped
from lightning_rs.checks import folder_for, naming
from lightning_rs.cli.suggest import near

_REPRODUCE = "Make a figure or table of a paper: at the scale of this machine, or at the paper's."
_FOLDER = "reproduce"
HERE = "here"
# These go on by themselves where they were interrupted; of a fit see `_continued`. Others begin again.
_RESUMES = ("certify", "attack", "levels", "transfer")
_COMMANDS = (*_RESUMES, "fit", "predict", "report", "study", "import", "merge", "configs")
_OUTPUT = re.compile(r"\{out\}/([^\s,\"'\]\[}]+)")

Say = Callable[[str], None]
Run = Callable[[list[str]], int]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        text: the command line; ``{out}`` and ``{data}`` stand for the folders of results and of data sets.
        makes: what it leaves, files or folders, relative to the folder of results.
    """

    text: str
    makes: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command's name."""
        return self.text.split()[0]

    @property
    def reads(self) -> list[str]:
        """What it takes from steps before, relative to the folder of results."""
        named = dict.fromkeys(_OUTPUT.findall(self.text))
        return [path for path in named if not any(_within(made, path) for made in self.makes)]

    def words(self, out: Path, data: Path) -> list[str]:
        """Return the command's words for these folders."""
        fill = {"{out}": str(out), "{data}": str(data)}
        return [re.sub(r"\{out\}|\{data\}", lambda found: fill[found[0]], word) for word in shlex.split(self.text)]


@dataclass(frozen=True)
class Scale:
    """How an entry is made at one scale.

    Attributes:
        note: how this differs from the paper, what it needs, or why it cannot be done.
        steps: none if it cannot be done.
    """

    note: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Entry:
    """A figure or table.

    Attributes:
        name: as "cohen-table-3".
        source: the paper.
        shows: what is seen.
        scales: "here", "paper", perhaps others.
    """

    name: str
    source: str
    shows: str
    scales: Mapping[str, Scale]


def entries() -> dict[str, Entry]:
    """Return all entries by name, in the order of the files.

    Raises:
        ValueError: naming the file and entry, if one is not as it has to be.
    """
    found: dict[str, Entry] = {}
    for file in sorted((shipped.folder("configs") / _FOLDER).glob("*.yaml")):
        for entry in _entries_of(file):
            if entry.name in found:
                raise ValueError(f"{file.name}: entry {entry.name!r} is there twice")
            found[entry.name] = entry
    _check_shared(found.values())
    return found


def reproduce_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs reproduce`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="lightning_rs reproduce", description=_REPRODUCE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures and tables, see --list")
    parser.add_argument("--list", action="store_true", help="list the figures and tables")
    parser.add_argument("--scale", default=HERE, help="here (default), paper, or another that the list names")
    parser.add_argument("--out", default="runs/reproduce", metavar="DIR", help="folder of the results")
    parser.add_argument("--data", default="data", metavar="DIR", help="folder of the data sets")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args(argv)
    known = entries()
    if args.list:
        print(_listed(known.values()))
        return 0
    if not args.names:
        raise ValueError("a name is missing; `lightning_rs reproduce --list` lists them")
    for name in args.names:
        if name not in known:
            raise ValueError(f"NAME must be a figure or table of the list, got {name!r}{near(name, known)}")
    chosen = [known[name] for name in args.names]
    for entry in chosen:
        _check_scale(entry, args.scale)
    out, data = Path(args.out) / args.scale, Path(args.data)
    for entry in chosen:
        if args.dry_run:
            _print_commands(entry, args.scale, out, data)
        elif status := _make(entry, args.scale, out, data):
            raise SystemExit(status)  # that of the command: 1 after Ctrl-C, 143 when asked to terminate
    return 0


def make(steps: Sequence[Step], out: Path, data: Path, run: Run, say: Say) -> int:
    """Do what is missing of some steps, and return the exit status of the first that fails, or 0.

    Args:
        steps: in their order.
        out: folder of the results.
        data: folder of the data sets.
        run: runs a command line and returns its exit status.
        say: takes a line about the progress.

    Raises:
        ValueError: if something is in the way: the result of another step, or of nobody known.
    """
    for number, step in enumerate(steps, start=1):
        where = f"step {number} of {len(steps)}"
        stamp = _Stamp(step, out)
        words = step.words(out, data)
        if stamp.finished():
            say(f"{where}: done before: {', '.join(str(out / path) for path in step.makes)}")
            continue
        say(f"{where}: lightning_rs {shlex.join(words)}")
        words = stamp.begin(words)
        status = run(words)
        if status:
            say(f"{where} stopped with status {status}: lightning_rs {shlex.join(words)}")
            say("the same command goes on from here")
            return status
        stamp.finish()
    return 0


class _Stamp:
    """What is known of a step's results: the step's text, what it read and what it left, by content."""

    def __init__(self, step: Step, out: Path) -> None:
        self.step, self.out = step, out
        self.path = out / "steps" / f"{step.makes[0].replace('/', '__')}.json"

    def finished(self) -> bool:
        """Return whether the results are what this step left.

        Raises:
            ValueError: if another step left them, or nobody known.
        """
        there = [path for path in self.step.makes if (self.out / path).exists()]
        stored = self._stored()
        if stored is None:
            if there:
                raise ValueError(
                    f"{self.out / there[0]} is there, but no step is known to have made it: move it away, or choose "
                    "another --out"
                )
            return False
        if stored["step"] != self.step.text:
            raise ValueError(
                f"{self.out / self.step.makes[0]} was made by another step, `{stored['step']}`, where now it is "
                f"`{self.step.text}`: delete it and {self.path}, or choose another --out"
            )
        return stored["left"] == self._contents(self.step.makes) and stored["read"] == self._contents(self.step.reads)

    def begin(self, words: list[str]) -> list[str]:
        """Clear what an interrupted or outdated step has left, unless it goes on from it; return what to run."""
        stored = self._stored()
        read = self._contents(self.step.reads)
        goes_on = stored is not None and stored["left"] is None and stored["read"] == read
        more: list[str] = []
        if goes_on and self.step.command == "fit":
            more = self._continued()
        if not more and not (goes_on and self.step.command in _RESUMES):
            self._clear()
        self._store({"step": self.step.text, "read": read, "left": None})
        return [*words, *more]

    def finish(self) -> None:
        """Note that the step is done.

        Raises:
            FileNotFoundError: if it did not leave what it should.
        """
        for path in self.step.makes:
            if not (self.out / path).exists():
                raise FileNotFoundError(f"{self.step.command} did not make {self.out / path}")
        read = self._contents(self.step.reads)
        self._store({"step": self.step.text, "read": read, "left": self._contents(self.step.makes)})

    def _continued(self) -> list[str]:
        """Return how a training goes on: from the newest ``last.ckpt`` below its folder."""
        found = sorted(self._folder().rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        return ["--ckpt_path", str(found[-1])] if found else []

    def _clear(self) -> None:
        places = [self._folder()] if self.step.command == "fit" else [self.out / path for path in self.step.makes]
        for place in places:
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
                place.with_suffix(".sidecar.jsonl").unlink(missing_ok=True)

    def _folder(self) -> Path:
        """Return the folder of a training: the one that it names, which holds what it makes."""
        named = _OUTPUT.findall(self.step.text)
        return next(self.out / path for path in named if _within(self.step.makes[0], path))

    def _contents(self, paths: Sequence[str]) -> dict[str, str]:
        return {path: _digest(self.out / path) for path in paths}

    def _stored(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            stored = json.loads(self.path.read_text())
        except json.JSONDecodeError:
            stored = None
        if not isinstance(stored, dict) or set(stored) != {"step", "read", "left"}:
            raise ValueError(f"{self.path} is damaged: delete it and {self.out / self.step.makes[0]}")
        return stored

    def _store(self, facts: Mapping[str, Any]) -> None:
        folder_for(self.path.parent)
        written = self.path.with_suffix(".part")
        with naming(self.path):
            written.write_text(json.dumps(facts, indent=1))
        written.replace(self.path)


def _digest(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of a folder; empty where nothing is."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file.relative_to(path).as_posix()} {_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _make(entry: Entry, scale: str, out: Path, data: Path) -> int:
    from lightning_rs.cli.program import main

    chosen = entry.scales[scale]

    def say(line: str) -> None:
        print(f"{entry.name}: {line}", file=sys.stderr, flush=True)

    say(f"{entry.shows} ({entry.source})")
    say(f"{scale}: {chosen.note}")
    status = make(chosen.steps, out, data, main, say)
    if not status:
        print(f"{entry.name}: {', '.join(str(out / path) for path in chosen.steps[-1].makes)}")
    return status


def _print_commands(entry: Entry, scale: str, out: Path, data: Path) -> None:
    print(f"# {entry.name}: {entry.shows}\n# {scale}: {entry.scales[scale].note}")
    for step in entry.scales[scale].steps:
        print(f"python -m lightning_rs {shlex.join(step.words(out, data))}")


def _listed(known: Iterator[Entry] | Any) -> str:
    lines: list[str] = []
    for source, group in itertools.groupby(known, key=lambda entry: entry.source):
        lines.append(source)
        for entry in group:
            scales = ", ".join(name if scale.steps else f"{name}: no" for name, scale in entry.scales.items())
            lines.append(f"  {entry.name:<22}  {entry.shows}  [{scales}]")
    return "\n".join(lines)


def _check_scale(entry: Entry, scale: str) -> None:
    if scale not in entry.scales:
        raise ValueError(f"scale of {entry.name} must be one of {', '.join(entry.scales)}, got {scale!r}")
    if not entry.scales[scale].steps:
        others = ", ".join(name for name, other in entry.scales.items() if other.steps)
        raise ValueError(
            f"{entry.name} cannot be done with --scale {scale}: {entry.scales[scale].note}"
            + (f"; what can be run is --scale {others}" if others else "")
        )


def _entries_of(file: Path) -> Iterator[Entry]:
    content = yaml.safe_load(file.read_text())
    where = f"{_FOLDER}/{file.name}"
    _check_keys(where, content, {"source", "entries"}, {"shared"})
    for name, body in content["entries"].items():
        at = f"{where}: {name}"
        _check_keys(at, body, {"shows", HERE, "paper"}, set(body) if isinstance(body, dict) else set())
        scales = {scale: _scale(f"{at}: {scale}", body[scale]) for scale in body if scale != "shows"}
        yield Entry(name, content["source"], body["shows"], scales)


def _scale(where: str, body: Any) -> Scale:
    _check_keys(where, body, {"note"}, {"steps"})
    steps = tuple(step for item in body.get("steps", ()) for step in _steps(where, item))
    made: set[str] = set()
    for step in steps:
        lost = [path for path in step.reads if path not in made]
        if lost:
            raise ValueError(f"{where}: `{step.text}` reads {lost[0]}, which no step before it makes")
        made |= set(step.makes)
    return Scale(body["note"], steps)


def _steps(where: str, body: Any) -> Iterator[Step]:
    """Return the steps of an item: a step, one for each value of a loop, or a list of items (a YAML alias)."""
    if isinstance(body, list):
        for item in body:
            yield from _steps(where, item)
        return
    _check_keys(where, body, {"run", "makes"}, {"each"})
    makes = [body["makes"]] if isinstance(body["makes"], str) else body["makes"]
    loops = body.get("each", {})
    for values in itertools.product(*loops.values()):
        filled = [
            _filled(text, dict(zip(loops, values, strict=True))) for text in (" ".join(body["run"].split()), *makes)
        ]
        step = Step(filled[0], tuple(filled[1:]))
        if step.command not in _COMMANDS:
            raise ValueError(f"{where}: a step must begin with one of {', '.join(_COMMANDS)}, got {step.text!r}")
        yield step


def _filled(text: str, values: Mapping[str, Any]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _check_shared(known: Iterator[Entry] | Any) -> None:
    """Entries share results by the name of the file: what makes it has to be the same step."""
    maker: dict[tuple[str, str], str] = {}
    for entry in known:
        for scale, chosen in entry.scales.items():
            for step in chosen.steps:
                for path in step.makes:
                    if maker.setdefault((scale, path), step.text) != step.text:
                        raise ValueError(f"{entry.name}: {scale}: {path} is made by two different steps")


def _check_keys(where: str, body: Any, needed: set[str], others: set[str]) -> None:
    found = set(body) if isinstance(body, dict) else set()
    if not needed <= found or found - needed - others:
        raise ValueError(
            f"{where} must be a mapping with {', '.join(sorted(needed))}"
            + (f" and perhaps {', '.join(sorted(others - needed))}" if others - needed else "")
            + f", got {sorted(found)}"
        )
