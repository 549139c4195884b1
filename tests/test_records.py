"""Records: the sentence, one record, the header."""

from __future__ import annotations

import dataclasses
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from lightning_rs.certificates.base import certificate_from_dict, describe_certificate
from lightning_rs.certificates.uniform import UniformTwoClassL1
from lightning_rs.records import (
    ABSTAIN,
    Certification,
    Header,
    ceil_decimals,
    environment,
    floor_decimals,
    round_down,
    round_up,
)
from lightning_rs.records.header import pack_indices, unpack_indices
from tests.fakes import (
    ABSTAINED,
    NOISE,
    certification,
    header,
)

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


def test_the_sentences_of_patches_and_pixels_count_pixels() -> None:
    exact: dict[str, Any] = {"alpha": 0.0, "ball": "closed", "top": -1}
    patch = repr(certification(norm="patch", radius=6.0, **exact))
    assert "exactly, no change within a square patch of side <= 6 pixels changes the smoothed prediction 7" in patch
    l0 = repr(certification(norm="l0", radius=5.0, **exact))
    assert "no change of <= 5 pixels changes the smoothed prediction 7" in l0


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
