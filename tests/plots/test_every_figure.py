"""Every figure: on its own and on given axes, with labels on its axes and no default colours."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from paths import ROOT

from coarlib import plots
from coarlib.errors import ArgumentError
from coarlib.path_kernel import Decomposition
from coarlib.path_kernel.accumulate import SOURCES
from coarlib.plots.style import COLOURS

RNG = np.random.default_rng(0)
TESTS, SAMPLES, STEPS = 5, 12, 6


def explanation():
    arrays = {"data_by_sample": RNG.normal(size=(TESTS, 1, SAMPLES))}
    arrays["data_by_sample_tensor"] = RNG.normal(size=(TESTS, 1, SAMPLES, 2))
    for source in SOURCES:
        arrays[f"{source}_by_tensor_step"] = RNG.normal(size=(TESTS, 1, 2, STEPS))
    about = {"tensors": ["a.weight", "b.weight"], "first": 0, "last": STEPS, "output": "logit"}
    return Decomposition(arrays, about)


def board():
    record = {"mean": 0.4, "interval": {"low": 0.3, "high": 0.5}, "noise_ceiling": 0.8}
    lines = [SimpleNamespace(method=name, record=record) for name in ("TRAK", "ridge")]
    return SimpleNamespace(lines=lines)


R = np.array([0.2, np.nan, 0.8, 0.7])
CURVE = np.arange(1, 5), np.linspace(0.2, 0.8, 4)
IMAGES = RNG.random((6, 8, 8))
# Name of the figure: (its arguments, how many axes it takes).
CASES = {
    "attribution_bars": ((["a[0]", "b[1]"], np.array([1.0, -2.0]), np.array([0.1, 0.2])), 1),
    "contribution_over_steps": ((np.arange(6), {"data": RNG.normal(size=6)}), 1),
    "correlation_against_cost": (({"COAR": ([50, 100], [0.7, 0.8])}, {}), 1),
    "correlation_against_fraction": (([0.05, 0.1], {"COAR": [0.9, 0.8]}, {}), 1),
    "correlation_histogram": (({"COAR": R, "none": R * np.nan},), 1),
    "helpful_and_harmful": ((IMAGES[:2], IMAGES, RNG.normal(size=(2, 6))), 14),
    "influence_over_steps": ((explanation(),), 1),
    "kernel_similarity": ((explanation(),), 1),
    "layer_kernels": ((explanation(),), 2),
    "layer_map": ((RNG.random((3, 2)), ["a", "b", "c"], ["cat", "dog"]), 1),
    "lds_distribution": (({"TRAK": R}, 0.9), 1),
    "learning_curve": ((CURVE[0] * 100, CURVE[1], CURVE[1] - 0.1, CURVE[1] + 0.1, (800, 0.85)), 1),
    "mask_balance": ((RNG.random(30), 0.5), 1),
    "method_distributions": (({"COAR": R, "none": R * np.nan}, {"COAR": (0.5, 0.6)}), 1),
    "nearest_examples": ((IMAGES, [0], np.array([[1, 2]]), np.array([[0.9, 0.8]])), 3),
    "outputs_under_masks": ((RNG.random(30),), 1),
    "predicted_against_true": ((RNG.random((20, 2)), RNG.random((20, 2)), ["a", "b"]), 2),
    "ranked_correlations": ((R, R - 0.1, R + 0.1), 1),
    "scoreboard": ((board(),), 1),
    "source_balance": ((explanation(),), 2),
    "training_curves": (({"training": (CURVE[0], CURVE[1], CURVE[1])},), 2),
}
PICTURES = {"helpful_and_harmful", "nearest_examples"}
OTHERS = {"Explained", "attribution_panels", "plot_against_fraction", "plot_attributions"}
DEFAULTS = {"#1f77b4", "#ff7f0e", "#2ca02c", "viridis", "RdBu_r"}


def test_every_figure_is_tried():
    assert set(CASES) | OTHERS == set(plots.__all__)


@pytest.mark.parametrize("name", CASES)
def test_a_figure_stands_in_the_gallery(name):
    assert f"](pictures/gallery/{name}.png)" in (ROOT / "docs/gallery.md").read_text("utf-8")
    assert (ROOT / "docs/pictures/gallery" / f"{name}.png").stat().st_size > 3000


@pytest.mark.parametrize("name", CASES)
def test_a_figure_of_its_own_has_labels_and_house_colours(name, tmp_path):
    arguments, count = CASES[name]
    figure = getattr(plots, name)(*arguments)
    panels = figure.axes
    assert len(panels) >= count
    if name not in PICTURES:
        assert panels[0].get_xlabel() or figure.get_supxlabel()
        assert panels[0].get_ylabel() or figure.get_supylabel() or panels[0].get_yticklabels()
    lines = [line.get_color() for panel in panels for line in panel.get_lines()]
    maps = [image.get_cmap().name for panel in panels for image in panel.get_images()]
    assert not DEFAULTS & {*map(str, lines), *maps}
    figure.savefig(tmp_path / "figure.pdf")
    plt.close(figure)


@pytest.mark.parametrize("name", CASES)
def test_a_figure_draws_into_given_axes(name):
    arguments, count = CASES[name]
    figure, grid = plt.subplots(2, max(count, 2), squeeze=False)
    given = grid[0, 0] if count == 1 else grid[0, :count]
    assert getattr(plots, name)(*arguments, axes=given) is figure
    drawn = [panel.has_data() or panel.get_images() for panel in grid[0, :count]]
    assert all(drawn) and not any(panel.has_data() for panel in grid[1])
    plt.close(figure)


def test_too_few_axes_are_one_sentence():
    figure, axes = plt.subplots(1, 2)
    with pytest.raises(ArgumentError, match="14 panels, but got 2 axes"):
        plots.helpful_and_harmful(*CASES["helpful_and_harmful"][0], axes=axes)
    plt.close(figure)


def test_colours_are_okabe_and_ito():
    assert {"#0072B2", "#D55E00", "#009E73", "#E69F00"} <= set(COLOURS)
