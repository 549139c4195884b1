"""Patches and changed pixels as attacks: geometry, exact votes, brackets that meet, certificates that hold."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_rs import Certifier
from lightning_rs.attacks import Attacker, AttackRecord, Geometry, PatchSearch, PixelGeometry, PixelSearch
from lightning_rs.attacks.pixels import touched_positions
from lightning_rs.certificates.values import law_value_lower
from lightning_rs.cli import main
from lightning_rs.functional import ablation_discrepancy
from lightning_rs.networks.null_coding import NullCoding
from lightning_rs.noise import AblationNoise, BandNoise, BlockNoise, GaussianNoise
from lightning_rs.noise.base import Noise
from lightning_rs.records import Certification
from lightning_rs.smoothed import SmoothedClassifier

SHAPE = (1, 6, 8)


class Brightness(nn.Module):
    """Class 1 by the mean of what is kept, class 0 by its complement; class 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        coded = NullCoding()(x)
        bright, dark = coded.flatten(1).view(len(x), 2, -1).sum(2).unbind(1)
        kept = (bright + dark).clamp(min=1)
        return torch.stack(
            [self.scale * dark / kept, self.scale * bright / kept, -self.scale * torch.ones_like(dark)], 1
        )


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = (200 + torch.randint(56, (count, *SHAPE), generator=generator)) / 255
    x[:, :, :, :2] = 0.0  # two dark columns: votes differ
    return x


def attacked(
    noise: Noise, count: int = 3, n: int = 2000, **changes: object
) -> tuple[list[Certification], list[AttackRecord]]:
    x = images(count)
    certifier = Certifier(n0=50, n=n)
    session = certifier.session(Brightness(), noise, SHAPE, domain=(0.0, 1.0), grid=255)
    records = list(session.certify(x, labels=[1] * count))
    attacker = Attacker(screen=200, n=2000, rounds=4, **changes)  # type: ignore[arg-type]
    geometry = Geometry.of_certificate(records[0].norm, SHAPE, (0.0, 1.0), 255)
    victim = attacker.victim(session, Brightness(), geometry)
    return records, attacker.run(victim, records, x)


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("law", [BandNoise, BlockNoise])
def test_brackets_of_patches_meet_what_votes_allow(law: type[BandNoise | BlockNoise], threshold: float | None) -> None:
    """Brightness can be turned in every touched position, so that the attack is as strong as the certificate allows."""
    records, found = attacked(law(2, shape=SHAPE, threshold=threshold))
    assert [record.norm for record in found] == ["patch"] * 3
    for record, attack in zip(records, found, strict=True):
        assert record.prediction == 1
        assert not attack.contradicted
        assert {test.kind for test in attack.tests} == {"clean", "random", "adversarial"}
        assert all(test.lower is not None and test.upper >= test.lower for test in attack.tests)
        clean, _, adversarial = attack.tests
        assert adversarial.count <= clean.count
        assert 0 < adversarial.distance <= max(record.radius, 1)  # not the image again
        assert attack.attacked is not None
        assert record.radius < attack.attacked <= record.radius + 3
        assert attack.attacked == round(attack.attacked)
        assert f"holds for every change within a square patch of side <= {record.radius:g} pixels; broken at" in repr(
            attack
        )


def test_brackets_of_pixels() -> None:
    records, found = attacked(AblationNoise(6, shape=SHAPE), max_radius=30)
    assert [record.norm for record in found] == ["l0"] * 3
    for record, attack in zip(records, found, strict=True):
        assert record.radius >= 1
        assert not attack.contradicted
        adversarial = next(test for test in attack.tests if test.kind == "adversarial")
        assert adversarial.distance == pytest.approx(record.radius, rel=1e-5)
        assert adversarial.lower is not None
        assert adversarial.lower >= 0.5
        assert attack.attacked is not None
        assert record.radius < attack.attacked <= 25


def test_a_false_radius_is_found() -> None:
    """Planted: one pixel more than the votes of all bands allow, on every image."""
    noise, x = BandNoise(2, shape=SHAPE), images(2)
    session = Certifier().session(Brightness(), noise, SHAPE, domain=(0.0, 1.0), grid=255)
    records = [
        Certification(**{**{f: getattr(r, f) for f in r.__dataclass_fields__}, "radius": r.radius + 3})
        for r in session.certify(x, labels=[1] * 2)
    ]
    attacker = Attacker(screen=50, n=50)
    geometry = Geometry.of_certificate("patch", SHAPE, (0.0, 1.0), 255)
    found = attacker.run(attacker.victim(session, Brightness(), geometry), records, x)
    assert all(record.contradicted and record.certain for record in found)


def test_distances_count_sides_and_pixels() -> None:
    patch, pixels = (PixelGeometry(norm, (0.0, 1.0), 255, shape=(2, 5, 6)) for norm in ("patch", "l0"))
    x = torch.rand(1, 60, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    for cells, side in (([], 0), ([(0, 0)], 1), ([(1, 1), (1, 3)], 3), ([(0, 5), (4, 0)], 6), ([(2, 2), (3, 3)], 2)):
        z = x.clone().view(2, 5, 6)
        for row, column in cells:
            z[1, row, column] = 1 - z[1, row, column]
        assert patch.distance(x, z.view(1, -1)).tolist() == [side]
        assert pixels.distance(x, z.view(1, -1)).tolist() == [len(cells)]
    generator = torch.Generator().manual_seed(1)
    many = x.expand(50, -1)
    for geometry, most in ((patch, 3), (pixels, 7)):
        eps = torch.full((50,), float(most))
        found = geometry.limited(geometry.random(many, eps, generator), many, eps)
        assert geometry.distance(many, found).max() <= most
        assert geometry.distance(many, found).mean() > most - 1
        assert torch.equal((found * 255).round() / 255, found)
        too_far = geometry.limited(1 - many, many, eps)
        assert torch.equal(too_far, many), "what changes too much is no point of the set"
    assert (patch.reach, pixels.reach) == (5, 15)
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\) in a box for norm 'patch'"):
        PixelGeometry("patch", None, shape=(1, 2, 2))


def test_touched_positions_are_those_that_show_a_changed_pixel() -> None:
    noise = BandNoise(2, shape=SHAPE)
    for columns, touched in (([], 0), ([3], 2), ([3, 4], 3), ([0], 2), ([0, 7], 3), (range(8), 8)):
        delta = np.zeros(SHAPE)
        delta[:, 2, list(columns)] = 0.5
        assert touched_positions(noise, delta.ravel()) == touched
    block = BlockNoise(2, shape=SHAPE)
    for row, column in product(range(6), range(8)):
        delta = np.zeros(SHAPE)
        delta[:, row, column] = 1
        assert touched_positions(block, delta.ravel()) == 4


def test_ablation_loses_what_shows_a_changed_pixel() -> None:
    noise, delta = AblationNoise(3, shape=(2, 2, 3)), np.zeros((2, 2, 3))
    assert law_value_lower(noise, 0.1, delta) == 0.9
    delta[0, 0, 0] = delta[1, 0, 0] = delta[1, 1, 2] = 0.2  # two pixels, one in both channels
    assert law_value_lower(noise, 0.1, delta) == pytest.approx(0.9 - ablation_discrepancy(2, 3, 6))


@pytest.mark.parametrize(
    ("attack", "law", "message"),
    [
        (PatchSearch(), GaussianNoise(0.5), "noise of PatchSearch must be BandNoise or BlockNoise"),
        (PixelSearch(), BandNoise(2, shape=SHAPE), "noise of PixelSearch must be AblationNoise"),
    ],
)
def test_other_noises_are_refused(attack: PatchSearch | PixelSearch, law: Noise, message: str) -> None:
    smoothed = SmoothedClassifier(Brightness(), law)
    geometry = PixelGeometry(attack.norms[0], (0.0, 1.0), 255, shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        attack(smoothed, images(1), torch.ones(1, dtype=torch.int64), torch.ones(1), geometry)
    with pytest.raises(ValueError, match=f"{type(attack).__name__} attacks in {attack.norms[0]}, got norm 'l2'"):
        attack(smoothed, images(1), torch.ones(1, dtype=torch.int64), torch.ones(1), Geometry("l2"))


@pytest.mark.parametrize(
    ("noise", "n"),
    [
        ('{"class_path": "BandNoise", "init_args": {"kept": 3, "shape": [1, 8, 8]}}', "20"),
        ('{"class_path": "AblationNoise", "init_args": {"k": 20, "shape": [1, 8, 8]}}', "300"),
    ],
)
def test_fit_certify_predict_and_attack_on_the_command_line(
    noise: str, n: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    args = ["--model.noise", noise, "--model.network", "null_coded", "--model.network_args", '{"base": "digits_cnn"}']
    fit = ["--trainer.max_epochs", "1", "--certifier", "null", "--trainer.limit_val_batches", "1"]
    assert main(["fit", *args, *run, *fit]) == 0
    own = ["--ckpt_path", str(next(tmp_path.rglob("*.ckpt"))), *run]
    assert (
        main(["certify", *own, "--data.max", "3", "--records", "r.jsonl", "--certifier.n", n, "--certifier.n0", "20"])
        == 0
    )
    assert main(["predict", *own, "--data.max", "3"]) == 0
    quick = ["--attacker.screen", "50", "--attacker.n", "300", "--attacker.rounds", "1", "--attacker.max_radius", "6"]
    assert main(["attack", "r.jsonl", *own, *quick]) == 0
    said = capsys.readouterr()
    assert "contradicted certificates: 0" in said.out + said.err
    assert main(["report", "r.jsonl", "--certificate", "TopK:2", "Targets"]) == 0
