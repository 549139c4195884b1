"""Transfer between classifiers: paired noise is the same, coverage with a planted mistake, files that bind both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr
from torch import nn

from lightning_rs import Certifier, GaussianNoise, Runtime
from lightning_rs.certificates import (
    AblationL0,
    Certificate,
    LaplaceL1,
    NormPowerL2,
    SplittingL1,
    UniformL1,
    UniformLinf,
)
from lightning_rs.cli import main
from lightning_rs.functional import clopper_pearson_upper, gaussian_l2_radius
from lightning_rs.noise import AblationNoise, LaplaceNoise, NormPowerNoise, SplittingNoise, UniformNoise
from lightning_rs.noise.base import Noise
from lightning_rs.records import Certification, Header, read_records
from lightning_rs.records.combination import Part, Transfer, transfer_records
from lightning_rs.records.writing import write_whole
from lightning_rs.session import Session
from lightning_rs.transfer import _answers as answers
from lightning_rs.transfer import count_harmful, describe_transfer, paired_answers, transfer, transfer_header
from tests.fakes import changed
from tests.helpers import HalfSpace

SIGMA, SHAPE, N = 0.5, (1, 2, 2), 400
FIRST, SECOND = HalfSpace(torch.ones(4), 1.6), HalfSpace(torch.tensor([1.0, 1.0, 1.0, 1.4]), 1.9)


def session(network: HalfSpace, sigma: float = SIGMA, micro_batch: int = 128, alpha: float = 0.05) -> Session:
    certifier = Certifier(n0=20, n=N, alpha=alpha, runtime=Runtime(micro_batch=micro_batch))
    return certifier.session(network, GaussianNoise(sigma), SHAPE, domain=(0.0, 1.0), grid=255)


def images(count: int, level: float = 0.6) -> torch.Tensor:
    return torch.full((count, *SHAPE), round(level * 255) / 255)


def header(source: Session, indices: Sequence[int]) -> Header:
    return Header.create(source.describe(), data={"name": "grey"}, indices=indices)


def certified(source: Session, x: torch.Tensor) -> tuple[Header, list[Certification]]:
    records = list(source.certify(x, labels=[1] * len(x)))
    return header(source, range(len(x))), records


def probability(network: HalfSpace, x: torch.Tensor) -> float:
    score = float(x.flatten().double() @ network.weight.detach().double()) - network.offset
    return float(ndtr(score / (SIGMA * float(network.weight.detach().double().norm()))))


def test_both_see_the_same_noise_whatever_runs() -> None:
    source, target = session(FIRST), session(SECOND)
    x = images(3)
    for each in (source, target):
        each.probe(x)
    one, _ = answers(source, source, x, [0, 1, 2], 300, 5)
    two, _ = answers(source, target, x, [0, 1, 2], 300, 5)
    assert (one.labels >= 0).all()
    assert torch.equal(one.marks, two.marks)
    assert len(one.marks.unique()) == 900, "every sample has noise of its own"
    top = np.ones(3, dtype=np.int64)
    found = paired_answers(source, target, x, [0, 1, 2], top, 300, 5)
    expected = ((one.labels == 1) & (two.labels != 1)).sum(1)
    assert found.harmful.tolist() == expected.tolist()
    assert expected.sum() > 0
    other, _ = answers(source, target, x, [0, 1, 2], 300, 6)
    with pytest.raises(ValueError, match="both classifiers must see the same noise: 900 of 900 samples differ"):
        count_harmful(one, other, top, np.zeros(3, dtype=bool))


def test_doubtful_answers_count_as_the_worse_case() -> None:
    source = session(FIRST)
    x = images(1)
    source.probe(x)
    one, _ = answers(source, source, x, [0], 100, 5)
    two, _ = answers(source, source, x, [0], 100, 5)
    top, fine = np.ones(1, dtype=np.int64), np.zeros(1, dtype=bool)
    assert count_harmful(one, two, top, fine).harmful.tolist() == [0]
    with torch.inference_mode():
        two.doubtful[0, :30] = True
    surely = int((one.labels[0, :30] == 1).sum())
    assert count_harmful(one, two, top, fine).harmful.tolist() == [surely]
    with torch.inference_mode():
        one.doubtful[0, :30] = True
    assert count_harmful(one, two, top, fine).harmful.tolist() == [30]


def test_the_radius_is_the_sum_of_two_bounds() -> None:
    source, target = session(FIRST), session(SECOND)
    head, records = certified(source, images(4))
    made = transfer(head, records, source, target, images(4), pairs=200, alpha=0.01, seed=3)
    for old, new in zip(records, made, strict=True):
        more = float(clopper_pearson_upper(new.extra["harmful"], 200, 0.01 - target.lattice.spent(200, 4)))  # type: ignore[union-attr]
        expected = float(gaussian_l2_radius(q_upper=min(1.0, old.bounds["q_upper"] + more), sigma=SIGMA))
        assert new.radius == pytest.approx(expected, rel=1e-9)
        assert new.radius < old.radius
        assert new.alpha == pytest.approx(0.06)
        assert (new.certificate, new.norm, new.index, new.label) == ("Transfer", "l2", old.index, 1)


def test_statements_fail_no_more_often_than_alpha_and_a_planted_mistake_does() -> None:
    """The second classifier's p is just above one half: what is certified beyond its tiny radius is false."""
    alpha, count = 0.05, 400
    source, target = session(FIRST, alpha=alpha / 2), session(SECOND)
    x = images(count, 0.443)
    p = probability(SECOND, x[0])
    radius = SIGMA * float(stats.norm.ppf(p))
    assert 0 < radius < 0.05
    head, records = certified(source, x)
    made = transfer(head, records, source, target, x, pairs=200, alpha=alpha / 2)
    wrong = sum(record.radius > radius for record in made)
    assert stats.binomtest(wrong, count, alpha, alternative="greater").pvalue > 1e-6
    # Planted: the records are handed on as if no pair were harmful.
    part, harmless = Part.of(head, records), np.zeros(count, dtype=np.int64)
    planted = transfer_records(part, harmless, harmless.astype(bool), Transfer(10**6, alpha / 2, alpha / 2))
    wrong = sum(record.radius > radius for record in planted)
    assert stats.binomtest(wrong, count, alpha, alternative="greater").pvalue < 1e-6


def test_other_samples_and_other_classifiers_are_refused() -> None:
    source = session(FIRST)
    head, records = certified(source, images(2))
    for target, message in (
        (session(SECOND, sigma=0.25), "see the same samples, but their noise differs"),
        (session(SECOND, micro_batch=64), "but their micro-batch differs: 128 != 64"),
    ):
        with pytest.raises(ValueError, match=message):
            transfer(head, records, source, target, images(2), pairs=50)
    with pytest.raises(ValueError, match="records are of another classifier than"):
        transfer(head, records, session(SECOND), session(SECOND), images(2), pairs=50)
    with pytest.raises(ValueError, match="image 0 is not the recorded one"):
        transfer(head, records, source, session(SECOND), images(2, 0.5), pairs=50)
    for entry, message in (
        ({"class": "GaussianTwoClassL2"}, "GaussianTwoClassL2 reads more than the tail of one class"),
        ({"class": "DipoleL2"}, "DipoleL2 reads more than the tail of one class"),
        ({"class": "PatchBand"}, "PatchBand evaluates all outcomes, as certify would for the other classifier"),
        ({"class": "PureLinf"}, "PureLinf rests on a table that fails for all images at once: certify"),
    ):
        other = dataclasses.replace(head, binding={**head.binding, "certificates": [entry]})
        with pytest.raises(ValueError, match=message):
            transfer(other, records, source, session(SECOND), images(2), pairs=50)
    with pytest.raises(ValueError, match="pairs must be a whole number >= 1, got 0"):
        transfer(head, records, source, session(SECOND), images(2), pairs=0)


class Brightness(nn.Module):
    """Class 1 where the first pixel, as it is seen, exceeds a threshold; a dropped pixel does not."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1)[:, 0] - self.threshold
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Seen(nn.Module):
    """Class 1 where one of the first pixels, so many, is kept."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.register_buffer("weight", (torch.arange(4) < pixels).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x.flatten(1) >= 0).to(x.dtype) @ self.weight - 0.5
        return torch.stack([torch.zeros_like(score), score], dim=1)


GREY = 153 / 255
DARKER, BRIGHTER = Brightness(0.3), Brightness(0.45)
LAWS: dict[str, tuple[Certificate, Noise, nn.Module, nn.Module]] = {
    "uniform": (UniformL1(), UniformNoise(0.5), DARKER, BRIGHTER),
    "uniform linf": (UniformLinf(), UniformNoise(0.5), DARKER, BRIGHTER),
    "splitting": (SplittingL1(), SplittingNoise(0.5), Brightness(0.45), Brightness(0.55)),
    "laplace": (LaplaceL1(), LaplaceNoise(0.3), DARKER, BRIGHTER),
    "norm power": (NormPowerL2(), NormPowerNoise(sigma=SIGMA, k=2, dim=4), DARKER, BRIGHTER),
    "ablation": (AblationL0(), AblationNoise(1, shape=SHAPE), Seen(3), Seen(2)),
}


def true_tail(noise: Noise, network: nn.Module) -> float:
    """Return 1 - p of class 1 by four hundred thousand copies, less four standard errors."""
    with torch.no_grad():
        x = torch.full((400_000, *SHAPE), GREY)
        wrong = float((network(noise(x, torch.Generator().manual_seed(99))).argmax(1) == 0).double().mean())
    return wrong - 4 * (0.25 / 400_000) ** 0.5


@pytest.mark.parametrize("law", LAWS)
def test_every_law_of_one_tail_is_carried_and_covers(tmp_path: Path, law: str) -> None:
    """The second classifier's tail is bounded from above, whatever the noise; records read what it certifies."""
    certificate, noise, first, second = LAWS[law]
    alpha, count = 0.05, 120
    sessions = []
    for network in (first, second):
        certifier = Certifier([certificate], n0=20, n=N, alpha=alpha / 2, runtime=Runtime(micro_batch=128))
        sessions.append(certifier.session(network, noise, SHAPE, domain=(0.0, 1.0), grid=255))
    source, target = sessions
    x = torch.full((count, *SHAPE), GREY)
    head, records = certified(source, x)
    made = transfer(head, records, source, target, x, pairs=200, alpha=alpha / 2)
    tail = true_tail(noise, second)
    assert true_tail(noise, first) < tail < 0.55
    wrong = sum(record.top == 1 and record.bounds["q_upper"] < tail for record in made)
    assert stats.binomtest(wrong, count, alpha, alternative="greater").pvalue > 1e-6
    # Planted: the records are handed on as if no pair were harmful.
    none = np.zeros(count, dtype=np.int64)
    planted = transfer_records(Part.of(head, records), none, none.astype(bool), Transfer(10**6, alpha / 2, alpha / 2))
    wrong = sum(record.top == 1 and record.bounds["q_upper"] < tail for record in planted)
    assert stats.binomtest(wrong, count, alpha, alternative="greater").pvalue < 1e-6
    assert {(record.norm, record.ball) for record in made} == {(certificate.norm, certificate.ball)}
    told, path = describe_transfer(source, target, 200, alpha / 2, 0), tmp_path / "t.jsonl"
    write_whole(path, transfer_header(head, told), [record.to_json() for record in made])
    assert read_records(path)[1] == made
    with pytest.raises(ValueError, match=r"must be .*, from its parts, got"):
        read_records(changed(path, lambda r: r.update(radius=3.0, radii={"Transfer": 3.0}, prediction=1,
                                                      status="certified"), 1, tmp_path / "c.jsonl"))  # fmt: skip


def test_files_bind_both_classifiers_and_are_computed_again(tmp_path: Path) -> None:
    source, target = session(FIRST), session(SECOND)
    head, records = certified(source, images(3))
    made = transfer(head, records, source, target, images(3), pairs=200, alpha=0.01, seed=3)
    told = describe_transfer(source, target, 200, 0.01, 3)
    path = tmp_path / "t.jsonl"
    write_whole(path, transfer_header(head, told), [record.to_json() for record in made])
    bound, again = read_records(path)
    assert again == made
    assert bound.binding["combined"]["parts"][0]["classifier"] == source.classifier
    assert bound.binding["combined"]["target"]["classifier"] == target.classifier

    def target_of(change: Any) -> Any:
        return lambda h: change(h["binding"]["combined"]["target"])

    for line, change, message in (
        (1, lambda r: r["extra"].update(harmful=0), "must be"),
        (1, lambda r: r["extra"].update(harmful=900), r"extra\['harmful'\] must be a number of the 200 pairs, got 900"),
        (1, lambda r: r["extra"]["parts"][0].update(radius=9.0), "part 0"),
        (0, target_of(lambda t: t.update(alpha=0.5)), "binding.alpha must be"),
        (0, target_of(lambda t: t.update(pairs=20_000)), "must be"),
        (0, target_of(lambda t: t["noise"].update(sigma=2.0)), "must see the same noise"),
        (0, target_of(lambda t: t.update(streams_of="ab" * 32)), "must see the same noise"),
        (0, target_of(lambda t: t["lattice"].update(bits=1)), "must see the same noise"),
        (0, target_of(lambda t: t.pop("function")), "target.function is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_records(changed(path, change, line, tmp_path / "changed.jsonl"))


def test_int8_records_become_fp32_ones_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    own = ["--ckpt_path", "digits_gaussian_0.25", *run]
    sampled = ["--certifier.n", "400", "--certifier.runtime.micro_batch", "128"]
    few = ["--data.max", "4", "--records", "int8.jsonl", "--certifier.runtime.precision", "int8"]
    assert main(["certify", *own, *sampled, *few]) == 0
    assert main(["transfer", "int8.jsonl", *own, "--pairs", "200", "--alpha", "0.01", "--out", "fp32.jsonl"]) == 0
    head, records = read_records("fp32.jsonl")
    _, old = read_records("int8.jsonl")
    target, (part,) = head.binding["combined"]["target"], head.binding["combined"]["parts"]
    assert (part["runtime"]["precision"], target["runtime"]["precision"]) == ("int8", "32-true")
    assert len(records) == 4
    assert all(new.radius <= first.radius for new, first in zip(records, old, strict=True))
    assert any(record.radius > 0 for record in records)
    assert main(["report", "fp32.jsonl", "int8.jsonl", "--paired"]) == 0
    capsys.readouterr()
    assert main(["transfer", "fp32.jsonl", *own]) == 2
    assert "they combine others" in capsys.readouterr().err
    assert os.path.exists("fp32.jsonl")


def test_a_checkpoint_hands_its_records_to_its_fine_tuned_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    tuned = ["--model.init_from", "digits_gaussian_0.25", "--certifier", "null", "--trainer.max_epochs", "1"]
    assert main(["fit", *tuned, "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1", *run]) == 0
    new = ["--ckpt_path", str(next(tmp_path.rglob("last.ckpt"))), *run]
    sampled = ["--certifier.n", "400", "--certifier.runtime.micro_batch", "128", "--data.max", "4"]
    assert main(["certify", "--ckpt_path", "digits_gaussian_0.25", *run, *sampled, "--records", "old.jsonl"]) == 0
    pairs = ["--pairs", "200", "--alpha", "0.01", "--out", "new.jsonl"]
    assert main(["transfer", "old.jsonl", "--source", "digits_gaussian_0.25", *new, *pairs]) == 0
    head, records = read_records("new.jsonl")
    target, (part,) = head.binding["combined"]["target"], head.binding["combined"]["parts"]
    assert target["classifier"] != part["classifier"]
    assert all(a.radius <= b.radius for a, b in zip(records, read_records("old.jsonl")[1], strict=True))
    capsys.readouterr()
    assert main(["transfer", "old.jsonl", *new, "--pairs", "50", "--out", "other.jsonl"]) == 2
    assert "records are of another classifier than" in capsys.readouterr().err
