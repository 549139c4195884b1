"""One theorem a file: evidence -> bounds -> radius."""

from lightning_rs.certificates.ablation import AblationL0, PatchBand, PatchBlock
from lightning_rs.certificates.base import (
    ABSTAIN,
    Certificate,
    Radii,
    Setting,
    TopVoteCertificate,
    certificate_from_dict,
    certificate_to_dict,
)
from lightning_rs.certificates.dipole import DipoleGradientL2, DipoleL2
from lightning_rs.certificates.first_order_norms import FirstOrderL1, FirstOrderLinf
from lightning_rs.certificates.gaussian_l2 import GaussianL1, GaussianL2, GaussianLinf, GaussianTwoClassL2
from lightning_rs.certificates.joint import LargestRadius
from lightning_rs.certificates.laplace import LaplaceL1
from lightning_rs.certificates.lecuyer import LecuyerL2
from lightning_rs.certificates.norm_power_l2 import NormPowerL2, NormPowerLinf, NormPowerTwoClassL2
from lightning_rs.certificates.norm_power_linf import MixedNormLinf, PureLinf
from lightning_rs.certificates.renyi import RenyiL2
from lightning_rs.certificates.second_order import SecondOrderL2
from lightning_rs.certificates.second_order_two_class import SecondOrderTwoClassL2
from lightning_rs.certificates.splitting import DeterministicSplittingL1, SplittingL1
from lightning_rs.certificates.subspace import ChannelL2, FirstOrderSubspaceL2
from lightning_rs.certificates.uniform import UniformBoxL1, UniformL1, UniformLinf, UniformTwoClassL1

__all__ = [
    "ABSTAIN",
    "AblationL0",
    "Certificate",
    "ChannelL2",
    "DeterministicSplittingL1",
    "DipoleGradientL2",
    "DipoleL2",
    "FirstOrderL1",
    "FirstOrderLinf",
    "FirstOrderSubspaceL2",
    "GaussianL1",
    "GaussianL2",
    "GaussianLinf",
    "GaussianTwoClassL2",
    "LaplaceL1",
    "LargestRadius",
    "LecuyerL2",
    "MixedNormLinf",
    "NormPowerL2",
    "NormPowerLinf",
    "NormPowerTwoClassL2",
    "PatchBand",
    "PatchBlock",
    "PureLinf",
    "Radii",
    "RenyiL2",
    "SecondOrderL2",
    "SecondOrderTwoClassL2",
    "Setting",
    "SplittingL1",
    "TopVoteCertificate",
    "UniformBoxL1",
    "UniformL1",
    "UniformLinf",
    "UniformTwoClassL1",
    "certificate_from_dict",
    "certificate_to_dict",
]
