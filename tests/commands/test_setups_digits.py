import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from coarlib.errors import CoarlibError, SetupError
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec
from estimate.digits import make_dataset
from estimate.digits.model import digits, load_or_train
from estimate.digits.task import DigitsTask

TOLERANCE = 1e-5
SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "deep" / "model.pt"
    load_or_train(path)
    return path


def test_held_out_digits_are_not_trained_on():
    (train, train_labels), (test, test_labels) = digits(False), digits(True)
    assert len(train) + len(test) == 1797 and len(test) == 450
    assert train.shape[1:] == test.shape[1:] == (1, 8, 8)
    assert set(np.unique(train_labels)) == set(np.unique(test_labels)) == set(range(10))
    assert train.min() >= 0 and train.max() == 1


def test_the_model_is_trained_once_and_reads_digits(model_path):
    before = model_path.stat().st_mtime_ns
    model = load_or_train(model_path)
    images, labels = digits(True)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.97
    assert model_path.stat().st_mtime_ns == before
    assert [path.name for path in model_path.parent.iterdir()] == ["model.pt"]
    assert set(torch.load(model_path, weights_only=True)) == set(model.state_dict())


def test_racing_workers_end_up_with_one_model(tmp_path, model_path, monkeypatch):
    trained = []

    def train(images, labels):
        model = load_or_train(model_path)
        with torch.no_grad():
            model.linear.bias.fill_(float(len(trained)))
        trained.append(model)
        gate.wait()
        return model

    gate = threading.Barrier(2)
    monkeypatch.setattr("estimate.digits.model.train", train)
    found = []
    workers = [
        threading.Thread(target=lambda: found.append(load_or_train(tmp_path / "m.pt")))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(trained) == 2
    assert torch.equal(found[0].linear.bias, found[1].linear.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_foreign_model_file_is_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content or b"")
    if content is None:
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(SetupError, match="does not hold the digits model; delete it"):
        load_or_train(path)


def test_specs_fit_the_task(model_path):
    task = DigitsTask(str(model_path))
    task.prepare(torch.device("cpu"))
    for name in ("digits", "digits_test"):
        spec = load_spec(SPECS / f"{name}.json")
        assert spec.schema["masks"].shape == (task.num_features,)
        assert spec.schema["test_margins"].shape == (len(digits(True)[1]),)
    assert task.num_features == 240


def test_batch_size_does_not_change_a_row(model_path):
    masks = np.random.default_rng(0).random((3, 240)) < 0.9
    found = []
    for batch_size in (64, 450):
        task = DigitsTask(str(model_path), batch_size=batch_size)
        task.prepare(torch.device("cpu"))
        found.append(task.rows(np.arange(3), masks)["test_margins"])
    np.testing.assert_allclose(*found, rtol=TOLERANCE, atol=TOLERANCE)
    assert task.tolerance > TOLERANCE


def test_make_dataset_fills_a_store(tmp_path, model_path):
    initialize(tmp_path / "store", load_spec(SPECS / "digits_test.json"))
    arguments = f"--expt.base_dir {tmp_path / 'store'} --expt.model_path {model_path}"
    make_dataset.main([*arguments.split(), "--expt.start_index", "3", "--expt.end_index", "5"])
    store = Store.open(tmp_path / "store")
    assert store.completed_rows().tolist() == [3, 4]
    assert np.isfinite(store.array("test_margins")[3:5]).all()
    assert store.array("test_margins")[3:5].astype(float).std() > 1


def test_a_store_of_another_width_is_refused(tmp_path, model_path):
    content = json.loads((SPECS / "digits_test.json").read_text())
    content["schema"]["masks"]["shape"] = [239]
    (tmp_path / "spec.json").write_text(json.dumps(content))
    initialize(tmp_path / "store", load_spec(tmp_path / "spec.json"))
    arguments = f"--expt.base_dir {tmp_path / 'store'} --expt.model_path {model_path}"
    with pytest.raises(CoarlibError, match="239"):
        make_dataset.main(arguments.split())
    assert len(Store.open(tmp_path / "store").completed_rows()) == 0
