"""Experiments on laws and bounds: `python -m lightning_rs study -c configs/study/NAME.yaml --out runs/study/NAME`."""

from __future__ import annotations

from lightning_rs.studies.algorithm_two import AlgorithmTwo
from lightning_rs.studies.base import Study, StudyResult, empty_folder
from lightning_rs.studies.certified_discs import CertifiedDiscs
from lightning_rs.studies.distance_terms import DistanceTerms
from lightning_rs.studies.image_dimensions import ImageDimensions
from lightning_rs.studies.k_ablation import KAblation
from lightning_rs.studies.noisy_images import NoisyImages
from lightning_rs.studies.norm_angle_check import NormAngleCheck
from lightning_rs.studies.norm_balls import NormBalls
from lightning_rs.studies.older_bounds import OlderBounds
from lightning_rs.studies.pareto_frontier import ParetoFrontier
from lightning_rs.studies.prediction_quality import PredictionQuality
from lightning_rs.studies.radius_distributions import RadiusDistributions
from lightning_rs.studies.safety_regions import SafetyRegions
from lightning_rs.studies.second_order_radii import SecondOrderRadii
from lightning_rs.studies.set_bound import SetBound
from lightning_rs.studies.splitting_pictures import SplittingPictures
from lightning_rs.studies.worst_cases import WorstCases

__all__ = [
    "AlgorithmTwo",
    "CertifiedDiscs",
    "DistanceTerms",
    "ImageDimensions",
    "KAblation",
    "NoisyImages",
    "NormAngleCheck",
    "NormBalls",
    "OlderBounds",
    "ParetoFrontier",
    "PredictionQuality",
    "RadiusDistributions",
    "SafetyRegions",
    "SecondOrderRadii",
    "SetBound",
    "SplittingPictures",
    "Study",
    "StudyResult",
    "WorstCases",
    "empty_folder",
]
