"""The certification record; append-only files, resume, merge, import/export; provenance."""

from lightning_rs.records.certification import ABSTAIN, Certification
from lightning_rs.records.collection import Certifications
from lightning_rs.records.header import Header, environment
from lightning_rs.records.reading import body_lines, is_sidecar, read_records, read_seconds, sidecar_path
from lightning_rs.records.rounding import (
    ceil_decimals,
    complement,
    floor_decimals,
    nearest_decimals,
    round_down,
    round_up,
)
from lightning_rs.records.tsv import export_tsv, import_table, import_tsv
from lightning_rs.records.writing import RecordFile, merge, merge_sidecars

__all__ = [
    "ABSTAIN",
    "Certification",
    "Certifications",
    "Header",
    "RecordFile",
    "body_lines",
    "ceil_decimals",
    "complement",
    "environment",
    "export_tsv",
    "floor_decimals",
    "import_table",
    "import_tsv",
    "is_sidecar",
    "merge",
    "merge_sidecars",
    "nearest_decimals",
    "read_records",
    "read_seconds",
    "round_down",
    "round_up",
    "sidecar_path",
]
