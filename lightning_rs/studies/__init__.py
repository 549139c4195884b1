"""Experiments on laws and bounds: `python -m lightning_rs study -c configs/study/NAME.yaml --out runs/study/NAME`."""

from __future__ import annotations

from lightning_rs.studies.algorithm_two import AlgorithmTwo
from lightning_rs.studies.base import Study, StudyResult, empty_folder
from lightning_rs.studies.distance_terms import DistanceTerms
from lightning_rs.studies.image_dimensions import ImageDimensions
from lightning_rs.studies.k_ablation import KAblation
from lightning_rs.studies.norm_angle_check import NormAngleCheck
from lightning_rs.studies.pareto_frontier import ParetoFrontier
from lightning_rs.studies.radius_distributions import RadiusDistributions

__all__ = [
    "AlgorithmTwo",
    "DistanceTerms",
    "ImageDimensions",
    "KAblation",
    "NormAngleCheck",
    "ParetoFrontier",
    "RadiusDistributions",
    "Study",
    "StudyResult",
    "empty_folder",
]
