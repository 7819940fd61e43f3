import json

import pytest
from paths import ROOT

from coarlib.ablation import ComponentSet
from coarlib.commands.store import components
from coarlib.errors import CoarlibError, StoreError
from coarlib.store import Store, initialize
from coarlib.store.components import COMPONENTS_FILE, read_components, settle_components
from coarlib.store.merge import merge
from coarlib.store.settle import sealed_json
from coarlib.store.spec import load_spec
from estimate.digits import make_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    settings = json.dumps({"model_path": str(tmp_path_factory.mktemp("digits") / "model.pt")})
    return ["--components.task", "digits", "--components.task_args", settings]


def test_table_index_and_json(tmp_path, digits, capsys):
    components.main(digits)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line]
    assert ["0-15", "stem.weight", "0", "conv_filter", "16"] in table
    assert table[-2] == ["total", "240"]
    assert lines[-1] == "conv_filter in 4 of 4 layers of blocks"
    components.main([*digits, "--components.index", "17"])
    assert capsys.readouterr().out.startswith("17: blocks.0.conv1.weight[1] (conv_filter, axis 0)")
    out = tmp_path / "components.json"
    components.main([*digits, "--components.out", str(out)])
    assert len(ComponentSet.from_json(json.loads(out.read_text()))) == 240


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--components.index", "240"], "component 240 does not exist"),
        (["--components.task_args", "["], "must be key=value"),
        (["--components.task_args", "[]"], "or a JSON object"),
        (["--components.task", "tests/zoo/linear_task.py:LinearTask"], "ablates no components"),
        (["--components.task_args", '{"modle_path": "x"}'], "modle_path"),
    ],
)
def test_bad_arguments_are_refused(digits, change, message, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    words = change if "linear_task" in change[1] else [*digits, *change]
    with pytest.raises(CoarlibError, match=message):
        components.main(words)


def test_a_store_keeps_its_components_and_holds_workers_to_them(tmp_path, digits, capsys):
    store = tmp_path / "store"
    initialize(store, load_spec(ROOT / "specs" / "digits_test.json"))
    model = json.loads(digits[-1])["model_path"]
    with pytest.raises(StoreError, match="holds no component table"):
        components.main([str(store)])
    words = ["--expt.base_dir", str(store), "--expt.model_path", model, "--quiet"]
    make_dataset.main([*words, "--expt.end_index", "2"])
    capsys.readouterr()
    components.main([str(store)])
    from_store = capsys.readouterr().out
    components.main(digits)
    assert capsys.readouterr().out.startswith(from_store)
    components.main([str(store), *digits])  # they agree
    table = json.loads((store / COMPONENTS_FILE).read_text())
    table["components"][0]["module"] = "root"
    (store / COMPONENTS_FILE).write_text(json.dumps(table))
    with pytest.raises(StoreError, match="does not match its digest"):
        components.main([str(store)])
    (store / COMPONENTS_FILE).write_bytes(sealed_json({"components": table["components"]}))
    other = r"16 × conv_filter of root.weight \(axis 0\) there, .* of stem.weight \(axis 0\) here"
    with pytest.raises(StoreError, match=other):
        make_dataset.main(words)
    with pytest.raises(StoreError, match=other):
        components.main([str(store), *digits])
    assert Store.open(store).completed_rows().tolist() == [0, 1]


def test_merged_stores_keep_the_components(tmp_path):
    spec = load_spec(ROOT / "specs" / "digits_test.json")
    for name in ("one", "two"):
        initialize(tmp_path / name, spec)
    settle_components(tmp_path / "one", [{"module": "stem", "units": 240}])
    stores = [Store.open(tmp_path / name) for name in ("one", "two")]
    merge(tmp_path / "all", stores, quiet=True)
    assert read_components(tmp_path / "all") == [{"module": "stem", "units": 240}]
    settle_components(tmp_path / "two", [{"module": "stem", "units": 239}])
    with pytest.raises(StoreError, match="ablate other components"):
        merge(tmp_path / "both", stores, quiet=True)


@pytest.mark.parametrize("content", ["[", "{}", "[1]"])
def test_a_spoilt_table_is_refused(tmp_path, content):
    (tmp_path / COMPONENTS_FILE).write_text(content)
    with pytest.raises(StoreError, match=r"not valid JSON|no list of component groups"):
        read_components(tmp_path)


def test_neither_store_nor_task():
    with pytest.raises(CoarlibError, match="give a store, or a task"):
        components.main([])
