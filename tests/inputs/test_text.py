import json

import pytest
import torch

from coarlib.errors import SetupError
from coarlib.inputs.text import causal_examples, read_texts, trimmed
from coarlib.outputs import IGNORED


def test_json_lists_and_lines_are_texts(tmp_path):
    texts = ["one two", "three", "four"]
    (tmp_path / "t.json").write_text(json.dumps(texts))
    (tmp_path / "t.txt").write_text("\n".join(texts))
    for name in ("t.json", "t.txt"):
        assert read_texts(tmp_path / name, "", 2) == texts
        with pytest.raises(SetupError, match="holds 3 texts, not 4"):
            read_texts(tmp_path / name, "", 4)


@pytest.mark.parametrize("content", [b"{", b'{"a": 1}', b"[1, 2]", b'["\xff"]'])
def test_other_content_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(SetupError):
        read_texts(tmp_path / "t.json", "", 1)
    with pytest.raises(SetupError, match=r"no texts at .*; get some"):
        read_texts(tmp_path / "none.json", "get some", 1)


def test_examples_are_padded_cut_and_shifted():
    examples = causal_examples([[5, 6, 7, 8], [9, 10]], longest=3)
    tokens, attention = examples.inputs
    assert tokens.tolist() == [[5, 6, 7], [9, 10, 0]]
    assert attention.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert examples.targets.tolist() == [[6, 7, IGNORED], [10, IGNORED, IGNORED]]
    ((_, last),) = examples.batches(5)
    assert torch.equal(trimmed(last).inputs[0], tokens)
    _, second = list(examples.batches(1))[1]
    assert trimmed(second).inputs[0].tolist() == [[9, 10]]
    assert trimmed(second).targets.tolist() == [[10, IGNORED]]


def test_a_text_of_one_token_predicts_nothing():
    with pytest.raises(SetupError, match="text 1 has 1 tokens"):
        causal_examples([[1, 2], [3]], longest=5)
