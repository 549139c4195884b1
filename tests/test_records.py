"""Records: the sentence, the file format, killing the writer, locks, merge, tables."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_rs.certificates.base import certificate_from_dict, describe_certificate
from lightning_rs.certificates.uniform import UniformTwoClassL1
from lightning_rs.records import (
    ABSTAIN,
    Certification,
    Header,
    RecordFile,
    body_lines,
    ceil_decimals,
    environment,
    export_tsv,
    floor_decimals,
    import_tsv,
    merge,
    read_records,
    read_seconds,
    round_down,
    round_up,
    sidecar_path,
)
from lightning_rs.records.header import pack_indices, unpack_indices
from lightning_rs.records.tsv import parse_seconds
from tests.fakes import GAUSSIAN_L2, RUN, SHA, faithful, header_of, save, voted

NOISE = {"class": "GaussianNoise", "sigma": 0.25}


def certification(index: int = 0, **changes: Any) -> Certification:
    """Return a record whose votes support it, as far as ``changes`` do not say otherwise; its radius is its own."""
    alpha, hits = changes.get("alpha", 0.001), 980 - index % 60
    fields: dict[str, Any] = {
        "index": index,
        "label": 7,
        "prediction": 7,
        "norm": "l2",
        "certificate": "GaussianL2",
        "alpha": alpha,
        "n": 1000,
        "n_used": 1000,
        "top": 7,
        "runner_up": 3,
        "counts": (0, 0, 0, 1000 - hits, 0, 0, 0, hits, 0, 0),
        "counts0": (0, 0, 0, 1, 0, 0, 0, 9, 0, 0),
        **voted(hits, 1000, alpha if 0 < alpha < 1 else 0.001, 0.25),
        "image": SHA,
    }
    if "radius" in changes:
        fields["radii"] = {changes.get("certificate", "GaussianL2"): changes["radius"]}
    return Certification(**(fields | changes))


LOST = {"counts": (0, 0, 0, 490, 0, 0, 0, 510, 0, 0), "bounds": voted(510, 1000, 0.001, 0.25)["bounds"]}
ABSTAINED = {"prediction": ABSTAIN, "radius": 0.0, "status": "abstain", "radii": {"GaussianL2": 0.0}, **LOST}


def header(indices: range | list[int] = range(0, 60, 20), **changes: Any) -> Header:
    description: dict[str, Any] = {
        **RUN,
        "noise": NOISE,
        "certificates": [GAUSSIAN_L2],
        "n0": 10,
        "n": 1000,
        "alpha": 0.001,
        "budget": {"mode": "fixed"},
    }
    data = {"name": "digits", "sha256": "cd" * 32}
    # Fixed, because another process may commit while the tests run.
    where = {"versions": {"torch": "2.11"}, "git": "0123", "host": "here", "time": "now", "command": []}
    return Header.create(description | changes, data=data, indices=indices, informative=where)


# --- the sentence -----------------------------------------------------------------------------------------------------


def test_the_sentence_states_everything() -> None:
    text = repr(certification(12, radius=0.41239))
    assert text == (
        "image 12 (label 7): with probability >= 0.999 over the sampling, no l2 perturbation of norm < 0.4123 "
        "changes the smoothed prediction 7 (GaussianL2, n = 1000)"
    )
    assert str(certification(12, radius=0.41239)) == text


def test_the_sentence_of_an_exact_closed_statement_on_a_grid() -> None:
    record = certification(norm="l1", radius=127 / 255, alpha=0.0, ball="closed", grid=255, label=None, top=-1)
    assert repr(record).startswith(
        "image 0: exactly, no l1 perturbation of norm <= 0.498 between images on the grid {0, 1/255, ..., 1} changes"
    )


def test_the_sentences_without_a_radius() -> None:
    assert "abstains: no l2 radius could be certified at alpha = 0.001" in repr(certification(**ABSTAINED))
    decision: dict[str, Any] = {"mode": "decision", "target": 0.5, "radius": 0.0}
    assert "of norm < 0.5 changes" in repr(certification(status="decided", **decision))
    undecided = certification(status="undecided", prediction=ABSTAIN, **decision)
    assert "undecided whether the l2 radius reaches 0.5" in repr(undecided)
    assert "radius 0.5 could not be certified" in repr(certification(status="abstain", prediction=-1, **decision))


def test_the_stated_probability_is_never_rounded_up() -> None:
    assert "probability >= 0.9999999999 over" in repr(certification(alpha=1e-10))
    tiny = repr(certification(alpha=1e-40))
    assert "probability >= 0." + "9" * 40 + " over" in tiny


def test_a_note_is_part_of_the_sentence() -> None:
    assert repr(certification(note="gradient bound infeasible")).endswith("[gradient bound infeasible]")


def test_shortened_numbers_are_on_the_safe_side() -> None:
    rng = np.random.default_rng(0)
    for value in np.concatenate([rng.random(500) * 10.0 ** rng.integers(-9, 4, 500), [0.41, 1.0, 0.0, 9.9999999]]):
        for digits in (1, 3, 6):
            down, up = round_down(value, digits), round_up(value, digits)
            assert float(down) <= value <= float(up)
            step = Decimal(1).scaleb(Decimal(repr(float(value))).adjusted() - digits + 1)
            assert Decimal(repr(float(value))) - Decimal(down) < step
            assert Decimal(up) - Decimal(repr(float(value))) < step
        assert float(floor_decimals(value, 3)) <= value <= float(ceil_decimals(value, 3))
    assert round_down(0.41, 4) == "0.41"
    assert round_down(0.12999, 2) == "0.12"
    assert round_up(0.12001, 2) == "0.13"
    assert round_down(12345.6, 3) == "12300"
    assert floor_decimals(0.0019999, 3) == "0.001"
    with pytest.raises(ValueError, match="finite"):
        round_down(math.inf, 3)


# --- one record -------------------------------------------------------------------------------------------------------


def test_correct_and_certified_at() -> None:
    record = certification(radius=0.5)
    assert record.correct
    assert record.certified_at(0.0)
    assert record.certified_at(0.5)
    assert not record.certified_at(math.nextafter(0.5, 1))
    assert not certification(radius=0.5, label=3).certified_at(0.1)
    assert not certification(radius=0.5, label=None).correct
    assert not certification(label=-1, **ABSTAINED).correct, "a label of -1 is no abstention got right"
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="r must be >= 0"):
            record.certified_at(bad)


@pytest.mark.parametrize("q", [16, 255])
def test_on_a_grid_certified_at_counts_steps(q: int) -> None:
    for steps in (0, 1, 3, 127, 255):
        record = certification(radius=steps / q, norm="l1", ball="closed", grid=q, alpha=0.0)
        for wanted in range(300):
            # A distance of r holds floor(q r) steps: exactly at a step, and anywhere up to the next one.
            assert record.certified_at(wanted / q) == (wanted <= steps)
            assert record.certified_at((wanted + 0.5) / q) == (wanted <= steps)
    half = certification(radius=127 / 255, norm="l1", ball="closed", grid=255, alpha=0.0)
    assert half.certified_at(0.5), "127.5 steps are 127 steps: math.md E3"
    assert not half.certified_at(128 / 255)
    assert not half.certified_at(math.inf)


def test_the_grid_rule_is_only_for_closed_balls_of_norms_with_whole_steps() -> None:
    assert not certification(radius=127 / 255, grid=255, norm="l1").certified_at(0.5)
    # Two points of the grid may be sqrt(12) steps apart in l2: three steps do not cover three and a half.
    euclidean = certification(radius=3 / 16, grid=16, ball="closed", norm="l2")
    assert euclidean.steps is None
    assert euclidean.certified_at(3 / 16)
    assert not euclidean.certified_at(3.5 / 16)
    assert certification(radius=3 / 16, grid=16, ball="closed", norm="linf").steps == 3
    assert certification(radius=3 / 16, grid=16, ball="closed", norm="l1:red").certified_at(3.5 / 16)


def test_a_radius_between_steps_counts_the_whole_ones() -> None:
    between = certification(radius=2.9 / 16, grid=16, ball="closed", norm="l1")
    assert between.steps == 2
    assert not between.certified_at(3 / 16)


def test_decided_images_count_up_to_their_target() -> None:
    record = certification(mode="decision", status="decided", target=0.5, radius=0.0)
    assert record.certified_at(0.25)
    assert record.certified_at(0.5)
    assert not record.certified_at(0.51)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": math.nan}, "radius must be finite"),
        ({"radius": -0.1}, "radius must be finite and >= 0, got -0.1"),
        ({"radius": math.inf}, "radius must be finite"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        ({"prediction": ABSTAIN}, "prediction must be a class with status 'certified', got -1"),
        ({"status": "abstain"}, "with status 'abstain'"),
        ({"status": "abstain", "prediction": ABSTAIN}, "radius must be 0.0 with status 'abstain'"),
        ({"status": "decided"}, "status must be one of certified, abstain in mode 'fixed'"),
        ({"mode": "decision", "target": 0.5}, "status must be one of decided"),
        ({"target": 0.5}, "target must be given in decision mode and only there"),
        ({"ball": "half-open"}, "ball must be one of"),
        ({"mode": "fast"}, "mode must be one of"),
        ({"label": "7"}, "label must be a whole number"),
        ({"index": -1}, "index must be >= 0"),
        ({"grid": 0}, "grid must be"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certification(**changes)


def test_json_keeps_every_field_exactly() -> None:
    record = certification(
        3, radius=0.1 + 0.2, bounds={"z": -math.inf, "a": 1 / 3}, extra={"u": 0.25, "stages": [10, 100]}, note="é"
    )
    line = record.to_json()
    assert "\n" not in line
    assert "0.30000000000000004" in line
    assert Certification.from_json(line) == record
    assert list(json.loads(line)) == [f.name for f in dataclasses.fields(Certification)]
    assert list(json.loads(line)["bounds"]) == ["a", "z"], "nested keys are sorted: equal records give equal lines"


def test_numpy_numbers_give_the_same_line() -> None:
    plain = certification(3, radius=0.125)
    numpy = certification(
        np.int64(3), radius=np.float64(0.125), label=np.int64(7), prediction=np.int32(7),
        counts=tuple(np.array(plain.counts)), radii={"GaussianL2": np.float64(plain.radii["GaussianL2"])},
    )  # fmt: skip
    assert numpy.to_json() == plain.to_json()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not a line of JSON"),
        ('{"index": 1', "not a line of JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('{"index": 1}', "fields missing or unknown in the record: alpha, ball"),
        (certification().to_json().replace('"note"', '"nota"'), "nota, note"),
        (certification().to_json().replace('"radius":', '"radius":-', 1), "radius must be finite"),
        (certification().to_json().replace('"index":0', '"index":"0"', 1), "index must be a whole number"),
        (certification().to_json().replace('"counts":[0,', '"counts":["a",', 1), "invalid literal"),
    ],
)
def test_a_bad_line_is_one_error_that_says_where(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"run\.jsonl:5: .*" + message):
        Certification.from_json(line, "run.jsonl:5")


def test_another_certificate_of_the_same_pass() -> None:
    record = certification(radius=0.3, radii={"GaussianL2": 0.3, "First": 0.02, "Second": 0.0})
    first = record.under("First", "linf", "open", 0.001)
    assert (first.radius, first.norm, first.certificate, first.prediction) == (0.02, "linf", "First", 7)
    second = record.under("Second", "l1", "open", 0.001)
    assert (second.prediction, second.status) == (ABSTAIN, "abstain")
    assert record.under("GaussianL2", "l2", "open", 0.001) is record
    with pytest.raises(ValueError, match="certificate must be one of"):
        record.under("Third", "l1", "open", 0.001)
    weak = certification(**(ABSTAINED | {"radii": {"GaussianL2": 0.0, "First": 0.02}}))
    assert weak.under("First", "linf", "open", 0.001).prediction == 7, "the other may certify where the first abstains"
    exact = certification(alpha=0.0, radii={"GaussianL2": 0.1, "First": 0.02}).under("First", "l1", "open", 0.01)
    assert exact.alpha == 0.01


# --- headers ----------------------------------------------------------------------------------------------------------


def test_a_header_survives_the_file() -> None:
    made = header()
    again = Header.from_json(made.to_json())
    assert made.difference(again) == []
    assert again.expected == [0, 20, 40]
    assert not again.imported
    assert again.informative == made.informative


def test_events_of_alpha_are_read_by_the_names_that_they_have_now() -> None:
    """UniformTwoClassL1 had names of its own; inside LargestRadius an event also names its certificate."""
    old = {"p_lower": 1 / 3, "p_runner_up": 1 / 3, "p_top_two": 1 / 3}
    new = {"p_lower": 1 / 3, "runner_up_upper": 1 / 3, "others_upper": 1 / 3}
    certificate = UniformTwoClassL1("grouped")
    assert describe_certificate(certificate)["alpha_split"] == new
    assert certificate_from_dict({**describe_certificate(certificate), "alpha_split": old}) == certificate

    def made(split: dict[str, float]) -> Header:
        nested = {f"UniformTwoClassL1.{event}": share for event, share in split.items()}
        return header(certificates=[{"class": "UniformTwoClassL1", "alpha_split": s} for s in (split, nested)])

    assert Header.from_json(made(old).to_json()).difference(made(new)) == []


def test_difference_names_every_binding_field_with_both_values() -> None:
    other = header(noise=NOISE | {"sigma": 0.5}, alpha=0.01, n=1000.0)
    assert header().difference(other) == ["noise.sigma: 0.25 != 0.5", "alpha: 0.001 != 0.01"]
    split = header(certificates=[{"class": "GaussianL2", "norm": "l2", "alpha_split": {"p_lower": 0.9}}])
    assert header().difference(split) == ["certificates[0].alpha_split.p_lower: 1.0 != 0.9"]
    assert header().difference(header(extra=1)) == ["extra: '(absent)' != 1"]
    assert header(extra=1).difference(header()) == ["extra: 1 != '(absent)'"]
    assert header().difference(dataclasses.replace(header(), informative={"time": "another"})) == []


@pytest.mark.parametrize(
    "indices", [[], [5], [3, 9], [0, 1, 2, 3], [0, 20, 40], [4, 1, 7], [0, 1, 5, 6], list(range(10, 1000, 7))]
)
def test_indices_are_packed_without_loss(indices: list[int]) -> None:
    packed = pack_indices(indices)
    assert unpack_indices(json.loads(json.dumps(packed))) == sorted(indices)
    assert len(json.dumps(packed)) < 60


def test_repeated_indices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"indices must not repeat, got \[2\]"):
        pack_indices([1, 2, 2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("idx\tlabel", "not a line of JSON"),
        ("{}", "not a record file"),
        (header().to_json().replace('"version":2', '"version":99'), "version must be 2 or 1, got 99"),
        ('{"format":"lightning_rs records","version":1,"binding":3,"informative":{}}', "needs the objects"),
    ],
)
def test_a_bad_header_is_one_error(line: str, message: str) -> None:
    with pytest.raises(ValueError, match="run.jsonl:1: .*" + message):
        Header.from_json(line, "run.jsonl:1")


def test_the_environment_is_recorded_by_default() -> None:
    here = Header.create({}, data={}, indices=None).informative
    assert here.keys() == environment().keys() == {"versions", "git", "host", "platform", "time", "command"}
    assert here["versions"]["numpy"] == np.__version__


# --- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, indices: range | list[int], **changes: Any) -> Path:
    with RecordFile(path, header(**changes)) as file:
        file.append([certification(i) for i in indices if i not in file.done])
    return path


def test_write_read_resume(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    with RecordFile(path, header()) as file:
        assert file.done == frozenset()
        file.append([certification(40), certification(0)], seconds=[0.5, 0.25])
        assert file.done == {0, 40}
        # Visible to others at once: the line is on disk, not in a buffer.
        assert [r.index for r in read_records(path)[1]] == [0, 40]
    with RecordFile(path, header()) as file:
        assert file.done == {0, 40}
        file.append([certification(20)])
    head, records = read_records(path)
    assert head.difference(header()) == []
    assert records == [certification(0), certification(20), certification(40)]
    assert body_lines(path) == [r.to_json() for r in records]
    assert read_seconds(path) == {40: 0.5, 0: 0.25}
    assert sidecar_path(path) == tmp_path / "deep" / "run.sidecar.jsonl"
    assert sidecar_path(path).read_text().count('"environment"') == 2


def test_bodies_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", [0, 20, 40]), write(tmp_path / "b.jsonl", [40, 0, 20])
    assert one.read_text() != two.read_text()
    assert body_lines(one) == body_lines(two)


def test_a_torn_line_is_repaired_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl", [0, 20, 40])
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    path = tmp_path / "torn.jsonl"
    # Every byte of the last line, and a sample of the positions before it.
    for size in [*range(0, ends[-2], 37), *range(ends[-2], len(data) + 1)]:
        path.write_bytes(data[:size])
        with RecordFile(path, header()) as file:
            finished = int((ends <= size).sum())
            assert file.done == set([0, 20, 40][: max(0, finished - 1)])
            file.append([certification(i) for i in (0, 20, 40) if i not in file.done])
        assert body_lines(path) == body_lines(whole), size
        # Finished lines were not rewritten.
        assert path.read_bytes().startswith(data[: int(ends[finished - 1])] if finished else b"{")


def test_reading_ignores_a_torn_line_with_a_warning_and_leaves_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0, 20])
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    with pytest.warns(UserWarning, match="last line is unfinished"):
        records = read_records(path)[1]
    assert [r.index for r in records] == [0]
    assert path.read_bytes() == torn


def test_a_file_without_a_header_yet(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for content in (b"", header().to_json().encode()[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.jsonl:1: the header is missing or unfinished"):
            read_records(path)
    with pytest.raises(FileNotFoundError, match=r"no record file at .*nothing\.jsonl"):
        read_records(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("content", [b"important notes", b"important\nnotes\n", b"idx\tlabel\n", b"\x00\xff\n"])
def test_a_foreign_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes.txt:1: not a "):
        RecordFile(path, header())
    assert path.read_bytes() == content


def test_a_corrupt_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0, 20, 40])
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b'{"index": 20\n', b"\xff\xfe\n", b"\n", lines[2].replace(b'"radius":', b'"radius":-', 1)):
        content = b"".join([*lines[:2], bad, lines[3]])
        path.write_bytes(content)
        for attempt in (lambda: read_records(path), lambda: RecordFile(path, header()), lambda: body_lines(path)):
            with pytest.raises(ValueError, match=r"run\.jsonl:3: "):
                attempt()
        assert path.read_bytes() == content, "nothing is erased"


def test_a_finished_but_corrupt_last_line_is_not_mistaken_for_a_torn_one(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    path.write_bytes(path.read_bytes() + b'{"index": 20\n')
    with pytest.raises(ValueError, match=r"run\.jsonl:3: not a line of JSON"):
        RecordFile(path, header())


def test_a_repeated_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    with RecordFile(path, header()) as file:
        with pytest.raises(ValueError, match="image 0 is already recorded"):
            file.append([certification(20), certification(0)])
        with pytest.raises(ValueError, match="image 20 is already recorded"):
            file.append([certification(20), certification(20)])
        with pytest.raises(ValueError, match="got 1 for 2 records"):
            file.append([certification(20), certification(40)], seconds=[1.0])
        assert file.done == {0}
    assert len(body_lines(path)) == 1, "a refused batch leaves nothing behind"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(ValueError, match=r"run\.jsonl:3: image 0 is already on line 2"):
        read_records(path)


def test_another_binding_configuration_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another configuration than this run: n: 1000 != 100000; runtime.precision"):
        RecordFile(path, header(n=100_000, runtime={"precision": "32-true", "micro_batch": 400}))
    assert path.read_bytes() == before


def test_other_versions_only_warn(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    old = {"versions": {"torch": "0.1"}, "git": None, "host": "elsewhere"}
    RecordFile(path, dataclasses.replace(header(), informative=old)).close()
    with pytest.warns(UserWarning, match=r"resumed although versions\.torch: '0\.1' != ") as caught:
        RecordFile(path, header()).close()
    assert not any("host" in str(w.message) for w in caught)


def test_closed_files_do_not_write(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "run.jsonl", header())
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.append([certification(0)])


def test_a_failed_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    real = os.write

    def full_disk(fd: int, data: memoryview) -> int:
        if len(data) > 100:
            return real(fd, data[:100])
        raise OSError(28, "No space left on device")

    with RecordFile(path, header()) as file:
        monkeypatch.setattr(os, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            file.append([certification(20)])
        monkeypatch.undo()
        assert file.done == {0}
        file.append([certification(20)])
    assert [r.index for r in read_records(path)[1]] == [0, 20]


# --- processes --------------------------------------------------------------------------------------------------------

WRITER = """
import itertools, sys
sys.path.insert(0, {root!r})
from tests.test_records import certification, header
from lightning_rs.records import RecordFile
with RecordFile({path!r}, header(range(100_000))) as file:
    print("open", flush=True)
    for i in itertools.count() if sys.argv[1] == "for ever" else range(int(sys.argv[1])):
        if i not in file.done:
            file.append([certification(i)], seconds=[0.001])
            if i % 40 == 0:
                print("written", flush=True)
    print("holding", flush=True)
    sys.stdin.read()
"""


def writer(path: Path, *arguments: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    code = WRITER.format(root=root, path=str(path))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_twice_then_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """The writer never stops of its own accord, so that it is always killed while it writes."""
    path = tmp_path / "killed.jsonl"
    seen = 0
    for _ in range(2):
        with writer(path, "for ever") as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["open\n", "written\n", "written\n"]
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert path.stat().st_size > seen
        seen = path.stat().st_size
    with RecordFile(path, header(range(100_000))) as file:
        survivors = len(file.done)
        assert survivors > 80
        file.append([certification(i) for i in range(survivors + 50) if i not in file.done])
    whole = tmp_path / "whole.jsonl"
    with RecordFile(whole, header(range(100_000))) as file:
        file.append([certification(i) for i in range(survivors + 50)])
    assert body_lines(path) == body_lines(whole)
    assert set(read_seconds(path)) <= set(range(survivors + 50)), "a torn line of the sidecar is skipped"


def test_two_writers_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with writer(path, "3") as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["open\n", "written\n", "holding\n"]
            with pytest.raises(BlockingIOError, match=r"run\.jsonl is being written by another process"):
                RecordFile(path, header(range(100_000)))
            assert len(read_records(path)[1]) == 3, "reading needs no lock"
        finally:
            process.kill()
    with RecordFile(path, header(range(100_000))) as file:
        assert len(file.done) == 3, "the lock dies with its process"


# --- merge ------------------------------------------------------------------------------------------------------------


def test_merged_shards_equal_one_run(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"shard{i}.jsonl", indices) for i, indices in enumerate(([40, 0], [20]))]
    whole = write(tmp_path / "whole.jsonl", [0, 20, 40])
    out = tmp_path / "merged" / "all.jsonl"
    assert merge(parts, out) == 3
    assert body_lines(out) == body_lines(whole)
    assert out.read_text().splitlines()[1:] == body_lines(whole), "the merged file is in index order"
    merged = read_records(out)[0]
    assert merged.difference(header()) == []
    assert merged.informative["merged"] == ["shard0.jsonl", "shard1.jsonl"]
    before = out.read_bytes()
    assert merge(parts, out) == 3, "merging again changes nothing"
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out], "no temporary file is left"


def test_merge_refuses(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", [0, 20]), write(tmp_path / "b.jsonl", [20, 40])
    c, d = write(tmp_path / "c.jsonl", [40], seed=1), write(tmp_path / "d.jsonl", [60])
    e, out = write(tmp_path / "e.jsonl", [40]), tmp_path / "out.jsonl"
    for paths, message in (
        ([a, b], r"image 20 is in both .*a\.jsonl and .*b\.jsonl"),
        ([a, c], r"a\.jsonl was made with another configuration than .*c\.jsonl: seed: 0 != 1"),
        ([a], "1 images are missing: 40"),
        ([a, e, d], r"d\.jsonl:2: index must be one of the header's subset, got 60"),
        ([a, a], "image 0 is in both"),
        ([], "at least one record file"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(paths, out)
        assert not out.exists()
    with pytest.raises(FileNotFoundError, match=r"no record file at .*none\.jsonl"):
        merge([a, tmp_path / "none.jsonl"], out)
    with pytest.raises(ValueError, match="5 images are missing: 1, 2, 3, 4, 5"):
        merge([a], out, expected_indices=[0, 20, 1, 2, 3, 4, 5])
    e.write_bytes(e.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"e\.jsonl: the last line is unfinished"):
        merge([a, e], out)


def test_merge_never_overwrites(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", [0, 20]), write(tmp_path / "b.jsonl", [40])
    out = write(tmp_path / "out.jsonl", [0])
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"out\.jsonl exists and holds other records"):
        merge([a, b], out)
    assert out.read_bytes() == before
    foreign = tmp_path / "notes.txt"
    foreign.write_text("notes")
    with pytest.raises(ValueError, match="not a record file"):
        merge([a, b], foreign)
    assert foreign.read_text() == "notes"


# --- tables -----------------------------------------------------------------------------------------------------------

TABLE = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t3\t-1\t0.0\t0\t0:00:14.114881
20\t8\t8\t0.36\t1\t1 day, 1:00:01
40\t8\t2\t0.356\t0\t13.5
60\t0\t0\t0.331\t1\t2 days, 0:00:00.5
"""
GIVEN: dict[str, Any] = {"noise": NOISE, "n": 100_000, "n0": 100, "alpha": 0.001}


def test_import_reads_what_the_scripts_write(tmp_path: Path) -> None:
    table, out = tmp_path / "table.tsv", tmp_path / "run.jsonl"
    table.write_text(TABLE)
    assert import_tsv(table, out, **GIVEN) == 4
    head, records = read_records(out)
    assert head.imported
    assert head.binding["noise"] == NOISE
    assert (head.binding["n"], head.binding["alpha"], head.expected) == (100_000, 0.001, None)
    assert [(r.index, r.label, r.prediction, r.radius, r.correct) for r in records] == [
        (0, 3, -1, 0.0, False),
        (20, 8, 8, 0.35, True),  # 0.36 may have been 0.355: the last printed digit
        (40, 8, 2, 0.355, False),
        (60, 0, 0, 0.33, True),
    ]
    assert records[1].counts == ()
    assert "radius printed as 0.36" in repr(records[1])
    assert read_seconds(out) == {0: 14.114881, 20: 86400 + 3601.0, 40: 13.5, 60: 172800.5}
    before = out.read_bytes()
    assert import_tsv(table, out, **GIVEN) == 4, "importing again changes nothing"
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="exists and holds other records"):
        import_tsv(table, out, **(GIVEN | {"alpha": 0.01}))
    assert len(read_seconds(out)) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("idx\tlabel", "id\tlabel", r"table\.tsv:1: the columns idx are missing, got id, label"),
        ("0.36\t1", "0.36", r"table\.tsv:3: 6 columns expected, got 5"),
        ("0.36\t1", "x\t1", r"table\.tsv:3: column radius must be a finite number >= 0, got 'x'"),
        ("0.36\t1", "nan\t1", r"table\.tsv:3: column radius must be a finite number >= 0, got 'nan'"),
        ("0.36\t1", "0.36\t0", r"table\.tsv:3: column correct says 0, but label is 8 and predict is 8"),
        ("-1\t0.0", "-1\t0.1", r"table\.tsv:2: column radius must be 0 where the prediction is -1, got 0\.1"),
        ("20\t8", "0\t8", r"table\.tsv:3: image 0 occurs twice"),
        ("13.5", "soon", r"table\.tsv:4: column time must be a time such as 0:00:18\.5 or 18\.5, got 'soon'"),
    ],
)
def test_a_bad_table_is_one_error_that_names_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    table, out = tmp_path / "table.tsv", tmp_path / "run.jsonl"
    table.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        import_tsv(table, out, **GIVEN)
    assert not out.exists()


def test_import_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no table at .*none\.tsv"):
        import_tsv(tmp_path / "none.tsv", tmp_path / "run.jsonl", **GIVEN)
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.tsv:1: the file is empty: the columns idx, label, predict, radius"):
        import_tsv(tmp_path / "empty.tsv", tmp_path / "run.jsonl", **GIVEN)


def test_export_rounds_radii_down_and_returns(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    radii = [0.1 + 0.2, 0.4129999999, 2 / 3, 1e-9]
    records = [*(certification(i, radius=r) for i, r in enumerate(radii)), certification(4, **ABSTAINED)]
    head = header_of(records, header(range(5), noise=NOISE | {"sigma": 1.0}))
    records = [faithful(record, head) for record in records]
    with RecordFile(path, head) as file:
        file.append(records[:4], seconds=[18.583187, 90061.0, 0.0, 1.0])
        file.append(records[4:])
    out = tmp_path / "table.tsv"
    assert export_tsv(path, out) == 5
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert rows[1] == ["0", "7", "7", "0.300000", "1", "0:00:18.583187"]
    assert rows[2][3:] == ["0.412999", "1", "1 day, 1:01:01"]
    assert rows[5] == ["4", "7", "-1", "0.000000", "0", ""]
    for row, radius in zip(rows[1:], radii, strict=False):
        assert radius - 1e-6 < float(row[3]) <= radius
    with pytest.raises(FileExistsError):
        export_tsv(path, out)
    back = tmp_path / "back.jsonl"
    assert import_tsv(out, back, **(GIVEN | {"noise": NOISE | {"sigma": 1.0}})) == 5
    assert [r.prediction for r in read_records(back)[1]] == [7, 7, 7, 7, -1]


def test_export_refuses_what_the_table_cannot_say(tmp_path: Path) -> None:
    decided = certification(mode="decision", status="decided", target=0.5, radius=0.0)
    for record, message in ((decided, "decision mode and has no radius"), (certification(label=None), "has no label")):
        path, out = tmp_path / f"{record.mode}.jsonl", tmp_path / "table.tsv"
        save(path, [record], header())
        with pytest.raises(ValueError, match=message):
            export_tsv(path, out)
        assert not out.exists()


def test_both_time_formats() -> None:
    for text, seconds in (
        ("0:00:18.583187", 18.583187),
        ("1 day, 0:00:01", 86401.0),
        ("3 days, 2:03:04.5", 3 * 86400 + 7384.5),
        ("10:00:00", 36000.0),
        ("18.583187", 18.583187),
        ("7", 7.0),
        ("1e-3", 0.001),
    ):
        assert parse_seconds(text) == pytest.approx(seconds, abs=1e-9)
    assert parse_seconds(" ") is None
    with pytest.raises(ValueError, match="soon"):
        parse_seconds("soon")
