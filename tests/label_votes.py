"""What tests of statements from stored votes share: files of records, and Clopper-Pearson written again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scipy import stats

from lightning_rs.records import Certification, Header, RecordFile

N = 2000


def save(path: Path, head: Header, records: list[Certification]) -> Path:
    binding = {**head.binding, "subset": {"indices": [record.index for record in records]}}
    with RecordFile(path, dataclasses.replace(head, binding=binding)) as file:
        file.append(records)
    return path


def upper(count: int, alpha: float) -> float:
    return 1.0 if count == N else float(stats.beta.isf(alpha, count + 1, N - count))


def tail(count: int, alpha: float) -> float:
    return upper(N - count, alpha)
