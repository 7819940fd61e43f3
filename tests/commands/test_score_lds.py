"""The command: what it prints and writes, and how it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import coarlib as cl
from coarlib.commands.judge.score_lds import main
from coarlib.commands.judge.scoreboard import main as scoreboard
from coarlib.errors import CoarlibError, ScoringError, TornRowError
from coarlib.interop.banks import write_bank
from coarlib.scoring import lds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def case(tmp_path):
    """A COAR-layout store with two unfinished rows, and the scores that made it."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20, 5)).astype("f4")
    masks = rng.random((30, 20)) < 0.7
    margins = (masks @ scores + rng.standard_normal((30, 5))).astype("f2")
    completed = np.ones(30, dtype=bool)
    completed[[4, 29]] = False
    store = tmp_path / "store"
    store.mkdir()
    for name, array in (("masks", masks), ("test_margins", margins), ("_completed", completed)):
        np.save(store / f"{name}.npy", array)
    np.save(tmp_path / "scores.npy", scores)
    return tmp_path, scores, masks, margins


def arguments(folder, **changed):
    words = {"data.store": folder / "store", "data.scores": folder / "scores.npy"}
    words |= {key.replace("__", "."): value for key, value in changed.items()}
    return [word for key, value in words.items() for word in (f"--{key}", str(value))]


def test_completed_rows_are_scored_printed_and_written(case, capsys):
    folder, scores, masks, margins = case
    main(arguments(folder, cfg__out=folder / "result.json"))
    rows = np.delete(np.arange(30), [4, 29])
    expected = lds(scores, masks[rows], margins[rows])
    printed = capsys.readouterr()
    assert f"mean LDS (spearman) over 5 targets and 28 rows: {expected.mean:.4f}" in printed.out
    assert str(expected.interval) in printed.out
    assert "2 of rows 0:30 are not completed" in printed.err
    summary = json.loads((folder / "result.json").read_text())
    assert summary["mean"] == expected.mean
    assert summary["interval"]["low"] == expected.interval.low
    with np.load(folder / "result.npz") as arrays:
        np.testing.assert_array_equal(arrays["correlation"], expected.correlation)
        np.testing.assert_array_equal(arrays["p_value"], expected.p_value)


def test_the_result_and_tables_of_it_are_written_to_new_directories(case, tmp_path):
    result = tmp_path / "new" / "lds" / "result.json"
    main(arguments(case[0], cfg__out=result))
    table = tmp_path / "tables" / "board.md"
    scoreboard([str(result), "--out", str(table)])
    assert result.is_file() and table.is_file()


def test_a_range_of_rows(case, capsys):
    folder, scores, masks, margins = case
    main(arguments(folder, data__rows="20:29", cfg__kind="pearson", interval=False))
    expected = lds(scores, masks[20:29], margins[20:29], "pearson", interval=False)
    printed = capsys.readouterr()
    assert f"over 5 targets and 9 rows: {expected.mean:.4f}\n" in printed.out
    assert printed.err == ""


def test_undefined_targets_are_counted_and_named(case, capsys):
    folder, scores, _, _ = case
    scores[:, 1:] = 0
    np.save(folder / "zero.npy", scores)
    main(arguments(folder, data__scores=folder / "zero.npy", cfg__out=folder / "r.json"))
    printed = capsys.readouterr()
    assert "over 1 targets" in printed.out and "4 constant, 0 with scores" in printed.out
    assert "4 of 5 targets have scores whose sums over the subsets never vary" in printed.err
    assert json.loads((folder / "r.json").read_text())["mean"] is not None


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (np.zeros((20, 5)), "5 of 5 targets have scores whose sums over the subsets never vary"),
        (np.full((20, 5), np.nan), "5 of 5 targets have scores that are not finite"),
    ],
)
def test_scores_without_any_correlation_are_one_sentence(case, capsys, scores, why):
    folder, *_ = case
    np.save(folder / "odd.npy", scores)
    words = folder / "store", folder / "scores.npy", folder / "odd.npy", "--out", folder / "r.json"
    with pytest.raises(ScoringError, match=f"odd.npy cannot be scored: no .*{why}") as caught:
        main(list(map(str, words)))
    assert "\n" not in str(caught.value) and not list(folder.glob("r*.json"))
    assert "nan" not in capsys.readouterr().out


def test_a_note_where_shapes_cannot_tell_examples_from_targets(tmp_path, capsys):
    rng = np.random.default_rng(0)
    scores, masks = rng.normal(size=(6, 6)), rng.random((60, 6)) < 0.5
    store = write_bank(tmp_path / "store", masks, masks @ scores + rng.normal(size=(60, 6)))
    expected = lds(scores, masks, store.array("test_margins")).mean
    noted = "N = T = 6 its shape cannot tell: if it is [test, train], say --transposed"
    for name, matrix, words in (("right", scores, []), ("turned", scores.T, ["--transposed"])):
        np.save(tmp_path / f"{name}.npy", matrix)
        main([str(store.path), str(tmp_path / f"{name}.npy"), *words])
        printed = capsys.readouterr()
        assert (noted in printed.err) == (not words)
        assert f"rows: {expected:.4f}" in printed.out
    cl.fit(masks[:40], store.array("test_margins")[:40]).save(tmp_path / "fit")
    main([str(store.path), str(tmp_path / "fit")])
    assert "its shape" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data__rows": "5:2"}, "must be A:B"),
        ({"data__rows": "25:31"}, "A:B within 0:30"),
        ({"data__rows": "29:30"}, "needs at least two"),
        ({"data__x_name": "mask"}, "did you mean 'masks'"),
        ({"cfg__out": "result.txt"}, "must end in .json"),
        ({"cfg__kind": "r2"}, "one of spearman, pearson, kendall"),
    ],
)
def test_bad_arguments_are_one_sentence(case, changed, words):
    with pytest.raises(CoarlibError, match=words) as caught:
        main(arguments(case[0], **changed))
    assert "\n" not in str(caught.value)


def test_resamples_of_earlier_versions_are_said_to_have_no_effect(case, capsys):
    main(arguments(case[0], cfg__resamples=20, cfg__seed=3))
    assert "nothing is drawn" in capsys.readouterr().err


def test_scores_of_another_model_exit_with_2(case, command):
    folder, scores, _, _ = case
    np.save(folder / "other.npy", scores[:-1])
    done = command(
        "score_lds", *arguments(folder, data__scores=folder / "other.npy"), cwd="estimate"
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 or "not completed" in done.stderr
    assert "masks have shape [28, 20], but the scores are of 19 examples" in done.stderr


def test_torn_rows_are_refused(case):
    folder, _, masks, margins = case
    store = write_bank(folder / "ours", masks, margins)
    main(arguments(folder, data__store=store.path, interval=False))
    with open(store.path / "test_margins.npy", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x11")
    main(arguments(folder, data__store=store.path, data__rows="0:29", interval=False))
    with pytest.raises(TornRowError, match=r"1 completed rows .*the first is 29"):
        main(arguments(folder, data__store=store.path))


def test_several_scores_are_compared_on_the_same_rows(case, capsys):
    folder, scores, _, _ = case
    noisy = scores + 2 * np.random.default_rng(1).standard_normal(scores.shape)
    np.save(folder / "noisy.npy", noisy)
    words = [f"A={folder / 'scores.npy'}", f"B={folder / 'noisy.npy'}"]
    main([str(folder / "store"), *words, "--out", str(folder / "lds.json")])
    assert "A - B: +" in capsys.readouterr().out
    files = [json.loads((folder / f"lds.{name}.json").read_text()) for name in "AB"]
    pair = files[0]["comparisons"]["A - B"]
    assert pair["difference"] == pytest.approx(files[0]["mean"] - files[1]["mean"])
    assert pair["interval"]["low"] < pair["difference"] < pair["interval"]["high"]
    assert files[0]["regime"] == files[1]["regime"]
    repeated = ["--scores", words[0], "--scores", words[1]]
    main([str(folder / "store"), *repeated])
    assert "A - B: +" in capsys.readouterr().out
    with pytest.raises(CoarlibError, match="each name once"):
        main([str(folder / "store"), words[0], words[0]])


def test_rows_that_the_scores_were_fitted_on_are_not_scored(case, capsys):
    folder, _, masks, margins = case
    store = write_bank(folder / "ours", np.tile(masks, (2, 1)), np.tile(margins, (2, 1)))
    fresh = np.random.default_rng(5).random((40, 20)) < 0.7
    more = fresh @ np.ones((20, 5), "f2")
    both = write_bank(folder / "both", np.r_[masks, fresh], np.r_[margins, more])
    cl.fit(masks, margins, solver="ridge").save(folder / "fit")
    main([str(both.path), str(folder / "fit"), "--out", str(folder / "lds.json")])
    printed = capsys.readouterr().out
    assert "scoring on the 40 rows that were not fitted: 30:70" in printed
    summary = json.loads((folder / "lds.json").read_text())
    assert summary["num_rows"] == 40 and not summary["includes_fitted_rows"]
    for path, rows in ((store.path, []), (both.path, ["--rows", "20:50"])):
        for scores in (folder / "fit", folder / "fit" / "datamodels.pt"):
            with pytest.raises(CoarlibError, match=r"were fitted on .* say --allow_fitted_rows"):
                main([str(path), str(scores), *rows])
    main([str(store.path), str(folder / "fit"), "--allow_fitted_rows"])
    assert "ON ROWS THAT WERE FITTED" in capsys.readouterr().out


def test_a_failed_retraining_is_named(case, capsys):
    folder, scores, masks, margins = case
    broken = margins.copy()
    broken[17] = np.nan
    store = write_bank(folder / "ours", masks, broken)
    main([str(store.path), str(folder / "scores.npy")])
    printed = capsys.readouterr()
    assert "left out, for all their outputs are NaN: rows 17" in printed.err
    kept = np.arange(30) != 17
    assert f"{lds(scores, masks[kept], margins[kept]).mean:.4f}" in printed.out
