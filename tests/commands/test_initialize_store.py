"""python -m initialize_store, as the seed writes it."""

import json
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from coarlib.commands.__main__ import main
from coarlib.store import Store
from coarlib.store.spec import load_spec

ESTIMATE = ROOT / "estimate"
UPSTREAM = {
    "cifar_resnet": (50_000, 2304, "test_margins", 10_000),
    "imagenet_resnet": (100_000, 22_720, "val_margins", 50_000),
    "imagenet_vit": (100_000, 82_944, "val_margins", 5000),
    "gpt2_tinystories": (100_000, 64_512, "test_margins", 500),
}
TASK = """
import torch
import coarlib as cl
model = torch.nn.Sequential(torch.nn.Linear(2, 3))
task = cl.ablate(model, (torch.ones(4, 2), torch.arange(4) % 3), components="linear_row")
"""


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstreams_specs_in_both_sizes(name):
    rows, features, key, targets = UPSTREAM[name]
    for suffix, num_models in (("", rows), ("_test", 100)):
        spec = load_spec(ROOT / "specs" / f"{name}{suffix}.json")
        assert spec.num_models == num_models
        assert spec.schema["masks"].shape == (features,)
        assert spec.schema[key].shape == (targets,)
        assert spec.schema[key].dtype == np.float16


def test_the_seeds_command_line(command, tmp_path):
    store = tmp_path / "store"
    arguments = ("--logging.logdir", store, "--logging.spec", "../specs/cifar_resnet_test.json")
    first = command("initialize_store", *arguments, cwd=ESTIMATE)
    assert first.returncode == 0, first.stderr
    for key, shape, dtype in [
        ("masks", (100, 2304), np.bool_),
        ("test_margins", (100, 10_000), np.float16),
        ("_completed", (100,), np.bool_),
    ]:
        array = np.load(store / f"{key}.npy", mmap_mode="r")
        assert (array.shape, array.dtype) == (shape, dtype)
    second = command("initialize_store", *arguments, cwd=ESTIMATE)
    assert second.returncode == 0
    assert "already there" in second.stdout
    other = command(
        "initialize_store", *arguments[:3], "../specs/imagenet_vit_test.json", cwd=ESTIMATE
    )
    assert other.returncode == 2
    assert "schema.masks.shape: [2304] here, [82944] there" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_coar_does_the_same_from_anywhere(command, tmp_path, spec_content):
    (tmp_path / "spec.json").write_text(json.dumps(spec_content))
    done = command(
        "estimate",
        *("initialize_store", "--logging.logdir", "store", "--logging.spec", "spec.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "masks.npy").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("{", "not valid JSON"),
        ('{"num_models": 3, "schema": {"../x": {"dtype": "bool_", "shape": []}}}', "../x"),
        ('{"num_models": 3, "schema": {"x": {"dtype": "bool", "shape": [-1]}}}', "schema.x.shape"),
    ],
)
def test_bad_specs_exit_with_2_one_line_and_no_directory(command, tmp_path, text, message):
    if text is not None:
        (tmp_path / "spec.json").write_text(text)
    done = command(
        "coarlib.commands.store.initialize_store",
        *("--logging.logdir", tmp_path / "store", "--logging.spec", tmp_path / "spec.json"),
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()
    assert [file.name for file in Path(tmp_path).iterdir()] == ["spec.json"] * (text is not None)


def test_designs_of_a_task_need_no_spec(tmp_path, capsys):
    (tmp_path / "designed.py").write_text(TASK)
    task = ["--task", str(tmp_path / "designed.py")]
    main(["initialize_store", str(tmp_path / "single"), *task, "--design", "leave_one_out"])
    single = Store.open(tmp_path / "single")
    assert single.num_models == 4 and single.design.kind == "leave_one_out"
    halves = ["--design", "fixed_size", "--rows", "4", "--keep", "0.5"]
    main(["initialize_store", str(tmp_path / "halves"), *task, *halves])
    assert Store.open(tmp_path / "halves").design.keep_prob == 0.5
    for wrong in (["--design", "fixed_size"], ["--design", "leave_one_out", "--keep", "0.5"]):
        with pytest.raises(SystemExit) as left:
            main(["initialize_store", str(tmp_path / "none"), *task, *wrong])
        assert left.value.code == 2 and "--keep" in capsys.readouterr().err


def test_coar_lists_its_commands_and_names_the_nearest(command):
    listing = command("estimate", "--help")
    assert listing.returncode == 0
    assert "initialize_store" in listing.stdout
    wrong = command("estimate", "initialise_store")
    assert wrong.returncode == 2
    assert "did you mean 'initialize_store'" in wrong.stderr
