"""Every committed result says how, when, on what and with which versions it was measured."""

import json
import re
import subprocess
import sys

import pytest
from paths import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
POSITIONAL = re.compile(r"add_argument\(\s*f?[\"'](?!-)")
PEERS = {
    "beton": ["ffcv"],
    "lds": ["dattri", "scikit-learn", "scipy"],
    "path_kernel": ["explaind"],
    "regression_lasso": ["adelie", "celer", "scikit-learn", "skglm"],
    "regression_least_squares": ["scikit-learn"],
    "retraining": ["dattri"],
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_command_date_machine_and_versions(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["command", "date", "machine", "versions", "results"]
    assert len(content["date"]) == 10 and content["machine"]["cpu"] and content["machine"]["cores"]
    versions = content["versions"]
    assert versions["python"] and all(versions.get(peer) for peer in PEERS.get(path.stem, []))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_result_writes_it(path):
    script, *options = json.loads(path.read_text(encoding="utf-8"))["command"].split()
    source = (ROOT / script).read_text(encoding="utf-8")
    assert "reporting.save(" in source and f'"{path.stem}"' in source
    assert all(f'"{option}"' in source for option in options)
    assert "required=True" not in source and not POSITIONAL.search(source), "wants more words"


def test_make_bench_runs_the_command_of_every_result():
    assert "$(PY) benchmarks/run_all.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "import run_all; print(*run_all.commands(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    named = {json.loads(path.read_text(encoding="utf-8"))["command"] for path in RESULTS}
    assert set(done.stdout.split("\n")) - {""} == named


def test_saving_a_result_names_the_script_that_made_it(tmp_path):
    script = tmp_path / "measured.py"
    script.write_text(
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import reporting\n"
        "reporting.ROOT = reporting.RESULTS = Path(sys.argv[2])\n"
        "reporting.save('one', {'x': 1}, 'torch', options=['--fast'], peers={'peer': '1.2'})\n"
    )
    command = [sys.executable, script, ROOT / "benchmarks", tmp_path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["command"] == "benchmarks/measured.py --fast"
    assert content["versions"]["peer"] == "1.2" and content["versions"]["torch"]
    assert content["results"] == {"x": 1}
