"""Retraining with dattri's signatures: its rows, without its defects."""

import shutil
import sys
import types
from importlib.machinery import ModuleSpec

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
    stub = types.ModuleType("pretty_midi")
    stub.__spec__ = ModuleSpec("pretty_midi", None)  # others ask whether it is there
    sys.modules.setdefault("pretty_midi", stub)
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


def test_leave_one_out_models_are_plain_states_of_one_seed(tmp_path):
    seen = []
    ours.retrain_loo(train, TRAIN, tmp_path, [4, 11], seed=2, seen=seen)
    ours.retrain_loo(train, TRAIN, tmp_path, [7], seed=2)
    assert {seed for seed, _ in seen} == {2}
    yaml.safe_load((tmp_path / "metadata.yml").read_text())
    values, removed = ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST, model=new_model())
    assert (removed.tolist(), removed.dtype) == ([4, 7, 11], torch.float32)
    by_path, _ = ours.calculate_loo_ground_truth(losses, tmp_path, TEST)
    remembered, _ = ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST)
    assert torch.equal(values, by_path)
    assert torch.equal(values, remembered)
    assert (values > 0).all()  # as measured
    shutil.copytree(tmp_path, tmp_path / "moved")
    with pytest.raises(TaskError, match="no architecture: give model="):
        ours.calculate_loo_ground_truth(losses_of, tmp_path / "moved", TEST)
    with pytest.raises(TaskError, match="cannot leave out example 30 of 30"):
        ours.retrain_loo(train, TRAIN, tmp_path, [30])
    torch.save(new_model(), tmp_path / "index_4" / "model_weights.pt")  # as dattri saves
    with pytest.raises(TaskError, match=r"not a state dict .* allow_pickle=True"):
        ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST, model=new_model())
    ours.calculate_loo_ground_truth(losses_of, tmp_path, TEST, allow_pickle=True)


def test_several_runs_are_averaged_pairs(tmp_path):
    ours.retrain_loo(train, TRAIN, tmp_path / "one", [3, 5], seed=2)
    ours.retrain_loo(train, TRAIN, tmp_path / "other", [3, 5], seed=3)
    ours.retrain_loo(train, TRAIN, tmp_path / "both", [3, 5], seed=2, num_runs=2)
    found = [
        ours.calculate_loo_ground_truth(losses, tmp_path / name, TEST)[0]
        for name in ("one", "other", "both")
    ]
    torch.testing.assert_close((found[0] + found[1]) / 2, found[2])


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


def seeded_train(loader, seed=None):
    torch.manual_seed(seed)
    return train(loader)


def test_models_and_ground_truth_are_dattris_to_the_last_bit(tmp_path, monkeypatch):
    """Its loaders draw from torch's global generator, or do not shuffle; so do ours."""
    module = _dattris_retraining()
    theirs = pytest.importorskip("dattri.metric.ground_truth")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    lds = {"num_subsets": 3, "num_runs_per_subset": 2, "seed": 11}
    truth = []
    for who, retrain_lds in (("ours", ours.retrain_lds), ("theirs", module.retrain_lds)):
        retrain_lds(seeded_train, TRAIN, str(tmp_path / who), **lds)
        for read in (ours.calculate_lds_ground_truth, theirs.calculate_lds_ground_truth):
            monkeypatch.chdir(tmp_path / "elsewhere")
            truth.append(read(losses, str(tmp_path / who), TEST))
    assert_equal(state(tmp_path / "ours"), state(tmp_path / "theirs"))
    for values, indices in truth:
        assert (values.dtype, indices.dtype) == (torch.float32, torch.int64)
        assert torch.equal(values, truth[0][0])
        assert torch.equal(indices, truth[0][1])


def test_leaving_out_gives_dattris_numbers_and_reads_its_directory(tmp_path, monkeypatch):
    module = _dattris_retraining()
    theirs = pytest.importorskip("dattri.metric.ground_truth")
    ours.retrain_loo(seeded_train, TRAIN, tmp_path / "ours", [1, 20], seed=4)
    module.retrain_loo(seeded_train, TRAIN, str(tmp_path / "theirs"), [1, 20], seed=4)
    found = ours.calculate_loo_ground_truth(losses_of, tmp_path / "ours", TEST)
    again = ours.calculate_loo_ground_truth(losses_of, tmp_path / "theirs", TEST, allow_pickle=True)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what dattri needs since torch 2.6
    dattris = theirs.calculate_loo_ground_truth(
        lambda model, loader: losses_of(model.eval(), loader), str(tmp_path / "theirs"), TEST
    )
    for other in (again, dattris):
        for one, expected in zip(other, found, strict=True):
            assert one.dtype == expected.dtype == torch.float32
            assert torch.equal(one, expected)


def test_a_directory_that_dattri_left_unfinished_is_continued(tmp_path):
    module = _dattris_retraining()
    options = {"num_subsets": 4, "seed": 9}
    module.retrain_lds(seeded_train, TRAIN, str(tmp_path / "whole"), **options)
    for metadata in (True, False):
        path = tmp_path / f"part {metadata}"
        shutil.copytree(tmp_path / "whole", path)
        shutil.rmtree(path / "3")
        (path / "2" / "model_weights_0.pt").unlink()
        file = path / "1" / "model_weights_0.pt"
        file.write_bytes(file.read_bytes()[:-100])  # killed while saving
        if not metadata:  # written last
            (path / "metadata.yml").unlink()
        with pytest.raises(TaskError, match=r"records no seed|say the seed"):
            ours.retrain_lds(seeded_train, TRAIN, path, 4)
        if not metadata:
            with pytest.raises(TaskError, match="another subset than the one that seed draws"):
                ours.retrain_lds(seeded_train, TRAIN, path, 4, seed=8)
        ours.retrain_lds(seeded_train, TRAIN, path, **options)
        assert_equal(state(path), state(tmp_path / "whole"))


def test_the_documented_functions_of_one_argument_are_called_as_documented(tmp_path):
    def train_func(dataloader):
        model = new_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        criterion = torch.nn.CrossEntropyLoss()
        model.train()
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
        return model

    def target_func(model, dataloader):
        model.eval()
        with torch.no_grad():
            return torch.cat([LOSS(model(x), y, reduction="none") for x, y in dataloader])

    ours.retrain_loo(
        train_func=train_func, dataloader=TRAIN, path=str(tmp_path / "loo"), indices=[0, 7], seed=0
    )
    values, _ = ours.calculate_loo_ground_truth(
        target_func=target_func, retrain_dir=str(tmp_path / "loo"), test_dataloader=TEST
    )
    assert values.shape == (2, 10)
    r, p = ours.loo_corr(torch.randn(30, 10)[[0, 7]], (values, torch.arange(2.0)))
    assert r.shape == p.shape == (10,)
    ours.retrain_lds(
        train_func=train_func,
        dataloader=TRAIN,
        path=str(tmp_path / "lds"),
        num_subsets=3,
        subset_ratio=0.5,
        num_runs_per_subset=1,
        start_id=0,
        total_num_subsets=0,
        seed=1,
    )
    truth = ours.calculate_lds_ground_truth(
        target_func=losses, retrain_dir=str(tmp_path / "lds"), test_dataloader=TEST
    )
    r, p = ours.lds(score=torch.randn(30, 10), ground_truth=truth)
    assert r.shape == p.shape == (10,)
    flipped, indices = ours.flip_label(label=LABELS, label_space=[0, 1], p=0.1)
    auc, curve = ours.mislabel_detection_auc(
        score=torch.randn(40), ground_truth=(flipped != LABELS).long()
    )
    assert 0 <= auc <= 1
    assert len(curve) == 3
    assert len(indices) == 4
