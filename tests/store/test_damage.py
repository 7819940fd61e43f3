"""No bit of a store or a result can flip without a word, a traceback or a hang."""

import numpy as np
import pytest
from damage import (
    attack,
    flipped_bits,
    impatient,
    look_at_result,
    look_at_store,
    make_result,
    make_store,
    mutations,
)

KINDS = {"store": (make_store, look_at_store), "result": (make_result, look_at_result)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [flipped_bits(61, 7), mutations(np.random.default_rng(0), 25)])
def test_damage_is_found_or_harmless(kind, changes, tmp_path, monkeypatch):
    impatient(monkeypatch)
    make, look = KINDS[kind]
    found = attack(make(tmp_path / "it"), look, changes, tmp_path)
    assert {one.file: (one.silent, one.raised) for one in found if one.silent or one.raised} == {}
    assert sum(one.refused + one.reported for one in found) > 100
