import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_cases import FEATURES, TARGETS, make_case, make_fit, make_store, report_arguments

from coarlib.commands.judge import report
from coarlib.errors import CoarlibError, ReportError, ScoringError
from coarlib.report.inputs import ReportInputs, gather
from coarlib.report.methods import Baseline, read_baseline
from coarlib.report.page import build_report, write_report
from coarlib.report.words import fit_name

SECTIONS = ["attributions", "held-out", "learning", "layers", "lds", "health", "run"]


VOID = {"meta", "img", "input", "br", "link", "hr"}


class Elements(HTMLParser):
    """Ids, sections, scripts and void-checked nesting of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.sections, self.open, self.text = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag not in VOID:
            self.open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        key = next((i for tag, i in reversed(self.open) if i), None)
        self.text[key] = self.text.get(key, "") + data


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case") / "run")


@pytest.fixture(scope="module")
def page(case):
    report.main(report_arguments(case))
    return (case / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_whole_file_that_needs_no_network(page):
    found = Elements(page)
    assert found.open == []
    assert found.sections == SECTIONS
    assert len(found.ids) == len(set(found.ids))
    for key in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page):
        assert "".join(key) in found.ids
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert outside <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<(link|iframe|object|embed)\b|\bsrc=\"(?!data:)", page)
    assert len(page) < 10e6


def test_every_section_has_its_figures_and_numbers(page, case):
    for key in (
        "mask-balance",
        "outputs-under-masks",
        "ranked-correlations",
        "correlations",
        "against-fraction",
        "predicted-against-true",
        "learning-curve",
        "layer-map",
        "nearest",
        "lds-distribution",
    ):
        assert f'<figure id="{key}">' in page
    assert page.count('role="img"') >= 10
    held = gather(case).attributions.held_out
    assert f"{held.mean:.3f}" in page
    assert "0.450" in page and "[0.400, 0.500]" in page


def test_the_data_of_the_page_is_inert_and_right(page, case):
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in text
    data = json.loads(text)
    assert data["labels"][2] == "</script><b>crab"
    assert data["targets"] == TARGETS and data["features"] == FEATURES
    assert data["groups"] == [["first", 4], ["second", 8]]
    assert len(data["images"]) == TARGETS and data["texts"]["0"] == "the a picture"
    assert "<b>crab" not in page.replace(text, "")


def test_a_half_filled_store_and_a_fit_on_it_give_a_report(tmp_path):
    store = make_store(tmp_path / "store", rows=200, complete=100)
    make_fit(store, tmp_path / "attributions", held_out=30)
    page = build_report(gather(tmp_path))
    assert "100 of 200 rows are not completed" in page
    assert '<figure id="learning-curve">' in page


def test_a_store_alone_gives_a_report(tmp_path):
    page = build_report(gather(make_store(tmp_path / "store")))
    assert "There are no attributions yet" in page
    assert '<figure id="learning-curve">' in page and '<figure id="mask-balance">' in page


def test_an_empty_store_gives_a_report(tmp_path):
    page = build_report(gather(make_store(tmp_path / "store", complete=0)))
    assert "No row of" in page
    assert Elements(page).sections == [name for name in SECTIONS if name != "lds"]
    assert "Not shown: LDS" in page


def test_a_fit_without_held_out_rows_says_so_in_one_sentence(tmp_path):
    store = make_store(tmp_path / "store")
    page = build_report(gather(make_fit(store, tmp_path / "fit", held_out=0)))
    assert "The fit has no held-out rows" in page
    assert "There are no held-out rows to look at predictions on" in page
    assert '<figure id="learning-curve">' not in page


def test_rows_that_are_gone_are_missed_in_one_sentence(tmp_path):
    store = make_store(tmp_path / "store")
    fitted = make_fit(store, tmp_path / "fit")
    store.rename(tmp_path / "moved")
    page = build_report(gather(fitted))
    assert "are not there; name their store" in page
    assert '<figure id="ranked-correlations">' in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": 5}, "12 features, but the masks of .* have 5"),
        ({"targets": 3}, "8 targets, but the outputs of .* have 3"),
    ],
)
def test_rows_of_another_width_are_one_clear_error(tmp_path, options, words):
    fitted = make_fit(make_store(tmp_path / "store"), tmp_path / "fit")
    other = make_store(tmp_path / "other", **options)
    with pytest.raises(ReportError, match=words):
        gather(fitted, other)
    assert not (fitted / "report.html").exists()


def test_nothing_to_report_on_is_one_clear_error(tmp_path):
    with pytest.raises(ReportError, match="nothing to report on"):
        gather(tmp_path)


def test_a_damaged_result_is_one_clear_error(tmp_path):
    fitted = make_fit(make_store(tmp_path / "store"), tmp_path / "fit")
    (fitted / "datamodels.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CoarlibError, match="damaged"):
        gather(fitted)


def test_constant_and_nan_targets_are_named(tmp_path):
    store = make_store(tmp_path / "store")
    outputs = np.load(store / "test_margins.npy")
    outputs[:, 3] = 1.5
    outputs[::2, 5] = np.nan
    np.save(store / "test_margins.npy", outputs)
    page = build_report(gather(store))
    assert "Targets that never vary: 3." in page
    assert "Targets that hold NaN or infinity: 5." in page


def test_notes_of_the_wrong_length_are_one_clear_error(case, tmp_path):
    np.savez(tmp_path / "few.npz", labels=np.arange(3))
    with pytest.raises(ReportError, match="3 labels for 8 targets"):
        report.main([str(case), "--examples", str(tmp_path / "few.npz"), "--quiet"])


def test_an_explained_history_is_shown(tmp_path):
    path = tmp_path / "history"
    path.mkdir()
    (path / "explanation.json").write_text(json.dumps({"first": 2, "window": 5}))
    np.save(path / "_completed.npy", np.ones(3, bool))
    np.save(path / "data_by_step.npy", np.random.default_rng(0).normal(size=(3, 1, 7)))
    np.save(path / "untracked.npy", np.zeros((3, 1)))
    inputs = gather(path)
    assert inputs.steps.steps.tolist() == [2, 7, 12, 17, 22, 27, 32]
    page = build_report(inputs)
    assert '<figure id="steps-by-source">' in page and "Largest residuals" in page
    assert Elements(page).sections == ["history"]


def test_baselines_are_scored_on_the_held_out_rows(case):
    inputs = gather(case)
    inputs.baselines = {"the same": Baseline(np.asarray(inputs.attributions.weight), "9 rows")}
    page = build_report(inputs)
    found = Elements(page).text["methods"]
    assert "the same" in found and "9 rows" in found and "random scores" in found
    inputs.baselines = {"itself": read_baseline(case / "attributions")}
    with pytest.raises(ScoringError, match=r"itself was fitted on .* rows that all are judged on"):
        build_report(inputs)
    scores = np.asarray(inputs.attributions.weight)
    for name in ("random scores", fit_name(inputs)):
        inputs.baselines = {name: Baseline(scores)}
        with pytest.raises(ScoringError, match=f"a report has its own {name}; call"):
            build_report(inputs)
    inputs.baselines = {"odd": Baseline(np.zeros((2, 2)))}
    with pytest.raises(ReportError, match=r"odd has shape \[2, 2\]"):
        build_report(inputs)


def test_reports_appear_whole_or_not_at_all(case, tmp_path):
    path = write_report(ReportInputs("nothing"), tmp_path / "made" / "report.html")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_many_targets_stay_small(tmp_path):
    store = make_store(tmp_path / "store", rows=60, features=30, targets=6000)
    page = build_report(gather(make_fit(store, tmp_path / "fit", held_out=20)))
    assert len(page) < 6000 * 250 + 400_000
