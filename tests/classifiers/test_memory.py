"""A training keeps the memory that it frees: counted in page faults, not in seconds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_rs import Trainer
from lightning_rs.classifiers import NoiseAugmentation, base, memory

# Four blocks like LeNet's activations, taken and freed at every step as autograd does.
STEPS = """
import resource, sys, torch
from lightning_rs.classifiers.memory import keep_freed_memory
def step():
    blocks = [torch.empty(2**22).fill_(1.0) for _ in range(4)]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
step()
default = faults()
done = keep_freed_memory()
step()
print(done, default, faults())
"""


def steps(**environment: str) -> list[str]:
    """Run the steps in a process of their own, whose allocator nobody has touched."""
    mine = {name: value for name, value in os.environ.items() if name not in memory._DECIDED}
    told = subprocess.run([sys.executable, "-c", STEPS], env=mine | environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    done, default, kept = steps()
    assert done == "True"
    assert int(kept) < int(default) / 10


@pytest.mark.parametrize("name", memory._DECIDED)
def test_who_has_decided_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("the allocator was asked for"))
    assert not memory.keep_freed_memory()


def test_an_old_glibc_gets_the_most_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses a threshold above 32 MiB; the one for giving back is kept from moving all the same."""
    for name in memory._DECIDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.17"))
    for most, done in ((2**25, True), (2**20, False)):
        told: dict[int, int] = {}

        def mallopt(name: int, value: int, most: int = most, told: dict[int, int] = told) -> int:
            if name == memory._MMAP_THRESHOLD and value > most:
                return 0
            told[name] = value
            return 1

        monkeypatch.setattr(memory.ctypes, "CDLL", lambda _, mallopt=mallopt: SimpleNamespace(mallopt=mallopt))
        assert memory.keep_freed_memory() is done
        assert told[memory._TRIM_THRESHOLD] == 2**31 - 1
        assert told.get(memory._MMAP_THRESHOLD) == (2**25 if done else None)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("the allocator was asked for"))
    assert not memory.keep_freed_memory()


def test_a_training_asks_for_it_and_a_validation_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(base, "keep_freed_memory", lambda: asked.append(1))
    data = torch.rand(8, 1, 8, 8), torch.arange(8)
    model = NoiseAugmentation(optimizer=torch.optim.SGD)
    run = Trainer(
        max_steps=1, logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    run.validate(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), 8), verbose=False)
    assert not asked
    run.fit(model, data)
    assert asked == [1]
    monkeypatch.setattr(type(run.strategy), "root_device", torch.device("meta"))
    model.trainer = run
    model.setup("fit")  # a training on a GPU keeps nothing on the CPU
    assert asked == [1]
