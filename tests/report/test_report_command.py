import json

import pytest
import torch
from report_cases import make_case, make_store
from torch import nn

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.commands.judge import report
from coarlib.errors import ArgumentError, TaskError
from coarlib.setups import is_shipped
from estimate.digits.model import DigitsResNet


class TinyTask(ComponentTask):
    def model(self):
        return nn.Sequential(nn.Conv2d(1, 12, 3), nn.Flatten(), nn.Linear(12 * 4, 3))

    def components(self, model):
        return find_components(model, ["conv_filter"])

    def examples(self):
        return Examples((torch.arange(8 * 16.0).reshape(8, 1, 4, 4),), torch.arange(8) % 3)


def record_task(store, **origin):
    (store / "workers").mkdir(exist_ok=True)
    lines = [
        {"worker": "w", "task": origin, "versions": {"torch": "2.9"}},
        {"rows": [[0, 160]], "started": 1.7e9, "seconds": 80.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (store / "workers" / "w.jsonl").write_text(text)


def test_images_and_names_come_from_the_task(tmp_path):
    case = make_case(tmp_path / "run")
    out = tmp_path / "new" / "page.html"
    report.main([str(case), "--task", f"{__file__}:TinyTask", "--quiet", "--out", str(out)])
    page = out.read_text()
    assert '["0",12]' in page and '<figure id="nearest">' in page
    assert '"labels":["0","1","2","0","1","2","0","1"]' in page


def test_a_recorded_task_from_elsewhere_is_never_imported(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store")
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "estimate.x.py").write_text(evil.read_text())
    names = ["evil.py:Task", "evil:Task", str(evil), "estimate.no_such_set_up.task:Task"]
    for name in (*names, "estimate.x.py:ATask", "estimate.digits.task:system", "estimate:ATask"):
        assert not is_shipped(name)
        record_task(store, task=name, settings={})
        report.main([str(store), "--quiet"])
        page = (store / "report.html").read_text()
        assert name in page and "80 seconds of 1 worker" in page and "torch 2.9" in page


def test_the_recorded_set_up_gives_layers_and_images(tmp_path):
    store = make_store(tmp_path / "store", features=240, targets=450)
    torch.save(DigitsResNet().state_dict(), tmp_path / "model.pt")
    record_task(
        store,
        task="estimate.digits.task:DigitsTask",
        settings={"model_path": "model.pt"},
        directory=str(tmp_path),
    )
    report.main([str(store), "--quiet"])
    data = (store / "report.html").read_text()
    assert '["blocks.0.conv1",16]' in data and data.count("data:image/png") > 400
    (tmp_path / "model.pt").unlink()  # it must not be trained again for a report
    report.main([str(store), "--quiet"])
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--targets", "a:b"], ArgumentError, "targets"),
        (["--task", "x", "--task_args", "[1"], ArgumentError, "a JSON object"),
        (["--task", "no_such_module"], TaskError, "no_such_module"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, arguments, error, words):
    store = make_store(tmp_path / "store")
    with pytest.raises(error, match=words):
        report.main([str(store), *arguments])
    assert not (store / "report.html").exists()


def test_a_leave_one_out_store_is_a_baseline(tmp_path):
    import numpy as np

    case = make_case(tmp_path / "run")
    singles = tmp_path / "singles"
    singles.mkdir()
    masks = np.ones((13, 12), bool)
    np.fill_diagonal(masks, False)
    np.save(singles / "masks.npy", masks)
    np.save(singles / "test_margins.npy", np.random.default_rng(0).normal(size=(13, 8)))
    np.save(singles / "_completed.npy", np.ones(13, bool))
    report.main([str(case), "--baselines", f"alone={singles}", "--quiet"])
    assert '<th scope="row">alone</th>' in (case / "report.html").read_text()
    with pytest.raises(ArgumentError, match="--baselines calls several alone; give each a name"):
        report.main([str(case), "--baselines", f"alone={singles},alone={singles}"])
