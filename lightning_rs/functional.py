"""The theorems and statistics as pure functions: public, stable, vectorised with numpy broadcasting, float64.

Uncertifiable is 0.0; never negative, never NaN for valid input. Functions with ``p_lower`` also take the keyword
``q_upper`` instead: the tail ``1 - p_lower``, exact near one. Every gradient quantity is *scaled*: sigma times the
norm of the gradient of the smoothed probability, without unit. Radii are in input units.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightning_rs.certificates.ablation import patch_size
from lightning_rs.certificates.dipole import dipole_gradient_l2_radius, dipole_l2_radius, dipole_lower_bounds
from lightning_rs.certificates.dual import gaussian_discrepancy
from lightning_rs.certificates.first_order import (
    first_order_l1_radius,
    first_order_linf_radius,
    first_order_lower_bound,
    first_order_radius,
    first_order_subspace_l2_radius,
)
from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.laplace import laplace_l1_radius
from lightning_rs.certificates.lecuyer import lecuyer_l2_radius
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy, norm_power_l2_radius
from lightning_rs.certificates.norm_power_linf import mixed_norm_log_ratio, pure_linf_log_ratio
from lightning_rs.certificates.renyi import renyi_l2_radius
from lightning_rs.certificates.second_order import second_order_l2_radius, second_order_two_class_l2_radius
from lightning_rs.certificates.splitting import splitting_votes_l1_radius
from lightning_rs.certificates.uniform import uniform_l1_radius, uniform_linf_radius
from lightning_rs.certificates.values import gaussian_value_lower
from lightning_rs.noise._integer_laws import integer_gaussian_pmf
from lightning_rs.noise.norm_power import matched_sigma
from lightning_rs.noise.splitting import splitting_noise
from lightning_rs.numerics.kept_pixels import ablation_discrepancy, ablation_l0_radius
from lightning_rs.numerics.label_radii import label_set_l2_radius, topk_l2_radius
from lightning_rs.numerics.projections import project_l1_box
from lightning_rs.numerics.routes import cascade_l2_radius, routed_radius
from lightning_rs.statistics.accuracy import certified_accuracy_lower_bound, empirical_bernstein_lower
from lightning_rs.statistics.attacks import attack_allowed
from lightning_rs.statistics.binomial import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    simultaneous_bounds,
    top_class_p_value,
)
from lightning_rs.statistics.gradient import levine_scaled_gradient_upper, scaled_gradient_l2_interval
from lightning_rs.statistics.transfer import percentile_ranks, transfer_lower

if TYPE_CHECKING:
    from lightning_rs.classifiers.consistency import consistency_loss
    from lightning_rs.classifiers.macer import macer_loss
    from lightning_rs.classifiers.smoothadv import smoothadv_objective
    from lightning_rs.networks.schedules import denoising_timestep

# What lives with training: found when it is asked for, so that the theorems need neither torch nor Lightning.
_ELSEWHERE = {
    "consistency_loss": "lightning_rs.classifiers.consistency",
    "denoising_timestep": "lightning_rs.networks.schedules",
    "macer_loss": "lightning_rs.classifiers.macer",
    "smoothadv_objective": "lightning_rs.classifiers.smoothadv",
}

__all__ = [
    "ablation_discrepancy",
    "ablation_l0_radius",
    "attack_allowed",
    "cascade_l2_radius",
    "certified_accuracy_lower_bound",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "consistency_loss",
    "denoising_timestep",
    "dipole_gradient_l2_radius",
    "dipole_l2_radius",
    "dipole_lower_bounds",
    "empirical_bernstein_lower",
    "first_order_l1_radius",
    "first_order_linf_radius",
    "first_order_lower_bound",
    "first_order_radius",
    "first_order_subspace_l2_radius",
    "gaussian_discrepancy",
    "gaussian_l2_radius",
    "gaussian_value_lower",
    "integer_gaussian_pmf",
    "label_set_l2_radius",
    "laplace_l1_radius",
    "lecuyer_l2_radius",
    "levine_scaled_gradient_upper",
    "macer_loss",
    "matched_sigma",
    "mixed_norm_log_ratio",
    "norm_power_discrepancy",
    "norm_power_l2_radius",
    "patch_size",
    "percentile_ranks",
    "project_l1_box",
    "pure_linf_log_ratio",
    "renyi_l2_radius",
    "routed_radius",
    "scaled_gradient_l2_interval",
    "second_order_l2_radius",
    "second_order_two_class_l2_radius",
    "simultaneous_bounds",
    "smoothadv_objective",
    "splitting_noise",
    "splitting_votes_l1_radius",
    "top_class_p_value",
    "topk_l2_radius",
    "transfer_lower",
    "uniform_l1_radius",
    "uniform_linf_radius",
]


def __getattr__(name: str) -> Any:
    """Find what lives elsewhere."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
