"""What a process that :mod:`tests.driving` started does: it runs commands, and what is asked when it is asked.

Each process writes to a file of its own, so that lines never interleave, and signals come at a named event of the
run itself (a record is on disk, a micro-batch is drawn), so that no test depends on how fast a machine is.

Importing torch and Lightning takes longer than what most tests do. :func:`fork_on_request` is a process that has
imported them and forks the others: those run a command from its beginning to their own end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn


@dataclass(frozen=True)
class Act:
    """What one process does to itself: ``do`` at the first ``at`` after ``after`` records of its own are on disk.

    Attributes:
        do: a signal's name; "tell" writes into the pipe and then waits to be killed.
        after: number of records that this process has written.
        at: "record", as soon as the last of them is on disk, or "sample", within the sampling that follows.
        told: wait until another process tells.
    """

    do: str
    after: int
    at: Literal["record", "sample"] = "record"
    told: bool = False


def script(folder: Path, commands: Sequence[Sequence[str]], acts: Mapping[int, Act]) -> str:
    """Return a program that runs commands in turn, in as many processes as Lightning starts it again in."""
    root = str(Path(__file__).parents[1])
    told = {str(rank): asdict(act) for rank, act in acts.items()}
    # The script lies in a folder of its own, because the folder `statistics` of the tests would hide Python's.
    return (
        f"import sys\nsys.path.insert(0, {root!r})\nfrom tests.processes import serve\n"
        f"serve({str(folder)!r}, {json.dumps([list(words) for words in commands])}, {told!r})\n"
    )


def serve(folder: str, commands: Sequence[Sequence[str]], acts: Mapping[str, Mapping[str, object]]) -> NoReturn:
    """Run commands one after another, leave what was said and how they ended in files, and end as the last one did."""
    rank = os.environ.get("LOCAL_RANK", "0")
    output = os.open(Path(folder) / f"said.rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    if rank in acts:
        _prepare(Act(**acts[rank]), pipe(Path(folder)))  # type: ignore[arg-type]
    from lightning_rs.cli import main

    statuses = [main(list(words)) for words in commands]
    (Path(folder) / f"ended.rank{rank}.json").write_text(json.dumps(statuses))
    sys.exit(statuses[-1])


def fork_on_request() -> None:
    """Read one run a line, let one process for each of its ranks do it, and answer with how each of them ended."""
    from lightning_rs.cli import lightning  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        run = json.loads(line)
        ranks = {}
        for rank in range(run["devices"]):
            child = os.fork()
            if not child:
                answers.close()
                os.chdir(run["cwd"])
                sys.path.insert(0, run["folder"])
                if run["devices"] > 1:  # as torchrun has it: nobody needs to start the others
                    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_PORT": run["port"]}
                serve(run["folder"], run["commands"], run["acts"])
            ranks[child] = rank
        answers.write(json.dumps(_ends(ranks)) + "\n")
        answers.flush()


def _ends(ranks: dict[int, int]) -> list[int]:
    """Wait for all; one that a signal ends takes the others with it, as whoever starts them sees to."""
    ends: dict[int, int] = {}
    while len(ends) < len(ranks):
        child, status = os.wait()
        ends[child] = os.waitstatus_to_exitcode(status)
        if ends[child] < 0:
            for other in ranks.keys() - ends:
                os.kill(other, signal.SIGKILL)
    return [ends[child] for child in ranks]


def pipe(folder: Path) -> Path:
    """Return the pipe that one process tells another by."""
    return folder / "told.fifo"


def _prepare(act: Act, told: Path) -> None:
    from lightning_rs.attacks import AttackFile
    from lightning_rs.stages.files import RecordSet
    from lightning_rs.stages.progress import Progress

    add_samples, written, done = Progress.add_samples, 0, False

    def event(name: str) -> None:
        nonlocal done
        if name == act.at and written >= act.after and not done:
            done = True
            _do(act, told)

    def appending(append: Callable[..., None]) -> Callable[..., None]:
        def appended(*args: object) -> None:
            nonlocal written
            append(*args)
            written += 1
            event("record")

        return appended

    def sampled(self: Progress, count: int) -> None:
        add_samples(self, count)
        event("sample")

    for owner in (RecordSet, AttackFile):
        owner.append = appending(owner.append)  # type: ignore[attr-defined, method-assign]
    Progress.add_samples = sampled  # type: ignore[method-assign]


def _do(act: Act, told: Path) -> None:
    if act.told:
        told.read_bytes()  # opening a pipe waits for the other end
    if act.do == "tell":
        told.write_text("told")
        _wait_for_the_end()
    signal.raise_signal(getattr(signal, act.do))


def _wait_for_the_end() -> NoReturn:
    while True:
        signal.pause()
