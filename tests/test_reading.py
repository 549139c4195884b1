"""Reading believes nothing: every field of a valid record, changed, is refused with file, line, field and value."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lightning_rs import certificates
from lightning_rs.budgets import DecideRadius, RandomizedBound, StagedSamples
from lightning_rs.certifier import Certifier
from lightning_rs.class_paths import class_named
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import GaussianNoise, LaplaceNoise, Noise, UniformNoise
from lightning_rs.records import Certification, Header, RecordFile, export_tsv, merge, read_records
from lightning_rs.records.binding import REQUIRED
from lightning_rs.records.recomputed import PLAIN
from lightning_rs.records.verification import NOT_CHECKED
from lightning_rs.report import report
from tests.fakes import certification, changed
from tests.helpers import HalfSpace, every_change, odd

# Facts about the data, remarks for people, and extra facts that no radius follows from.
HARMLESS = {*NOT_CHECKED, "extra", "image"}
NETWORK = HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.2)


def made(path: Path, noise: Noise, certifier: Certifier) -> Path:
    x = torch.linspace(0.0, 1.0, 4)[:, None] * torch.ones(4)
    session = certifier.session(NETWORK, noise, (4,))
    records = list(session.certify(x, torch.tensor([0, 1, 1, 1])))
    header = Header.create(session.describe(), data={"name": "line"}, indices=range(4))
    with RecordFile(path, header) as file:
        file.append(records)
    return path


CASES: dict[str, tuple[Noise, dict[str, Any]]] = {
    "cohen": (GaussianNoise(0.5), {}),
    "several": (
        GaussianNoise(0.5),
        {"certificates": [certificates.GaussianL2(), certificates.GaussianLinf(), certificates.GaussianTwoClassL2()]},
    ),
    "uniform": (UniformNoise(1.0), {"certificates": [certificates.UniformL1(), certificates.UniformBoxL1()]}),
    "laplace": (LaplaceNoise(0.5), {"certificates": [certificates.LaplaceL1()]}),
    "staged": (GaussianNoise(0.5), {"budget": StagedSamples()}),
    "randomized": (GaussianNoise(0.5), {"budget": RandomizedBound()}),
    "decision": (GaussianNoise(0.5), {"budget": DecideRadius(0.2)}),
    "lecuyer": (GaussianNoise(0.5), {"certificates": [certificates.LecuyerL2()]}),
}


def _same_threshold(field: str, record: dict[str, Any], before: dict[str, Any]) -> bool:
    return field == "bounds" and record[field].get("threshold") == before[field]["threshold"]


def refusal(path: Path) -> str | None:
    """Return why a file is refused, None if it is read."""
    try:
        read_records(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", CASES)
def test_every_mutation_is_refused(case: str, tmp_path: Path) -> None:
    noise, changes = CASES[case]
    certifier = Certifier(n0=20, n=400, alpha=0.01, runtime=Runtime(micro_batch=64), **changes)
    path = made(tmp_path / "run.jsonl", noise, certifier)
    lines = path.read_text().splitlines()
    assert len(read_records(path)[1]) == 4
    tried = 0
    accepted = []
    for row in (1, 4):
        before = json.loads(lines[row])
        for field, record in every_change(before):
            path.write_text("\n".join([*lines[:row], json.dumps(record), *lines[row + 1 :], ""]))
            tried += 1
            told = refusal(path)
            if told is None:
                # Decisions have no radius from which a rounding distance is taken; it is a fact for people there.
                unread = (
                    case == "decision" and record[field] != before[field] and _same_threshold(field, record, before)
                )
                accepted += [] if unread else [(field, record[field])]
            else:
                assert told.startswith(f"{path}:")
                assert "\n" not in told
    assert tried > 100
    assert {field for field, _ in accepted} <= HARMLESS, [each for each in accepted if each[0] not in HARMLESS][:5]


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_record_at_all_is_one_line(case: str, tmp_path: Path) -> None:
    """Any other error than the refusal would reach the user as a traceback."""
    noise, changes = CASES[case]
    path = made(tmp_path / "run.jsonl", noise, Certifier(n0=20, n=400, alpha=0.01, **changes))
    header, first, *_ = path.read_text().splitlines()
    files = [(header, json.dumps(record)) for record in odd(json.loads(first))]
    files += [(json.dumps(record), first) for record in odd(json.loads(header))]
    assert len(files) > 500
    refused = 0
    for lines in files:
        path.write_text("\n".join([*lines, ""]))
        told = refusal(path)
        refused += told is not None
        assert told is None or (told.startswith(f"{path}:") and "\n" not in told)
    assert refused > len(files) / 2


@pytest.fixture
def cohen(tmp_path: Path) -> Path:
    certifier = Certifier(n0=20, n=400, alpha=0.01, runtime=Runtime(micro_batch=64, threads=1))
    return made(tmp_path / "run.jsonl", GaussianNoise(0.5), certifier)


class TestHeaders:
    @pytest.mark.parametrize("key", REQUIRED)
    def test_a_header_without_a_key_is_refused_not_believed(self, key: str, cohen: Path) -> None:
        changed(cohen, lambda head: head["binding"].pop(key))
        changed(cohen, lambda record: record.update(radius=99.0, radii={"GaussianL2": 99.0}), 4)
        with pytest.raises(ValueError, match=rf"run\.jsonl:1: binding\.{key} is missing"):
            read_records(cohen)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("function", {}, "binding.function.class is missing"),
            ("function", None, "binding.function must be an object, got None"),
            ("lattice", {}, "binding.lattice must be null or have grid"),
            ("alpha", 7, "binding.alpha must lie in"),
            ("n", 0, "binding.n must be a whole number >= 1, got 0"),
            ("certificates", [], "binding.certificates must list one certificate or more"),
            ("imported", "yes", "binding.imported must be true or false, got 'yes'"),
        ],
    )
    def test_impossible_values_are_refused(self, key: str, value: Any, message: str, cohen: Path) -> None:
        changed(cohen, lambda head: head["binding"].update({key: value}))
        with pytest.raises(ValueError, match=rf"run\.jsonl:1: {message}"):
            read_records(cohen)

    def test_a_noise_law_cannot_add_to_alpha(self, cohen: Path) -> None:
        changed(cohen, lambda head: head["binding"]["lattice"].update(alpha_noise=-0.5))
        with pytest.raises(ValueError, match=r"run\.jsonl:1: binding\.lattice\.alpha_noise must lie in \[0, alpha"):
            read_records(cohen)

    def test_calling_a_file_imported_does_not_make_it_believed(self, cohen: Path) -> None:
        changed(cohen, lambda head: head["binding"].update(imported=True, independent=True))
        with pytest.raises(ValueError, match=r"run\.jsonl:2: counts must be empty in an imported record"):
            read_records(cohen)
        bare = {"counts": [], "counts0": [], "bounds": {}, "radii": {}, "image": "", "top": -1, "runner_up": -1}
        for row in range(1, 5):
            changed(cohen, lambda record: record.update(bare), row)
        assert read_records(cohen)[0].imported
        changed(cohen, lambda record: record.update(radius=99.0), 4)
        with pytest.raises(ValueError, match=r"run\.jsonl:5: radius must be at most .*, what n votes certify, got 99"):
            read_records(cohen)

    def test_a_header_that_binds_too_little_is_not_written(self, tmp_path: Path) -> None:
        poor = Header.create({"n": 100}, data={}, indices=[0])
        with pytest.raises(ValueError, match=r"run\.jsonl cannot be written: binding\.noise is missing"):
            RecordFile(tmp_path / "run.jsonl", poor)

    def test_the_sentence_about_arithmetic_is_the_header_s(self, cohen: Path) -> None:
        changed(cohen, lambda record: record["extra"].update(arithmetic="exact for everything"), 1)
        with pytest.raises(ValueError, match=r"run\.jsonl:2: extra\['arithmetic'\] must be .*, as in the header"):
            read_records(cohen)


class TestVersionOne:
    """A file that lightning_rs 0.1 wrote."""

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        return Path(shutil.copy(Path(__file__).parent / "records_of_version_1.jsonl", tmp_path / "old.jsonl"))

    def test_it_is_reported_with_one_remark(self, old: Path) -> None:
        made = report([old])
        (remark,) = made.remarks
        assert "is of record format version 1 (lightning_rs 0.1), which does not bind the function" in remark
        assert "the images" in remark
        assert len(made.groups) == 2
        assert report([old], alpha=0.05).groups

    def test_the_remark_reaches_every_format(self, old: Path, tmp_path: Path) -> None:
        made = report([old], tmp_path / "out", formats=["csv", "md", "tex"])
        assert str(made).count("does not bind the function") == 2, "once a norm"
        for name in ("report.csv", "report.md", "report.tex", "report_tables.tex", "report_linf.md", "report_linf.tex"):
            lines = (tmp_path / "out" / name).read_text().splitlines()
            said = [line for line in lines if "does not bind the function" in line]
            assert said, name
            assert not any(line.startswith("%") for line in said), f"a comment of {name} reaches no reader"

    def test_it_is_merged_and_exported_with_a_warning(self, old: Path, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match=r"all\.jsonl is of record format version 1"):
            assert merge([old], tmp_path / "all.jsonl") == 4
        assert read_records(tmp_path / "all.jsonl")[0].version == 1
        with pytest.warns(UserWarning, match=r"old\.jsonl is of record format version 1"):
            assert export_tsv(old, tmp_path / "table.tsv") == 4

    def test_it_is_not_resumed(self, old: Path, cohen: Path) -> None:
        before = old.read_bytes()
        with pytest.raises(ValueError, match=r"old\.jsonl is of record format version 1.*, but not resumed"):
            RecordFile(old, read_records(cohen)[0])
        assert old.read_bytes() == before
        with pytest.raises(ValueError, match=r"version: 1 != 2"):
            merge([old, cohen], old.parent / "out.jsonl")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"radius": 99.0}, "radius must be radii"),
            (
                {"radius": 9.0, "radii": {"GaussianL2": 9.0, "GaussianLinf": 0.3}},
                r"radii\['GaussianL2'\] must be 0\.63",
            ),
            ({"counts": [0, 10]}, "counts must be 400 in all"),
            ({"alpha": 0.0}, "alpha must be > 0: GaussianL2 was sampled"),
            ({"norm": "linf"}, "norm must be 'l2', that of GaussianL2"),
            ({"certificate": "Better"}, "radius must be radii"),
            ({"prediction": 2}, "prediction must be one of the 2 classes counted, got 2"),
        ],
    )
    def test_contradictions_are_refused_in_it_too(self, change: dict[str, Any], message: str, old: Path) -> None:
        changed(old, lambda record: record.update(change), 4)
        with pytest.raises(ValueError, match=rf"old\.jsonl:5: {message}"):
            read_records(old)

    def test_a_new_file_called_old_is_still_recomputed(self, cohen: Path) -> None:
        changed(cohen, lambda head: head.update(version=1))
        assert read_records(cohen)[0].legacy
        changed(cohen, lambda record: record.update(radius=0.7, radii={"GaussianL2": 0.7}), 4)
        with pytest.raises(ValueError, match=r"run\.jsonl:5: radii"):
            read_records(cohen)


class TestOneRecord:
    """``Certification.from_json`` alone, without a header."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"radius": 99.0}, r"radius must be radii\['GaussianL2'\] = 0\.\d+, got 99\.0"),
            ({"radii": {}}, "radius must be radii"),
            ({"radii": {"GaussianL2": math.inf}}, r"radii\['GaussianL2'\] must be finite and >= 0"),
            ({"counts": [5, 5]}, "counts must be 400 in all, as n_used says"),
            ({"counts": [-1, 401]}, "counts must be >= 0"),
            ({"counts": [0.5, 399.5]}, "counts must be whole numbers"),
            ({"n_used": 401}, "n_used must be at most n = 400"),
            ({"alpha": 0.0}, "alpha must be > 0: GaussianL2 was sampled, got 0.0"),
            ({"norm": "l7"}, "norm must be one of l0, l1, l2, linf, patch"),
            ({"prediction": 2}, "prediction must be one of the 2 classes counted, got 2"),
            ({"bounds": {"p_lower": 1.5}}, r"bounds\['p_lower'\] must be a probability, got 1\.5"),
            ({"bounds": {"p_lower": -0.1}}, r"bounds\['p_lower'\] must be a probability"),
            ({"bounds": {"p_lower": math.nan}}, r"bounds\['p_lower'\] must be a probability"),
            ({"bounds": {"Other.p_lower": 0.9999}}, r"bounds\['Other\.p_lower'\] must be at most the share 0\.\d+ of"),
        ],
    )
    def test_a_contradiction_is_refused(self, change: dict[str, Any], message: str, cohen: Path) -> None:
        line = cohen.read_text().splitlines()[4]
        record = Certification.from_json(line)
        assert 0.5 < record.counts[1] / 400 < 0.9999
        values = json.loads(dataclasses.replace(record).to_json()) | {
            key: value if not isinstance(value, dict) else {k: _plain(v) for k, v in value.items()}
            for key, value in change.items()
        }
        with pytest.raises(ValueError, match=rf"^here: {message}"):
            Certification.from_json(json.dumps(values), "here")

    def test_an_exact_name_needs_exact_facts(self) -> None:
        record = certification(
            alpha=0.0, certificate="DeterministicSplittingL1", norm="l1", ball="closed", grid=16, radius=0.5,
            top=-1, runner_up=-1, counts0=(), bounds={},
        )  # fmt: skip
        assert Certification.from_json(record.to_json()) == record
        selected = dataclasses.replace(record, top=7)
        with pytest.raises(ValueError, match="alpha must be > 0: DeterministicSplittingL1 was sampled"):
            Certification.from_json(selected.to_json())


class TestLess:
    """A radius below the recomputed one is safe; it is read where the record says why, and only there."""

    NOTE = "earlier remark; GaussianL2: none, since 3 votes are within the logit margin and logits move by 1e-06"
    NOTHING: ClassVar[dict[str, Any]] = {
        "radius": 0.0, "radii": {"GaussianL2": 0.0}, "prediction": -1, "status": "abstain",
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "because"),
        [
            ({**NOTHING, "note": NOTE}, None),
            (NOTHING, "radii"),
            ({**NOTHING, "note": "Other: none, since 3 votes are within the logit margin"}, "radii"),
            ({"radius": 0.1, "radii": {"GaussianL2": 0.1}, "note": NOTE}, "radii"),
            ({"radius": 0.1, "radii": {"GaussianL2": 0.1}}, "radii"),
            ({"radius": 0.1, "radii": {"GaussianL2": 0.1}, "doubtful": 3}, None),
            ({**NOTHING, "doubtful": 3}, None),
            ({"radius": 9.9, "radii": {"GaussianL2": 9.9}, "doubtful": 3, "note": NOTE}, "radii"),
            ({"prediction": 0, "doubtful": 3, "note": NOTE}, "prediction"),
        ],
    )
    def test_only_where_the_record_says_why(self, change: dict[str, Any], because: str | None, cohen: Path) -> None:
        own = {key: value for key, value in change.items() if key != "doubtful"}

        def edit(record: dict[str, Any]) -> None:
            record.update(own)
            record["extra"].update({key: value for key, value in change.items() if key == "doubtful"})

        changed(cohen, edit, 4)
        told = refusal(cohen)
        if because is None:
            assert told is None
        else:
            assert told is not None
            assert told.startswith(f"{cohen}:5: {because}")

    def test_one_certificate_of_several_may_be_given_up(self, tmp_path: Path) -> None:
        noise, changes = CASES["several"]
        certifier = Certifier(n0=20, n=400, alpha=0.01, runtime=Runtime(micro_batch=64), **changes)
        path = made(tmp_path / "run.jsonl", noise, certifier)
        why = "GaussianLinf, GaussianTwoClassL2: none, since 3 votes are within the logit margin"

        def give_up(record: dict[str, Any], note: str) -> None:
            record["radii"].update(GaussianLinf=0.0, GaussianTwoClassL2=0.0)
            record["note"] = note

        changed(path, lambda record: give_up(record, why), 4)
        assert read_records(path)[1][3].radii["GaussianLinf"] == 0.0
        changed(path, lambda record: give_up(record, "GaussianLinf: none, since it is late"), 4)
        with pytest.raises(ValueError, match=r"run\.jsonl:5: radii\['GaussianTwoClassL2'\] must be"):
            read_records(path)


def _plain(value: float) -> Any:
    return value if math.isfinite(value) else repr(value)


def test_ten_thousand_records_are_read_in_a_moment(tmp_path: Path) -> None:
    certifier = Certifier(n0=20, n=400, runtime=Runtime(micro_batch=64))
    path = made(tmp_path / "run.jsonl", GaussianNoise(0.5), certifier)
    head, *lines = path.read_text().splitlines()
    many = json.loads(head)
    many["binding"]["subset"] = {"start": 0, "stop": 10_000, "step": 1}
    body = [json.dumps({**json.loads(lines[i % 4]), "index": i}) for i in range(10_000)]
    path.write_text("\n".join([json.dumps(many), *body, ""]).replace('{"format": ', '{"format":', 1))
    start = time.process_time()
    assert len(read_records(path)[1]) == 10_000
    assert time.process_time() - start < 5, "about one second; a bound against solving for every image"


def test_the_theorems_in_numbers_are_the_theorems() -> None:
    for name, plain in PLAIN.items():
        theorem = class_named(name, certificates.Certificate, "certificate")  # type: ignore[type-abstract]
        assert plain.norm == theorem().norm
        assert theorem.ball == "open"
        assert not theorem.exact
        assert plain.laws == tuple(law.__name__ for law in theorem.noises)
        assert theorem.votes_only
    assert np.isfinite(PLAIN["GaussianLinf"].radius({"sigma": 1.0}, 9, np.array([0.1]), None)).all()
