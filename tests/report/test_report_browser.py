"""The report in a real browser: no script error, figures there, search and sort work."""

import json
import os
import warnings

import numpy as np
import pytest
from report_cases import TARGETS, make_case, make_fit, make_store, report_arguments

from coarlib.commands.judge import report

KEEP = "COARLIB_SCREENSHOTS"  # a directory in which to leave what the tests saw
COLUMN = "[...document.querySelectorAll('#examples tbody tr')].map(r => r.cells[{}].textContent)"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    case = make_case(tmp_path_factory.mktemp("case") / "run")
    report.main(report_arguments(case))
    return case / "report.html"


@pytest.fixture
def opened(browser, path):
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 800)
    browser.open(path.as_uri())
    yield browser
    assert browser.problems == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}


def column(browser, at):
    return browser.do(COLUMN.format(at))


def numbers(texts):
    return [float(text) for text in texts]


def test_the_script_ran_and_all_figures_are_drawn(opened):
    assert opened.do("document.documentElement.dataset.ready") == "1"
    sizes = opened.do(
        "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width,"
        " s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(sizes) >= 9
    assert all(width > 200 and height > 80 and paths > 5 for width, height, paths in sizes)
    assert opened.do("document.querySelectorAll('#scatter circle').length") > 20
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert opened.do(broken) == 0 and opened.do("document.images.length") > TARGETS


def test_clicking_a_heading_sorts_both_ways(opened):
    click = "document.querySelectorAll('#examples thead button')[2].click()"
    opened.do(click)
    found = numbers(column(opened, 2))
    assert found == sorted(found) and len(set(found)) > 1
    opened.do(click)
    assert numbers(column(opened, 2)) == sorted(found, reverse=True)
    assert opened.do("document.querySelectorAll('#examples th')[2].ariaSort") == "descending"


def test_small_tables_sort_too(opened):
    rows = "[...document.querySelectorAll('#layers-table tbody tr')]"
    opened.do("document.querySelectorAll('#layers-table thead button')[2].click()")
    found = numbers(opened.do(f"{rows}.map(r => r.cells[2].dataset.value)"))
    assert found == sorted(found)


def test_searching_finds_by_text_label_number_and_feature(opened):
    def search(words):
        opened.do("document.getElementById('search').value = ''")
        opened.do("document.getElementById('search').focus()")
        opened.type(words)
        return [int(text) for text in column(opened, 0)]

    assert search("The C picture") == [2]
    assert search("dog") == [1, 4, 7]
    assert search("5") == [5]
    found = search("second[")
    strongest = column(opened, 3)
    assert found and all(name.startswith("second[") for name in strongest)
    assert search("no such thing") == []
    assert opened.do("document.getElementById('search-state').textContent") == "0 of 8 examples"


def test_choosing_an_example_shows_what_it_rests_on(opened):
    opened.do("document.querySelector('#examples tr[data-target=\"4\"] button').click()")
    shown = opened.do("document.getElementById('example').innerText")
    assert shown.startswith("Example 4: dog") and "the e picture" in shown
    assert "Raise the output when kept" in shown and "±" in shown
    assert opened.do("document.querySelectorAll('#example .bars .fill').length") > 4
    opened.do("document.querySelector('#example .near button').click()")
    assert not opened.do("document.getElementById('example').innerText").startswith("Example 4")


def test_markup_in_labels_stays_text(opened):
    opened.do("document.querySelector('#examples tr[data-target=\"2\"] button').click()")
    assert "</script><b>crab" in opened.do("document.getElementById('example').innerText")
    assert opened.do("document.querySelectorAll('#example b').length") == 0


def test_the_keyboard_is_enough(opened):
    opened.press("Tab")
    assert opened.do("document.activeElement.className") == "skip"
    opened.press("Enter")
    assert opened.do("location.hash") == "#main"
    opened.do("document.querySelectorAll('#examples thead button')[0].focus()")
    opened.press("Enter")
    assert opened.do("document.querySelectorAll('#examples th')[0].ariaSort") == "descending"
    unnamed = (
        "[...document.querySelectorAll('button, input, select, [role=img], [role=region]')].filter("
        "e => !(e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length))).length"
    )
    assert opened.do(unnamed) == 0


def test_light_dark_and_by_button(opened):
    def paper():
        return opened.do("getComputedStyle(document.body).backgroundColor")

    opened.dark(False)
    light = paper()
    opened.dark(True)
    assert paper() != light
    opened.do("document.getElementById('theme').click()")
    assert paper() == light
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    before = opened.do(ink)
    opened.do("document.getElementById('theme').click()")
    assert opened.do(ink) != before
    opened.dark(False)


CONTRAST = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const v = parse(c).slice(0, 3).map((x) => (x /= 255) <= .03928
    ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const under = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (parse(c)[3] !== 0) return c; }
    return getComputedStyle(document.body).backgroundColor; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.disabled || e.closest("script,style")) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const ink = svg ? style.fill : style.color;
    if (!/^rgb/.test(ink)) continue;
    const a = light(ink), b = light(under(svg ? svg.parentElement : e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push([e.textContent.slice(0, 30), ink, ratio]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_the_contrast_of_wcag_aa(opened, dark):
    opened.dark(dark)
    assert opened.do(CONTRAST) == []
    faint = "document.querySelector('footer p').style.color = '#888'"
    opened.do(faint)
    assert len(opened.do(CONTRAST)) == (0 if dark else 1)
    opened.dark(False)


def test_the_first_screen_answers(opened):
    seen = "(s) => document.querySelector(s).getBoundingClientRect().bottom"
    for what in ("h1", ".verdict", "#correlations svg", "#methods", ".card:nth-of-type(3) .bars"):
        assert opened.do(f"({seen})({what!r})") <= 800, what
    assert opened.do("document.querySelectorAll('.card').length") == 3
    clipped = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.ariaLabel)"
    )
    assert opened.do(clipped) == []


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_nothing_sticks_out_at_either_size(opened, tmp_path, size):
    opened.size(*size)
    assert opened.do("document.documentElement.scrollWidth") <= size[0]
    folder = os.environ.get(KEEP)
    where = tmp_path if folder is None else type(tmp_path)(folder)
    picture = where / f"report_{size[0]}x{size[1]}.png"
    opened.screenshot(picture)
    assert picture.stat().st_size > 10_000


def test_it_prints(opened):
    assert opened.printed().startswith(b"%PDF")


def test_a_report_with_little_in_it_has_no_script_error(browser, tmp_path):
    browser.problems.clear()
    for name, options, fitted in (("empty", {"complete": 0}, False), ("bare", {}, True)):
        store = make_store(tmp_path / name / "store", **options)
        if fitted:
            make_fit(store, tmp_path / name / "attributions", held_out=0)
        report.main([str(tmp_path / name), "--quiet"])
        browser.open((tmp_path / name / "report.html").as_uri())
        assert browser.do("document.documentElement.dataset.ready") == "1"
    assert browser.problems == []


def test_long_and_foreign_names_are_shortened_and_stick_out_nowhere(browser, tmp_path):
    case = make_case(tmp_path / "run")
    names = [
        "日本語の猫" * 20,
        "x" * 300,
        "<img src=x onerror=alert(1)>",
        "\u202ertl",
        "",
        "a\nb",
        "🐈",
        "é",
    ]
    np.savez(case / "examples.npz", labels=np.arange(TARGETS), class_names=np.array(names))
    module = "a." + "module." * 40 + "conv"
    group = {"module": module, "parameter": "weight", "kind": "conv_filter", "axis": 0, "units": 12}
    (case / "components.json").write_text(json.dumps([group]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs, which the reader's fonts have
        report.main(report_arguments(case))
    browser.problems.clear()
    for size in ((1280, 800), (390, 844)):
        browser.size(*size)
        browser.open((case / "report.html").as_uri())
        assert browser.do("document.documentElement.scrollWidth") <= size[0]
    browser.size(1280, 800)
    browser.open((case / "report.html").as_uri())
    assert (
        browser.do("document.querySelector('.card:nth-of-type(3)').getBoundingClientRect().bottom")
        < 800
    )
    assert browser.do("document.querySelector('.card .bars span[title]').title").startswith(module)
    assert browser.problems == []


def test_on_a_phone_each_bar_stands_under_its_own_name_and_number(opened):
    opened.size(390, 844)
    tops = opened.do(
        "[...document.querySelectorAll('#example .bars')[0].children].map("
        "e => e.getBoundingClientRect().top)"
    )
    names, bars, values = tops[0::3], tops[1::3], tops[2::3]
    assert len(names) == len(bars) == len(values) >= 2
    for name, bar, value in zip(names, bars, values, strict=True):
        assert abs(name - value) < 8 and bar > name
    assert names == sorted(names)
