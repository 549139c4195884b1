"""Radii that count pixels: whole numbers in tables, figures and bins, and no sigma."""

from __future__ import annotations

import numpy as np

from lightning_rs.plots import certified_accuracy_figure
from lightning_rs.plots.curves import radius_bins
from lightning_rs.report import Group, Run
from lightning_rs.report.groups import default_radii
from tests.fakes import certification, header


def test_reports_of_patches_compare_whole_pixels_and_name_them() -> None:
    noise = {"class": "BandNoise", "kept": 2, "shape": [1, 28, 28]}
    records = [
        certification(i, label=1, prediction=1, top=1, radius=float(i % 7), norm="patch", ball="closed", grid=None)
        for i in range(30)
    ]
    run = Run("bands", header(noise=noise), "PatchBand", records, {"class": "PatchBand", "norm": "patch"})
    assert default_radii([run]) == [0, 1, 2, 3, 4, 5, 6]
    tables = {table.title: table for table in Group("patch", [run], [0, 5], 0.001, "uniform").tables()}
    assert "patch: average certified radius, in pixels" in tables
    assert not any("sigma" in title for title in tables)
    axes = certified_accuracy_figure({"bands": records}, norm="patch").axes[0]
    assert axes.get_xlabel() == "patch side r (pixels)"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_bins_of_pixels_hold_whole_radii_and_others_share_the_range() -> None:
    edges = radius_bins("l0", 8.0, 30)
    assert edges.tolist() == [i - 0.5 for i in range(10)]
    wide = radius_bins("patch", 100.0, 30)
    assert np.diff(wide).tolist() == [4.0] * (len(wide) - 1)
    assert wide[0] == -0.5
    assert wide[-1] > 100
    assert len(wide) - 1 <= 30
    assert radius_bins("l2", 2.0, 4).tolist() == [0, 0.5, 1, 1.5, 2]
