"""Foreign tables: what is clear is read, what is not is one error; arguments are checked against each other."""

from __future__ import annotations

import gzip
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_rs.cli import main
from lightning_rs.cli.commands import import_main, report_main
from lightning_rs.records import Certification, import_tsv, read_records
from lightning_rs.records.tables import read_table
from lightning_rs.records.tsv import lowered
from lightning_rs.report import load_runs

NOISE = {"class": "GaussianNoise", "sigma": 0.25}
GIVEN: dict[str, Any] = {"noise": NOISE, "n": 100_000, "n0": 100, "alpha": 0.001}
HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ROWS = "0\t3\t-1\t0.0\t0\t0:00:14.1\n20\t8\t8\t0.361\t1\t13.5\n40\t8\t2\t0.356\t0\t7\n"


def take(folder: Path, content: str | bytes, name: str = "table.tsv", **changes: Any) -> list[Certification]:
    path, out = folder / name, folder / "out.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out.unlink(missing_ok=True)
    import_tsv(path, out, **(GIVEN | changes))
    return read_records(out)[1]


PLAIN = [(0, 3, -1, 0.0), (20, 8, 8, 0.36), (40, 8, 2, 0.355)]


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (HEAD + ROWS, {}),
        ((HEAD + ROWS).replace("\n", "\r\n"), {}),
        ("﻿" + HEAD + ROWS, {}),
        (gzip.compress((HEAD + ROWS).encode(), mtime=0), {}),
        ((HEAD + ROWS).replace("\t", " \t "), {}),
        (HEAD + "\n" + ROWS + "\n\n", {}),
        (HEAD + ROWS.replace("\t0\t0:", "\tFalse\t0:").replace("\t1\t13", "\tTrue\t13"), {}),
        (HEAD + ROWS.replace("20\t8\t8", "20.0\t8.0\t8.0").replace("\t1\t13", "\t1.0\t13"), {}),
        (HEAD + ROWS.replace("0.361", "3.61e-1"), {}),
        (HEAD.upper() + ROWS, {}),
        (HEAD.replace("idx", "index").replace("predict", "prediction") + ROWS, {}),
        (HEAD.replace("radius", "radius_cohen") + ROWS, {}),
        (HEAD.replace("radius", "exact_radius") + ROWS, {}),
        (HEAD.replace("radius", "rad_mine") + ROWS, {"radius_column": "rad_mine"}),
        (HEAD.replace("time", "radius_cohen") + ROWS, {}),  # a column named radius is the radius
        (ROWS, {"columns": ["idx", "label", "predict", "radius", "correct", "time"]}),
        (ROWS.replace("\n", "\tx\n"), {"columns": ["idx", "label", "predict", "radius", "correct", "time", "memo"]}),
        (HEAD + ROWS + "mean\t\t\t0.42\t0.7\t\n", {}),
        (HEAD + ROWS + "\nAverage certified radius: 0.42\n0.424\n", {}),
        (HEAD + ROWS + "# 3 images\n", {}),
    ],
)
def test_what_is_clear_is_read(tmp_path: Path, content: str | bytes, changes: dict[str, Any]) -> None:
    records = take(tmp_path, content, **changes)
    assert [(r.index, r.label, r.prediction, r.radius) for r in records] == PLAIN


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (HEAD, {}, r"table\.tsv: there is no row below the header"),
        (HEAD + "total\t3\n", {}, r"table\.tsv: there is no row below the header"),
        ("", {}, r"table\.tsv:1: the file is empty"),
        (ROWS, {}, r"table\.tsv:1: the file has no header line, .* --columns idx label predict radius correct time$"),
        (HEAD.replace("radius", "rad_mine") + ROWS, {}, r":1: the columns radius are missing.*--radius-column"),
        (HEAD + ROWS, {"radius_column": "r2"}, r":1: the columns radius are missing \('r2' was asked for\)"),
        (HEAD.replace("radius", "radius_cohen").replace("time", "exact_radius") + ROWS, {},
         r":1: several columns may be the radius: radius_cohen, exact_radius: name one by --radius-column"),
        (HEAD.replace("time", "radius") + ROWS, {}, r":1: the column 'radius' occurs twice"),
        (HEAD.replace("\t", ",") + ROWS.replace("\t", ","), {}, r":1: the columns must be separated by tabs"),
        (HEAD + "mean\t\t\t0.4\t0.7\t\n" + ROWS, {}, r":2: column idx must be a whole number >= 0, got 'mean'"),
        (HEAD + ROWS + "60\t3", {}, r":5: 6 columns expected, got 2"),
        (HEAD + ROWS + "60", {}, r":5: 6 columns expected, got 1"),
        (HEAD + ROWS.replace("20\t8", "20.5\t8"), {}, r":3: column idx must be a whole number >= 0, got '20\.5'"),
        (HEAD + ROWS.replace("20\t8", "20\t-8"), {}, r":3: column label must be a whole number >= 0, got '-8'"),
        (HEAD + ROWS.replace("20\t8\t8", "20\t8\t-2"), {}, r":3: column predict must be a whole number >= -1"),
        (HEAD + ROWS.replace("0.361", "inf"), {}, r":3: column radius must be a finite number >= 0, got 'inf'"),
        (HEAD + ROWS.replace("0.361", "-0.361"), {}, r":3: column radius must be a finite number >= 0"),
        (HEAD + ROWS.replace("\t1\t13", "\tyes\t13"), {}, r":3: column correct must be 0, 1, True or False, got 'yes'"),
        (HEAD + ROWS.replace("\t1\t13", "\t2\t13"), {}, r":3: column correct must be 0, 1, True or False, got '2'"),
        (gzip.compress((HEAD + ROWS).encode(), mtime=0)[:-9], {}, r"table\.tsv: cannot be unpacked"),
        (b"idx\t\xff\xfe\n", {}, r"table\.tsv: not a text file in UTF-8"),
        ((HEAD + ROWS).encode("utf-16"), {}, r"table\.tsv: not a text file in UTF-8"),
        ((HEAD + ROWS).encode("utf-16-le"), {}, r"table\.tsv:1: not a text file in UTF-8: a byte is zero"),
        (HEAD + ROWS + "\0\0\n", {}, r"table\.tsv:5: not a text file in UTF-8: a byte is zero"),
        (HEAD + ROWS.replace("0.361", "0.99"), {}, r":3: radius 0\.99 is more than GaussianL2 can certify with n"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_one_error(
    tmp_path: Path, content: str | bytes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        take(tmp_path, content, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": NOISE | {"sigma": -1.0}}, "sigma must be finite and > 0, got -1.0"),
        ({"noise": NOISE | {"sigma": math.nan}}, "sigma must not be NaN"),
        ({"noise": NOISE | {"sigma": math.inf}}, "sigma must be finite"),
        ({"noise": {"class": "GausianNoise", "sigma": 1.0}}, "noise must be one of .*: did you mean GaussianNoise?"),
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"n0": -1}, "n0 must be a whole number >= 0, got -1"),
        ({"alpha": 0}, r"alpha must lie in \(0, 1\), got 0"),
        ({"alpha": 1.0}, r"alpha must lie in \(0, 1\), got 1.0"),
        ({"alpha": math.nan}, "alpha must not be NaN"),
        ({"norm": "l7"}, "norm must be one of l1, l2, linf, got 'l7': did you mean l"),
        ({"norm": "linf"}, "norm of certificate GaussianL2 is l2, got 'linf': did you mean l2?"),
        ({"certificate": "GaussianL3"}, "certificate must be one of .*, got 'GaussianL3': did you mean GaussianL"),
        ({"certificate": "LaplaceL1", "norm": "l1"}, "LaplaceL1 is proved for LaplaceNoise, got noise GaussianNoise"),
        ({"noise": {"class": "UniformNoise", "sigma": 1.0}}, "GaussianL2 is proved for GaussianNoise"),
        ({"ball": "closed"}, "ball of certificate GaussianL2 is open, got 'closed'"),
        ({"grid": 255}, "grid must be left out for certificate GaussianL2"),
    ],
)
def test_arguments_are_checked_against_each_other(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(tmp_path, HEAD + ROWS, **changes)


def test_exact_tables_need_alpha_zero_and_a_grid(tmp_path: Path) -> None:
    noise = {"class": "DeterministicSplittingNoise", "sigma": 0.25}
    exact: dict[str, Any] = {"noise": noise, "certificate": "DeterministicSplittingL1", "norm": "l1", "ball": "closed"}
    assert take(tmp_path, HEAD + ROWS, **exact, alpha=0, grid=255)[1].steps == 91
    with pytest.raises(ValueError, match="alpha must be 0 for certificate DeterministicSplittingL1, which is exact"):
        take(tmp_path, HEAD + ROWS, **exact, grid=255)
    with pytest.raises(ValueError, match="grid must be given"):
        take(tmp_path, HEAD + ROWS, **exact, alpha=0)


@pytest.mark.parametrize(
    ("noise", "certificate", "norm", "sigma", "largest"),
    [
        ("GaussianNoise", "GaussianL2", "l2", 0.25, 0.25 * 3.8115),
        ("GaussianNoise", "GaussianL1", "l1", 0.25, 0.25 * 3.8115),
        ("UniformNoise", "UniformL1", "l1", 0.5, 0.5 * math.sqrt(3)),
        ("LaplaceNoise", "LaplaceL1", "l1", 0.5, 0.5 / math.sqrt(2) * -math.log(2 * -math.log(0.001) / 1e5)),
    ],
)
def test_radii_beyond_unanimous_votes_are_refused(
    tmp_path: Path, noise: str, certificate: str, norm: str, sigma: float, largest: float
) -> None:
    given: dict[str, Any] = {"noise": {"class": noise, "sigma": sigma}, "certificate": certificate, "norm": norm}
    for factor, fine in ((0.99, True), (1.0, True), (1.03, False)):
        content = HEAD + ROWS.replace("0.361", f"{factor * largest:.3g}")
        if fine:
            take(tmp_path, content, **given)
        else:
            with pytest.raises(ValueError, match="is more than"):
                take(tmp_path, content, **given)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.377", 0.376), ("0.36", 0.35), ("0.5", 0.4), ("1.23", 1.22), ("1.2", 1.1), ("3", 2.0), ("0.0491", 0.049),
        ("0.0004", 0.0003), ("0.492837465", 0.491837465), ("12.3456", 12.2456), ("1e-05", 0.0),
        ("0.0", 0.0), ("0", 0.0),
    ],
)  # fmt: skip
def test_radii_are_lowered_by_the_larger_unit(printed: str, expected: float) -> None:
    assert lowered(Decimal(printed)) == pytest.approx(expected, rel=1e-14)


def test_no_rounding_of_a_program_survives_as_a_claim() -> None:
    rng = np.random.default_rng(0)
    for exact in np.concatenate([rng.random(300) * 4, rng.random(300) * 0.1, [0.3595, 0.99951, 0.09996, 1.995]]):
        for text in (f"{exact:.3}", f"{exact:.3f}", f"{exact:.2f}", f"{exact:.6f}", f"{exact:.3g}", repr(float(exact))):
            assert lowered(Decimal(text)) <= exact


def test_summary_lines_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "t.tsv", tmp_path / "o.jsonl"
    table.write_text(HEAD + ROWS + "mean 0.42\n")
    given = ["--sigma", "0.25", "--n", "100000", "--alpha", "0.001"]
    assert import_main([str(table), "--out", str(out), *given]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}: 3 images", "left out: line 5: mean 0.42"]


def test_theorem_five_needs_an_assertion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.tsv"
    table.write_text(HEAD + "".join(f"{i}\t3\t3\t0.361\t1\t1\n" for i in range(300)))
    given = ["--sigma", "0.25", "--n", "100000", "--alpha", "0.001"]
    for name, extra in (("unknown", []), ("asserted", ["--assert-independent"])):
        assert import_main([str(table), "--out", str(tmp_path / f"{name}.jsonl"), *given, *extra]) == 0
    [unknown], [asserted] = (load_runs([tmp_path / f"{name}.jsonl"]) for name in ("unknown", "asserted"))
    with pytest.raises(ValueError, match="whether every image had noise of its own, which Theorem 5 needs, is unknown"):
        unknown.lower_bound([0.25], 0.001, "exact")
    assert asserted.lower_bound([0.25], 0.001, "exact")[0] > 0.9
    capsys.readouterr()
    assert report_main([str(tmp_path / "unknown.jsonl")]) == 0
    assert "No bound on the whole set: unknown: imported, and whether" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["log.tsv", "log.txt", "log.tsv.gz"])
def test_report_of_a_table_says_how_to_import_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = tmp_path / name
    content = (HEAD + ROWS).encode()
    table.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert report_main([str(table)]) == 1
    error = capsys.readouterr().err
    assert f"python -m lightning_rs import {table} --out log.jsonl --sigma SIGMA --n N --alpha ALPHA" in error
    assert error.count("\n") == 1


def test_report_imports_tables_when_it_is_told_what_they_do_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.tsv", tmp_path / "two.tsv.gz"
    one.write_text(HEAD + ROWS)
    two.write_bytes(gzip.compress((HEAD + ROWS.replace("0.361", "0.461")).encode()))
    told = ["--sigma", "0.25", "--n", "1e5", "--alpha", "0.001"]
    assert main(["import", str(one), "--out", str(tmp_path / "own.jsonl"), *told]) == 0
    capsys.readouterr()
    assert main(["report", str(one), *told, "--radii", "0.3"]) == 0
    alone = capsys.readouterr().out
    assert main(["report", str(tmp_path / "own.jsonl"), "--name", "one", "--radii", "0.3"]) == 0
    assert alone == capsys.readouterr().out  # as if imported by hand
    assert "Imported: one" in alone
    named = ["--name", f"{two}=second"]
    assert main(["report", str(tmp_path / "own.jsonl"), str(one), str(two), *told, *named, "--radii", "0.4"]) == 0
    assert "Imported: own, one, second" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl") == [
        "own.jsonl",
        "own.sidecar.jsonl",
    ]
    assert main(["report", str(one), "--sigma", "0.25", "--alpha", "0.001"]) == 2
    assert "--n is missing" in capsys.readouterr().err
    assert main(["report", str(one), "--sigma", "0.05", "--n", "1e5", "--alpha", "0.001"]) == 2
    assert f"{one}:3: radius 0.361 is more than" in capsys.readouterr().err


def test_published_logs_are_read_whole(shared: Path) -> None:
    for sigma, most in (("0.12", 0.457), ("0.25", 0.953), ("0.50", 1.91), ("1.00", 3.81)):
        table = read_table(shared / "data" / "cohen-cifar10" / f"sigma_{sigma}.tsv")
        assert len(table.rows) == 10_000
        assert not table.summary
        assert float(max(row.radius for row in table.rows)) <= most + 0.01
