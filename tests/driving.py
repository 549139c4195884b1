"""Driving the command line as users do: in this process, or in processes that are killed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Self

from lightning_rs.cli import main
from lightning_rs.cli.program import STAGES
from lightning_rs.records import read_records
from tests.processes import Act, pipe, script

ROOT = Path(__file__).parents[1]
# One process on the CPU, no logger, nothing drawn: what most tests want.
PLAIN = (
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
# Equal bodies are promised for equal runtimes, and the thread count is part of it.
ONE_THREAD = ("--certifier.init_args.runtime.init_args.threads=1",)
SIGMA = 0.3
END = 600  # seconds until a process that does not end is a failure


def run(*words: object) -> int:
    """Run a command in this process with the plain trainer."""
    return main([str(word) for word in (*words, *PLAIN)])


def certify(out: Path, *words: object, n: int = 200, max: int = 13) -> int:
    """Certify a few images with the trained checkpoint into the record file ``out``, in this process."""
    return run(*certify_words(out, n, max), *words)


def certify_words(out: Path, n: int = 200, max: int = 13) -> list[str]:
    """Return the command that certifies a few images with the trained checkpoint into the record file ``out``."""
    return [
        "certify",
        f"--ckpt_path={trained()}",
        f"--certifier.init_args.n={n}",
        "--certifier.init_args.n0=20",
        f"--data.init_args.max={max}",
        f"--records={out}",
        f"--trainer.default_root_dir={out.parent}",
        *ONE_THREAD,
    ]


def start(
    folder: Path, *commands: Sequence[object], devices: int = 1, acts: Mapping[int, Act] | None = None
) -> subprocess.Popen[bytes]:
    """Start commands that the same processes run one after another, because importing torch takes its time.

    Args:
        folder: on the path of the program; there :func:`said` and :func:`statuses` find what the processes leave.
        commands: the words of each command.
        devices: number of processes.
        acts: what a process, by its rank, does to itself at an event of its own run.
    """
    program = _prepared(folder) / "commands.py"
    program.write_text(script(folder, _words(commands, devices), acts or {}))
    return spawn(folder, str(program))


class Forks:
    """A process that has imported torch and Lightning once, and forks those that run commands.

    As :func:`start`, but whoever starts the processes of one run is not Lightning: their ranks are in the environment.
    """

    def __init__(self) -> None:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.processes import fork_on_request as f; f()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
            start_new_session=True,
        )

    def run(
        self,
        folder: Path,
        *commands: Sequence[object],
        devices: int = 1,
        acts: Mapping[int, Act] | None = None,
        cwd: Path = ROOT,
    ) -> list[int]:
        """Run commands one after another in the same processes, and return how each process, by rank, ended.

        The arguments are those of :func:`start`, and the working directory. A status below zero is a signal.
        """
        told = {str(rank): asdict(act) for rank, act in (acts or {}).items()}
        words = _words(commands, devices)
        asked = {"folder": str(_prepared(folder)), "commands": words, "acts": told, "devices": devices}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({**asked, "cwd": str(cwd), "port": str(_port())}), file=self.process.stdin, flush=True)
        ended, _, _ = select.select([self.process.stdout], [], [], END)
        assert ended, f"not ended after {END} s: {said(folder)}"
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process and all that it forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def _prepared(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    os.mkfifo(pipe(folder))
    return folder


def _words(commands: Sequence[Sequence[object]], devices: int) -> list[list[str]]:
    return [[*map(str, words), *(_processes(devices) if words[0] in STAGES else ())] for words in commands]


def spawn(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start Python in a new group; what it says before any process has a file of its own goes to one more file."""
    with open(folder / "said.start.txt", "wb") as file:
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(_port())},
            start_new_session=True,
        )


def _port() -> int:
    """Return a free port below those that the system hands out, which somebody could get before Lightning binds it."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def said(folder: Path) -> str:
    """Return what the processes of one run said: one after the other, not as it came."""
    return "".join(file.read_text() for file in sorted(folder.glob("said.*.txt")))


def statuses(folder: Path, rank: int = 0) -> list[int]:
    """Return how the commands of one run ended in one of its processes."""
    return json.loads((folder / f"ended.rank{rank}.json").read_text())


def _processes(devices: int) -> list[str]:
    plain = [word for word in PLAIN if "devices" not in word]
    return [*plain, f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"]


@cache
def trained() -> Path:
    """Return a checkpoint of a small network, trained once: an MLP at a sigma that is not the default."""
    folder = Path(tempfile.mkdtemp(prefix="lightning_rs"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    status = run(
        "fit",
        "--model.init_args.network=mlp",
        "--model.init_args.network_args={hidden_sizes: [32]}",
        f"--model.init_args.noise.init_args.sigma={SIGMA}",
        "--data.init_args.certify_batch_size=5",
        "--trainer.max_epochs=4",
        "--trainer.callbacks=[]",
        "--certifier=null",
        f"--trainer.default_root_dir={folder}",
    )
    assert status == 0
    return next(folder.rglob("*.ckpt"))


def indices(records: Path) -> list[int]:
    """Return the indices that a record file holds, in its order."""
    return [record.index for record in read_records(records)[1]]
