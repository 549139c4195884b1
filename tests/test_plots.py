"""Figures: the curves are the certified accuracy, labels are there, no global state is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rs.metrics import certified_accuracy
from lightning_rs.plots import (
    ENVELOPE,
    Regions,
    accuracy_steps,
    certified_accuracy_figure,
    certified_accuracy_panels,
    change_figure,
    image_grid,
    plane_figure,
    radius_histogram,
    save_figure,
)
from lightning_rs.records import Certification
from tests.test_metrics import DECIDED, FIVE, random_records
from tests.test_records import ABSTAINED, certification


def height(edges: np.ndarray, heights: np.ndarray, r: float) -> float:
    """Evaluate the step function by its documentation."""
    for left, right, value in zip(edges[:-1], edges[1:], heights, strict=True):
        if left < r <= right:
            return float(value)
    return 0.0


def test_steps_are_the_certified_accuracy_everywhere() -> None:
    records = random_records(np.random.default_rng(3), 200)
    edges, heights = accuracy_steps(records)
    assert edges[0] == 0
    assert len(edges) == len(heights) + 1
    for r in [*np.random.default_rng(4).random(200) * 3.5, *edges[1:], *(edges[1:] + 1e-9)]:
        assert height(edges, heights, r) == certified_accuracy(records, [r])[0], r


def test_steps_on_a_grid_end_just_before_the_next_step() -> None:
    fields: dict[str, Any] = {"norm": "l1", "ball": "closed", "grid": 16, "alpha": 0.0}
    records = [certification(i, radius=d / 16, **fields) for i, d in enumerate((0, 3, 3, 7))]
    edges, heights = accuracy_steps(records)
    assert edges.tolist() == [0, 1 / 16, 4 / 16, 8 / 16]
    assert heights.tolist() == [1.0, 0.75, 0.25]
    for r in (0.01, 0.05, 0.1, 0.2, 0.24, 0.26, 0.49, 0.51):
        assert height(edges, heights, r) == certified_accuracy(records, [r])[0]


def test_steps_of_decision_mode_end_at_the_target() -> None:
    edges, heights = accuracy_steps(DECIDED)
    assert edges.tolist() == [0.0, 0.5]
    assert heights.tolist() == [0.25]
    edges, heights = accuracy_steps(DECIDED[2:])
    assert edges.tolist() == [0.0, 0.5]
    assert heights.tolist() == [0.0]


def test_steps_without_any_certified_image() -> None:
    edges, heights = accuracy_steps([certification(0, **ABSTAINED)])
    assert heights.tolist() == [0.0]
    assert edges.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="at least one image"):
        accuracy_steps([])


def drawn(figure: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines}


def test_the_figure_draws_every_run_and_an_envelope_that_says_what_it_is() -> None:
    rng = np.random.default_rng(5)
    runs = {"a": random_records(rng, 50), "b": FIVE, "c": [certification(0, **ABSTAINED)]}
    figure = certified_accuracy_figure(runs, title="digits")
    lines = drawn(figure)
    assert [*runs, ENVELOPE] == list(lines)
    assert "not a guarantee" in ENVELOPE
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*runs, ENVELOPE]
    x, y = lines[ENVELOPE]
    for left, right, value in zip(x[:-2], x[1:-1], y[1:-1], strict=True):
        middle = (left + right) / 2
        assert value == max(certified_accuracy(records, [middle])[0] for records in runs.values())
    assert figure.axes[0].get_xlabel() == "l2 radius r (input units)"
    assert figure.axes[0].get_title() == "digits"
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 4


def test_one_run_has_no_envelope_and_many_runs_stay_distinct() -> None:
    assert list(drawn(certified_accuracy_figure({"a": FIVE}))) == ["a"]
    many = certified_accuracy_figure({str(i): FIVE for i in range(12)}, envelope=False)
    looks = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in many.axes[0].lines}
    assert len(looks) == 12, "no two of twelve runs look the same"


def test_norms_are_not_mixed_in_one_figure() -> None:
    with pytest.raises(ValueError, match="norms are not mixed in one figure: run 'b' has 'l1', expected 'l2'"):
        certified_accuracy_figure({"a": FIVE, "b": [certification(0, norm="l1")]})
    with pytest.raises(ValueError, match="at least one run"):
        certified_accuracy_figure({})
    with pytest.raises(ValueError, match="of one norm, got l1, l2"):
        radius_histogram([certification(0), certification(1, norm="l1")])
    with pytest.raises(ValueError, match="of one norm, got none"):
        radius_histogram([])


def test_the_histogram_counts_every_image_once() -> None:
    records: list[Certification] = random_records(np.random.default_rng(6), 80)
    figure = radius_histogram(records, bins=10)
    total = sum(patch.get_height() for patch in figure.axes[0].patches)
    without = sum(record.status == "abstain" for record in records)
    assert total + without == 80
    assert f"no radius ({without})" in [text.get_text() for text in figure.legends[0].get_texts()]
    radius_histogram([certification(0, **ABSTAINED)])


def test_the_image_grid_shows_values_as_they_are() -> None:
    clean = np.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    figure = image_grid({"clean": clean, "noisy": torch.from_numpy(clean) * 3 - 1}, rows=["label 3", "label 7"])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert np.array_equal(shown[0], clean[0].transpose(1, 2, 0))
    assert np.array_equal(shown[1], np.clip(clean[0] * 3 - 1, 0, 1).transpose(1, 2, 0)), "clipped, not rescaled"
    assert [axes.get_title() for axes in figure.axes] == ["clean", "noisy", "", ""]
    grey = image_grid({"grey": np.full((1, 1, 4, 4), 0.5)}).axes[0].images[0]
    assert grey.get_clim() == (0, 1), "a flat grey image stays grey"
    image_grid({"flat": np.zeros((2, 4, 4))})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"equally many images, at least one, got \[\]"),
        ({"a": np.zeros((2, 1, 4, 4)), "b": np.zeros((3, 1, 4, 4))}, r"got \[2, 3\]"),
        ({"a": np.zeros((2, 2, 4, 4))}, r"column 'a' must have shape \(B, 1 or 3, H, W\), got \(2, 2, 4, 4\)"),
        ({"a": np.zeros(4)}, r"got \(4,\)"),
    ],
)
def test_bad_images_are_one_error(columns: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(columns)


def test_equal_figures_give_equal_files(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        files = [save_figure(certified_accuracy_figure({"a": FIVE}), tmp_path / f"{i}.{suffix}") for i in range(2)]
        contents = [file.read_bytes() for file in files]
        assert contents[0] == contents[1]
        assert len(contents[0]) > 5000


def test_plots_need_no_display_and_leave_pyplot_alone() -> None:
    code = (
        "import sys, lightning_rs.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.image_grid({'a': [[[[0.5]]]]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "MPLBACKEND": "TkAgg"}, timeout=60)


def test_changes_have_a_panel_a_certificate_and_a_column_a_run(tmp_path: Path) -> None:
    changes = {"A": {"n = 10": [-0.5, 0.2, 3.0, 40.0], "n = 20": [0.0, -2.0]}, "B": {"n = 10": [1.0, 2.0, -1.0]}}
    figure = change_figure(changes, "Cohen", "title")
    first, second = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["A", "B"]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["n = 10", "n = 20"]
    assert [text.get_text() for text in first.texts] == ["75% up", "0% up"]
    assert [text.get_text() for text in second.texts] == ["67% up"]
    assert "Cohen" in first.get_ylabel()
    assert sorted(first.lines[0].get_ydata()) == [-0.5, 0.2, 3.0, 40.0]
    # Nothing is cut off, and the panels share their axis.
    low, high = first.get_ylim()
    assert low < -2.0 < 40.0 < high
    assert second.get_ylim() == (low, high)
    assert save_figure(figure, tmp_path / "changes.png").stat().st_size > 1000


@pytest.mark.parametrize("changes", [{}, {"A": {}}, {"A": {"n": []}}, {"A": {"n": [float("nan")]}}])
def test_changes_that_cannot_be_drawn(changes: dict[str, dict[str, list[float]]]) -> None:
    with pytest.raises(ValueError, match="changes "):
        change_figure(changes)


def in_the_plane(index: int, old: float, new: float, label: int = 1) -> Certification:
    fields: dict[str, Any] = {"label": label, "prediction": 1, "top": 1, "runner_up": 0, "counts": (1, 9)}
    return certification(index, radius=old, radii={"GaussianL2": old, "Second": new}, **fields, counts0=(1, 9))


def test_discs_show_what_the_second_certificate_adds() -> None:
    points = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [2.0, 2.0]])
    discs = [in_the_plane(0, 0.5, 0.6), in_the_plane(1, 0.5, 0.49), in_the_plane(2, 0.5, 0.6, label=0)]
    dots = [in_the_plane(3, 0.4, 0.4), in_the_plane(2, 0.5, 0.6, label=0)]
    regions = Regions([0.0, 1.0], [0.0, 2.0], [[0, 1], [1, 1]])
    axes = plane_figure(points, dots, discs, "Second", regions, "title").axes[0]
    # A ring for each right point, a filled band where the second is larger; a wrong point has neither and is black.
    shapes = [(type(patch).__name__, tuple(patch.get_center())) for patch in axes.patches]
    assert shapes == [("Annulus", (0.0, 0.0)), ("Circle", (0.0, 0.0)), ("Circle", (1.0, 2.0))]
    assert axes.patches[0].get_radii() == (0.6, 0.6)
    assert axes.patches[0].get_width() == pytest.approx(0.1)
    drawn = {tuple(float(line.get_data()[i][0]) for i in (0, 1)): line.get_color() for line in axes.lines}
    assert set(drawn) == {tuple(point) for point in points.tolist()}
    assert [drawn[tuple(point)] == "black" for point in points.tolist()] == [False, False, True, False]
    assert len(axes.images) == 1


@pytest.mark.parametrize(
    ("points", "record", "message"),
    [
        ([[0.0, 0.0, 0.0]], in_the_plane(0, 0.5, 0.6), r"points must have shape \(N, 2\), got \(1, 3\)"),
        ([[0.0, 0.0]], certification(0), "records must hold l2 radii by 'Second', got l2 by GaussianL2"),
        ([[0.0, 0.0]], in_the_plane(1, 0.5, 0.6), "points must hold every record's index, got 1 points and 1"),
    ],
)
def test_planes_that_cannot_be_drawn(points: list[list[float]], record: Certification, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plane_figure(points, [record], [], "Second")


def test_panels_have_a_colour_for_each_run_a_line_for_each_kind_and_envelopes() -> None:
    rng = np.random.default_rng(8)
    panels = {
        norm: {kind: {run: random_records(rng, 30) for run in ("a", "b")} for kind in ("with", "without")}
        for norm in ("l1", "linf", "l2")
    }
    figure = certified_accuracy_panels(panels, title="digits")
    assert [axes.get_xlabel() for axes in figure.axes] == [f"{norm} radius r (input units)" for norm in panels]
    for axes, kinds in zip(figure.axes, panels.values(), strict=True):
        lines = axes.lines
        assert len(lines) == 6  # two runs and an envelope for each of two kinds
        assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 6
        x, y = lines[2].get_xdata(), lines[2].get_ydata()
        middle = (x[3] + x[4]) / 2
        assert y[4] == max(certified_accuracy(records, [middle])[0] for records in kinds["with"].values())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["a", "b", "with", "without", "envelope (descriptive, no guarantee)"]
    alone = certified_accuracy_panels({"l2": {"with": {"a": FIVE}}})
    assert len(alone.axes[0].lines) == 1
    with pytest.raises(ValueError, match="the same kinds and runs"):
        certified_accuracy_panels({})
    with pytest.raises(ValueError, match="the same kinds and runs"):
        certified_accuracy_panels({"l1": panels["l1"], "l2": {"with": {"a": FIVE}}})
