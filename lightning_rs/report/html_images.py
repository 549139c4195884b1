"""The table of all images on a report's page: sorted by a click, filtered as one types."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_rs.records import Certification, read_seconds
from lightning_rs.report.runs import Run
from lightning_rs.report.thumbnails import ACROSS, Sheets

if TYPE_CHECKING:
    from bokeh.models import Model

_SHOWN = 40  # pixels of a picture's side
_CLASSES = 6  # whose votes are shown, of those that have any
_WITHOUT = (
    "Without pictures: add them by --data, the data that were certified (a configuration such as data/cifar10, a class "
    "path, or `checkpoint`, what the checkpoint says of its data). Each is checked against the record's SHA-256."
)
_UNKNOWN = "No picture: these records do not say which image they are about (imported, or of version 0.1)."
# Which rows stay; numbers are asked for by themselves (7), or by a bound (>0.5).
_FILTER = """
const data = source.data, n = data.index.length, keep = new Array(n);
const asked = [[label.value, data.label], [prediction.value, data.prediction], [radius.value, data[first]],
               [index.value, data.index]];
const tests = asked.map(([text, values]) => {
  const found = /^\\s*(>=|<=|>|<|=)?\\s*(-?[0-9.]+)\\s*$/.exec(text);
  if (found === null) return text.trim() === '' ? (i) => true : (i) => false;
  const sign = found[1] || '=', x = Number(found[2]);
  return (i) => ({'>': values[i] > x, '<': values[i] < x, '>=': values[i] >= x, '<=': values[i] <= x,
                  '=': values[i] === x})[sign];
});
let kept = 0;
for (let i = 0; i < n; i++) {
  keep[i] = (run.value === '' || String(data.file[i]) === run.value)
    && (outcome.value === 'all' || data.outcome[i] === outcome.value) && tests.every((test) => test(i));
  kept += keep[i];
}
filter.booleans = keep;
count.text = kept.toLocaleString('en') + ' of ' + n.toLocaleString('en') + ' images';
"""
_SELECTED = """
const chosen = source.selected.indices;
if (chosen.length) told.text = source.data.statement[chosen[0]];
"""


def models() -> Any:
    """Return bokeh's models, of which most type checkers see a part only."""
    return importlib.import_module("bokeh.models")


@dataclass(frozen=True)
class Files:
    """The record files of a report, each once, by the first of its runs; statements from votes have none of their own.

    Attributes:
        runs: the first run of each file.
    """

    runs: Sequence[Run]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Files:
        """Return the files of some runs."""
        return cls(list({run.path: run for run in reversed(runs)}.values())[::-1])

    @property
    def images(self) -> int:
        """Number of records."""
        return sum(len(run.records) for run in self.runs)


def image_table(files: Files, sheets: Sheets | None, broken: Mapping[tuple[Path, int], float]) -> list[str | Model]:
    """Return the table of all images with its filters, and what is to be said of its pictures.

    Args:
        files: whose records.
        sheets: their pictures; None: there are none.
        broken: at which distance attacks broke an image, by file and index.
    """
    from bokeh.layouts import column, row

    bk = models()

    values, certificates = _columns(files, sheets, broken)
    source = bk.ColumnDataSource(values)
    pictured = sheets is not None and bool(sheets.places)
    styles = [bk.InlineStyleSheet(css=sheets.css(_SHOWN))] if pictured and sheets else []
    keep = bk.BooleanFilter()
    table = bk.DataTable(
        source=source, view=bk.CDSView(filter=keep), columns=_table_columns(files, certificates, values, pictured),
        index_position=None, reorderable=False, sizing_mode="stretch_width",
        height=560, row_height=_SHOWN + 4 if pictured else 25,
        autosize_mode="none", name="images", stylesheets=styles,
    )  # fmt: skip
    names = [("", "all runs"), *((str(k), run.name) for k, run in enumerate(files.runs))]
    run = bk.Select(title="run", value="", options=names, visible=len(files.runs) > 1, width=220)
    outcome = bk.Select(title="outcome", value="all", options=["all", *sorted(set(values["outcome"]))], width=150)
    label, prediction, radius, index = (
        bk.TextInput(title=title, placeholder=hint, width=110)
        for title, hint in (("label", "7"), ("prediction", "7"), ("radius", ">0.5"), ("index", "<100"))
    )
    count = bk.Div(text=f"{files.images:,} of {files.images:,} images", render_as_text=True, name="count")
    told = bk.Div(
        text="Click on a row for what is stated of its image.", render_as_text=True, min_height=46, name="told"
    )
    arguments = {"source": source, "filter": keep, "run": run, "outcome": outcome, "label": label, "index": index,
                 "prediction": prediction, "radius": radius, "count": count,
                 "first": f"radius {certificates[0]}"}  # fmt: skip
    changed = bk.CustomJS(args=arguments, code=_FILTER)
    for widget in (run, outcome):
        widget.js_on_change("value", changed)
    for widget in (label, prediction, radius, index):
        widget.js_on_change(
            "value_input", bk.CustomJS(args={"widget": widget}, code="widget.value = widget.value_input")
        )
        widget.js_on_change("value", changed)
    source.selected.js_on_change("indices", bk.CustomJS(args={"source": source, "told": told}, code=_SELECTED))
    hashed = any(record.image for run in files.runs for record in run.records)
    words = "" if pictured else _WITHOUT if hashed else _UNKNOWN
    filters = row(run, outcome, label, prediction, radius, index, sizing_mode="stretch_width")
    return [
        *([f"<p>{escape(words)}</p>"] if words else []),
        column(filters, count, table, told, sizing_mode="stretch_width", name="table"),
    ]


def _columns(
    files: Files, sheets: Sheets | None, broken: Mapping[tuple[Path, int], float]
) -> tuple[dict[str, Any], list[str]]:
    records = [(number, run, record) for number, run in enumerate(files.runs) for record in run.records]
    certificates = list(dict.fromkeys(
        name for _, _, record in records for name in (record.radii or {record.certificate: 0.0})
    ))  # fmt: skip
    seconds = [read_seconds(run.path) for run in files.runs]
    places = {} if sheets is None else sheets.places
    values: dict[str, Any] = {
        "picture": np.array([places.get((run.path, r.index), -1) for _, run, r in records], dtype=np.int32),
        "file": np.array([number for number, _, _ in records], dtype=np.int32),
        "run": [run.name for _, run, _ in records],
        "index": np.array([r.index for _, _, r in records], dtype=np.int32),
        "label": np.array([-1 if r.label is None else r.label for _, _, r in records], dtype=np.int32),
        "prediction": np.array([r.prediction for _, _, r in records], dtype=np.int32),
        "outcome": [_outcome(r) for _, _, r in records],
        "p_lower": _floats([r.bounds.get("p_lower") for _, _, r in records]),
        "n": np.array([r.n_used for _, _, r in records], dtype=np.float64),
        "votes": [_votes(r) for _, _, r in records],
        "broken": _floats([broken.get((run.path, r.index)) for _, run, r in records]),
        "seconds": _floats([seconds[number].get(r.index) for number, _, r in records]),
        "statement": [repr(r) for _, _, r in records],
    }
    for name in certificates:
        values[f"radius {name}"] = _floats([_radius(r, name) for _, _, r in records])
    return values, certificates


def _table_columns(files: Files, certificates: Sequence[str], values: dict[str, Any], pictured: bool) -> list[Any]:
    bk = models()
    whole = bk.NumberFormatter(format="0", text_align="right")
    fraction = bk.NumberFormatter(format="0.0000", nan_format="", text_align="right", rounding="floor")
    text = bk.StringFormatter()
    picture = bk.HTMLTemplateFormatter(template=_tile())
    shown = [("index", "index", whole, 60), ("label", "label", whole, 55), ("prediction", "prediction", whole, 80),
             ("outcome", "outcome", text, 90)]  # fmt: skip
    shown += [(f"radius {name}", f"radius, {name}", fraction, 120) for name in certificates]
    if not np.isnan(values["broken"]).all():
        up = bk.NumberFormatter(format="0.0000", nan_format="", text_align="right", rounding="ceil")
        shown.append(("broken", "broken at", up, 80))
    thousands = bk.NumberFormatter(format="0,0", text_align="right")
    shown += [("p_lower", "p at least", fraction, 80), ("n", "n", thousands, 75),
              ("votes", "votes (class: count)", text, 340)]  # fmt: skip
    if not np.isnan(values["seconds"]).all():
        shown.append(("seconds", "seconds", bk.NumberFormatter(format="0.000", nan_format="", text_align="right"), 75))
    if pictured:
        shown.insert(0, ("picture", "", picture, _SHOWN + 12))
    if len(files.runs) > 1:
        shown.insert(int(pictured), ("run", "run", text, 130))
    return [
        bk.TableColumn(field=field, title=escape(title), formatter=form, width=wide)
        for field, title, form, wide in shown
    ]


def _tile() -> str:
    """Return the template of a picture's cell: where its place lies in which sheet."""
    many = ACROSS * ACROSS
    return (
        '<% if (value >= 0) { %><div class="tile sheet<%= Math.floor(value / ' + str(many) + ') %>" '
        f'style="background-position: -<%= value % {ACROSS} * {_SHOWN} %>px '
        f'-<%= Math.floor(value % {many} / {ACROSS}) * {_SHOWN} %>px"></div><% }} %>'
    )


def _outcome(record: Certification) -> str:
    if record.status in ("abstain", "undecided"):
        return record.status
    return "unlabelled" if record.label is None else "right" if record.correct else "wrong"


def _radius(record: Certification, name: str) -> float | None:
    if not record.has_radius:
        return record.target if record.status == "decided" else None
    return record.radii.get(name, record.radius if name == record.certificate else None)


def _votes(record: Certification) -> str:
    some = sorted(((count, -k) for k, count in enumerate(record.counts) if count), reverse=True)
    more = "" if len(some) <= _CLASSES else " \N{HORIZONTAL ELLIPSIS}"
    return "  ".join(f"{-k}: {count}" for count, k in some[:_CLASSES]) + more


def _floats(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
