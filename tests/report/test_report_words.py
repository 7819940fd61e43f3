"""What a report says: its verdict, its title, its comparison with another result."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from report_cases import TARGETS, make_case, make_fit, make_store, report_arguments

from coarlib.commands.judge import report
from coarlib.errors import ArgumentError, ReportError
from coarlib.regression import Attributions, HeldOut
from coarlib.report.inputs import ReportInputs, gather
from coarlib.report.methods import judge
from coarlib.report.notes import FeatureNotes, Notes
from coarlib.report.page import build_report
from coarlib.report.records import LDSRecord
from coarlib.report.side_by_side import build_comparison
from coarlib.report.words import title, verdict


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case") / "run")


def scored(low, high, rows=100):
    r = np.full(TARGETS, (low + high) / 2)
    return HeldOut(rows, r, r, r, r, r, r, (low + high) / 2, low, high)


def said(case, held):
    inputs = gather(case)
    inputs.attributions.held_out, inputs.lds = held, ()
    methods = judge("COAR", inputs.attributions, {}, None, None)
    return verdict(inputs, methods, None, 100)


@pytest.mark.parametrize(
    ("held", "tone", "words"),
    [
        (scored(0.7, 0.8), "good", "predicts unseen masked runs with correlation 0.750 [0.700"),
        (scored(-0.1, 0.2), "none", "Nothing can be concluded"),
        (scored(-0.5, -0.2), "none", "point the wrong way"),
        (scored(np.nan, np.nan, 5), "unknown", "Too little to judge by: 5 held-out rows"),
        (scored(0.0, 0.0), "none", "Nothing can be concluded"),
        (None, "unknown", "Not tested"),
    ],
)
def test_a_verdict_is_no_better_than_its_interval(case, held, tone, words):
    found = said(case, held)
    assert found.tone == tone and words in found.text


def test_scores_without_held_out_rows_are_judged_by_their_lds(case):
    inputs = gather(case)
    inputs.attributions.held_out = None
    found = verdict(inputs, [], None, 100)
    assert found.tone == "good" and "LDS trak 0.450 [0.400, 0.500]" in found.text
    low = {**inputs.lds[0].summary, "interval": {"low": -0.1, "high": 0.2}, "mean": 0.05}
    inputs.lds = [LDSRecord("weak", low, None)]
    found = verdict(inputs, [], None, 100)
    assert found.tone == "none" and found.text.startswith("Nothing can be concluded")
    inputs.lds, inputs.attributions.summary["method"] = [], "metagradient"
    found = verdict(inputs, [], None, 100)
    assert found.tone == "unknown" and "metagradient scores" in found.text


def test_a_verdict_names_baselines_with_their_intervals(case):
    page = build_report(gather(case))
    text = page[page.index('<p class="verdict good">') :].split("</p>")[0]
    assert "random scores" in text and text.count("[") == 2


def test_examples_are_not_to_be_relied_on_where_nothing_can_be_concluded(case):
    inputs = gather(case)
    assert "Not to be relied on" not in build_report(inputs)
    inputs.attributions.held_out = scored(-0.1, 0.2)
    assert "Not to be relied on, see above." in build_report(inputs)


def test_titles_are_words(case):
    inputs = gather(case)
    inputs.features = FeatureNotes([("a", 4), ("b", 8)], kind="conv_filter")
    inputs.examples, inputs.model = Notes(texts=["x"] * TARGETS), "Net"
    assert title(inputs) == "What 12 convolution filters of Net do to 8 texts"
    assert title(ReportInputs()) == "Nothing to report yet"
    training = FeatureNotes(notes=Notes(labels=["a"] * 12))
    assert training.noun == "training examples" and FeatureNotes().noun == "features"


def test_methods_of_an_evaluation_stand_in_the_table(case):
    inputs = gather(case)
    inputs.baselines = {}
    page = build_report(inputs)
    table = page[page.index('id="methods"') :].split("</table>")[0]
    assert "random¹" in table and "0.000 [−0.100, 0.100]" in table and "by coar evaluate" in table


def test_three_examples_are_explained_on_the_first_screen(case):
    report.main(report_arguments(case))
    page = (case / "report.html").read_text()
    front = page[page.index('<div class="front">') : page.index("</header>")]
    assert front.count('<article class="card">') == 3
    assert front.count('<img class="main"') == 3 and front.count("<blockquote>") == 3
    assert "first[" in front or "second[" in front


def test_training_examples_that_help_and_harm_are_shown(case, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "training.npz", images=images, labels=np.arange(12) % 3)
    examples = str(case / "examples.npz")
    words = ["--examples", examples, "--training_examples", str(tmp_path / "training.npz")]
    report.main([str(case), *words, "--quiet", "--out", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert '<figure id="helpful-harmful">' in page and "a training" in page.lower()
    texts = tmp_path / "training.json"
    texts.write_text(json.dumps([f"text {at}" for at in range(12)]))
    report.main([str(case), "--training_examples", str(texts), "--quiet"])
    page = (case / "report.html").read_text()
    assert 'id="helpful"' in page and "text 11" in page


def test_results_stand_side_by_side(case, tmp_path):
    other = make_fit(make_store(tmp_path / "store"), tmp_path / "other", held_out=60)
    report.main([str(case), str(other), "--quiet"])
    page = (case / "comparison.html").read_text()
    assert "run beside other" in page and '<figure id="agreement">' in page
    assert page.count('<th scope="row">') >= 2
    with pytest.raises(ArgumentError, match="goes with one RESULT"):
        report.main([str(case), str(other), "--store", str(tmp_path / "store")])


def test_a_comparison_says_which_is_better_or_that_it_cannot_tell(case, tmp_path):
    worse = make_fit(make_store(tmp_path / "worse" / "store"), tmp_path / "worse" / "attributions")
    text = build_comparison([gather(case), gather(worse)])
    assert "run beside worse" in text and "their intervals overlap" in text
    found = Attributions.load(worse)
    found.held_out = replace(found.held_out, mean=0.3, mean_low=0.2, mean_high=0.4)
    found.save(tmp_path / "low" / "attributions")
    text = build_comparison([gather(tmp_path / "low"), gather(case)])
    assert "run predicts best: its interval lies above" in text


def test_one_is_no_plural_and_zero_has_no_sign(tmp_path):
    make_fit(make_store(tmp_path / "r" / "store", targets=1), tmp_path / "r" / "attributions")
    report.main([str(tmp_path / "r"), "--quiet"])
    page = (tmp_path / "r" / "report.html").read_text()
    assert "What 12 features do to 1 output<" in page and "1 outputs" not in page
    assert title(gather(tmp_path / "r" / "attributions")) == title(gather(tmp_path / "r"))


def test_results_of_other_shapes_are_said_to_be_so(case, tmp_path):
    other = make_fit(make_store(tmp_path / "store", features=5), tmp_path / "other")
    page = build_comparison([gather(case), gather(other)])
    assert "other has other features or targets than run" in page
    with pytest.raises(ReportError, match="no attributions to compare"):
        build_comparison([gather(case), gather(tmp_path / "store")])
    with pytest.raises(ReportError, match="at least two"):
        build_comparison([gather(case)])


def test_a_leave_one_out_store_beside_the_result_is_a_baseline(case):
    singles = case / "leave_one_out"
    singles.mkdir()
    masks = np.ones((13, 12), bool)
    np.fill_diagonal(masks, False)
    np.save(singles / "masks.npy", masks)
    np.save(singles / "test_margins.npy", np.random.default_rng(0).normal(size=(13, TARGETS)))
    np.save(singles / "_completed.npy", np.ones(13, bool))
    found = gather(case).baselines
    assert list(found) == ["leave-one-out"] and found["leave-one-out"].cost == "13 rows"
    np.save(singles / "_completed.npy", np.arange(13) < 12)  # unfinished
    assert gather(case).baselines == {}
    assert SimpleNamespace  # the folder goes with the case
