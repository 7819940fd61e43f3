"""Tables of methods: what they say in each format, and that regimes are not mixed."""

import csv
import io
import json

import numpy as np
import pytest

from coarlib.commands.judge.scoreboard import main
from coarlib.errors import ArgumentError, ScoringError
from coarlib.scoring import lds
from coarlib.scoring.records import write_lds
from coarlib.scoring.scoreboard import read_scoreboard


@pytest.fixture
def results(tmp_path):
    """Results of a good and a bad method in one regime, and of the good one on other rows."""
    rng = np.random.default_rng(0)
    scores, masks = rng.standard_normal((30, 6)), rng.random((50, 30)) < 0.5
    outputs = (masks @ scores)[:, None] + rng.standard_normal((50, 3, 6))
    bad = scores + 3 * rng.standard_normal(scores.shape)
    for name, matrix in (("bad_one", bad), ("good", scores)):
        write_lds(tmp_path / f"{name}.json", lds(matrix, masks, outputs), {"method": name})
    (tmp_path / "other.json").write_text("[1]")
    elsewhere = tmp_path / "elsewhere" / "lds.json"
    elsewhere.parent.mkdir()
    write_lds(elsewhere, lds(scores, masks[:40], outputs[:40]), {"method": "few"})
    return tmp_path


def files(results):
    return [results / "bad_one.json", results / "good.json"]


def test_methods_stand_in_order_with_intervals_and_regime(results):
    board = read_scoreboard(files(results))
    assert [line.method for line in board.lines] == ["good", "bad_one"]
    record = json.loads((results / "good.json").read_text())
    markdown = board.render("markdown")
    assert f"| good | {record['mean']:.3f} | [{record['interval']['low']:.3f}, " in markdown
    assert "50 subsets × 3 runs" in markdown and "noise ceiling" in markdown
    rows = list(csv.reader(io.StringIO(board.render("csv"))))
    assert rows[1][:2] == ["good", f"{record['mean']:.3f}"]
    assert rows[1][3] == f"{record['share_of_ceiling']:.0%}"
    latex = board.render("latex")
    assert r"bad\_one" in latex and r"\toprule" in latex and r"100\%" in latex
    assert "<td>bad_one</td>" in board.render("html")
    with pytest.raises(ScoringError, match="did you mean 'latex'"):
        board.render("latexx")


def test_other_regimes_are_refused_by_name(results, tmp_path):
    with pytest.raises(ScoringError, match=r"few cannot stand .* number of subsets \(50 and 40\)"):
        read_scoreboard([results])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ScoringError, match="no results"):
        read_scoreboard([tmp_path / "nothing"])
    with pytest.raises(ScoringError, match=r"other\.json is not a result"):
        read_scoreboard([results / "other.json"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": "0.3"}, "damaged .ValueError"),
        ({"interval": {}}, "damaged .KeyError: 'low'"),
        ({"regime": "x"}, "damaged .TypeError"),
        (None, "not valid JSON"),
    ],
)
def test_a_damaged_result_is_named_and_not_passed_over(results, change, message):
    file = results / "good.json"
    record = json.loads(file.read_text())
    file.write_text(file.read_text()[:-9] if change is None else json.dumps(record | change))
    with pytest.raises(ScoringError, match=rf"good\.json.*{message}"):
        read_scoreboard([results])


def test_names_stay_in_their_cell_and_zero_is_a_number(results):
    for name, change in (("good", {"method": "a\n|b ^~ \x1b"}), ("bad_one", {"mean": 0.0})):
        file = results / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    worse = json.loads((results / "bad_one.json").read_text()) | {"mean": -0.1, "method": "worse"}
    (results / "worse.json").write_text(json.dumps(worse))
    board = read_scoreboard([*files(results), results / "worse.json"])
    assert [line.method for line in board.lines] == [r"a\n|b ^~ \x1b", "bad_one", "worse"]
    assert r"| a\n\|b ^~ \x1b |" in board.render("markdown")
    assert r"a/n|b \^{}\~{} /x1b &" in board.render("latex")


def test_the_command_prints_and_writes(results, capsys):
    words = list(map(str, files(results)))
    main(words)
    assert "| method | LDS |" in capsys.readouterr().out
    for name in ("t.md", "t.tex", "t.csv", "t.html", "t.svg"):
        main([*words, "--out", str(results / name)])
        assert "good" in (results / name).read_text() or name == "t.svg"
    with pytest.raises(ArgumentError, match="must end in one of"):
        main([*words, "--out", "t.docx"])
