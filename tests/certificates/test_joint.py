"""The largest of several radii pays the union bound."""

import numpy as np
import pytest
import torch

from lightning_rs.certificates.base import Setting, certificate_from_dict, certificate_to_dict
from lightning_rs.certificates.dipole import DipoleL2
from lightning_rs.certificates.first_order_norms import FirstOrderL1
from lightning_rs.certificates.gaussian_l2 import GaussianL2, GaussianLinf, GaussianTwoClassL2
from lightning_rs.certificates.joint import LargestRadius
from lightning_rs.certificates.laplace import LaplaceL1
from lightning_rs.certificates.subspace import ChannelL2
from lightning_rs.certificates.uniform import UniformL1
from lightning_rs.certifier import Certifier
from lightning_rs.evidence import Votes
from lightning_rs.noise import GaussianNoise
from lightning_rs.setting import Selection
from tests.helpers import HalfSpace

COUNTS = np.array([[900, 60, 40], [520, 240, 240], [400, 350, 250], [1000, 0, 0]])


def setting(alpha: float) -> Setting:
    return Setting(
        GaussianNoise(0.5),
        alpha,
        1000,
        (3, 4, 4),
        selection=Selection(np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.int64)),
    )


def test_it_is_the_largest_at_half_the_level() -> None:
    parts = [GaussianL2(), GaussianTwoClassL2("grouped")]
    evidence = {Votes: Votes.of(COUNTS)}
    joint = LargestRadius(parts).certify(evidence, setting(0.01))
    halves = [part.certify(evidence, setting(0.005)).radius for part in parts]
    assert (joint.radius == np.maximum(*halves)).all()
    whole = [part.certify(evidence, setting(0.01)).radius for part in parts]
    assert (joint.radius <= np.maximum(*whole)).all()
    assert joint.radius[0] < max(w[0] for w in whole)  # the union bound costs something
    assert "by Gaussian" in joint.notes[0]


def test_the_shares_of_alpha_sum_to_one_and_it_round_trips() -> None:
    joint = LargestRadius([GaussianL2(), GaussianTwoClassL2("bonferroni")])
    assert sum(joint.alpha_split.values()) == pytest.approx(1)
    assert certificate_from_dict(certificate_to_dict(joint)) == joint


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([GaussianL2()], "two or more"),
        ([GaussianL2(), GaussianL2()], "two or more different"),
        ([GaussianL2(), GaussianLinf()], "share one norm, got l2, linf"),
        ([GaussianL2(), DipoleL2()], "share one sampling scheme, got antithetic, iid"),
    ],
)
def test_what_cannot_be_joined(parts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LargestRadius(parts)


def test_certificates_without_a_common_noise() -> None:
    with pytest.raises(ValueError, match="share a noise"):
        LargestRadius([LaplaceL1(), UniformL1()])


def test_two_regions_of_one_theorem_have_two_names() -> None:
    certificates = [ChannelL2("red"), ChannelL2("green"), FirstOrderL1(region="blue"), FirstOrderL1()]
    names = ["ChannelL2:red", "ChannelL2:green", "FirstOrderL1:blue", "FirstOrderL1"]
    assert [certificate.name for certificate in certificates] == names
    network = HalfSpace(torch.ones(12))
    images = torch.full((1, 3, 2, 2), 0.2)
    record = Certifier(certificates, n=200, alpha=0.05).certify(network, GaussianNoise(0.5), images)[0]
    assert list(record.radii) == names
    assert record.norm == "l2:red"
