"""A small part of benchmarks/fuzz_foreign.py: whatever is brought is done, or one sentence."""

import foreign


def test_whatever_is_brought_is_done_or_refused_in_one_sentence(tmp_path):
    outcome = foreign.run(240, 0, tmp_path)
    assert outcome.wrong == []
    assert min(outcome.counts[key] for key in ("done", "refused")) > 10
    assert list(tmp_path.iterdir()) == []
