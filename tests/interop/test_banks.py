"""Published banks become stores; quanda's lists are read and written."""

import numpy as np
import pytest
import torch
import yaml

import coarlib as cl
from coarlib.commands.judge.score_lds import main as score_lds
from coarlib.commands.store.import_bank import main as import_bank
from coarlib.errors import CoarlibError, ScoringError, StoreError
from coarlib.interop.banks import (
    quanda_checkpoints,
    read_masks,
    read_quanda_subsets,
    write_bank,
    write_quanda_subsets,
)
from coarlib.scoring import lds, masks_from_indices
from coarlib.store import Store


def bank(subsets=30, examples=40, targets=6):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((examples, targets)).astype("f4")
    indices = np.stack([rng.choice(examples, 20, replace=False) for _ in range(subsets)])
    masks = masks_from_indices(indices, examples)
    margins = (masks @ scores + rng.standard_normal((subsets, targets))).astype("f2")
    return scores, indices, masks, margins


def test_the_trak_tutorials_files_become_a_store_that_is_scored(tmp_path, capsys):
    scores, _, masks, margins = bank()
    for name, array in (("mask", masks), ("val_margins", margins), ("scores", scores)):
        np.save(tmp_path / f"{name}.npy", array)
    words = ["--bank.masks", tmp_path / "mask.npy", "--bank.outputs", tmp_path / "val_margins.npy"]
    words = ["--logging.logdir", tmp_path / "store", *words]
    import_bank([str(word) for word in words])
    import_bank([str(word) for word in words])  # twice is no harm
    store = Store.open(tmp_path / "store")
    assert len(store.completed_rows()) == 30
    np.testing.assert_array_equal(store.array("masks"), masks)
    np.testing.assert_array_equal(store.array("test_margins"), margins)
    assert store.array("test_margins").dtype == np.float16
    words = ["--data.store", tmp_path / "store", "--data.scores", tmp_path / "scores.npy"]
    score_lds([str(word) for word in words])
    assert f"{lds(scores, masks, margins).mean:.4f}" in capsys.readouterr().out


def test_another_bank_of_the_same_shape_changes_nothing(tmp_path):
    _, _, masks, margins = bank()
    done = np.arange(30) % 2 == 0
    half = write_bank(tmp_path / "store", masks, margins, completed=done)
    before = np.array(half.array("test_margins"))
    other = margins.copy()
    other[4, 0] += 1
    for given in ((masks, other), (~masks, margins)):
        with pytest.raises(StoreError, match=r"another bank: .* differ at row [40]; nothing was"):
            write_bank(tmp_path / "store", *given)
    np.testing.assert_array_equal(Store.open(tmp_path / "store").array("test_margins"), before)
    whole = write_bank(tmp_path / "store", masks, margins)
    np.testing.assert_array_equal(whole.array("test_margins"), margins)
    assert whole.completed().all()


def test_outputs_may_be_whole_numbers(tmp_path):
    _, _, masks, margins = bank()
    store = write_bank(tmp_path / "store", masks, (100 * margins).astype(int))
    assert store.outputs_name() == "test_margins"
    assert np.isfinite(cl.fit(store).weight).all()


def test_masks_of_another_number_of_examples_are_refused(tmp_path):
    np.save(tmp_path / "mask.npy", bank()[2])
    with pytest.raises(ScoringError, match="masks of 40 examples, not 41"):
        read_masks(tmp_path / "mask.npy", 41)


@pytest.mark.parametrize("style", [None, True, False])
def test_quandas_subsets_are_read_in_every_style(tmp_path, style):
    lists = [[3, 1, 2], [], [0], [39, 12345678901], []]
    file = tmp_path / "lds_subsets.yaml"
    file.write_text(yaml.safe_dump(lists, default_flow_style=style))
    assert [part.tolist() for part in read_quanda_subsets(file)] == lists


def test_written_subsets_are_what_yaml_reads(tmp_path):
    _, indices, masks, _ = bank()
    file = tmp_path / "lds_subsets.yaml"
    write_quanda_subsets(file, indices)
    assert yaml.safe_load(file.read_text()) == indices.tolist()
    np.testing.assert_array_equal(read_masks(file, 40), masks)
    np.save(tmp_path / "indices.npy", indices)
    np.testing.assert_array_equal(read_masks(tmp_path / "indices.npy", 40), masks)
    with pytest.raises(ScoringError, match="say how many examples"):
        read_masks(file)
    lists = [torch.tensor(subset) for subset in indices]
    for same in (torch.tensor(indices), torch.tensor(indices).double(), lists):
        torch.save(same, tmp_path / "i.pt")
        np.testing.assert_array_equal(read_masks(tmp_path / "i.pt", 40), masks)
    np.savez(tmp_path / "masks.npz", masks.astype("i1"))
    for name, kept in (("a.pt", masks), ("b.pt", masks.astype("f4"))):
        torch.save({"masks": torch.tensor(kept)}, tmp_path / name)
        np.testing.assert_array_equal(read_masks(tmp_path / name), masks)
    np.testing.assert_array_equal(read_masks(tmp_path / "masks.npz"), masks)


def test_large_lists_survive(tmp_path):
    rng = np.random.default_rng(0)
    subsets = [rng.permutation(48_000)[:24_000] for _ in range(20)]
    file = tmp_path / "lds_subsets.yaml"
    write_quanda_subsets(file, subsets)
    found = read_quanda_subsets(file)
    np.testing.assert_array_equal(np.stack(found), np.stack(subsets))


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "{x: 1}", "- - 1\n  - -2\n", "- - 1.5\n", "- 1\n- 2\n", "!!python/x"]
)
def test_other_yaml_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ScoringError, match=r"x\.yaml is not a list of lists"):
        read_quanda_subsets(tmp_path / "x.yaml")


def test_what_is_no_bank_is_named_and_leaves_nothing(tmp_path):
    _, indices, masks, margins = bank()
    for args, words in (
        ((masks[:-1], margins), r"not \[29, 40\] and \[30, 6\]"),
        ((masks[0], margins), "a bank needs masks"),
    ):
        with pytest.raises(ScoringError, match=words):
            write_bank(tmp_path / "store", *args)
    with pytest.raises(CoarlibError, match="other than 0 and 1"):
        write_bank(tmp_path / "other", indices, margins)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ScoringError, match="there is no file"):
        read_masks(tmp_path / "none.npy")


def test_quandas_checkpoints_in_order_and_whole(tmp_path):
    for number in (0, 1, 2, 10):
        folder = tmp_path / "ckpt" / f"mnist_lds_subset_{number}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    with pytest.raises(StoreError, match="no model of subset 3 of mnist"):
        quanda_checkpoints(tmp_path, "mnist")
    (tmp_path / "ckpt" / "mnist_lds_subset_10" / "model.safetensors").unlink()
    found = quanda_checkpoints(tmp_path, "mnist")
    assert [file.parent.name[-1] for file in found] == ["0", "1", "2"]
    with pytest.raises(StoreError, match="no model of subset 0 of cifar"):
        quanda_checkpoints(tmp_path, "cifar")


def test_rows_that_the_bank_did_not_complete_are_not_imported(tmp_path, capsys):
    _, _, masks, margins = bank()
    done = np.arange(30) % 3 > 0
    for name, array in (("mask", masks), ("val_margins", margins), ("_completed", done)):
        np.save(tmp_path / f"{name}.npy", array)
    words = [tmp_path / "store", "--masks", tmp_path / "mask.npy"]
    import_bank([str(w) for w in [*words, "--outputs", tmp_path / "val_margins.npy"]])
    assert "10 more were not completed in the bank" in capsys.readouterr().out
    assert Store.open(tmp_path / "store").completed_rows().tolist() == np.flatnonzero(done).tolist()


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("../../x", "y"), ("x", "../y"), ("_checksums", "y"), ("x", "a/b"), ("x", "")],
)
def test_names_that_are_no_names_write_nothing(tmp_path, names):
    _, _, masks, margins = bank()
    (tmp_path / "in" / "side").mkdir(parents=True)
    with pytest.raises(CoarlibError):
        write_bank(tmp_path / "in/side/s", masks, margins, x_name=names[0], y_name=names[1])
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "side"]


def test_a_failed_import_leaves_nothing_and_a_new_one_appears_whole(tmp_path, monkeypatch):
    _, _, masks, margins = bank()
    with monkeypatch.context() as patch:

        def fail(*arguments):
            assert not (tmp_path / "s").exists()
            raise StoreError("the disk is full")

        patch.setattr("coarlib.interop.banks._write_rows", fail)
        with pytest.raises(StoreError, match="full"):
            write_bank(tmp_path / "s", masks, margins)
    assert not list(tmp_path.iterdir())
    store = write_bank(tmp_path / "s", masks, margins.astype(">f4"))
    np.testing.assert_array_equal(store.array("test_margins"), margins.astype("f4"))
    with pytest.raises(ScoringError, match="30 flags"):
        write_bank(tmp_path / "t", masks, margins, completed=np.ones(29, bool))
