"""Attacks on the smoothed classifier: an upper bound beside the certified lower one, and a test of certificates."""

from lightning_rs.attacks.assertions import revote
from lightning_rs.attacks.attacker import Attacker
from lightning_rs.attacks.base import Aim, Attack
from lightning_rs.attacks.external import External
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.gradient import DDN, L1APGD, PGD
from lightning_rs.attacks.objectives import Margin, Objective, PlugIn, Reinforce
from lightning_rs.attacks.pixels import PatchSearch, PixelGeometry, PixelSearch
from lightning_rs.attacks.search import Bracket, Search, Victim
from lightning_rs.attacks.splitting import SplittingMoves
from lightning_rs.attacks.votes import VoteSearch
from lightning_rs.records.attack_files import AttackFile, merge_attacks, read_attacks
from lightning_rs.records.attacks import AttackRecord, ValueTest

__all__ = [
    "DDN",
    "L1APGD",
    "PGD",
    "Aim",
    "Attack",
    "AttackFile",
    "AttackRecord",
    "Attacker",
    "Bracket",
    "External",
    "Geometry",
    "Margin",
    "Objective",
    "PatchSearch",
    "PixelGeometry",
    "PixelSearch",
    "PlugIn",
    "Reinforce",
    "Search",
    "SplittingMoves",
    "ValueTest",
    "Victim",
    "VoteSearch",
    "merge_attacks",
    "read_attacks",
    "revote",
]
