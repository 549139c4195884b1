"""A report as one page that holds everything itself: curves to point at, a table of all images, provenance.

The page loads nothing: bokeh's program, the data and the pictures lie in the file. All texts of record files are data
to it, never markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr

from lightning_rs.checks import naming
from lightning_rs.plots import COLOURS, accuracy_polyline, vote_bound_polyline, vote_bound_ticks
from lightning_rs.plots.brackets import bracket_steps
from lightning_rs.plots.curves import radius_bins
from lightning_rs.records.certification import to_line
from lightning_rs.records.units import axis
from lightning_rs.report.brackets import KINDS, Brackets
from lightning_rs.report.groups import Group
from lightning_rs.report.html_images import Files, image_table, models
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table
from lightning_rs.report.thumbnails import Sheets

if TYPE_CHECKING:
    from bokeh.models import Model

_STEPS = 1500  # of a line: more than a screen has pixels
_BINS = 40
_DASHES = ("solid", "dashed", "dotdash", "dotted")
_NAME = 48  # characters of a name in a legend; the whole one stands in the tables
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.lead { color: #51606f; margin: .2rem 0 1rem; }
.wide { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
caption { text-align: left; white-space: nowrap; font-weight: 600; padding: .2rem 0 .4rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e8ec; vertical-align: top; }
th:first-child, table.facts td { text-align: left; } tbody th { font-weight: 500; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #9aa7b3; } table.facts td { overflow-wrap: anywhere; }
table.facts th { text-align: left; white-space: nowrap; }
.caveat { background: #fff4e0; border-left: 4px solid #e69f00; padding: .5rem .9rem; margin: .6rem 0; }
.claim { background: #eef5fb; border-left: 4px solid #0072b2; padding: .5rem .9rem; margin: .6rem 0; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; } li { margin: .15rem 0; }
"""
_PAGE = """
{%% block postamble %%}<style>%s</style>{%% endblock %%}
{%% block contents %%}{%% for part in parts %%}
{%% if part.root %%}{{ embed(roots[part.root]) }}{%% else %%}{{ part.html }}{%% endif %%}
{%% endfor %%}{%% endblock %%}
"""
#: Pieces of a page in their order: text that is HTML already, or something of bokeh's.
Parts = list["str | Model"]


def check_bokeh() -> None:
    """Refuse to make a page without the library that draws it.

    Raises:
        ValueError: naming what to install.
    """
    try:
        models()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--html needs bokeh ({error.name!r} is missing): python -m pip install 'lightning_rs[html]'"
        ) from error


def write_html(groups: Sequence[Group], tables: Sequence[Table], sheets: Sheets | None, file: Path) -> Path:
    """Write a report as one page and return the file.

    Args:
        groups: its groups.
        tables: what stands beside them.
        sheets: pictures of the images; None: the page says how to add them.
        file: the page.
    """
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    runs = list({id(run): run for group in groups for run in group.runs}.values())
    files = Files.of(runs)
    title = f"Certified robustness: {_count(len(runs), 'run')}, {_count(files.images, 'image')}"
    parts: Parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(_lead(runs))}</p>', *_caveats(runs, groups)]
    for group in groups:
        parts += _group(group)
    parts += [table.html() for table in tables]
    broken = {
        (member.run.path, index): distance
        for group in groups if group.brackets
        for member in group.brackets.members
        for index, distance in member.broken.items()
    }  # fmt: skip
    parts += ["<h2>Images</h2>", *image_table(files, sheets, broken), *_provenance(runs)]
    roots = [part for part in parts if not isinstance(part, str)]
    pieces = [
        {"html": part} if isinstance(part, str) else {"root": part.name} for part in parts
    ]  # fmt: skip
    page = file_html(roots, INLINE, title, template=_PAGE % _STYLE, template_variables={"parts": pieces})
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file):
        file.write_text(page, encoding="utf-8")
    return file


def _group(group: Group) -> Parts:
    tables = group.tables()
    drawn = [_figures(group), *([_brackets(group.brackets, group)] if group.brackets else [])]
    parts: Parts = [f"<h2>{escape(group.title)}</h2>", *drawn, *(table.html() for table in tables)]
    rows = group.csv_rows()
    every = Table(
        f"{group.title}: everything that the CSV says", ["", *(run.name for run in group.runs)],
        [[key, *(row[key] for row in rows)] for key in rows[0]],
    )  # fmt: skip
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in group.notes())
    return [*parts, f"<details><summary>All numbers</summary>{every.html()}</details>",
            f"<details open><summary>Notes</summary><ul>{notes}</ul></details>"]  # fmt: skip


def _figures(group: Group) -> Model:
    """Return certified accuracy, and below it the bounds of p and the radii; one legend hides a run in all of them."""
    from bokeh.layouts import column, row

    bk = models()

    large = _figure(axis(group.norm), "certified accuracy at r", 430)
    below = _figure(axis(group.norm), "images that are right", 300)
    votes = _figure("lower bound of p, the probability of the label under noise", "share of images below", 300)
    top = max((record.radius for run in group.runs for record in run.records if record.correct), default=0.0) or 1.0
    edges = radius_bins(group.norm, top, _BINS)
    items, bounded = [], False
    for number, run in enumerate(group.runs):
        look = {"line_color": COLOURS[number % len(COLOURS)], "line_width": 2,
                "line_dash": _DASHES[(number // len(COLOURS)) % len(_DASHES)]}  # fmt: skip
        drawn = [_line(large, bk.ColumnDataSource(_points(*accuracy_polyline(run.records, _STEPS), run)), look)]
        if run.target is None:
            counts = np.histogram([record.radius for record in run.records if record.correct], edges)[0]
            heights = np.concatenate([[0], np.repeat(counts, 2), [0]])
            drawn.append(_line(below, bk.ColumnDataSource(_points(np.repeat(edges, 2), heights, run)), look))
        if (tails := run.tails) is not None:
            bounded = True
            x, shares = vote_bound_polyline(tails, _STEPS)
            bounds = [f"{1 - tail:.6g}" for tail in ndtr(-x)]
            drawn.append(_line(votes, bk.ColumnDataSource({**_points(x, shares, run), "p": bounds}), look))
        for other in drawn[1:]:
            drawn[0].js_link("visible", other, "visible")
        items.append(bk.LegendItem(label={"value": literal(_short(run.name, number))}, renderers=drawn[:1]))
    for figure, told in ((large, "@y{0.000}"), (below, "@y{0}"), (votes, "@y{0.000}")):
        place = ("p at least", "@p") if figure is votes else ("r", "@x{0.0000}")
        tips = [("run", "@run"), place, (figure.yaxis[0].axis_label, told)]
        figure.add_tools(bk.HoverTool(tooltips=tips, line_policy="nearest"))
    columns = _columns(group.runs)
    large.add_layout(bk.Legend(items=items, click_policy="hide", label_text_font_size="12px", ncols=columns), "above")
    large.y_range.start, large.y_range.end = 0, 1.02
    ticks = vote_bound_ticks()
    votes.xaxis.ticker = list(ticks)
    votes.xaxis.major_label_overrides = ticks
    votes.xaxis.major_label_orientation = 0.7
    votes.y_range.start, votes.y_range.end = 0, 1.02
    small = [below, votes] if bounded else [below]
    return column(large, row(*small, sizing_mode="stretch_width"), sizing_mode="stretch_width", name=f"g{id(group)}")


def _brackets(brackets: Brackets, group: Group) -> Model:
    """Return what is certified and what is not attacked at r, a colour a run; the legend hides both curves of one."""
    from bokeh.layouts import column

    bk = models()

    figure = _figure(axis(group.norm), "share of the attacked images", 360)
    items = []
    for number, member in enumerate(brackets.members):
        edges, *curves = bracket_steps(member.images)
        colour = COLOURS[number % len(COLOURS)]
        x = np.repeat(np.append(edges, edges[-1] * 1.05 + 1e-9), 2)[1:-1]
        area = bk.ColumnDataSource({"x": x, "low": np.repeat(curves[0], 2), "high": np.repeat(curves[1], 2)})
        drawn = [figure.varea("x", "low", "high", source=area, fill_color=colour, fill_alpha=0.12)]
        for heights, dash, what in zip(curves, ("solid", "dashed"), KINDS, strict=False):
            source = {**_points(x, np.repeat(heights, 2), member.run), "what": [what] * len(x)}
            look = {"line_color": colour, "line_width": 2, "line_dash": dash}
            drawn.append(_line(figure, bk.ColumnDataSource(source), look))
        items.append(bk.LegendItem(label={"value": literal(_short(member.run.name, number))}, renderers=drawn[1:]))
        drawn[1].js_link("visible", drawn[0], "visible")
    tips = [("run", "@run"), ("r", "@x{0.0000}"), ("@what", "@y{0.000}")]
    figure.add_tools(bk.HoverTool(tooltips=tips, renderers=[r for item in items for r in item.renderers]))
    figure.add_layout(bk.Legend(items=items, click_policy="hide", label_text_font_size="12px"), "above")
    figure.y_range.start, figure.y_range.end = 0, 1.02
    figure.x_range.start = 0
    words = f"Solid: {KINDS[0]}. Dashed: {KINDS[1]}. Shaded: {KINDS[2]}."
    return column(bk.Div(text=words), figure, sizing_mode="stretch_width", name=f"b{id(group)}")


def _figure(x: str, y: str, height: int) -> Any:
    from bokeh.plotting import figure

    made = figure(
        height=height, sizing_mode="stretch_width", x_axis_label=literal(x), y_axis_label=y,
        tools="pan,wheel_zoom,box_zoom,reset,save", toolbar_location="right", output_backend="canvas",
    )  # fmt: skip
    made.toolbar.logo = None
    made.grid.grid_line_color = "#e6e9ec"
    made.outline_line_color = None
    return made


def _line(figure: Any, source: Any, look: Mapping[str, Any]) -> Any:
    return figure.line("x", "y", source=source, **look)


def _points(x: Any, y: Any, run: Run) -> dict[str, Any]:
    return {"x": np.asarray(x, dtype=np.float64), "y": np.asarray(y, dtype=np.float64), "run": [run.name] * len(x)}


def _columns(runs: Sequence[Run]) -> int:
    longest = max(min(len(run.name), _NAME) for run in runs)
    return max(1, min(len(runs), 140 // (longest + 6)))


def _short(name: str, number: int) -> str:
    """Return a name for the legend; one that is cut has its number in front, so that two never look alike."""
    if len(name) <= _NAME:
        return name
    return f"{number + 1}: {name[: _NAME // 2]}\N{HORIZONTAL ELLIPSIS}{name[-_NAME // 2 :]}"


def literal(text: str) -> str:
    """Return a text in which bokeh finds no formula, which it would want to load a library for."""
    return text.replace("$$", "$\N{ZERO WIDTH SPACE}$").replace("\\[", "\\\N{ZERO WIDTH SPACE}[").replace(
        "\\(", "\\\N{ZERO WIDTH SPACE}("
    )  # fmt: skip


def _lead(runs: Sequence[Run]) -> str:
    data = dict.fromkeys(str(run.header.binding.get("data", {}).get("name", "unknown data")) for run in runs)
    laws = dict.fromkeys(run.noise for run in runs)
    return f"{', '.join(data)}; {', '.join(laws)}; {', '.join(dict.fromkeys(run.setting for run in runs))}"


def _caveats(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Return what must be seen before any number."""
    told = [f"{run.path} {run.header.remark}." for run in runs if run.header.remark]
    for run in runs:
        if run.header.imported:
            told.append(
                f"{run.name} was imported: radii are those that another program printed, lowered by one unit of their "
                "last printed or third significant digit; there are no votes."
            )
        if "combined" in run.header.binding:
            told.append(f"{run.name} combines other record files: {run.header.binding['combined'].get('rule')}.")
        told += [f"No bound on the whole set: {run.refusal}."] if run.refusal else []
        told += [f"{run.name}: {remark}" for remark in run.header.informative.get("remarks") or []]
    told += [remark for group in groups for remark in group.remarks]
    return [f'<p class="caveat">{escape(text)}</p>' for text in dict.fromkeys(told)]


def _provenance(runs: Iterable[Run]) -> list[str]:
    parts, seen = ["<h2>What is guaranteed, and where it comes from</h2>"], set()
    for run in runs:
        stated = next((record for record in run.records if record.status in ("certified", "decided")), run.records[0])
        parts.append(f'<p class="claim"><b>{escape(run.name)}</b>, for instance: {escape(repr(stated))}</p>')
    for run in runs:
        if run.path not in seen:
            seen.add(run.path)
            told = _facts({**run.header.binding, **{f"({k})": v for k, v in run.header.informative.items()}})
            rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>\n" for name, text in told)
            parts.append(
                f"<details><summary>{escape(str(run.path))}</summary><p>What is in brackets says where it ran and "
                f'binds nothing.</p><table class="facts">{rows}</table></details>'
            )
    return parts


def _facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return everything in a header by its dotted name; what the network answered on fixed inputs is left out."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if name == "logits":
            continue
        if isinstance(value, Mapping) and value:
            found += _facts(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(json.loads(to_line({"": value}))[""])
            found.append((f"{prefix}{name}", text if len(text) <= 1000 else f"{text[:1000]}\N{HORIZONTAL ELLIPSIS}"))
    return found


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
