"""A store written as each peer's files reads back as itself, by us and by the peer."""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from coarlib.commands.store.export_bank import main as export_bank
from coarlib.commands.store.import_bank import main as import_bank
from coarlib.errors import CoarlibError, ScoringError, StoreError, TaskError
from coarlib.filling.worker import FillOptions, fill
from coarlib.interop import dattri as ours
from coarlib.interop.bank_exports import (
    export_datamodels,
    export_dattri,
    export_quanda,
    export_trak,
)
from coarlib.interop.banks import (
    quanda_checkpoints,
    read_masks,
    read_quanda_logits,
    read_quanda_subsets,
    write_bank,
)
from coarlib.masks import MaskDesign
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import RetrainTask, Trainer
from coarlib.scoring import masks_from_indices
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec

EXAMPLES, TARGETS, ROWS, RUNS, CLASSES = 24, 5, 4, 2, 3
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(EXAMPLES + TARGETS, 6, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (EXAMPLES + TARGETS,), generator=GENERATOR)


def model():
    return nn.Linear(6, CLASSES)


def logits_of(network, device="cpu"):
    return network(INPUTS[EXAMPLES:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store [M, R, T, C] of logits, one row missing at the end, with its checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    schema = {
        "masks": ArraySpec(np.dtype(bool), (EXAMPLES,)),
        "logits": ArraySpec(np.dtype("f4"), (RUNS, TARGETS, CLASSES)),
    }
    design = MaskDesign(kind="fixed_size", size=12, seed=4)
    initialize(folder / "store", StoreSpec(ROWS + 1, schema, design))
    trainer = Trainer(model, INPUTS[:EXAMPLES], LABELS[:EXAMPLES], epochs=1, batch_size=6)
    options = {"output": "logits", "runs": RUNS, "keep_runs": True, "at_once": 1}
    task = RetrainTask(trainer, logits_of, checkpoints=folder / "kept", **options)
    store = Store.open(folder / "store")
    fill(store, task, np.arange(ROWS), torch.device("cpu"), FillOptions(quiet=True))
    return store, folder / "kept"


@pytest.fixture
def bank(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((30, 20)) < 0.5
    return write_bank(tmp_path / "bank", masks, rng.standard_normal((30, 4)).astype("f2"))


def test_traks_files_come_back_as_the_store(tmp_path, bank, capsys):
    export_bank([str(bank.path), str(tmp_path / "trak"), "--format", "trak"])
    assert "30 rows" in capsys.readouterr().out
    masks = np.load(tmp_path / "trak" / "mask.npy", mmap_mode="r")
    assert masks.dtype == bool
    words = ["--bank.masks", tmp_path / "trak/mask.npy"]
    words += ["--bank.outputs", tmp_path / "trak/val_margins.npy"]
    import_bank([str(word) for word in ["--logging.logdir", tmp_path / "again", *words]])
    again = Store.open(tmp_path / "again")
    np.testing.assert_array_equal(again.array("masks"), bank.array("masks"))
    np.testing.assert_array_equal(again.array("test_margins"), bank.array("test_margins"))
    assert again.array("test_margins").dtype == np.float16
    with pytest.raises(StoreError, match="is there already"):
        export_trak(bank, tmp_path / "trak")


def test_datamodels_files_are_a_store_of_theirs(tmp_path, bank):
    assert export_datamodels(bank, tmp_path / "theirs") == 30
    theirs = Store.open(tmp_path / "theirs")
    assert not theirs.has_checksums
    assert theirs.completed().all()
    np.testing.assert_array_equal(theirs.array("masks"), bank.array("masks"))
    np.testing.assert_array_equal(theirs.array("test_margins"), bank.array("test_margins"))


def margins_of_file(path, loader):
    network = model()
    network.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        return margin_log_sum_exp(logits_of(network), LABELS[EXAMPLES:])


def stored_margins(store):
    logits = torch.from_numpy(np.array(store.array("logits")[:ROWS])).reshape(-1, CLASSES)
    labels = LABELS[EXAMPLES:].repeat(ROWS * RUNS)
    return margin_log_sum_exp(logits, labels).reshape(ROWS, RUNS, TARGETS).numpy()


def test_dattri_measures_what_the_store_holds(tmp_path, trained, monkeypatch):
    store, kept = trained
    assert export_dattri(store, tmp_path / "dattri", kept, runs=RUNS) == ROWS
    np.testing.assert_array_equal(read_masks(tmp_path / "dattri"), store.array("masks")[:ROWS])
    loader = torch.utils.data.DataLoader(torch.arange(TARGETS))
    expected = stored_margins(store).mean(axis=1)
    found = ours.calculate_lds_ground_truth(
        margins_of_file, tmp_path / "dattri", loader, higher_is_better=True
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    pytest.importorskip("dattri", reason="dattri is not installed")
    stub = types.ModuleType("pretty_midi")
    stub.__spec__ = ModuleSpec("pretty_midi", None)  # others ask whether it is there
    sys.modules.setdefault("pretty_midi", stub)
    metric = pytest.importorskip("dattri.metric", reason="dattri cannot be imported")
    monkeypatch.chdir("/")  # the map in metadata.yml does not depend on where one stands
    values, indices = metric.calculate_lds_ground_truth(
        margins_of_file, tmp_path / "dattri", loader
    )
    np.testing.assert_allclose(-values, expected, atol=1e-6)
    masks = masks_from_indices(indices.numpy(), EXAMPLES)
    np.testing.assert_array_equal(masks, store.array("masks")[:ROWS])


def test_quandas_directory_holds_subsets_models_and_cached_logits(tmp_path, trained):
    store, kept = trained
    options = {"checkpoints": kept, "logits": "logits", "batch_size": 2}
    assert export_quanda(store, tmp_path / "q", "digits", **options) == ROWS
    lists = read_quanda_subsets(tmp_path / "q/metadata/digits_metadata/lds_subsets.yaml")
    np.testing.assert_array_equal(masks_from_indices(lists, EXAMPLES), store.array("masks")[:ROWS])
    models = quanda_checkpoints(tmp_path / "q", "digits")
    assert len(models) == ROWS
    network = model()
    network.load_state_dict(load_file(models[2]))
    logits = read_quanda_logits(tmp_path / "q/subset_logits/digits")
    np.testing.assert_array_equal(logits, store.array("logits")[:ROWS, 0])
    np.testing.assert_allclose(logits_of(network).detach(), logits[2], atol=1e-6)
    batch = torch.load(tmp_path / "q/subset_logits/digits/2.pt", weights_only=True)
    assert list(batch) == list(range(ROWS))
    assert batch[0].shape == (1, CLASSES)  # the last of five samples in twos
    (tmp_path / "q/subset_logits/digits/1.pt").unlink()
    with pytest.raises(ScoringError, match=r"has no file 1\.pt"):
        read_quanda_logits(tmp_path / "q/subset_logits/digits")


def test_what_a_format_cannot_hold_is_refused(tmp_path, bank, trained):
    store, kept = trained
    with pytest.raises(StoreError, match="dattri reads subsets of one size only"):
        export_dattri(bank, tmp_path / "d", kept)
    with pytest.raises(TaskError, match="there is no checkpoint"):
        export_dattri(store, tmp_path / "d", tmp_path / "nowhere")
    assert not (tmp_path / "d" / "metadata.yml").exists()
    with pytest.raises(ScoringError, match="not logits"):
        export_quanda(bank, tmp_path / "q", "x", logits="test_margins")
    for words in (["--format", "dattri"], ["--format", "traks"]):
        with pytest.raises(CoarlibError):
            export_bank([str(store.path), str(tmp_path / "x"), *words])


def test_quandas_explanation_cache_is_a_source_of_scores(tmp_path):
    scores = torch.randn(23, 12, generator=GENERATOR)
    for number, batch in enumerate(scores.T.split(1)):  # more than ten files: 10.pt after 9.pt
        torch.save(batch.clone(), tmp_path / f"{number}.pt")
    np.testing.assert_array_equal(load_scores(tmp_path), scores)
    (tmp_path / "4.pt").unlink()
    with pytest.raises(ScoringError, match=r"has no file 4\.pt"):
        load_scores(tmp_path)
