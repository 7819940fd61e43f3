"""Every committed result says when, on what and with which versions it was measured."""

import json

import pytest
from paths import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PEERS = {
    "beton": ["ffcv"],
    "lds": ["dattri", "scikit-learn", "scipy"],
    "path_kernel": ["explaind"],
    "regression_least_squares": ["scikit-learn"],
    "retraining": ["dattri"],
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_date_machine_and_versions(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content)[:4] == ["date", "machine", "versions", "results"]
    assert len(content["date"]) == 10 and content["machine"]["cpu"]
    versions = content["versions"]
    assert versions["python"] and all(versions.get(peer) for peer in PEERS.get(path.stem, []))
