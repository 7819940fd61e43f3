import json

import pytest

from coarlib.ablation import ComponentSet
from coarlib.errors import CoarlibError
from estimate import components


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    settings = json.dumps({"model_path": str(tmp_path_factory.mktemp("digits") / "model.pt")})
    return ["--components.task", "digits", "--components.task_args", settings]


def test_table_index_and_json(tmp_path, digits, capsys):
    components.main(digits)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line]
    assert ["0-15", "stem.weight", "0", "conv_filter", "16"] in table
    assert table[-1] == ["total", "240"]
    components.main([*digits, "--components.index", "17"])
    assert capsys.readouterr().out.startswith("17: blocks.0.conv1.weight[1] (conv_filter, axis 0)")
    out = tmp_path / "components.json"
    components.main([*digits, "--components.out", str(out)])
    assert len(ComponentSet.from_json(json.loads(out.read_text()))) == 240


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--components.index", "240"], "component 240 does not exist"),
        (["--components.task_args", "["], "not JSON"),
        (["--components.task_args", "[]"], "must be a JSON object"),
        (["--components.task", "tests/zoo/linear_task.py:LinearTask"], "ablates no components"),
        (["--components.task_args", '{"modle_path": "x"}'], "modle_path"),
    ],
)
def test_bad_arguments_are_refused(digits, change, message, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    if "linear_task" in change[1]:
        change = [*change, "--components.task_args", "{}"]
    with pytest.raises(CoarlibError, match=message):
        components.main([*digits, *change])
