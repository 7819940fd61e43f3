"""Retraining with dattri's signatures: its rows, without its defects."""

import shutil
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from coarlib.errors import TaskError
from coarlib.interop import dattri as ours

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, generator=GENERATOR)
LABELS = (INPUTS @ torch.randn(5, generator=GENERATOR) > 0).long()
TRAIN = DataLoader(TensorDataset(INPUTS[:30], LABELS[:30]), batch_size=8)
TEST = DataLoader(TensorDataset(INPUTS[30:], LABELS[30:]), batch_size=4)
LOSS = torch.nn.functional.cross_entropy


def new_model():
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))


def train(loader, seed=None, epochs=1, seen=None):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(epochs):
        for inputs, labels in loader:
            if seen is not None:
                seen.append((seed, inputs))
            optimizer.zero_grad()
            LOSS(model(inputs), labels).backward()
            optimizer.step()
    return model


def losses(checkpoint, loader):
    model = new_model()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return losses_of(model.eval(), loader)


def losses_of(model, loader):
    assert not model.training
    with torch.no_grad():
        return torch.cat([LOSS(model(x), y, reduction="none") for x, y in loader])


def state(folder):
    return {
        str(file.relative_to(folder)): torch.load(file, weights_only=True)
        for file in sorted(folder.rglob("*.pt"))
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for file, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[file][name]), (file, name)


def test_subsets_seeds_and_files_are_dattris(tmp_path):
    module = _dattris_retraining()
    mine, theirs = [], []
    options = {"num_subsets": 3, "num_runs_per_subset": 2, "seed": 5}
    ours.retrain_lds(train, TRAIN, tmp_path / "ours", **options, seen=mine)
    module.retrain_lds(train, TRAIN, str(tmp_path / "theirs"), **options, seen=theirs)
    assert [s for s, _ in mine] == [s for s, _ in theirs]
    for i in range(3):
        texts = [
            (tmp_path / who / str(i) / "indices.txt").read_text() for who in ("ours", "theirs")
        ]
        assert texts[0] == texts[1]
    found = [
        yaml.safe_load((tmp_path / w / "metadata.yml").read_text()) for w in ("ours", "theirs")
    ]
    assert found[0].items() >= {k: v for k, v in found[1].items() if "map" not in k}.items()
    assert found[0]["seed"] == 5


def _dattris_retraining():
    """dattri's retrain module, without the optional music package that its parent imports."""
    pytest.importorskip("dattri", reason="dattri is not installed")
    sys.modules.setdefault("pretty_midi", types.ModuleType("pretty_midi"))
    return pytest.importorskip("dattri.model_util.retrain", reason="dattri cannot be imported")


def test_a_moved_directory_of_either_is_read(tmp_path, monkeypatch):
    module = _dattris_retraining()
    monkeypatch.chdir(tmp_path)
    module.retrain_lds(train, TRAIN, "theirs", num_subsets=3, seed=1)
    ours.retrain_lds(train, TRAIN, "ours", num_subsets=3, seed=1)
    for name in ("theirs", "ours"):
        before, indices = ours.calculate_lds_ground_truth(losses, name, TEST)
        shutil.move(name, tmp_path / "elsewhere" / name)
        after, _ = ours.calculate_lds_ground_truth(losses, tmp_path / "elsewhere" / name, TEST)
        assert torch.equal(before, after)
        assert (indices.shape, indices.dtype) == ((3, 15), torch.int64)
        assert (before < 0).all()  # a loss, negated
        kept, _ = ours.calculate_lds_ground_truth(
            losses, tmp_path / "elsewhere" / name, TEST, higher_is_better=True
        )
        assert torch.equal(kept, -before)


def test_serial_parallel_and_resumed_retraining_give_identical_models(tmp_path):
    options = {"num_runs_per_subset": 2, "seed": 7}
    ours.retrain_lds(train, TRAIN, tmp_path / "serial", 4, **options)
    for start in (2, 0, 3, 1):
        torch.manual_seed(start)
        ours.retrain_lds(
            train, TRAIN, tmp_path / "parts", 1, start_id=start, total_num_subsets=4, **options
        )
    assert_equal(state(tmp_path / "serial"), state(tmp_path / "parts"))
    (tmp_path / "parts" / "2" / "model_weights_1.pt").unlink()
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "parts").rglob("*.pt")}
    ours.retrain_lds(train, TRAIN, tmp_path / "parts", 4, **options)
    assert_equal(state(tmp_path / "serial"), state(tmp_path / "parts"))
    assert all(file.stat().st_mtime_ns == when for file, when in times.items())
    values, indices = ours.calculate_lds_ground_truth(losses, tmp_path / "parts", TEST)
    assert torch.isfinite(ours.lds(torch.randn(30, 10), (values, indices))[0]).all()


def test_a_seed_is_always_recorded_and_two_directories_are_never_mixed(tmp_path):
    ours.retrain_lds(train, TRAIN, tmp_path, 2)
    first = state(tmp_path)
    seed = yaml.safe_load((tmp_path / "metadata.yml").read_text())["seed"]
    (tmp_path / "1" / "model_weights_0.pt").unlink()
    ours.retrain_lds(train, TRAIN, tmp_path, 2)
    assert_equal(first, state(tmp_path))
    for options, words in (
        ({"seed": seed + 1}, f"was made with seed {seed}"),
        ({"subset_ratio": 0.3}, "made with subset_ratio 0.5"),
        ({"num_runs_per_subset": 2}, "made with num_runs_per_subset 1"),
    ):
        with pytest.raises(TaskError, match=words):
            ours.retrain_lds(train, TRAIN, tmp_path, 2, **options)
    with pytest.raises(TaskError, match="has mode lds, not loo"):
        ours.retrain_loo(train, TRAIN, tmp_path, [0])


@pytest.mark.parametrize("mode", ["lds", "loo"])
def test_a_sampler_of_some_examples_is_respected(tmp_path, mode):
    chosen = [3, 8, 12, 20, 21, 22]
    loader = DataLoader(TRAIN.dataset, batch_size=4, sampler=SubsetRandomSampler(chosen))
    seen = []
    if mode == "lds":
        ours.retrain_lds(train, loader, tmp_path, 1, seed=0, seen=seen)
        positions = np.loadtxt(tmp_path / "0" / "indices.txt", dtype=int)
        kept = sorted(chosen[p] for p in positions)
    else:
        ours.retrain_loo(train, loader, tmp_path, [1], seed=0, seen=seen)
        kept = [3, 12, 20, 21, 22]
    trained_on = torch.cat([batch for _, batch in seen])
    matches = (trained_on[:, None] == INPUTS[None, :30]).all(-1).nonzero()[:, 1]
    assert sorted(matches.tolist()) == kept


def test_leave_one_out_models_are_plain_states_with_their_own_seeds(tmp_path):
    seen = []
    ours.retrain_loo(train, TRAIN, tmp_path, [4, 11], seed=2, seen=seen)
    ours.retrain_loo(train, TRAIN, tmp_path, [7], seed=2)
    assert {seed for seed, _ in seen} == {6, 13}
    yaml.safe_load((tmp_path / "metadata.yml").read_text())
    values, removed = ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST, model=new_model())
    assert (removed.tolist(), removed.dtype) == ([4, 7, 11], torch.int64)
    by_path, _ = ours.calculate_loo_ground_truth(losses, tmp_path, TEST)
    assert torch.equal(values, by_path)
    assert (values > 0).all()  # as measured
    with pytest.raises(TaskError, match="cannot leave out example 30 of 30"):
        ours.retrain_loo(train, TRAIN, tmp_path, [30])
    torch.save(new_model(), tmp_path / "index_4" / "model_weights.pt")  # as dattri saves
    with pytest.raises(TaskError, match="not a state dict"):
        ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST, model=new_model())


def test_unfinished_and_foreign_directories_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"no metadata.yml"):
        ours.calculate_lds_ground_truth(losses, tmp_path, TEST)
    ours.retrain_lds(train, TRAIN, tmp_path, 2, seed=0)
    (tmp_path / "1" / "model_weights_0.pt").unlink()
    with pytest.raises(TaskError, match=r"1/model_weights_0.pt is missing"):
        ours.calculate_lds_ground_truth(losses, tmp_path, TEST)
    for options, words in (
        ({"num_subsets": 2, "start_id": 3, "total_num_subsets": 4}, "subsets 3 to 5 of 4"),
        ({"subset_ratio": 0.01}, "makes subsets of 0"),
    ):
        with pytest.raises(TaskError, match=words):
            ours.retrain_lds(train, TRAIN, tmp_path / "new", seed=0, **options)
    assert not (tmp_path / "new").exists()
