"""Several certifications as one object: a list that becomes a table, and is shown as one in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from lightning_rs.records.certification import Certification
from lightning_rs.records.rounding import floor_decimals

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10  # rows in a notebook
_WHOLE = ("index", "label", "prediction", "n", "n_used", "grid", "top", "runner_up")
_REAL = ("radius", "alpha", "target")
_WORDS = ("status", "norm", "ball", "certificate", "mode")


class Certifications(list[Certification]):
    """A list of records; what :func:`read_records` and every ``certify`` return."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Certification: ...

    @overload
    def __getitem__(self, place: slice) -> Certifications: ...

    def __getitem__(self, place: Any) -> Any:
        """Return one record, or some of them as such a list again."""
        found = super().__getitem__(place)
        return Certifications(found) if isinstance(place, slice) else found

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a record: typed columns, with ``counts.K`` for class K, ``radii.NAME`` and ``bounds.NAME``.

        Whole numbers may be missing (a label that is unknown), words are categories, and what a record has not is
        missing in its row.

        Raises:
            ValueError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ValueError("to_pandas needs pandas: python -m pip install 'lightning_rs[pandas]'") from error
        columns: dict[str, Any] = {}
        for name in _WHOLE:
            columns[name] = pd.array([getattr(record, name) for record in self], dtype="Int64")
        columns["correct"] = pd.array([record.correct for record in self], dtype="bool")
        for name in _REAL:
            columns[name] = pd.array([_real(getattr(record, name)) for record in self], dtype="float64")
        for name in _WORDS:
            columns[name] = pd.Categorical([getattr(record, name) for record in self])
        for name in ("radii", "bounds"):
            keys = _keys(getattr(record, name) for record in self)
            for key in keys:
                values = [_real(getattr(record, name).get(key)) for record in self]
                columns[f"{name}.{key}"] = pd.array(values, dtype="float64")
        for name in ("counts", "counts0"):
            lists = [getattr(record, name) for record in self]
            for k in range(max(map(len, lists), default=0)):
                columns[f"{name}.{k}"] = pd.array([each[k] if k < len(each) else None for each in lists], dtype="Int64")
        columns["note"] = [record.note for record in self]
        columns["image"] = [record.image for record in self]
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        """Return a small table for notebooks; radii are rounded down, and nothing in a record is markup."""
        names = _keys(record.radii or {record.certificate: 0.0} for record in self)
        head = ["index", "label", "prediction", "status", *(f"radius, {name}" for name in names), "n"]
        rows = [[*_cells(record), *(_radius(record, name) for name in names), f"{record.n_used:,}"]
                for record in self[:_SHOWN]]  # fmt: skip
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        right = sum(record.correct for record in self)
        told = f"{len(self):,} images, {right:,} right and certified"
        told += f"; the first {_SHOWN}" if len(self) > _SHOWN else ""
        columns = "".join(f"<th>{escape(name)}</th>" for name in head)
        return f"<p>{told}</p><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _keys(mappings: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _real(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _cells(record: Certification) -> list[str]:
    label = "" if record.label is None else str(record.label)
    return [str(record.index), label, str(record.prediction) if record.prediction >= 0 else "", record.status]


def _radius(record: Certification, name: str) -> str:
    radius = record.radii.get(name, record.radius if name == record.certificate else None)
    return "" if radius is None or not record.has_radius else floor_decimals(radius, 4)
