import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from coarlib.ablation import WeightAblation
from coarlib.errors import SetupError
from coarlib.outputs import cross_entropy, per_sequence
from coarlib.store.spec import load_spec
from estimate.tinyllama_stories.model import Tokenizer, read_model
from estimate.tinyllama_stories.task import TinyLlamaTask

LOSS = 1.33  # nats a token that the checkpoint's source gives
TOLERANCE = 1e-5
SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture
def files(data_dir):
    names = ("stories260K.bin", "tok512.bin", "tinystories_500.json")
    return [str(data_dir / name) for name in names]


class WithLoss(TinyLlamaTask):
    outputs = {**TinyLlamaTask.outputs, "losses": per_sequence(cross_entropy)}  # noqa: RUF012


def test_the_checkpoint_tells_stories(files):
    task = WithLoss(*files, num_stories=40, num_tokens=512)
    task.prepare(torch.device("cpu"))
    assert task.num_features == 900
    rows = task.rows(np.arange(1), np.ones((1, 900), bool))
    assert rows["losses"].mean().item() == pytest.approx(LOSS, abs=0.05)


def test_the_spec_fits(files):
    task = TinyLlamaTask(*files)
    task.prepare(torch.device("cpu"))
    for name in ("tinyllama_stories", "tinyllama_stories_test"):
        schema = load_spec(SPECS / f"{name}.json").schema
        assert schema["masks"].shape == (task.num_features,)
        assert schema["test_margins"].shape == (task.num_examples,)


def test_an_ablated_head_is_a_silenced_head(files):
    task = TinyLlamaTask(*files, num_stories=3, batch_size=2, autocast="none")
    task.prepare(torch.device("cpu"))
    masks = np.ones((2, 900), bool)
    masks[1, 5] = False  # head 5 of layer 0
    found = task.rows(np.arange(2), masks)["test_margins"]
    model = task.model()

    def silence(module, arguments):
        changed = arguments[0].clone()
        changed[..., 5 * 8 : 6 * 8] = 0
        return (changed,)

    model.layers[0].attention.o_proj.register_forward_pre_hook(silence)
    batch = task.transform(task.examples())
    with torch.no_grad():
        (output,) = task.outputs.values()
        expected = output(task.predict(model, batch.inputs), batch.targets)
    torch.testing.assert_close(found[1], expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (found[0] - found[1]).abs().max() > 100 * TOLERANCE


def test_batch_size_does_not_change_a_row(files):
    masks = np.random.default_rng(0).random((3, 900)) < 0.9
    found = []
    for batch_size in (2, 9):
        task = TinyLlamaTask(*files, num_stories=9, batch_size=batch_size, autocast="none")
        task.prepare(torch.device("cpu"))
        found.append(task.rows(np.arange(3), masks)["test_margins"])
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=TOLERANCE)


def test_components_of_the_layers_come_heads_first(files):
    task = TinyLlamaTask(*files)
    components = task.components(task.model())
    assert components.sizes == [8, 172] * 5
    model = task.model()
    with WeightAblation(model, components) as ablation:
        ablation.apply(torch.zeros(900, dtype=torch.bool))
        assert not any(layer.mlp.down_proj.weight.any() for layer in model.layers)


def write_tokenizer(path, tokens):
    parts = [struct.pack("<i", max(map(len, tokens)))]
    parts += [struct.pack("<fi", score, len(t)) + t for t, score in tokens.items()]
    path.write_bytes(b"".join(parts))


def test_the_tokenizer_merges_by_score_and_falls_back_to_bytes(tmp_path):
    singles = {bytes([65 + i]): -1000.0 - i for i in range(3)}
    byte_tokens = {f"<0x{b:02X}>".encode(): 0.0 for b in range(256)}
    merges = {b"AB": -1.0, b"BC": -0.5, b" ": -5.0, b"ABC": -2.0}
    tokens = {b"<unk>": 0.0, b"<s>": 0.0, b"</s>": 0.0, **byte_tokens, **singles, **merges}
    write_tokenizer(tmp_path / "t.bin", tokens)
    tokenizer = Tokenizer(tmp_path / "t.bin", len(tokens), "")
    ids = {token: index for index, token in enumerate(tokens)}
    # BC scores above AB, so A + BC; they merge to ABC.
    assert tokenizer.encode("ABC") == [1, ids[b" "], ids[b"ABC"]]
    assert tokenizer.encode("ABA") == [1, ids[b" "], ids[b"AB"], ids[b"A"]]
    assert tokenizer.encode("é") == [1, ids[b" "], 3 + 0xC3, 3 + 0xA9]


def test_missing_and_foreign_files_are_said_in_one_sentence(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"x" * 100)
    (tmp_path / "short.bin").write_bytes(b"x")
    for name in ("m.bin", "short.bin"):
        with pytest.raises(SetupError, match=r"not a llama2\.c checkpoint"):
            read_model(tmp_path / name, "")
    with pytest.raises(SetupError, match=r"no model at .*; download it"):
        read_model(tmp_path / "none.bin", "download it")
    with pytest.raises(SetupError, match="no tokenizer at"):
        Tokenizer(tmp_path / "none.bin", 5, "")
    with pytest.raises(SetupError, match=r"not a llama2\.c tokenizer of 50"):
        Tokenizer(tmp_path / "m.bin", 50, "")
