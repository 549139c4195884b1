"""What an offline run of W&B holds, read from its transaction log: LevelDB's log format around protobuf records.

wandb writes it in Go and has no Python reader, so this is one: blocks of 32 KiB, each piece with a checksum (not
checked here), a length and a kind (1: whole, 2: first, 3: middle, 4: last); the file opens with seven bytes of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _OPENING, _HEADER = 1 << 15, 7, struct.Struct("<IHB")


@dataclass
class Run:
    """One run: what it is called, what it was told, what it logged."""

    id: str = ""
    name: str = ""
    group: str = ""
    job: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, tuple[str, str]] = field(default_factory=dict)
    artifacts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    exit: int | None = None

    def values(self, key: str) -> list[Any]:
        """Return what was logged under a key, in order."""
        return [row[key] for row in self.history if key in row]


def read_run(folder: Path) -> Run:
    """Return what the run in ``offline-run-...`` holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    (log,) = folder.glob("*.wandb")
    run, steps = Run(), {}
    for raw in _pieces(log.read_bytes()):
        record = Record()
        record.ParseFromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told = record.run
            run.id, run.name, run.group, run.job = told.run_id, told.display_name, told.run_group, told.job_type
            run.tags = list(told.tags)
            run.config |= {item.key: json.loads(item.value_json) for item in told.config.update}
        elif kind == "config":
            run.config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            run.history.append(_nested(record.history.item))
        elif kind == "metric":
            metric = record.metric
            steps[metric.name or metric.glob_name] = (metric.step_metric, _kept(metric.summary))
        elif kind == "artifact":
            files = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
            run.artifacts.append((record.artifact.type, files))
        elif kind == "exit":
            run.exit = record.exit.exit_code
    run.axes = steps
    return run


def table(folder: Path, key: str) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the last table that was logged under a key."""
    *_, last = sorted((folder / "files" / "media" / "table").glob(f"{key}_*.table.json"), key=_number)
    contents = json.loads(last.read_text())
    return contents["columns"], contents["data"]


def _nested(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        first, *rest = item.nested_key or [item.key]
        if not rest:
            row[first] = json.loads(item.value_json)
        else:
            row.setdefault(first, {})[".".join(rest)] = json.loads(item.value_json)
    return row


def _number(path: Path) -> int:
    return int(path.name.removesuffix(".table.json").rsplit("_", 2)[-2])


def _kept(summary: Any) -> str:
    return ",".join(name for name in ("max", "min", "mean", "last") if getattr(summary, name))


def _pieces(raw: bytes) -> Iterator[bytes]:
    position, whole = _OPENING, b""
    while position + _HEADER.size <= len(raw):
        if _BLOCK - position % _BLOCK < _HEADER.size:  # the rest of a block is filled with zeros
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(raw, position)
        position += _HEADER.size
        whole += raw[position : position + length]
        position += length
        if kind in (1, 4):
            yield whole
            whole = b""
