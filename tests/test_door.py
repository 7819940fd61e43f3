"""The front door: ``import coarlib`` is quick, and every name it promises is there."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT
from zoo.linear_task import LinearTask, true_weights

import coarlib as cl

QUICK = 0.3


def test_the_import_needs_no_torch_and_takes_no_time():
    code = (
        "import numpy, sys, time; started = time.perf_counter(); import coarlib; "
        "print(time.perf_counter() - started, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.split()
    assert float(seconds) < QUICK and torch == "False"


def test_every_name_opens_its_own_room():
    assert 15 <= len(cl.__all__) <= 30 and set(cl.__all__) <= set(dir(cl))
    assert sorted(cl._HOMES) == sorted(set(cl.__all__) - {"__version__"})
    for name in cl._HOMES:
        assert getattr(cl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        cl.atribute  # noqa: B018


def test_the_names_for_type_checkers_are_those_of_the_door():
    text = (ROOT / "coarlib" / "__init__.py").read_text()
    block = text.split("if TYPE_CHECKING:\n")[1].split("\n\n")[0]
    lines = re.findall(r"from (\S+) import ([^(\n]+|\([^)]*\))", block)
    found = {n: room for room, names in lines for n in re.findall(r"\w+", names)}
    assert found == cl._HOMES


def test_the_page_of_the_door_names_what_the_door_names():
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert set(re.findall(r"^::: coarlib\.(\w+)", text, re.MULTILINE)) == set(cl._HOMES)


def linear_task():
    task = LinearTask()
    layout = SimpleNamespace(num_features=12, outputs={"margins": ("float64", (3,))})
    task.layout = lambda: layout
    return task


def test_from_a_task_to_attributions(tmp_path):
    task = linear_task()
    store = cl.Store.create(tmp_path / "store", task, rows=120, keep_prob=0.7)
    assert cl.fill(store, task, rows=(0, 10), device="cpu", quiet=True).written == 10
    report = cl.fill(tmp_path / "store", task, device="cpu", share=True, quiet=True)
    assert (report.written, report.skipped) == (110, 10)
    for found in (cl.fit(store), cl.fit(tmp_path / "store", solver="ridge", lam=1e-9)):
        np.testing.assert_allclose(found.weight, true_weights(12), atol=1e-3)
        assert found.held_out.mean > 0.999


def test_a_store_is_created_once_and_opened_after(tmp_path):
    task = linear_task()
    made = cl.Store.create(tmp_path / "store", task, rows=20, keep_prob=0.7, seed=3)
    assert made.design.seed == 3 and made.spec.schema["margins"].shape == (3,)
    again = cl.Store.create(tmp_path / "store", task, rows=20, keep_prob=0.7, seed=3)
    assert again.spec == made.spec
    with pytest.raises(cl.CoarlibError, match="another spec"):
        cl.Store.create(tmp_path / "store", task, rows=21, keep_prob=0.7, seed=3)
    design = {"kind": "fixed_size", "size": 6, "array": "kept"}
    sized = cl.Store.create(tmp_path / "sized", task, rows=20, design=design)
    assert list(sized.spec.schema) == ["kept", "margins"]
    with pytest.raises(cl.CoarlibError, match="keep_prob and design"):
        cl.Store.create(tmp_path / "other", task, rows=20)
    with pytest.raises(cl.CoarlibError, match="name of the mask array"):
        cl.Store.create(tmp_path / "other", task, rows=20, design={**design, "array": "margins"})


def test_plain_arrays_are_fitted():
    masks = np.random.default_rng(0).random((80, 5)) < 0.8
    outputs = masks @ np.arange(10.0).reshape(5, 2)
    found = cl.fit(masks, outputs, held_out=10)
    np.testing.assert_allclose(found.weight, np.arange(10.0).reshape(5, 2), atol=1e-3)
    with pytest.raises(cl.CoarlibError, match="need the outputs"):
        cl.fit(masks)
    with pytest.raises(cl.CoarlibError, match="number of rows K, at least one"):
        cl.fit(np.zeros((0, 3), bool), np.zeros((0, 2)))
    with pytest.raises(cl.CoarlibError, match="masks in memory"):
        cl.fit("somewhere", outputs)


def test_a_store_shows_how_far_it_is(tmp_path):
    store = cl.Store.create(tmp_path / "store", linear_task(), rows=20, keep_prob=0.7)
    cl.fill(store, linear_task(), rows=(0, 5), device="cpu", quiet=True)
    assert repr(store).splitlines() == [
        f"Store {tmp_path / 'store'}",
        "5 of 20 rows completed",
        "a row: masks bool [12], margins float64 [3] (36 bytes)",
    ]
    assert "25% of the rows" in store._repr_html_()


MASKS = np.random.default_rng(0).random((60, 4)) < 0.5
OUTPUTS = MASKS @ np.arange(8.0).reshape(4, 2)


def linear():
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(1, 2)


def in_batches(size):
    torch = pytest.importorskip("torch")
    data = torch.zeros(3, 1), torch.tensor([0, 1, 1])
    return cl.ablate(linear(), data, "linear_row", batch_size=size)


def test_plain_rows_may_be_lists_and_tensors():
    expected = cl.fit(MASKS, OUTPUTS, "ridge").weight
    torch = pytest.importorskip("torch")
    for masks, outputs in (
        (MASKS.tolist(), OUTPUTS.tolist()),
        (torch.tensor(MASKS), torch.tensor(OUTPUTS)),
    ):
        np.testing.assert_array_equal(cl.fit(masks, outputs, "ridge").weight, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda found, store: cl.fit(5),
        lambda found, store: cl.fit(None),
        lambda found, store: cl.fit(MASKS),
        lambda found, store: cl.fit((MASKS, OUTPUTS)),
        lambda found, store: cl.fit(MASKS, OUTPUTS, None),
        lambda found, store: found.save(store.path),
        lambda found, store: cl.fit(store, OUTPUTS),
        lambda found, store: cl.fit(MASKS, "outputs"),
        lambda found, store: cl.fit(MASKS, OUTPUTS, held_out=2.5),
        lambda found, store: cl.fit(MASKS, OUTPUTS, seed="one"),
        lambda found, store: found.top("one"),
        lambda found, store: found.top(0, 2.5),
        lambda found, store: found.top(0, 0),
        lambda found, store: cl.compare(found, found),
        lambda found, store: cl.compare(3, 4),
        lambda found, store: cl.fill(store, "digits"),
        lambda found, store: cl.fill(store, linear_task(), rows=5),
        lambda found, store: cl.fill(store, linear_task(), rows=(0, 1.5)),
        lambda found, store: cl.Store.open(3),
        lambda found, store: cl.Store.create(3, linear_task(), 5, 0.5),
        lambda found, store: cl.Store.create("out", "digits", 5, 0.5),
        lambda found, store: cl.find_components(linear(), 3),
        lambda found, store: in_batches("many"),
    ],
)
def test_a_wrong_kind_of_argument_is_one_sentence(call, tmp_path):
    store = cl.Store.create(tmp_path / "store", linear_task(), rows=10, keep_prob=0.5)
    assert in_batches(2).batch_size == 2
    with pytest.raises(cl.CoarlibError) as error:
        call(cl.fit(MASKS, OUTPUTS, "ridge"), store)
    assert "\n" not in str(error.value)
