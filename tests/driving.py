"""Driving the command line as users do: in this process, or in processes that are killed."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lightning_rs.cli import main
from lightning_rs.records import read_records

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


def start(*words: object, devices: int = 1) -> subprocess.Popen[str]:
    """Start a command in processes of their own, in a new group."""
    return _spawn("-m", "lightning_rs", *map(str, words), *_processes(devices))


def start_in_turn(folder: Path, *commands: Sequence[object], devices: int) -> subprocess.Popen[str]:
    """Start commands that the same processes run one after another, because importing torch takes its time."""
    lists = [[*map(str, words), *_processes(devices)] for words in commands]
    script = folder / "commands.py"  # not beside the tests, where the folder `statistics` would hide Python's
    script.write_text(f"""
import os
from lightning_rs.cli import main
for words in {json.dumps(lists)}:
    print("process", os.environ.get("LOCAL_RANK", 0), "ended with", main(words), flush=True)
""")
    return _spawn(str(script))


def _processes(devices: int) -> list[str]:
    plain = [word for word in PLAIN if "devices" not in word]
    return [*plain, f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"]


def _spawn(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


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
