"""Banks as other programs publish them: each format by name, and what is none."""

import json

import numpy as np
import pytest
import torch

from coarlib.commands.__main__ import main as coar
from coarlib.commands.store.import_bank import main as import_bank
from coarlib.errors import CoarlibError, ScoringError
from coarlib.interop.bank_formats import BANK_FORMATS
from coarlib.interop.banks import write_bank
from coarlib.store import Store

MASKS = np.random.default_rng(0).random((12, 10)) < 0.5
MARGINS = np.random.default_rng(1).normal(size=(12, 3)).astype("f4")
LISTS = [np.flatnonzero(mask) for mask in MASKS]


def trak(path):
    np.save(path / "mask.npy", MASKS)
    np.save(path / "val_margins.npy", MARGINS)


def datamodels(path):
    np.save(path / "masks.npy", MASKS)
    np.save(path / "margins.npy", MARGINS)
    np.save(path / "_completed.npy", np.ones(12, bool))


def kronfluence(path):
    torch.save(MASKS.astype(np.int8), path / "masks.pt")
    torch.save(MARGINS, path / "losses.pt")


def dattri(path):
    (path / "lds").mkdir()
    halves = np.stack([np.random.default_rng(i).permutation(10)[:5] for i in range(12)])
    torch.save(torch.from_numpy(halves), path / "lds" / "indices_lds.pt")
    torch.save(torch.from_numpy(MARGINS), path / "lds" / "target_values_lds.pt")
    return (halves[:, :, None] == np.arange(10)).any(1)


FOLDERS = {"trak": trak, "datamodels": datamodels, "kronfluence": kronfluence, "dattri": dattri}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path, name):
    (tmp_path / "bank").mkdir()
    masks = FOLDERS[name](tmp_path / "bank")
    words = [tmp_path / "store", "--format", name, "--bank", tmp_path / "bank"]
    import_bank([str(word) for word in [*words, "--num_examples", 10]])
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(store.array("masks"), MASKS if masks is None else masks)
    np.testing.assert_array_equal(store.array("test_margins"), MARGINS)
    assert len(store.completed_rows()) == 12


def test_the_subsets_of_traks_tutorial_are_drawn_again(tmp_path):
    outputs = torch.randn(20, 4)
    torch.save(outputs, tmp_path / "lds_outputs_per_subset.pt")
    found = BANK_FORMATS["trak"](tmp_path, None)
    np.random.seed(42)  # noqa: NPY002 - as the notebook draws them
    for mask in found.masks:
        drawn = np.random.choice(range(5_000), 2_500, replace=False)  # noqa: NPY002
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(drawn))
    np.testing.assert_array_equal(found.outputs, outputs.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_what_a_context_citer_keeps(tmp_path, suffix):
    kept = {"reg_masks": MASKS, "reg_logit_probs": MARGINS}
    path = tmp_path / f"cc{suffix}"
    if suffix == ".pt":
        torch.save(kept, path)
    else:
        np.savez(path, **kept)
    import_bank([str(w) for w in (tmp_path / "s", "--format", "context-cite", "--bank", path)])
    outputs = Store.open(tmp_path / "s").array("test_margins")
    np.testing.assert_array_equal(outputs[:, 1:], MARGINS)
    chance = (1 / (1 + np.exp(-MARGINS.astype(np.float64)))).prod(1)
    np.testing.assert_allclose(outputs[:, 0], np.log(chance / (1 - chance)), rtol=1e-5)


def stride(path, header, change=lambda line: line):
    rows = [
        change({"train_subset": kept.tolist(), "train_subset_global": (kept + 100).tolist(),
                "test_loss": loss.tolist()})
        for kept, loss in zip(LISTS, MARGINS, strict=True)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*header, *rows]))
    return path


@pytest.mark.parametrize(
    "header",
    [
        [{"_meta": {"pool_indices": list(range(100, 110)), "n_subsets": 12}}],
        [{"_meta": True, "pool": list(range(10))}],
        [{"_meta": {"pool_size": 10}}],
    ],
)
def test_strides_lines(tmp_path, header):
    found = BANK_FORMATS["stride"](stride(tmp_path / "lds.jsonl", header), None)
    np.testing.assert_array_equal(found.masks, MASKS)
    np.testing.assert_array_equal(found.outputs, MARGINS)
    assert "losses" in found.notes


def test_lines_that_are_not_strides(tmp_path):
    path = tmp_path / "lds.jsonl"
    for change, words in (
        (lambda line: line, "does not say how many examples"),
        (lambda line: {"test_loss": [1.0]}, "line 1 has no train_subset and test_loss"),
        (lambda line: [1, 2], "line 1 has no train_subset and test_loss"),
        (lambda line: line | {"test_loss": line["train_subset"]}, "has test losses"),
        (lambda line: line | {"test_loss": ["a"]}, "must hold real numbers"),
    ):
        with pytest.raises(ScoringError, match=words):
            BANK_FORMATS["stride"](stride(path, [], change), None)
    path.write_text('{"_meta": {}}\n')
    with pytest.raises(ScoringError, match="holds no subsets"):
        BANK_FORMATS["stride"](path, 10)


def test_a_format_needs_its_files_and_leaves_no_store(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in BANK_FORMATS:
        for place in (tmp_path / "empty", tmp_path / "none"):
            words = ["import_bank", tmp_path / "s", "--format", name, "--bank", place]
            with pytest.raises(SystemExit) as caught:
                coar([str(word) for word in words])
            assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    for words in ([], ["--format", "trak"], ["--bank", "x"], ["--masks", "x", "--format", "trak"]):
        with pytest.raises(CoarlibError, match="or else --format and --bank"):
            import_bank([str(tmp_path / "s"), *words])
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_outputs_that_are_booleans_are_no_outputs(tmp_path):
    with pytest.raises(ScoringError, match="outputs are booleans"):
        write_bank(tmp_path / "s", MASKS, MARGINS > 0)
    runs = np.stack([MARGINS, MARGINS + 1], 1)
    np.savez(tmp_path / "o.npz", runs)
    np.save(tmp_path / "m.npy", MASKS)
    words = [tmp_path / "s", "--masks", tmp_path / "m.npy", "--outputs", tmp_path / "o.npz"]
    import_bank([str(word) for word in words])
    np.testing.assert_array_equal(Store.open(tmp_path / "s").array("test_margins"), runs)
