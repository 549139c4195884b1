"""Tables and pages from records: a comparison of runs, as text, CSV, Markdown, LaTeX and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lightning_rs.checks import check_alpha, check_choice, check_nonnegative, naming
from lightning_rs.plots import certified_accuracy_figure, change_figure, save_figure
from lightning_rs.report.changes import change_columns, changes
from lightning_rs.report.groups import Group, default_radii
from lightning_rs.report.paired import pairs
from lightning_rs.report.recomputation import recompute
from lightning_rs.report.runs import Run, load_runs
from lightning_rs.report.tables import latex_comment
from lightning_rs.statistics.accuracy import Method

__all__ = ["FORMATS", "Group", "Report", "Run", "load_runs", "recompute", "report"]

FORMATS = ("csv", "md", "tex", "png", "svg")


@dataclass(frozen=True)
class Report:
    """A report: one group of runs for each norm, because radii of different norms are not compared.

    Attributes:
        groups: the groups, in the order in which their norms appear.
        remarks: what was left out, and why.
        files: what was written.
    """

    groups: Sequence[Group]
    remarks: Sequence[str]
    files: Sequence[Path]

    def __str__(self) -> str:
        """Return all tables and notes as text."""
        blocks = []
        for group in self.groups:
            blocks += [table.text() for table in group.tables()]
            blocks.append("\n".join(f"- {note}" for note in group.notes()))
        return "\n\n".join([*blocks, *self.remarks])


def report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    radii: Iterable[float] | None = None,
    alpha: float | None = None,
    rho: float = 0.001,
    formats: Iterable[str] = FORMATS,
    method: Method = "uniform",
    paired: bool = False,
) -> Report:
    """Compare the runs in some record files.

    Args:
        paths: record files; one with several certificates counts as several runs.
        out: folder for ``report.csv``, ``report.md``, ``report.tex``, ``report.png`` and ``report.svg``; further
            norms get ``report_<norm>.*``, and where a file has several certificates of one norm ``*_changes.png`` and
            ``.svg`` show how the radii change from its first one. None: nothing is written.
        radii: where to compare, in input units; None: round numbers up to the largest radius.
        alpha: recompute all runs at this failure probability, where that is sound.
        rho: failure probability of the Theorem 5 bounds.
        formats: which of the files to write.
        method: form of Theorem 5: "uniform" holds at all radii at once, "exact" and "bernstein" (as printed in the
            paper) at each radius by itself.
        paired: also compare every later run of a norm with the first one, image by image.

    Returns:
        The report; ``str`` of it is the text for the terminal.

    Raises:
        ValueError: for unreadable records, or if ``alpha`` is given and a run cannot be recomputed soundly. A second
            certificate of a file that cannot be is left out with a remark. If runs are paired that share no image.
        FileNotFoundError: if there is no such file.
    """
    check_alpha(rho, "rho")
    check_choice("method", method, get_args(Method))
    chosen = tuple(formats)
    for name in chosen:
        check_choice("formats", name, FORMATS)
    given = None if radii is None else sorted({float(r) for r in check_nonnegative("radii", list(radii))})
    runs = load_runs(paths)
    remarks = [f"{path} {told}" for path, told in {run.path: run.header.remark for run in runs}.items() if told]
    if alpha is not None:
        runs, left_out = _recompute_all(runs, float(check_alpha(alpha)))
        remarks += left_out
    groups = []
    for norm in dict.fromkeys(run.norm for run in runs):
        members = [run for run in runs if run.norm == norm]
        matched = pairs(members) if paired else []
        at = default_radii(members) if given is None else given
        groups.append(Group(norm, members, at, rho, method, matched, changes(members)))
    files = [] if out is None else [file for i, g in enumerate(groups) for file in _write(g, Path(out), i == 0, chosen)]
    return Report(groups, remarks, files)


def _recompute_all(runs: Sequence[Run], alpha: float) -> tuple[list[Run], list[str]]:
    changed, remarks = [], []
    for run in runs:
        try:
            changed.append(recompute(run, alpha))
        except ValueError as error:
            if run.primary:
                raise
            remarks.append(f"Left out: {error}")
    return changed, remarks


def _write(group: Group, folder: Path, first: bool, formats: Sequence[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "report" if first else f"report_{''.join(c if c.isalnum() else '-' for c in group.norm)}"
    texts = {"csv": group.csv, "md": lambda: _markdown(group, stem, formats), "tex": lambda: _latex(group)}
    files = []
    for name in formats:
        file = folder / f"{stem}.{name}"
        if name in texts:
            with naming(file):
                file.write_text(texts[name]())
        else:
            curves = {run.name: run.records for run in group.runs}
            save_figure(certified_accuracy_figure(curves, group.norm), file)
        files.append(file)
        if name not in texts and (columns := change_columns(group.changes)):
            baseline = " or ".join(dict.fromkeys(change.first.certificate for change in group.changes))
            files.append(save_figure(change_figure(columns, baseline), folder / f"{stem}_changes.{name}"))
    return files


def _markdown(group: Group, stem: str, formats: Sequence[str]) -> str:
    picture = next((name for name in ("svg", "png") if name in formats), None)
    blocks = [f"# Certified robustness, {group.norm}"]
    blocks += [f"![certified accuracy against radius]({stem}.{picture})"] if picture else []
    if picture and change_columns(group.changes):
        blocks.append(f"![changes of radius]({stem}_changes.{picture})")
    blocks += [table.markdown() for table in group.tables()]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in group.notes())]) + "\n"


def _latex(group: Group) -> str:
    head = ["% needs \\usepackage{booktabs}", *(latex_comment(note) for note in group.notes())]
    return "\n".join(["\n".join(head), *(table.latex() for table in group.tables())]) + "\n"
