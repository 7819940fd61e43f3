"""The table of what works with what is that of its last run, and the tests it names exist."""

import importlib
import json
import re

import pytest
from paths import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("compatibility")


def test_the_table_is_that_of_the_last_run_and_nothing_failed(script):
    result = ROOT / "benchmarks" / "results" / "compatibility.json"
    rows = json.loads(result.read_text(encoding="utf-8"))["results"]["cases"]
    written = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert written == script.page(rows)
    for case, row in zip(script.CASES, rows, strict=True):
        assert (row["system"], row["direction"]) == (case[0], case[2])
        assert row["failed"] == 0 and row["passed"] > 0


def test_every_test_of_the_table_is_there(script):
    for *_, tests in script.CASES:
        for test in tests:
            file, name, _ = re.fullmatch(r"([^:]+)(?:::(\w+)(\[\w+\])?)?", test).groups()
            content = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name or 'test_'}" in content, test


def test_counts_are_what_pytest_says(script, tmp_path):
    file = tmp_path / "test_few.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip()\n"
    )
    assert script.outcome([str(file)]) == {"passed": 1, "skipped": 1, "failed": 1}
