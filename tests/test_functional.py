"""The public functions: their names and arguments are fixed, their results are the oracles'."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest

from lightning_rs import certificates
from lightning_rs import functional as F
from lightning_rs.certificates.norm_power_l2 import radius_ratio_to_gaussian
from tests.oracles import oracle_cases

# As fixed by the design: positional names in order. Functions with p_lower also take q_upper by keyword.
SIGNATURES = {
    "attack_allowed": "images alpha rho beta",
    "gaussian_value_lower": "q_upper r",
    "integer_gaussian_pmf": "w sigma q bits",
    "project_l1_box": "z x eps",
    "clopper_pearson_lower": "count n alpha",
    "clopper_pearson_upper": "count n alpha",
    "top_class_p_value": "count_top count_second",
    "simultaneous_bounds": "counts top alpha method runner_up",
    "certified_accuracy_lower_bound": "correct total alpha rho method",
    "empirical_bernstein_lower": "mean variance n alpha",
    "gaussian_l2_radius": "p_lower sigma p_upper",
    "lecuyer_l2_radius": "p_lower p_upper sigma",
    "renyi_l2_radius": "p_lower p_upper sigma",
    "second_order_l2_radius": "p_lower scaled_gradient_upper sigma",
    "second_order_two_class_l2_radius": "p_lower scaled_gradient_upper p_upper scaled_gradient_upper_other sigma",
    "levine_scaled_gradient_upper": "mean_product n_pairs dim sigma alpha",
    "scaled_gradient_l2_interval": "product second_norm n_first n_second alpha",
    "dipole_lower_bounds": "both exactly_one n_pairs alpha",
    "dipole_l2_radius": "symmetric_lower asymmetric_lower sigma",
    "dipole_gradient_l2_radius": "symmetric_lower asymmetric_lower scaled_gradient_upper sigma",
    "first_order_lower_bound": "p_lower m1 m2 r",
    "first_order_radius": "p_lower m1 m2 sigma",
    "first_order_l1_radius": "p_lower linf_upper l2_lower sigma",
    "first_order_linf_radius": "p_lower l1_upper l2_lower dim sigma",
    "first_order_subspace_l2_radius": "p_lower inside_upper outside_lower sigma",
    "uniform_l1_radius": "p_lower lam",
    "uniform_linf_radius": "p_lower lam dim",
    "laplace_l1_radius": "p_lower scale",
    "splitting_noise": "x s lam",
    "splitting_votes_l1_radius": "votes q",
    "matched_sigma": "sigma0 k dim rule",
    "norm_power_l2_radius": "p_lower sigma k dim",
    "norm_power_discrepancy": "lam r sigma k dim",
    "gaussian_discrepancy": "lam r sigma",
    "mixed_norm_log_ratio": "z delta sigma k_inf k_2",
    "pure_linf_log_ratio": "z delta sigma k",
    "macer_loss": "logits labels sigma lam gamma beta",
    "consistency_loss": "logits labels lam eta",
    "smoothadv_objective": "logits labels",
    "denoising_timestep": "sigma alphas_cumprod",
    "topk_l2_radius": "q_upper others_upper k sigma",
    "label_set_l2_radius": "p_lower_inside p_upper_outside sigma",
    "routed_radius": "radii q_selector_upper pi_upper selected sigma_selector",
    "cascade_l2_radius": "sigmas p0 p_lower_accepting p_other_upper",
    "patch_size": "votes height width kept kind",
    "ablation_discrepancy": "rho k dim",
    "ablation_l0_radius": "q_upper k dim",
    "transfer_lower": "p_lower harmful pairs alpha",
    "percentile_ranks": "n q r alpha",
}


def test_the_fixed_names_are_public() -> None:
    """A theorem's radius may be public before anybody fixes its name by a row above, because it has tests below."""
    assert set(SIGNATURES) <= set(F.__all__)
    assert set(F.__all__) - set(SIGNATURES) <= {function.__name__ for function in radius_functions()}
    assert len(set(F.__all__)) == len(F.__all__)
    assert all(inspect.getdoc(getattr(F, name)) for name in F.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_arguments_are_the_fixed_ones(name: str) -> None:
    function = getattr(F, name)
    names = list(inspect.signature(function).parameters)
    expected = SIGNATURES[name].split()
    assert names[: len(expected)] == expected
    assert ("q_upper" in names) == ("p_lower" in expected or "q_upper" in expected)
    assert inspect.getdoc(function)


def near(found: Any, expected: float, case: dict[str, Any]) -> None:
    assert float(found) == pytest.approx(expected, rel=case["rtol"], abs=1e-12)


def test_certify_of_cohen() -> None:
    for case in oracle_cases("cohen_certify"):
        i, e = case["inputs"], case["expected"]
        lower = F.clopper_pearson_lower(i["k"], i["n"], i["alpha"])
        near(lower, e["pA_low"], case)
        radius = F.gaussian_l2_radius(q_upper=e["qA"], sigma=i["sigma"])
        near(radius, 0.0 if e["abstain"] else e["R"], case)


def test_upper_bounds_and_p_values() -> None:
    for case in oracle_cases("cp_upper"):
        i = case["inputs"]
        near(F.clopper_pearson_upper(i["k"], i["n"], i["alpha"]), case["expected"]["p_up"], case)
    for case in oracle_cases("predict_pvalue"):
        i = case["inputs"]
        near(F.top_class_p_value(i["nA"], i["nB"]), case["expected"]["pvalue"], case)


def test_theorem_five() -> None:
    methods = {"bernstein": "bernstein", "exact_binomial": "exact", "uniform_in_r": "uniform"}
    for case in oracle_cases("theorem5"):
        i = case["inputs"]
        for key, method in methods.items():
            found = F.certified_accuracy_lower_bound(i["Y"], i["m"], i["alpha"], i["rho"], method=method)
            near(found, case["expected"][key], case)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.gaussian_l2_radius(np.nan, 1.0),
        lambda: F.gaussian_l2_radius(1.5, 1.0),
        lambda: F.gaussian_l2_radius(0.9, -1.0),
        lambda: F.clopper_pearson_lower(5, 0, 0.1),
        lambda: F.clopper_pearson_lower(5, 4, 0.1),
        lambda: F.clopper_pearson_lower(5, 10, 1.0),
        lambda: F.uniform_l1_radius(0.9, 0.0),
        lambda: F.certified_accuracy_lower_bound(5, 10, 0.001, 0.0),
    ],
)
def test_bad_arguments_are_value_errors(call: Any) -> None:
    with pytest.raises(ValueError, match=r"got|must"):
        call()


# A value of every argument that a formula takes, by its name: a new theorem with new arguments needs new names here.
VALUES: dict[str, Any] = {
    "p_lower": 0.9, "p_upper": 0.05, "sigma": 0.5, "scale": 0.5, "lam": 0.5, "dim": 4, "k": 1.0, "k_inf": 1.0, "r": 0.5,
    "scaled_gradient_upper": 0.1, "scaled_gradient_upper_other": 0.05, "m1": -0.1, "m2": 0.1, "linf_upper": 0.1,
    "l1_upper": 0.1, "l2_lower": 0.1, "inside_upper": 0.1, "outside_lower": 0.1, "draws": 1000,
}  # fmt: skip
# Choices and precision, not parts of a formula; k_2 as the design fixes it.
OPTIONAL = {"p_lower", "q_upper", "x", "beta", "draws", "patterns", "seed", "device", "k_2"}
RIVALS = {"lecuyer_l2_radius", "renyi_l2_radius", "second_order_two_class_l2_radius"}  # elsewhere p_upper is optional


def radius_functions() -> list[Any]:
    """Return the functions of all theorems that start from p_lower or q_upper."""
    found: dict[str, Any] = {}
    for entry in pkgutil.iter_modules(certificates.__path__):
        module = importlib.import_module(f"lightning_rs.certificates.{entry.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            takes = inspect.signature(function).parameters.keys() >= {"p_lower", "q_upper"}
            if takes and not name.startswith("_") and function.__module__ != "lightning_rs.checks":
                found[name] = function
    del found["two_class_arguments"], found["bounded_tail"]
    return list(found.values())


@pytest.mark.parametrize("function", radius_functions(), ids=lambda function: function.__name__)
def test_what_a_formula_needs_is_required(function: Any) -> None:
    names = set(inspect.signature(function).parameters)
    needed = names - OPTIONAL - (set() if function.__name__ in RIVALS else {"p_upper"})
    arguments = {name: VALUES[name] for name in needed | ({"p_lower", "draws"} & names)}
    assert 0 < function(**arguments) < np.inf
    for name in needed:
        rest = {key: value for key, value in arguments.items() if key != name}
        with pytest.raises(ValueError, match=f"{name} must be given, got None"):
            function(**rest)


def test_parts_of_other_formulas_have_no_defaults() -> None:
    for function in (F.norm_power_discrepancy, F.gaussian_discrepancy, F.pure_linf_log_ratio, radius_ratio_to_gaussian):
        parameters = inspect.signature(function).parameters.values()
        assert {p.name for p in parameters if p.default is not inspect.Parameter.empty} <= {"rule"}
