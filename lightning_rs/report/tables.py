"""Tables of text: one set of cells, written for the terminal, CSV, Markdown, LaTeX or HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ">": "$>$", "<": "$<$", "|": "$|$"}
# After \\ and \midrule a bracket or a star would be an argument; two hyphens would be a dash.
_TEX |= {"[": "{[}", "]": "{]}", "*": "{*}", "-": "-{}"}
_TEX |= {"\N{HORIZONTAL ELLIPSIS}": r"\ldots{}", "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$"}
_TEX |= {"\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$"}
_NO_OT1 = "\xd0\xde\xf0\xfe\xd7\xf7"  # eth, thorn and two signs: TeX's first font lacks them
_MATHS = (
    (r"\bl([12])\b", r"$\\ell_\1$"), (r"\blinf\b", r"$\\ell_\\infty$"), (r"\$>\$= ", r"$\\geq$ "),
    (r"\br / sigma =", r"$r / \\sigma =$"), (r"\bradius r =", "radius $r =$"), (r"(?<!\\)\bsigma\b", r"$\\sigma$"),
    (r"^([rp])$", r"$\1$"), (r"\bp >= ?", r"$p \\geq$ "),
)  # fmt: skip
_SIGNED = re.compile(r"((?<![\w.])[+-]\d+(?:\.\d+)?)")
_TINY = re.compile(r"\b(\d+(?:\.\d+)?)e([+-])0*(\d+)")
_RANGE = re.compile(r"(?<=\d)-{}(?=\d)")
_MARKDOWN = re.compile(r"([\\|*_`<\[\]])")
_BREAK = re.compile(r"([/_:,=\-])")
_NAME = 44  # characters of a name before it is broken
_PAGE = 100  # characters at 9 points on a page's width, a space between two columns counted as 2.5 of them
_ROWS = 42  # of one LaTeX table, its blocks together
_BETWEEN = 2


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of text; every row has one cell a column, the first of them a name.

    Attributes:
        title: one line above the table.
        columns: names of the columns.
        rows: cells, as they will be shown.
        key: what a label calls it, in letters and hyphens.
        names: what the title quotes, which is no formula whatever it looks like.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    key: str = "table"
    names: Sequence[str] = ()

    def text(self, width: int | None = None) -> str:
        """Return the table with columns aligned by spaces; where it is wider than ``width``, in several blocks."""
        lines = [list(line) for line in (self.columns, *self.rows)]
        broken = [[_broken(line[0]), *([cell] for cell in line[1:])] for line in lines]
        widths = [max(len(part) for line in broken for part in line[i]) for i in range(len(self.columns))]
        blocks = _blocks(widths, _BETWEEN, width)
        return "\n".join([self.title, *(_aligned(broken, widths, block) for block in blocks)])

    def csv(self) -> str:
        """Return columns and rows as CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = [":--" if i == 0 else "--:" for i in range(len(self.columns))]
        lines = [list(map(markdown, line)) for line in (self.columns, *self.rows)]
        lines.insert(1, rule)
        return "\n".join([f"**{markdown(self.title)}**", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def html(self) -> str:
        """Return the table in HTML: no character of it is markup."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = ["".join([f"<th>{escape(row[0])}</th>", *(f"<td>{escape(cell)}</td>" for cell in row[1:])])
                for row in self.rows]  # fmt: skip
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        caption = f"<caption>{escape(self.title)}</caption>"
        return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'

    def latex(self, prefix: str = "tab:") -> str:
        """Return the table in LaTeX, for the packages booktabs and array: in parts where it is wider than a page.

        Args:
            prefix: what the label begins with; ``key`` follows.
        """
        widths = [max(len(line[i]) for line in (self.columns, *self.rows)) for i in range(len(self.columns))]
        narrow = widths[0] <= _NAME
        blocks = _blocks([min(widths[0], _NAME), *widths[1:]], 2.5, _PAGE)
        most = max(_ROWS // len(blocks), 4)
        parts = [self.rows[i : i + most] for i in range(0, max(len(self.rows), 1), most)]
        first = "l" if narrow else r">{\raggedright\arraybackslash}p{0.4\linewidth}"
        floats = []
        for number, rows in enumerate(parts):
            label = rf"\label{{{prefix}{self.key}}}" if number == 0 else ""
            caption = self._caption() + (" (continued)" if number else "")
            tabulars = [self._tabular(rows, block, first, not narrow) for block in blocks]
            floats.append("\n".join([
                r"\begin{table}[htbp]\centering\small", rf"\caption{{{caption}}}{label}",
                "\n\\par\\medskip\n".join(tabulars), r"\end{table}",
            ]))  # fmt: skip
        return "\n".join(floats)

    def _caption(self) -> str:
        quoted = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        parts = re.split(f"({quoted})", self.title) if quoted else [self.title]
        return "".join(latex(part) if i % 2 else _maths(part) for i, part in enumerate(parts))

    def _tabular(self, rows: Sequence[Sequence[str]], block: Sequence[int], first: str, breaks: bool) -> str:
        head = " & ".join(_maths(self.columns[i]) for i in block)
        lines = [" & ".join([latex(row[0], breaks), *(_number(row[i]) for i in block[1:])]) + r" \\" for row in rows]
        layout = first + "r" * (len(block) - 1)
        return "\n".join([
            rf"\begin{{tabular}}{{{layout}}}", r"\toprule", rf"{head} \\", r"\midrule", *lines, r"\bottomrule",
            r"\end{tabular}",
        ])  # fmt: skip


def markdown(text: str) -> str:
    """Return a text as Markdown that shows it: no character of it is markup or HTML."""
    return _MARKDOWN.sub(r"\\\1", text)


def latex(text: str, breaks: bool = False) -> str:
    """Return a text as LaTeX that shows it; characters that TeX's first font lacks are shown as their code points.

    Args:
        text: any text.
        breaks: let lines break after ``/``, ``_`` and the like.
    """
    parts = _BREAK.split(text) if breaks else [text]
    return "".join("".join(map(_glyph, part)) + (r"\allowbreak{}" if i % 2 else "") for i, part in enumerate(parts))


def latex_comment(text: str) -> str:
    """Return lines of text as LaTeX comments."""
    return "\n".join(f"% {line}" for line in text.splitlines())


def _glyph(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    code = ord(character)
    plain = 32 <= code < 127 or (0xC0 <= code <= 0xFF and character not in _NO_OT1)
    return character if plain else f"U+{code:04X}"


def _maths(text: str) -> str:
    found = latex(text).replace("-{}", "-")
    for pattern, formula in _MATHS:
        found = re.sub(pattern, formula, found)
    return found


def _number(text: str) -> str:
    """Return a cell of numbers with signs, ranges and powers of ten as one prints them."""
    if _TINY.fullmatch(text):
        return _TINY.sub(lambda m: f"${m[1]} \\cdot 10^{{{'-' if m[2] == '-' else ''}{m[3]}}}$", text)
    parts = _SIGNED.split(text)
    return "".join(f"${part}$" if i % 2 else _RANGE.sub("--", latex(part)) for i, part in enumerate(parts))


def _broken(name: str) -> list[str]:
    """Return a name in pieces of at most ``_NAME`` characters, broken after a separator where one is."""
    pieces = []
    while len(name) > _NAME:
        cut = max((m.end() for m in _BREAK.finditer(name, _NAME // 2, _NAME)), default=_NAME)
        pieces.append(name[:cut])
        name = name[cut:]
    return [*pieces, name]


def _blocks(widths: Sequence[int], between: float, page: float | None) -> list[list[int]]:
    """Return which columns stand together, about equally many, each time with the first one before them."""
    others = list(range(1, len(widths)))
    for count in range(1, len(others)):
        parts = [others[i * len(others) // count : (i + 1) * len(others) // count] for i in range(count)]
        if page is None or all(widths[0] + sum(between + widths[i] for i in part) <= page for part in parts):
            return [[0, *part] for part in parts]
    return [[0, i] for i in others] or [[0]]


def _aligned(lines: Sequence[Sequence[Sequence[str]]], widths: Sequence[int], block: Sequence[int]) -> str:
    shown = []
    for line in lines:
        tall = max(len(line[i]) for i in block)
        for part in range(tall):
            cells = [line[i][part] if part < len(line[i]) else "" for i in block]
            padded = [c.ljust(widths[i]) if i == 0 else c.rjust(widths[i]) for c, i in zip(cells, block, strict=True)]
            shown.append("  ".join(padded))
    head = max(len(lines[0][i]) for i in block)
    rule = "-" * len(shown[0])
    return "\n".join([rule, *(line.rstrip() for line in shown[:head]), rule, *(line.rstrip() for line in shown[head:])])
