"""Initialising: all or nothing, once, and never over something that is there."""

import json
import threading

import numpy as np
import pytest

from coarlib.errors import SpecError, StoreError
from coarlib.masks import MaskDesign
from coarlib.store import Store, initialize, settle_design
from coarlib.store.design import settle_labels
from coarlib.store.spec import parse_spec


def test_arrays_open_under_plain_numpy_with_the_documented_shapes(store):
    expected = {
        "masks": ((24, 10), np.bool_),
        "margins": ((24, 3), np.float16),
        "_completed": ((24,), np.bool_),
        "_checksums": ((24,), np.uint64),
    }
    for key, (shape, dtype) in expected.items():
        array = np.load(store.path / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        assert array.shape == shape
        assert array.dtype == dtype
        assert not array.any()


def test_files_are_sparse(tmp_path):
    content = {"num_models": 10**5, "schema": {"x": {"dtype": "float32", "shape": [10**5]}}}
    initialize(tmp_path / "big", parse_spec(json.dumps(content)))
    status = (tmp_path / "big" / "x.npy").stat()
    assert status.st_size > 4 * 10**10
    assert status.st_blocks * 512 < 10**6


def test_twice_is_a_no_op_and_another_spec_is_refused(store, spec_content, make_rows):
    before = {file: file.read_bytes() for file in store.path.glob("*.*")}
    assert initialize(store.path, store.spec) is False
    spec_content["num_models"] = 30
    spec_content["schema"]["margins"]["shape"] = [4]
    with pytest.raises(StoreError) as caught:
        initialize(store.path, parse_spec(json.dumps(spec_content)))
    assert "num_models: 24 here, 30 there" in str(caught.value)
    assert "schema.margins.shape: [3] here, [4] there" in str(caught.value)
    assert {file: file.read_bytes() for file in store.path.glob("*.*")} == before


def test_a_directory_that_is_something_else_is_left_alone(tmp_path, store):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is not a coarlib store"):
        initialize(tmp_path / "mine", store.spec)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        initialize(tmp_path / "file", store.spec)


def test_an_empty_directory_is_used_and_parents_are_made(tmp_path, store):
    (tmp_path / "empty").mkdir()
    assert initialize(tmp_path / "empty", store.spec)
    assert initialize(tmp_path / "a" / "b" / "c", store.spec)
    assert Store.open(tmp_path / "a" / "b" / "c").num_models == 24


def test_many_at_once_make_one_store(tmp_path, store):
    created, errors = [], []

    def work():
        try:
            created.append(initialize(tmp_path / "race", store.spec))
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(created) == [False] * 7 + [True]
    assert not list(tmp_path.glob(".race*"))


def test_an_interrupted_initialisation_leaves_nothing(tmp_path, store, monkeypatch):
    def fail(path, spec):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coarlib.store.create.write_spec", fail)
    with pytest.raises(StoreError, match="No space left on device"):
        initialize(tmp_path / "full", store.spec)
    assert not (tmp_path / "full").exists()
    assert not list(tmp_path.glob(".full*"))


def test_a_mask_file_for_an_explicit_design(tmp_path, spec_content):
    spec_content["design"] = {"kind": "explicit"}
    spec = parse_spec(json.dumps(spec_content))
    masks = np.random.default_rng(0).random((24, 10)) < 0.5
    with pytest.raises(SpecError, match="give the masks as a file"):
        initialize(tmp_path / "s", spec)
    with pytest.raises(SpecError, match=r"bool \[23, 10\], the spec asks for bool \[24, 10\]"):
        initialize(tmp_path / "s", spec, masks[:-1])
    with pytest.raises(SpecError, match="int64"):
        initialize(tmp_path / "s", spec, masks.astype(int))
    initialize(tmp_path / "s", spec, masks)
    opened = Store.open(tmp_path / "s")
    rows = np.array([3, 20])
    assert (opened.draw_masks(opened.design, rows) == masks[rows]).all()


def test_the_first_worker_settles_the_design_of_a_spec_without_one(tmp_path, spec_content):
    del spec_content["design"]
    spec = parse_spec(json.dumps(spec_content))
    initialize(tmp_path / "s", spec)
    path = tmp_path / "s"
    assert Store.open(path).design is None
    design = MaskDesign(array="masks", keep_prob=0.95, seed=2)
    settle_design(path, spec, design)
    settle_design(path, spec, design)
    assert Store.open(path).design == design
    with pytest.raises(StoreError, match=r"0\.95.*not by.*0\.9"):
        settle_design(path, spec, MaskDesign(array="masks", keep_prob=0.9, seed=2))
    with pytest.raises(SpecError, match="not in the schema"):
        settle_design(path, spec, MaskDesign(array="mask", keep_prob=0.9))


@pytest.mark.parametrize("damage", ["", "{", '{"num_models": 24}', "[]", '{"coarlib": 5}'])
def test_a_damaged_spec_file_is_one_error(store, damage):
    (store.path / "spec.json").write_text(damage)
    with pytest.raises(StoreError, match=r"spec\.json is (damaged|not valid JSON)"):
        Store.open(store.path)


def test_a_newer_format_is_refused(store):
    content = json.loads((store.path / "spec.json").read_text())
    content["coarlib"]["format_version"] = 99
    (store.path / "spec.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="format version 99"):
        Store.open(store.path)


@pytest.fixture
def stratified(spec_content):
    spec_content["design"] = {"kind": "stratified", "keep_prob": 0.5, "seed": 1}
    return parse_spec(json.dumps(spec_content))


LABELS = np.arange(10) % 2


def test_labels_are_kept_with_the_store_and_their_masks_drawn_anywhere(tmp_path, stratified):
    initialize(tmp_path / "s", stratified, labels=LABELS)
    store = Store.open(tmp_path / "s")
    masks = store.draw_masks(store.design, np.arange(24))
    assert (masks[:, LABELS == 0].sum(axis=1) + masks[:, LABELS == 1].sum(axis=1) == 5).all()
    assert abs(masks[:, LABELS == 0].sum(axis=1) - 2.5).max() == 0.5
    (tmp_path / "s").rename(tmp_path / "moved")
    moved = Store.open(tmp_path / "moved")
    assert (moved.draw_masks(moved.design, np.array([7])) == masks[7]).all()
    assert initialize(tmp_path / "moved", stratified, labels=LABELS) is False
    with pytest.raises(StoreError, match="made with other labels"):
        initialize(tmp_path / "moved", stratified, labels=1 - LABELS)


def test_labels_that_nothing_asks_for_or_that_do_not_fit_are_refused(tmp_path, store, stratified):
    with pytest.raises(SpecError, match="does not ask for a label file"):
        initialize(tmp_path / "s", store.spec, labels=LABELS)
    with pytest.raises(SpecError, match="one for each of the 10 features"):
        initialize(tmp_path / "s", stratified, labels=LABELS[:4])
    assert not (tmp_path / "s").exists()


def test_the_first_task_settles_labels_that_were_not_given(tmp_path, stratified):
    initialize(tmp_path / "s", stratified)
    with pytest.raises(SpecError, match="the task has no labels"):
        settle_labels(tmp_path / "s", stratified, None)
    settle_labels(tmp_path / "s", stratified, LABELS)
    settle_labels(tmp_path / "s", stratified, 1 - LABELS)
    assert (np.load(tmp_path / "s" / "_design_labels.npy") == LABELS).all()
