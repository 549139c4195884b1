"""The files of a report: CSV, Markdown, LaTeX and figures of one norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rs.checks import folder_for, naming
from lightning_rs.plots import COLOURS, certified_accuracy_figure, change_figure, save_figure, vote_bound_figure
from lightning_rs.plots.brackets import bracket_figure
from lightning_rs.records.units import counts_pixels
from lightning_rs.report.changes import change_columns
from lightning_rs.report.groups import Group
from lightning_rs.report.tables import latex, latex_comment, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("csv", "md", "tex", "pdf", "png", "svg")
_PICTURES = ("pdf", "png", "svg")
_TABLES_A_PAGE = 4


def write_group(group: Group, folder: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    """Write one norm of a report and return what was written, in the order of ``formats``.

    - ``csv``: one row a run; ``STEM_pairs.csv``, ``STEM_changes.csv`` and ``STEM_brackets.csv`` where the text has
      such tables.
    - ``md``: tables, notes and figures.
    - ``tex``: a document that compiles as it is, and ``STEM_tables.tex``, its tables and notes for a paper.
    - ``pdf``, ``png``, ``svg``: certified accuracy against r (as PDF ``STEM_curves.pdf``, because ``STEM.pdf`` is what
      LaTeX makes of ``STEM.tex``); ``STEM_sigma.*`` against r / sigma where the runs differ
      in sigma; ``STEM_p.*``, the distribution of lower bounds of p; ``STEM_changes.*``, where a file has several
      certificates; ``STEM_brackets.*``, where runs were attacked.
    """
    folder_for(folder)
    figures = _figures(group)
    shown = [name for name in _PICTURES if name in formats]
    texts: dict[str, Callable[[], dict[str, str]]] = {
        "csv": lambda: _csv(group),
        "md": lambda: {".md": _markdown(group, stem, figures, next((s for s in ("svg", "png") if s in shown), None))},
        "tex": lambda: _tex(group, stem, figures, next((s for s in ("pdf", "png") if s in shown), None)),
    }
    files = []
    for name in formats:
        if name in texts:
            for ending, text in texts[name]().items():
                file = folder / f"{stem}{ending}"
                with naming(file):
                    file.write_text(text, encoding="utf-8")
                files.append(file)
        else:
            files += [save_figure(draw(), folder / _file(stem, kind, name)) for kind, (_, draw) in figures.items()]
    return files


def _file(stem: str, ending: str, picture: str) -> str:
    """Return the name of a figure's file, which is not that of the compiled document."""
    return f"{stem}{ending or '_curves'}.pdf" if picture == "pdf" else f"{stem}{ending}.{picture}"


def _figures(group: Group) -> dict[str, tuple[str, Callable[[], Figure]]]:
    """Return what each figure shows and how it is drawn, by the ending of its name."""
    records = {run.name: run.records for run in group.runs}
    figures: dict[str, tuple[str, Callable[[], Figure]]] = {
        "": ("certified accuracy against radius", lambda: certified_accuracy_figure(records, group.norm)),
    }
    sigmas = {run.name: run.sigma for run in group.runs}
    if len(set(sigmas.values())) > 1 and not counts_pixels(group.norm):
        figures["_sigma"] = (
            "certified accuracy against radius over sigma",
            lambda: certified_accuracy_figure(records, group.norm, units=sigmas),
        )
    tails = {run.name: tails for run in group.runs if (tails := run.tails) is not None}
    if tails:
        caps = {(run.smallest_tail, run.records[0].n, run.records[0].alpha) for run in group.runs if run.name in tails}
        least, n, alpha = next(iter(caps))
        words = f"largest bound that n = {n:,} and alpha = {alpha:g} allow"
        cap = (words, least) if len(caps) == 1 and least is not None else None
        figures["_p"] = (
            "distribution of the lower bounds of p", lambda: vote_bound_figure(tails, group.norm, cap),
        )  # fmt: skip
    if columns := change_columns(group.changes):
        baseline = " or ".join(dict.fromkeys(change.first.certificate for change in group.changes))
        figures["_changes"] = ("changes of radius", lambda: change_figure(columns, baseline))
    for number, runs in enumerate(group.brackets.figures(len(COLOURS)) if group.brackets else [], 1):
        ending = "_brackets" if number == 1 else f"_brackets{number}"
        figures[ending] = ("certified, and not attacked, against radius", partial(bracket_figure, runs))
    return figures


def _csv(group: Group) -> dict[str, str]:
    tables = {".csv": group.csv()}
    if group.pairs:
        tables["_pairs.csv"] = group.pair_table().csv()
    if group.changes:
        tables["_changes.csv"] = group.tables()[-1].csv()
    if group.brackets:
        tables["_brackets.csv"] = group.brackets.csv().csv()
    return tables


def _markdown(
    group: Group, stem: str, figures: dict[str, tuple[str, Callable[[], Figure]]], picture: str | None
) -> str:
    blocks = [f"# Certified robustness, {markdown(group.title)}"]
    if picture:
        blocks += [f"![{what}]({_file(stem, ending, picture)})" for ending, (what, _) in figures.items()]
    blocks += [table.markdown() for table in group.tables()]
    return "\n\n".join([*blocks, "\n".join(f"- {markdown(note)}" for note in group.notes())]) + "\n"


def _tex(
    group: Group, stem: str, figures: dict[str, tuple[str, Callable[[], Figure]]], picture: str | None
) -> dict[str, str]:
    """Return the document and its body: tables with labels ``tab:STEM-KEY``, then the notes."""
    label = "".join(c if c.isalnum() else "-" for c in stem)
    tables = [table.latex(f"tab:{label}-") for table in group.tables()]
    # A page now and then, because LaTeX holds only so many floats in mind.
    spaced = [f"{table}\n\\clearpage" if i % _TABLES_A_PAGE == 0 else table for i, table in enumerate(tables, 1)]
    notes = "\n".join([r"\begin{itemize}\small", *(rf"\item {latex(note, True)}" for note in group.notes()),
                       r"\end{itemize}"])  # fmt: skip
    drawn = [
        "\n".join([
            r"\begin{figure}[htbp]\centering",
            r"\includegraphics[width=\linewidth,height=0.8\textheight,keepaspectratio]"
            rf"{{{_file(stem, ending, picture)}}}",
            rf"\caption{{{latex(group.title)}: {what}}}\label{{fig:{label}{ending.replace('_', '-')}}}",
            r"\end{figure}",
        ]) for ending, (what, _) in figures.items()
    ] if picture else []  # fmt: skip
    head = latex_comment(
        f"tables: \\input{{{stem}_tables}} in a paper that has \\usepackage{{booktabs,array}}, or compile this document"
    )
    document = [
        head, r"\documentclass[a4paper]{article}", r"\usepackage[utf8]{inputenc}", r"\usepackage[margin=2cm]{geometry}",
        r"\usepackage{booktabs,array,graphicx}", r"\begin{document}",
        rf"\section*{{Certified robustness, {latex(group.title)}}}",
        *drawn, *([r"\clearpage"] if drawn else []), *spaced, notes, r"\end{document}",
    ]  # fmt: skip
    needs = latex_comment(r"needs \usepackage{booktabs,array}")
    return {".tex": "\n".join(document) + "\n", "_tables.tex": "\n".join([needs, *tables, notes]) + "\n"}
