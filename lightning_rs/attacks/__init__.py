"""Attacks on the smoothed classifier: an upper bound beside the certified lower one, and a test of certificates."""

from lightning_rs.attacks.base import Attack
from lightning_rs.attacks.external import External
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.gradient import DDN, PGD
from lightning_rs.attacks.objectives import Margin, Objective, PlugIn, Reinforce
from lightning_rs.attacks.splitting import SplittingMoves
from lightning_rs.attacks.votes import VoteSearch

__all__ = [
    "DDN",
    "PGD",
    "Attack",
    "External",
    "Geometry",
    "Margin",
    "Objective",
    "PlugIn",
    "Reinforce",
    "SplittingMoves",
    "VoteSearch",
]
