"""Every code block of the docs and the README runs, in the order of its page."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```\s*?$"
    # What a page takes for granted, invisible to readers: <!-- run first: python … -->
    r"|^<!-- run first: (?P<hidden>python|bash)\n(?P<code>.*?)^-->\s*?$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S[^>]*?) -->\s*$")
SHELLS, NOT_CODE = ("bash", "sh", "console"), ("text", "json", "yaml", "mermaid", "diff")
# Lines that CI runs itself, before this test, in this very environment.
DONE_BEFORE = re.compile(r"^(make (setup|demo|test|lint|bench|docs)|pip install)\b")
LENT = ("specs", "estimate", "slurm", "benchmarks")  # what commands in the docs refer to


def blocks(page):
    """(language, title, body, reason not to run, line) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["hidden"]:
            yield match["hidden"], None, match["code"], None, line
            continue
        indent = len(match["indent"])
        body = "".join(line[indent:] or "\n" for line in match["body"].splitlines(True))
        title = re.search(r'title="([^"]+)"', match["rest"])
        before = NOT_RUN.search(text[: match.start()])
        yield match["language"], title and title[1], body, before and before["reason"], line


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory that looks like a checkout, and the commands of this environment."""
    for name in LENT:
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # products this small lose by threads
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:  # pages may define modules of one name
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def shell(body, place):
    lines = [line.removeprefix("$ ") for line in body.splitlines()]
    commands = "\n".join(line for line in lines if not DONE_BEFORE.match(line))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, place):
    names = {"__name__": "__page__"}
    for language, title, body, reason, line in blocks(page):
        where = f"{page.relative_to(ROOT)}:{line}"
        if reason:
            continue
        if title:
            (place / title).write_text(body, encoding="utf-8")
        elif language in SHELLS:
            shell(body, place)
        elif language == "python":
            exec(compile(body, where, "exec"), names)
        elif language == "json":
            json.loads(body)
        elif language == "yaml":
            yaml.safe_load(body)
        else:
            assert language in NOT_CODE, f"{where}: blocks of {language!r} are never run"


def test_pages_are_found_and_most_of_them_run_something():
    found = {page.name: list(blocks(page)) for page in PAGES}
    assert "tutorial.md" in found and len(found["tutorial.md"]) >= 6
    assert sum(any(b[0] in (*SHELLS, "python") for b in f) for f in found.values()) >= 10


def test_a_failing_block_fails(place):
    with pytest.raises(AssertionError, match="no-such-command"):
        shell("no-such-command", place)
