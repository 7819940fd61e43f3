"""Results show themselves in a few lines, with a picture in a notebook."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from zoo.tiny_models import TinyResNet

import coarlib as cl
from coarlib.display import (
    bars,
    card,
    counted,
    effects,
    histogram,
    number,
    plain,
    shortened,
    signed,
    strip,
)


def shapes(html):
    """The elements of the one picture in some HTML, which must be well-formed."""
    found = ElementTree.fromstring(html.replace("&nbsp;", " "))
    return [element.tag.rsplit("}", 1)[-1] for element in found.iter()]


def fitted(rows=120, noise=0.0, **options):
    rng = np.random.default_rng(4)
    masks = rng.random((rows, 6)) < 0.7
    outputs = masks @ rng.normal(size=(6, 5)) + noise * rng.normal(size=(rows, 5))
    return cl.fit(masks, outputs, **options)


def test_attributions_say_how_well_they_predict():
    found = fitted(solver="ridge")
    assert repr(found).splitlines() == [
        "Attributions: 6 features, 5 targets",
        "ridge, 120 rows",
        repr(found.held_out),
    ]
    assert repr(found.held_out).startswith("held-out correlation 1.000 [1.000, 1.000]")
    assert shapes(found._repr_html_()).count("svg") == 1
    assert shapes(found.held_out._repr_html_()).count("rect") >= 2
    lone = cl.fit(np.eye(6) < 1, np.arange(6.0), solver="ridge", held_out=0)
    assert "not scored" in repr(lone) and "svg" not in shapes(lone._repr_html_())


def test_what_predicts_nothing_says_so():
    assert "predict nothing yet" in repr(fitted(noise=1e4, solver="ridge"))


@pytest.mark.parametrize("solver", ["ridge", "lasso"])
def test_the_strongest_features_are_a_table(solver):
    found = fitted(solver=solver)
    found.components = [
        {"module": "a<b", "parameter": "weight", "kind": "conv_filter", "axis": 0, "units": 6}
    ]
    table = found.top(3, 4)
    order = found.top_features(3, 4)
    assert table.names == tuple(f"a<b.weight[{at}]" for at in order) and len(table) == 4
    np.testing.assert_array_equal(table.effect, found.weight[order, 3].astype(float))
    lines = repr(table).splitlines()
    name, effect = lines[1].split()[:2]
    assert len(lines) == 5 and name == table.names[0]
    assert float(effect.replace("−", "-")) == pytest.approx(table.effect[0], abs=0.005)
    assert lines[0].endswith("± 95%" if solver == "ridge" else "effect")
    assert len({len(line) for line in lines[1:]}) == 1  # the points of all stand below each other
    if found.standard_error is None:
        assert table.error is None and "error" not in lines[0]
    else:
        np.testing.assert_array_equal(table.error, found.standard_error[order, 3])
    assert shapes(table._repr_html_()).count("rect") == 4
    with pytest.raises(cl.CoarlibError, match="target 5 does not exist"):
        found.top(5)


def test_frames_hold_weights_errors_and_scores():
    found = fitted(solver="ridge")
    frame = found.to_dataframe()
    assert frame.index[2] == "feature 2" and frame.loc["feature 2", 4] == found.weight[2, 4]
    data = found.to_xarray()
    assert data["weight"].dims == ("feature", "target")
    np.testing.assert_array_equal(data["error"], found.standard_error)
    np.testing.assert_array_equal(data["correlation"], found.held_out.pearson)
    assert data["bias"].sel(target=3) == found.bias[3]


@pytest.mark.parametrize("name", ["pandas", "xarray"])
def test_missing_extras_are_one_sentence(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    found = fitted(solver="ridge")
    with pytest.raises(cl.CoarlibError, match=f"needs {name}; install it with: pip install"):
        found.to_dataframe() if name == "pandas" else found.to_xarray()


def test_scores_of_subsets_say_lds_and_interval():
    rng = np.random.default_rng(0)
    scores, masks = rng.normal(size=(9, 7)), rng.random((60, 9)) < 0.5
    outputs = masks @ scores + rng.normal(size=(60, 7))
    outputs[:, 2] = 1
    with pytest.warns(UserWarning):
        found = cl.lds(scores, masks, outputs)
    first, second, third = repr(found).splitlines()
    assert first == f"LDS {found.mean:.3f} {found.interval}"
    assert "60 subsets" in second and "mean of 6 targets (1 left out" in second
    assert third.endswith(f"{found.share_significant():.0%} of the targets")
    assert shapes(found._repr_html_()).count("svg") == 1


def test_components_and_pictures():
    components = cl.find_components(TinyResNet(), ["conv_filter", "linear_row"])
    html = components._repr_html_()
    assert "conv1.weight: 6" in html and shapes(html).count("rect") == len(components.groups)
    assert histogram([1.0, np.nan], "x") == bars([], []) == strip(np.zeros(0, bool)) == ""
    assert "&lt;b&gt;" in card("<b>")
    assert shapes(histogram([2.0, 2.0, 2.0], "x")).count("text") == 3
    assert 'fill-opacity="0.50"' in strip(np.arange(120) % 2 == 0)


def test_numbers_have_as_many_digits_as_their_errors():
    assert signed(1.92741, 0.0996) == "+1.93" and plain(0.0996) == "0.10"
    assert signed(-0.00123456, 0.0004) == "−0.00123" and signed(0.0) == "+0.00"
    assert signed(12345.6, 210) == "+12346" and plain(210) == "210"
    assert signed(3e-9, 1e-9) == "+3.00e-09"
    assert number(-0.0004) == "0.000" and number(-0.0006) == "−0.001" and number(None) == "–"
    assert number(-1234.5, 1) == "−1,234.5"


def test_numbers_below_each_other_have_as_many_digits():
    assert effects([1.678, -0.5861], [0.097, 0.11]) == [("+1.68", "0.10"), ("−0.59", "0.11")]
    assert effects([0.058, -0.1]) == [("+0.058", ""), ("−0.100", "")]
    assert effects([1.9], [0.0]) == [("+1.90000", "0.00000")] and effects([]) == []


def test_long_names_keep_their_beginning_and_their_end():
    assert shortened("conv1[3]") == "conv1[3]" and len(shortened("x" * 300)) == 40
    assert shortened("a.very.long.name.of.a.module.weight[17]", 15) == "a.very.…ght[17]"
    assert counted(1, "outputs") == "1 output" and counted(1000, "outputs") == "1,000 outputs"
