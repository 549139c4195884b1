"""Tables and pages from records: a comparison of runs, as text, CSV, Markdown, LaTeX, HTML and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lightning_rs.checks import check_alpha, check_choice, check_nonnegative
from lightning_rs.records import Header
from lightning_rs.report.brackets import Brackets, attacked_runs, passed_paths
from lightning_rs.report.changes import changes
from lightning_rs.report.files import FORMATS, write_group
from lightning_rs.report.groups import Group, default_radii
from lightning_rs.report.html import check_bokeh, write_html
from lightning_rs.report.labels import Targets, restate, write_targets
from lightning_rs.report.paired import pairs
from lightning_rs.report.recomputation import recompute
from lightning_rs.report.runs import Run, load_runs
from lightning_rs.report.thumbnails import Sheets, packed, pictures_of
from lightning_rs.statistics.accuracy import Method

if TYPE_CHECKING:
    from lightning_rs.data.base import ImageDataModule

__all__ = ["FORMATS", "Group", "Report", "Run", "load_runs", "recompute", "report"]


@dataclass(frozen=True)
class Report:
    """A report: one group of runs for each norm, because radii of different norms are not compared.

    Attributes:
        groups: the groups, one a norm and statement, in the order in which they appear.
        remarks: what was left out and why, and what files of an old version do not bind; the notes repeat it.
        files: what was written.
        targets: how far images are from every other class, where that was asked for.
    """

    groups: Sequence[Group]
    remarks: Sequence[str]
    files: Sequence[Path]
    targets: Sequence[Targets] = ()

    def __str__(self) -> str:
        """Return all tables and notes as text, tables at most 120 characters wide."""
        return self.text(120)

    def text(self, width: int) -> str:
        """Return all tables and notes as text; a table wider than ``width`` characters comes in several blocks."""
        blocks = []
        for group in self.groups:
            blocks += [table.text(width) for table in group.tables()]
            blocks.append("\n".join(f"- {note}" for note in group.notes()))
        return "\n\n".join([*blocks, *(each.table().text(width) for each in self.targets)])


def report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    radii: Iterable[float] | None = None,
    alpha: float | None = None,
    rho: float = 0.001,
    formats: Iterable[str] = FORMATS,
    method: Method = "uniform",
    paired: bool = False,
    names: Sequence[str] | Mapping[str, str] = (),
    certificates: Sequence[str] = (),
    html: bool = False,
    data: ImageDataModule | Callable[[Sequence[Header]], ImageDataModule] | None = None,
    attacks: Sequence[str | Path] = (),
) -> Report:
    """Compare the runs in some record files.

    Args:
        paths: record files, or folders of them; one with several certificates counts as several runs.
        out: folder for what :func:`lightning_rs.report.files.write_group` writes: ``report.csv``, ``report.md``,
            ``report.tex`` and figures; further norms get ``report_<norm>.*``. None: nothing is written.
        radii: where to compare, in input units, or in pixels for patches and l0; None: at most nine round numbers up to
            the largest radius.
        alpha: recompute all runs at this failure probability, where that is sound.
        rho: failure probability of the Theorem 5 bounds.
        formats: which of the files to write.
        method: form of Theorem 5: "uniform" holds at all radii at once, "exact" and "bernstein" (as printed in the
            paper) at each radius by itself.
        paired: also compare every later run of a norm with the first one, image by image.
        names: how runs are called, see :func:`lightning_rs.report.names.named_files`.
        certificates: what the votes say beside the files' own certificates: ``TopK:5``, ``LabelSets:0-4+5-9``,
            ``LabelSets:FILE``, ``Targets``; see :mod:`lightning_rs.report.labels`.
        html: also write ``report.html`` into ``out``, by default the current folder: one page that holds everything
            itself, with curves to point at, a table of all images, and provenance. Needs bokeh.
        data: where the pictures of the page come from: the data module that was certified, or what makes it of the
            headers. None: no pictures.
        attacks: files of attacks on the runs, which give them brackets; those beside the record files as
            ``NAME.attack*.jsonl``, and those among ``paths``, are found by themselves.

    Returns:
        The report; ``str`` of it is the text for the terminal.

    Raises:
        ValueError: for unreadable records, or if ``alpha`` is given and a run cannot be recomputed soundly. A second
            certificate of a file that cannot be is left out with a remark. If runs are paired that share no image. If
            the votes of a run cannot say what ``certificates`` asks for. If bokeh is missing for a page, or an image of
            ``data`` is not the one that was certified. If one of ``attacks`` is of no run.
        FileNotFoundError: if there is no such file.
    """
    check_alpha(rho, "rho")
    check_choice("method", method, get_args(Method))
    chosen = tuple(formats)
    for name in chosen:
        check_choice("formats", name, FORMATS)
    if html:
        check_bokeh()
    given = None if radii is None else sorted({float(r) for r in check_nonnegative("radii", list(radii))})
    broken = passed_paths(paths)
    runs = load_runs([path for path in paths if Path(path) not in broken], names)
    remarks = [f"{path} {told}." for path, told in {run.path: run.header.remark for run in runs}.items() if told]
    if alpha is not None:
        runs, left_out = _recompute_all(runs, float(check_alpha(alpha)))
        remarks += left_out
    restated = restate(runs, certificates)
    remarks += restated.notes
    attacked, left_out = attacked_runs(runs, attacks, broken)
    remarks += left_out
    # Radii of different statements are not compared: "among the k most probable" says less than "is the most probable".
    said = [(run, "") for run in runs] + [(run, run.certificate) for run in restated.runs]
    groups = []
    for norm, statement in dict.fromkeys((run.norm, stated) for run, stated in said):
        members = [run for run, stated in said if (run.norm, stated) == (norm, statement)]
        matched = pairs(members) if paired and not statement else []
        at = default_radii(members) if given is None else given
        own = [each for each in attacked if not statement and any(each.run is run for run in members)]
        far = [] if given else default_radii(members, [r for each in own for r in each.broken.values()])
        brackets = Brackets(own, sorted({*at, *(r for r in far if r > max(at))})) if own else None
        groups.append(Group(norm, members, at, rho, method, matched, changes(members), remarks, statement, brackets))
    files = []
    for number, group in enumerate(groups if out is not None else []):
        ending = "" if number == 0 else "_" + re.sub("[^0-9A-Za-z]+", "-", group.title)
        files += write_group(group, Path(out or ""), f"report{ending}", chosen)
    if out is not None:
        files += write_targets(restated.targets, Path(out), chosen)
    if html:
        tables = [each.table() for each in restated.targets]
        files.append(write_html(groups, tables, _sheets(runs, data), Path(out or "") / "report.html"))
    return Report(groups, remarks, files, restated.targets)


def _sheets(
    runs: Sequence[Run], data: ImageDataModule | Callable[[Sequence[Header]], ImageDataModule] | None
) -> Sheets | None:
    """Return the pictures of all images, each checked to be the one that was certified."""
    if data is None:
        return None
    firsts = {run.path: run for run in reversed(runs)}
    made = data([run.header for run in firsts.values()]) if callable(data) else data
    return packed(
        {
            key: picture
            for path, run in firsts.items()
            for key, picture in pictures_of(made, path, run.header, run.records).items()
        }
    )


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
