"""The site builds without a warning, and no internal link of it or of the README is dead."""

import json
import os
import re
import subprocess
import sys
from urllib.parse import unquote, urldefrag

import pytest
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
    reference = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    for command in commands():
        assert f'<h2 id="coar-{command.replace(".", "")}">' in reference
    page = (site / "benchmarks" / "index.html").read_text(encoding="utf-8")
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        # A heading inside another result may have the same name; then this one is numbered.
        assert re.search(f'<h2 id="{result.stem.replace("_", "-")}(_[0-9]+)?">', page)
        assert json.loads(result.read_text())["date"] in page


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in MARKDOWN_LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in links if not (ROOT / urldefrag(link)[0]).exists()] == []
