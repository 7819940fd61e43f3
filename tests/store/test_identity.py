"""One store holds one task's rows, unless another task is allowed, and then says whose each is."""

import json

import numpy as np
import pytest
import torch

from coarlib.beton.dataset import write_store
from coarlib.errors import StoreError
from coarlib.filling.worker import FillOptions, fill, recompute
from coarlib.regression import StoreRows
from coarlib.store import Store, initialize
from coarlib.store.authors import rows_by_identity
from coarlib.store.grow import grow
from coarlib.store.identity import all_identities, read_identity
from coarlib.store.merge import merge
from coarlib.store.provenance import damaged_lines, read_batches
from coarlib.store.spec import parse_spec
from coarlib.store.status import status
from coarlib.store.verify import verify
from coarlib.task import Task

CPU = torch.device("cpu")


class Scaled(Task):
    """Margins that depend on ``scale``, and an identity that says so."""

    def __init__(self, scale):
        self.scale = scale

    def identity(self):
        return None if self.scale is None else f"scale-{self.scale}"

    def rows(self, indices, masks):
        return {"margins": masks[:, :3] * float(self.scale or 1)}


def test_the_first_task_decides_and_another_is_refused(store):
    fill(store, Scaled(2), np.arange(8), CPU)
    assert read_identity(store.path) == "scale-2"
    with pytest.raises(StoreError, match=r"another task \(scale-2\) than this one.*scale-3"):
        fill(store, Scaled(3), np.arange(8, 12), CPU)
    assert store.completed_rows().tolist() == list(range(8))
    fill(store, Scaled(None), np.arange(8, 10), CPU)  # cannot tell: nothing to compare
    fill(store, Scaled(3), np.arange(10, 12), CPU, FillOptions(allow_other_task=True))
    assert all_identities(store.path) == ["scale-2", "scale-3"]
    assert status(store).num_tasks == 2
    made = {name: rows.tolist() for name, rows in rows_by_identity(store).items()}
    assert made == {"unknown": [8, 9], "scale-2": list(range(8)), "scale-3": [10, 11]}
    assert recompute(store, Scaled(3), 10, CPU)["margins"] == 0
    with pytest.raises(StoreError, match=r"row 10 .* another task \(identity scale-3\)"):
        recompute(store, Scaled(2), 10, CPU)
    assert recompute(store, Scaled(2), 10, CPU, allow_other_task=True)["margins"] > 0


@pytest.mark.parametrize("name", ["identity.json", "components.json", "identities/x.json"])
def test_a_damaged_setting_is_noticed_before_anything_is_read(store, name):
    fill(store, Scaled(2), np.arange(4), CPU)
    file = store.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"identity": "scale-2", "components": [], "digest": "0000000000000000"}')
    for use in (Store.open, verify, status, lambda path: merge(path / "out", [path])):
        with pytest.raises(StoreError, match=f"{name} is damaged"):
            use(store.path)
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        grow(store, 30)  # opened before the damage


def test_stores_may_be_given_by_their_paths(store, tmp_path):
    path = str(store.path)
    fill(path, Scaled(2), np.arange(4), CPU)
    assert merge(str(tmp_path / "out"), [path, store.path]).copied == 4
    assert merge(Store.open(tmp_path / "out"), [store]).present == 4
    assert (status(path).complete, verify(path).checked, grow(path, 30).num_models) == (4, 4, 30)
    assert write_store(path, tmp_path / "x.beton", quiet=True) == 4
    assert StoreRows(path).num_targets == 3
    with pytest.raises(StoreError, match="a list of one or more"):
        merge(tmp_path / "out", path)


def test_without_its_file_the_logs_say_whose_rows_they_are(store):
    fill(store, Scaled(2), np.arange(4), CPU)
    (store.path / "identity.json").unlink()
    assert all_identities(store.path) == ["scale-2"]
    assert any("identity.json" in note for note in verify(store).notes)
    with pytest.raises(StoreError, match=r"another task \(scale-2\) than this one.*scale-3"):
        fill(store, Scaled(3), np.arange(4, 8), CPU)
    fill(store, Scaled(2), np.arange(4, 8), CPU)
    assert (store.path / "identity.json").exists()
    assert not verify(store).notes


def test_stores_of_different_tasks_are_not_merged(tmp_path, spec_content):
    spec = parse_spec(json.dumps(spec_content))
    stores = []
    for scale in (2, 3):
        initialize(tmp_path / f"{scale}", spec)
        stores.append(Store.open(tmp_path / f"{scale}"))
        fill(stores[-1], Scaled(scale), np.arange(4) + 4 * scale, CPU)
    with pytest.raises(StoreError, match=r"made by different tasks.*\(allow_other_task\)"):
        merge(tmp_path / "all", stores)
    assert not (tmp_path / "all").exists()
    merge(tmp_path / "all", stores, allow_other_task=True)
    joined = Store.open(tmp_path / "all")
    assert all_identities(joined.path) == ["scale-2", "scale-3"]
    assert {k: v.tolist() for k, v in rows_by_identity(joined).items()} == {
        "scale-2": [8, 9, 10, 11],
        "scale-3": [12, 13, 14, 15],
    }


def test_one_changed_letter_of_an_identity_is_damage(store):
    fill(store, Scaled(2), np.arange(4), CPU)
    file = store.path / "identity.json"
    file.write_bytes(file.read_bytes().replace(b"scale-2", b"scale-3"))
    with pytest.raises(StoreError, match="does not match its digest"):
        fill(store, Scaled(3), np.arange(4, 8), CPU)


def test_a_changed_line_of_a_log_is_named_and_not_believed(store):
    fill(store, Scaled(2), np.arange(4), CPU)
    (file,) = (store.path / "workers").glob("*.jsonl")
    whole = file.read_bytes()
    assert not damaged_lines(store.path)
    file.write_bytes(whole.replace(b'"rows": [[0, 4]]', b'"rows": [[0, 5]]'))
    assert damaged_lines(store.path) == [f"{file}:2"]
    assert not list(read_batches(store.path))
    file.write_bytes(whole[:-30])  # cut short by a crash
    assert not damaged_lines(store.path)


def test_verify_says_whose_rows_are_whose(store):
    fill(store, Scaled(2), np.arange(8), CPU)
    assert not verify(store).notes
    fill(store, Scaled(3), np.arange(8, 24), CPU, FillOptions(allow_other_task=True))
    assert verify(store).notes == [
        "rows of different tasks: scale-2: 8 rows, first 0; scale-3: 16 rows, first 8"
    ]
