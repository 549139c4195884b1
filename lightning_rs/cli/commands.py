"""The commands on record files: report, merge, combine, import and export. They build neither a model nor data."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rs.checks import naming
from lightning_rs.cli.console import shorten
from lightning_rs.cli.numbers import number, whole_number
from lightning_rs.cli.parser import Parser
from lightning_rs.records import Header, export_tsv, import_table, import_tsv, merge, merge_sidecars
from lightning_rs.records.attack_files import is_attack_file, merge_attacks
from lightning_rs.records.reading import is_record_file, record_files

if TYPE_CHECKING:
    from lightning_rs.data.base import ImageDataModule

_REPORT = "Compare runs: certified accuracy, average radius, abstention, bounds and figures from record files."
_MERGE = "Merge the record files of several processes or shards into one, checking that nothing is missing or twice."
_COMBINE = (
    "Combine the record files of several classifiers on the same images: a routed classifier, a cascade, or the "
    "largest radius of one classifier. Each file holds at its own alpha, fixed before it was sampled, the result at "
    "their sum."
)
_IMPORT = (
    "Turn a table (idx, label, predict, radius, correct, time) into a record file. No raw counts, no recomputing; "
    "radii are lowered by one unit of their last printed or third significant digit, whichever is larger."
)
_EXPORT = "Write a record file as a table (idx, label, predict, radius, correct, time), radii rounded down."


def report_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs report`` and return its exit code."""
    from lightning_rs.report import FORMATS, report

    parser = Parser("report", _REPORT)
    parser.add_argument("records", nargs="+", metavar="RECORDS", help="record files, or folders of them")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="how a run is called: one for each of RECORDS in their order, or PATH=NAME for some",
    )
    parser.add_argument("--out", metavar="DIR", help="write report.csv, .md, .tex and figures into this folder")
    parser.add_argument("--radii", nargs="+", type=number, metavar="R", help="radii to compare at, in input units")
    parser.add_argument("--alpha", type=number, help="recompute at this alpha, where that is sound")
    parser.add_argument("--sigma", type=number, help="scale of the noise of tables, which are imported with it and --n")
    parser.add_argument("--n", type=whole_number, help="estimation samples of tables, at --alpha; see import for more")
    parser.add_argument("--rho", type=number, default=0.001, help="failure probability of the Theorem 5 bounds")
    parser.add_argument(
        "--format", "--formats", nargs="+", default=FORMATS, choices=FORMATS, help="files to write into DIR"
    )
    parser.add_argument(
        "--method",
        default="uniform",
        choices=("uniform", "exact", "bernstein"),
        help="Theorem 5 for all radii at once, or at each by itself (exact tail, or as printed in the paper)",
    )
    parser.add_argument("--paired", action="store_true", help="compare every later run with the first, image by image")
    parser.add_argument(
        "--certificate", nargs="+", default=(), metavar="NAME", dest="certificates",
        help="also certify from the stored votes, fixed before seeing them: TopK:5 (the label stays among the 5 most "
        "probable), LabelSets:0,1,8,9+2-7 or LabelSets:FILE (it stays in its set), Targets (cannot become c: R_c)",
    )  # fmt: skip
    parser.add_argument(
        "--html", action="store_true",
        help="also write report.html, into DIR or here: one page with curves to point at, a table of all images and "
        "provenance, which loads nothing (needs bokeh: the extra html)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DATA",
        help="pictures for the page: a configuration (data/cifar10), a class path (MNIST), or checkpoint, what the "
        "checkpoint of the records says; each image is checked against its record",
    )  # fmt: skip
    parser.add_argument(
        "--attacks", nargs="+", default=(), metavar="FILE",
        help="records of `attack` on RECORDS, for brackets; NAME.attack*.jsonl beside RECORDS are found by themselves",
    )  # fmt: skip
    args = parser.parse(argv)
    if args.data is not None and not args.html:
        parser.error("--data gives pictures to the page of --html, which is not asked for")

    def data(headers: Sequence[Header]) -> ImageDataModule:
        from lightning_rs.cli.datamodule import build_data  # here, because data load torch

        return build_data(args.data, headers)

    def run() -> str:
        with _imported(args) as (records, names, alpha):
            made = report(
                records, args.out, args.radii, alpha, args.rho, args.format, args.method, args.paired, names,
                args.certificates, args.html, None if args.data is None else data, args.attacks,
            )  # fmt: skip
            width = max(shutil.get_terminal_size((120, 24)).columns, 60)
            text = made.text(width)  # here, because it reads what lies beside the imported files
        return "\n".join([text, *(f"wrote {file}" for file in made.files)])

    return _finish(parser, run)


@contextmanager
def _imported(args: argparse.Namespace) -> Iterator[tuple[list[str], list[str], float | None]]:
    """Within it, tables that were told sigma, n and alpha are record files; yield files, names and alpha for a report.

    Tables are Gaussian and l2, as almost all published ones are; for others there is ``import``.
    """
    tables = [path for path in args.records if Path(path).is_file() and not is_record_file(Path(path))]
    told = {"--sigma": args.sigma, "--n": args.n, "--alpha": args.alpha}
    if args.sigma is None and args.n is None:
        yield args.records, args.name, args.alpha
        return
    if not tables:
        raise ValueError("--sigma and --n are what a table does not say, but RECORDS are no tables: leave them out")
    missing = [name for name, value in told.items() if value is None]
    if missing:
        raise ValueError(f"{tables[0]} is a table: it needs --sigma, --n and --alpha, {', '.join(missing)} is missing")
    with tempfile.TemporaryDirectory() as folder:
        places = {path: str(Path(folder, str(i), _stem(path))) for i, path in enumerate(tables)}
        for table, place in places.items():
            import_tsv(
                table, place, noise={"class": "GaussianNoise", "sigma": args.sigma}, n=args.n, alpha=args.alpha, n0=100
            )
        names = list(args.name)
        for table, place in places.items():
            names = [place + name.removeprefix(table) if name.startswith(f"{table}=") else name for name in names]
        only = len(tables) == len(args.records)  # tables cannot be recomputed, and are at this alpha already
        yield [places.get(path, path) for path in args.records], names, None if only else args.alpha


def merge_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs merge`` and return its exit code."""
    parser = Parser("merge", _MERGE)
    parser.add_argument("records", nargs="+", metavar="RECORDS", help="record files, or folders of them")
    parser.add_argument("--out", required=True, metavar="FILE", help="the merged file; an existing one is kept")
    args = parser.parse(argv)

    def run() -> str:
        if is_attack_file(args.records[0]):
            return f"{args.out}: {merge_attacks(args.records, args.out)} images"
        paths = [str(file) for _, inside in record_files(args.records) for file in inside]
        count = merge(paths, args.out)
        merge_sidecars(paths, args.out)
        return f"{args.out}: {count} images"

    return _finish(parser, run)


def combine_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs combine`` and return its exit code."""
    from lightning_rs.records.combined import combine

    parser = Parser("combine", _COMBINE)
    parser.add_argument(
        "records", nargs="+", metavar="RECORDS",
        help="record files of the experts, in the order of routes or levels; uncertified: an expert without one",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="the combined file; an existing one is kept")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--selector", metavar="FILE", help="records of the selector, whose classes are the routes")
    rule.add_argument("--cascade", type=number, metavar="P0", help="the first file whose top class exceeds P0 answers")
    args = parser.parse(argv)
    return _finish(parser, lambda: f"{args.out}: {combine(args.records, args.out, args.selector, args.cascade)} images")


def import_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs import`` and return its exit code."""
    parser = Parser("import", _IMPORT)
    parser.add_argument("table", metavar="TABLE", help="the table, tab separated")
    parser.add_argument("--out", required=True, metavar="FILE", help="the record file; an existing one is kept")
    parser.add_argument("--sigma", required=True, type=number, help="scale of the noise, in input units")
    parser.add_argument("--n", required=True, type=whole_number, help="estimation samples an image")
    parser.add_argument("--alpha", required=True, type=number, help="failure probability an image")
    parser.add_argument("--n0", type=whole_number, default=100, help="selection samples an image")
    parser.add_argument("--noise", default="GaussianNoise", help="the law of the noise")
    parser.add_argument("--norm", default="l2", help="norm of the radii")
    parser.add_argument("--certificate", default="GaussianL2", help="the certificate that made the radii")
    parser.add_argument("--ball", default="open", choices=("open", "closed"), help="whether balls have their boundary")
    parser.add_argument("--grid", type=whole_number, help="number of steps of the inputs, if the statement needs one")
    parser.add_argument("--data", default="unknown", help="name of the data set")
    parser.add_argument("--radius-column", metavar="NAME", help="the column with the radii, if it is not called radius")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="the columns in order, if there is no header line")
    parser.add_argument(
        "--assert-independent",
        action="store_true",
        help="assert that every image had noise of its own, which bounds on the whole set (Theorem 5) need",
    )
    args = parser.parse(argv)

    def run() -> str:
        made = import_table(
            args.table, args.out, noise={"class": args.noise, "sigma": args.sigma}, n=args.n, n0=args.n0,
            alpha=args.alpha, norm=args.norm, certificate=args.certificate, ball=args.ball, grid=args.grid,
            data=args.data, columns=args.columns, radius_column=args.radius_column, independent=args.assert_independent,
        )  # fmt: skip
        return "\n".join([f"{args.out}: {made.images} images", *(f"left out: {line}" for line in made.left_out)])

    return _finish(parser, run)


def export_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs export`` and return its exit code."""
    parser = Parser("export", _EXPORT)
    parser.add_argument("records", metavar="RECORDS", help="a record file")
    parser.add_argument("--out", required=True, metavar="TABLE", help="the table; it must not exist")
    args = parser.parse(argv)
    return _finish(parser, lambda: f"{args.out}: {export_tsv(args.records, args.out)} images")


def _stem(path: str) -> str:
    return f"{Path(path).name.partition('.')[0] or 'table'}.jsonl"


def _finish(parser: Parser, run: Callable[[], str]) -> int:
    """Print the result and return 0, or print one clear error and return 1."""
    try:
        text = run()
        with naming("standard output"):
            print(text, flush=True)
    except BrokenPipeError:  # `report | head`: the caller knows what to do
        raise
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {shorten(str(error))}", file=sys.stderr)
        return 1
    return 0
