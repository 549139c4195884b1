"""Tables of text: one set of cells, written for the terminal, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ">": "$>$", "<": "$<$"}


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of text; every row has one cell a column, the first of them a name.

    Attributes:
        title: one line above the table.
        columns: names of the columns.
        rows: cells, as they will be shown.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table with columns aligned by spaces."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        aligned = ["  ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(line)) for line in lines]
        rule = "-" * len(aligned[0])
        return "\n".join([self.title, rule, aligned[0].rstrip(), rule, *(line.rstrip() for line in aligned[1:])])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = [":--" if i == 0 else "--:" for i in range(len(self.columns))]
        lines = [list(map(_markdown, line)) for line in (self.columns, *self.rows)]
        lines.insert(1, rule)
        return "\n".join([f"**{_markdown(self.title)}**", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs."""
        layout = "".join("l" if i == 0 else "r" for i in range(len(self.columns)))
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.columns, *self.rows)]
        return "\n".join([
            r"\begin{table}\small", rf"\caption{{{_latex(self.title)}}}", rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ])  # fmt: skip


def latex_comment(text: str) -> str:
    """Return lines of text as LaTeX comments."""
    return "\n".join(f"% {line}" for line in text.splitlines())


def _markdown(text: str) -> str:
    return text.replace("|", r"\|")


def _latex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text).replace("$>$=", r"$\geq$")


def _pad(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
