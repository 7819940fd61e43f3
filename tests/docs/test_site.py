"""The site builds without a warning, and no internal link of it or of the README is dead."""

import json
import os
import re
import subprocess
import sys
import time
from urllib.parse import unquote, urldefrag

import pytest
from chromium import Browser, find_chromium
from paths import ROOT

from coarlib.commands.__main__ import commands

LINK = re.compile(r'(?:href|src)="([^"]+)"')
MARKDOWN_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs the docs extra")
    pytest.importorskip("mkdocstrings", reason="needs the docs extra")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr + done.stdout
    return out


@pytest.mark.slow
def test_no_internal_link_is_dead(site):
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        if page.name == "404.html":  # its links count from the root of a server
            continue
        for link in LINK.findall(text):
            path, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:|//", path):
                continue
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            missing = anchor and target in anchors and anchor not in anchors[target]
            if not target.exists() or (missing and anchor != "__skip"):
                dead.append((page.relative_to(site).as_posix(), link))
    assert dead == [] and len(pages) > 30


@pytest.mark.slow
def test_generated_pages_hold_everything(site):
    reference = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in commands():
        assert f'<h2 id="coar-{command.replace(".", "")}">' in reference
    page = (site / "benchmarks.html").read_text(encoding="utf-8")
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"<summary>{result.stem.replace('_', ' ')}</summary>" in page
        assert json.loads(result.read_text())["date"] in page
    assert "<!-- table:" not in page and page.count("<table>") > 40


@pytest.mark.slow
def test_pages_and_search_work_from_a_folder(site, tmp_path):
    find_chromium()
    with Browser(tmp_path / "profile") as browser:
        for page in ("index.html", "reference/api.html"):
            for width in (1280, 390):
                browser.size(width, 800)
                browser.open((site / page).as_uri())
                assert browser.do("document.documentElement.scrollWidth") <= width
            browser.size(1280, 800)
            browser.do("document.querySelector('[data-md-toggle=search]').click()")
            browser.do("document.querySelector('.md-search__input').focus()")
            browser.type("leave-one-out")
            count = "document.querySelectorAll('.md-search-result__item').length"
            deadline = time.monotonic() + 60
            while not browser.do(count) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert browser.do(count) > 3
        assert browser.problems == []
        assert [url for url in browser.requests if url.startswith("http")] == []


@pytest.mark.slow
def test_no_code_is_cut_and_no_page_too_wide(site, tmp_path):
    find_chromium()
    cut = (
        "[...document.querySelectorAll('.highlight:not(.language-text) pre > code, pre.output > "
        "code')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    )
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 40
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.size(width, 844)
            for page in pages:
                browser.open(page.as_uri())
                assert browser.do(cut) == [], page
                assert browser.do("document.documentElement.scrollWidth") <= width, page
        assert browser.problems == []


@pytest.mark.slow
def test_notebooks_are_pages_with_their_outputs(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        drawn = path.read_text(encoding="utf-8").count('"image/png"')
        assert page.count('class="drawn"') == drawn and '<pre class="output">' in page
        assert (site / "notebooks" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_table_may_cross_two_keys_and_show_intervals(site):
    page = (site / "benchmarks.html").read_text(encoding="utf-8").split('id="everything"')[0]
    lines = json.loads((ROOT / "benchmarks/results/cifar_resnet20.json").read_text())["results"]
    first = lines["lines"][0]
    said = f"{first['pearson']:.3f} [{first['pearson_low']:.3f}, {first['pearson_high']:.3f}]"
    assert f"<th>fraction {first['fraction']:g}</th>" in page and f"<td>{said}</td>" in page
    assert "<td>gradient × parameter</td>" in page and "leave_one_out</td>" not in page
    commands = (site / "which-method-when.html").read_text(encoding="utf-8")
    assert '<span class="whole">--prior_scores</span>' in commands


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in MARKDOWN_LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in links if not (ROOT / urldefrag(link)[0]).exists()] == []
