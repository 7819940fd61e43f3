import sys

import numpy as np
import pytest
from matplotlib.image import imread

from coarlib import plots
from coarlib.errors import SetupError

RNG = np.random.default_rng(0)


def test_attribution_figure_is_written_whole(tmp_path):
    example = plots.Explained(RNG.random((8, 8)), "a 3", ["a[0]", "b[1]"], np.array([2.0, -1.0]))
    colour = plots.Explained(
        RNG.random((8, 8, 3)), "a cat", ["c[2]"], np.array([1.0]), np.array([0.2])
    )
    path = tmp_path / "deep" / "figure.png"
    found = plots.plot_attributions(
        path, {"COAR": RNG.random(50), "random": RNG.normal(size=50) / 9}, [example, colour], "t"
    )
    assert found == path and imread(path).shape[2] == 4
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_correlations_may_hold_nan(tmp_path):
    values = np.array([0.5, np.nan, 0.7])
    example = plots.Explained(np.zeros((2, 2)), "x", ["a"], np.array([1.0]))
    assert plots.plot_attributions(tmp_path / "f.png", {"COAR": values}, [example], "t").exists()


def test_figure_against_fraction(tmp_path):
    path = plots.plot_against_fraction(
        tmp_path / "f.png",
        [0.05, 0.1],
        {"COAR": [0.9, 0.8], "random": [0.0, 0.01]},
        {"COAR": [(0.88, 0.92), (0.78, 0.82)], "random": [(-0.01, 0.01)] * 2},
        trained_at=0.1,
    )
    assert imread(path).std() > 0


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SetupError, match="pip install matplotlib"):
        plots.plot_against_fraction(tmp_path / "f.png", [0.1], {"a": [1.0]}, {"a": [(0.0, 1.0)]})


def test_bars_have_room_for_their_whole_intervals():
    weights, errors = np.array([1.0, -2.0]), np.array([5.0, 0.5])
    axes = plots.attribution_bars(["a", "b"], weights, errors).axes[0]
    assert axes.get_xlim()[0] < -4 and axes.get_xlim()[1] > 6
