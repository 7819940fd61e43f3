"""benchmarks/soak.py, shortened: workers killed at random lose nothing and end by themselves."""

import importlib.util
import sys

from paths import ROOT


def test_workers_under_fire_fill_every_row_rightly(tmp_path):
    spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.soak(tmp_path / "store", 500, seconds_between_kills=0.2, seconds_per_batch=0.06)
    assert found.sound, found
    assert found.kills >= 5
    print(f"{found.recomputed} rows recomputed")
