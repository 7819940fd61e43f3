"""The report inside a notebook."""

import re
from html import unescape

import numpy as np
import pytest
from report_cases import FEATURES, TARGETS, make_fit, make_store

from coarlib.errors import ReportError
from coarlib.regression import Attributions
from coarlib.report.inline import Explorer
from coarlib.report.notes import Notes
from coarlib.store import Store


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inline")
    store = make_store(folder / "store")
    return Store.open(store), Attributions.load(make_fit(store, folder / "fit"))


def test_the_explorer_is_one_frame_with_the_whole_report(fitted, browser, tmp_path):
    store, found = fitted
    shown = found.explore(store=store, examples=Notes(texts=[f"text {t}" for t in range(TARGETS)]))
    assert isinstance(shown, Explorer) and "MB" in repr(shown)
    html = shown._repr_html_()
    page = unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)".*</iframe>', html, re.DOTALL)[1])
    assert page == shown.page and f"What {FEATURES} features do to {TARGETS} texts" in page
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{html}</body>")
    browser.problems.clear()
    browser.open(outer.as_uri())
    ready = "document.querySelector('iframe').contentDocument.documentElement.dataset.ready"
    assert browser.do(ready) == "1" and browser.problems == []
    assert shown.save(tmp_path / "kept.html").read_text(encoding="utf-8") == shown.page


def test_rows_are_found_by_the_fit_and_missed_in_one_sentence(fitted):
    store, found = fitted
    assert '<figure id="learning-curve">' in found.explore().page  # the fit says where they are
    with pytest.raises(ReportError, match="there is no store"):
        found.explore(store="nowhere")
    alone = Attributions(
        np.ones((2, 3), np.float32), np.zeros(3), np.zeros(3), np.full(2, 0.5), np.zeros(3)
    )
    assert "Not tested" in alone.explore().page
    assert store.num_models
