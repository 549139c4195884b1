"""Figures: the curves are the certified accuracy, labels are there, no global state is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import special

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
    vote_bound_figure,
)
from lightning_rs.plots.brackets import bracket_figure
from lightning_rs.records import Certification
from tests.fakes import ABSTAINED, DECIDED, FIVE, certification, random_records
from tests.plotting import assert_readable


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


LONG = "runs/cifar10/resnet110_noise_0.25_consistency_lambda_20_eta_0.5_seed_{}/certify/test_n100000"


def many_runs(count: int, name: str) -> dict[str, list[Certification]]:
    rng = np.random.default_rng(count)
    return {name.format(i): random_records(rng, 20) for i in range(count)}


@pytest.mark.parametrize(
    ("count", "name", "axes"),
    [(1, LONG, 1), (4, LONG, 1), (5, LONG, 1), (12, "run {}", 1), (22, LONG, 4), (50, "{}", 9)],
)
def test_any_number_of_runs_and_any_names_stay_inside_and_distinct(count: int, name: str, axes: int) -> None:
    runs = many_runs(count, name)
    figure = certified_accuracy_figure(runs, title=LONG)
    assert_readable(figure, [*runs, *([ENVELOPE] if count > 1 else []), LONG], curves=True)
    assert len(figure.axes) == axes
    drawn_runs = [line.get_label() for panel in figure.axes for line in panel.lines if line.get_label() != ENVELOPE]
    assert drawn_runs == list(runs), "every run is drawn once, in order"
    assert len({panel.get_xlim() + panel.get_ylim() for panel in figure.axes}) == 1, "panels have one scale"


def test_names_are_shown_as_they_are() -> None:
    names = ["_hidden", "$x_0$", "a$b", "x" * 300 + "1", "x" * 299 + "1"]
    figure = certified_accuracy_figure(dict.fromkeys(names, FIVE), envelope=False)
    assert_readable(figure, names[:3])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:3] == names[:3]
    assert len(set(legend)) == 5, "names that are cut to the same are numbered"
    assert all("\N{HORIZONTAL ELLIPSIS}" in text for text in legend[3:])


def test_radii_in_units_of_sigma() -> None:
    figure = certified_accuracy_figure({"a": FIVE, "b": FIVE}, units={"a": 0.5, "b": 0.25}, envelope=False)
    ends = [max(line.get_xdata()) for line in figure.axes[0].lines]
    assert ends == [2.0, 4.0]
    assert "units of sigma" in figure.axes[0].get_xlabel()


def test_the_distribution_of_bounds_of_p() -> None:
    tails = {"a": [0.4, 0.01, 1.0, 0.001], "b": [0.2, 0.2, 0.2, 1e-6]}
    figure = vote_bound_figure(tails, "l2", ("cap", 1e-6), LONG)
    assert_readable(figure, ["a", "b", "cap", LONG], curves=True)
    [axes] = figure.axes
    line = axes.lines[0]
    for tail, below in ((0.5, 0.25), (0.39, 0.5), (0.02, 0.5), (0.005, 0.75), (1e-4, 1.0)):
        x, y = line.get_xdata(), line.get_ydata()
        # Steps hold from one edge up to the next.
        assert y[np.searchsorted(x, -special.ndtri(tail), side="right") - 1] == below, tail
    assert line.get_drawstyle() == "steps-post"
    assert axes.get_xlim()[1] > -special.ndtri(1e-6)
    many = {f"run {i}": [0.1, 0.2] for i in range(13)}
    assert_readable(vote_bound_figure(many, "linf"), list(many), curves=True)
    with pytest.raises(ValueError, match="at least one run with at least one image"):
        vote_bound_figure({"a": []})
    with pytest.raises(ValueError, match="tails of 'a'"):
        vote_bound_figure({"a": [1.5]})


@pytest.mark.parametrize(("count", "name", "axes"), [(1, LONG, 2), (4, "{}", 2), (25, LONG, 6)])
def test_changes_of_any_number_of_runs_stay_inside(count: int, name: str, axes: int) -> None:
    rng = np.random.default_rng(1)
    columns = {kind: {name.format(i): rng.standard_normal(9) for i in range(count)} for kind in ("A", LONG[:60])}
    figure = change_figure(columns, "the first certificate of the file, or another one", LONG)
    assert_readable(figure, [*columns["A"], "A", LONG[:60]])
    assert len(figure.axes) == axes


def test_other_figures_keep_long_texts_inside() -> None:
    assert_readable(radius_histogram(FIVE, title=LONG))
    clean = np.zeros((2, 1, 4, 4))
    assert_readable(image_grid({LONG: clean, "$b$": clean}, rows=[LONG, "label 7"], title=LONG))
    assert_readable(plane_figure([[0.0, 0.0]] * 9, [], [in_the_plane(0, 0.5, 0.6)], "Second", title=LONG))
    panels = {"l2": {"with": {LONG: FIVE, "b": FIVE}, "without": {LONG: FIVE, "b": FIVE}}}
    assert_readable(certified_accuracy_panels(panels, title=LONG), ["with", "without", "b"])
    attacked = [Attacked("l2", (0.1 * i, 0.2 * i + 0.1)) for i in range(4)]
    assert_readable(bracket_figure({LONG: attacked, "_b": attacked}, title=LONG), ["_b: certified at r (4 images)"])


class Attacked(NamedTuple):
    norm: str
    bracket: tuple[float, float]


def test_more_runs_than_colours_are_refused_where_colour_alone_tells_them_apart() -> None:
    panels = {"l2": {"with": {str(i): FIVE for i in range(7)}}}
    with pytest.raises(ValueError, match=r"at most 6 runs \(colours\) and 4 kinds \(lines\), got 7 and 1"):
        certified_accuracy_panels(panels)
    with pytest.raises(ValueError, match="runs must be at most 6, which are told apart by colour, got 7"):
        bracket_figure({str(i): [Attacked("l2", (0.1, 0.2))] for i in range(7)})


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
    for suffix in ("svg", "png", "pdf"):
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
