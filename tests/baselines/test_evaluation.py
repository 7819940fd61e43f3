import csv
import json

import numpy as np
import pytest
import torch
from tiny_models import TinyResNet, images, randomised

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.baselines.evaluation import (
    BASELINES,
    Scores,
    baseline,
    compare,
    differences,
    fresh_masks,
    measure,
    table,
)
from coarlib.commands.judge import evaluate
from coarlib.errors import CoarlibError, ScoringError
from coarlib.regression.attributions import Attributions
from coarlib.regression.cost import COST, Cost
from coarlib.report.records import read_evaluation


class SmallTask(ComponentTask):
    rows_per_batch = 7

    def model(self):
        return randomised(TinyResNet())

    def components(self, model):
        return find_components(model)

    def examples(self):
        return Examples((images(12),), torch.arange(12) % 5)


@pytest.fixture
def task():
    task = SmallTask()
    task.prepare(torch.device("cpu"))
    return task


def test_true_scores_of_a_linear_truth_correlate_perfectly_and_random_ones_do_not():
    weight = np.random.default_rng(0).normal(size=(30, 4))
    methods = {
        "true": Scores(weight, 31),
        "negated": Scores(-weight, 1031.0, at_least=True),
        "random": Scores(np.random.default_rng(1).normal(size=(30, 4)), 0),
    }
    lines = compare(methods, [0.1, 0.5], 300, lambda masks: masks @ weight + 3, 30)
    assert [(line.method, line.fraction) for line in lines] == [
        (method, fraction) for fraction in (0.1, 0.5) for method in methods
    ]
    for line in lines:
        assert line.pearson_low - 1e-9 <= line.pearson <= line.pearson_high + 1e-9
        expected = {"true": 1, "negated": -1}.get(line.method)
        if expected is None:
            assert abs(line.pearson) < 0.3
        else:
            assert line.pearson == pytest.approx(expected) == line.spearman
    text = table(lines).splitlines()
    assert text[1].split()[:4] == ["true", "31", "+1.000", "[1.000,"]
    assert text[2].split()[:4] == ["negated", "≥", "1,031", "-1.000"]


def test_fresh_masks_ablate_the_fraction_and_differ_between_fractions():
    masks = fresh_masks(1000, 0.1, 50)
    assert (~masks).mean() == pytest.approx(0.1, abs=0.01)
    assert (fresh_masks(1000, 0.100001, 50) != masks).any()
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ScoringError, match="between 0 and 1"):
            fresh_masks(10, fraction, 5)
    with pytest.raises(ScoringError, match="at least 3"):
        fresh_masks(10, 0.5, 2)


def test_leave_one_out_is_the_effect_of_one_ablation(task):
    found = baseline("leave_one_out", task, "test_margins")
    masks = np.ones((2, 16), bool)
    masks[1, 5] = False
    rows = task.rows(np.arange(2), masks)["test_margins"]
    np.testing.assert_allclose(found.scores[5], rows[0] - rows[1], atol=1e-5)
    assert found.forward_passes == 17


def test_every_baseline_has_scores_of_every_component(task):
    for name in BASELINES:
        found = baseline(name, task, "test_margins")
        assert found.scores.shape == (16, 12) and np.isfinite(found.scores).all(), name
    with pytest.raises(ScoringError, match="did you mean 'random'"):
        baseline("randoms", task, "test_margins")


def test_measuring_keeps_the_order(task):
    masks = fresh_masks(16, 0.2, 10)
    together = task.rows(np.arange(10), masks)["test_margins"]
    np.testing.assert_allclose(measure(task, masks, "test_margins", "x"), together, atol=1e-5)


def test_scores_of_another_size_are_refused(task):
    with pytest.raises(ScoringError, match="scores of COAR are"):
        compare(
            {"COAR": Scores(np.zeros((15, 12)), 1)},
            [0.1],
            5,
            lambda masks: measure(task, masks, "test_margins", "x"),
            16,
        )


def test_the_command_writes_table_and_figure_and_keeps_baselines(tmp_path, capsys, task):
    masks = fresh_masks(16, 0.101, 80)
    outputs = measure(task, masks, "test_margins", "rows").astype(float)
    centred = masks - masks.mean(0)
    weight = np.linalg.lstsq(centred, outputs - outputs.mean(0), rcond=None)[0]
    Attributions(
        weight.astype(np.float32),
        outputs.mean(0) - masks.mean(0) @ weight,
        np.zeros(12),
        masks.mean(0),
        np.zeros(12),
        summary={"num_rows": 80, COST: Cost(80, 48).as_json()},
    ).save(tmp_path / "fit")
    arguments = [
        *("--eval.task", f"{__file__}:SmallTask", "--eval.attributions", str(tmp_path / "fit")),
        *("--eval.out_dir", str(tmp_path / "out"), "--eval.fractions", "0.1,0.3"),
        *("--eval.rows", "40"),
    ]
    evaluate.main(arguments)
    first = capsys.readouterr().out
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + len(BASELINES))
    means = {row["method"]: float(row["pearson"]) for row in rows if row["fraction"] == "0.1"}
    assert {row["forward_passes"] for row in rows if row["method"] == "COAR"} == {"128"}
    assert "COAR  " in first and " 128 " in first
    assert read_evaluation(tmp_path / "out" / "evaluation.json").passes["COAR"] == "128"
    assert min(means["COAR"], means["leave_one_out"]) > means["random"] + 0.3
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["components"] == 16 and len(content["lines"]) == len(rows)
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 10_000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npz")}
    assert len(kept) == len(BASELINES)
    evaluate.main(arguments)
    assert capsys.readouterr().out == first
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npz")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--eval.task_args", "{"], "a JSON object"),
        (["--eval.fractions", "a,b"], "numbers, comma-separated"),
        (["--eval.output", "val_margins"], "must be one of test_margins"),
        (["--eval.baselines", "leave_one"], "unknown baseline leave_one; did you mean"),
        (["--eval.attributions", "nowhere"], "nowhere"),
        (["--eval.task", "nothing.at_all:X"], "cannot import"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, change, message):
    Attributions(np.zeros((16, 12), np.float32), *(np.zeros(n) for n in (12, 12, 16, 12))).save(
        tmp_path / "fit"
    )
    arguments = {
        "--eval.task": f"{__file__}:SmallTask",
        "--eval.attributions": str(tmp_path / "fit"),
        "--eval.out_dir": str(tmp_path / "out"),
        change[0]: change[1],
    }
    with pytest.raises(CoarlibError, match=message):
        evaluate.main([word for pair in arguments.items() for word in pair])


def test_differences_are_paired_and_said_where_they_are_sure():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(30, 4))
    noise = rng.normal(size=weight.shape)
    methods = {
        "fitted": Scores(weight + noise, 100),
        "better": Scores(weight + 0.3 * noise, 40),
        "worse": Scores(weight + 3 * noise, 3),
    }
    lines = compare(methods, [0.3], 200, lambda masks: masks @ weight, 30)
    fitted, better, worse = lines
    assert (fitted.difference, fitted.difference_low, fitted.difference_high) == (0, 0, 0)
    for line in (better, worse):
        assert line.difference == pytest.approx(line.pearson - fitted.pearson)
        assert line.difference_low < line.difference < line.difference_high
    width = better.difference_high - better.difference_low
    assert width < fitted.pearson_high - fitted.pearson_low  # rows that are hard are so for both
    text = differences(lines)
    assert text.startswith("better than fitted") and "better at α = 0.3" in text
    assert "worse" not in text and "for 40 passes" in text
    assert differences([fitted, worse]).startswith("no method predicts better than fitted")
