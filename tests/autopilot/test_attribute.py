"""From a model to attributions in one call: what is bought, when it stops, that it goes on."""

import json
import math

import numpy as np
import pytest
import torch
from paths import ROOT
from scalable_tasks import small_task

import coarlib as cl
from coarlib.ablation import Hierarchy, find_components
from coarlib.autopilot.choices import FIRST, Goal, choose
from coarlib.autopilot.holdings import Amounts, Holdings
from coarlib.autopilot.judge import Forecast, Judgement, forecast, judge
from coarlib.autopilot.run import pursue
from coarlib.commands.__main__ import load
from coarlib.errors import CoarlibError
from coarlib.gradient_passes import open_passes, read_passes

HOW = {"fraction": 0.2, "device": "cpu", "quiet": True}


def test_it_stops_within_the_budget_and_says_what_it_bought(tmp_path):
    found = cl.attribute(small_task(), tmp_path / "out", budget=260, **HOW)
    told = found.summary["autopilot"]
    costs = [entry["forward_passes"] for entry in told["purchases"]]
    assert costs[0] == FIRST.cost and costs == sorted(costs)
    assert 250 < found.cost.passes <= 260 and found.cost.passes == costs[-1]
    assert "budget" in told["purchases"][-2]["next"]
    assert json.loads((tmp_path / "out" / "purchases.json").read_text()) == told["purchases"]
    assert len(found.split.validation) >= 0.2 * len(found.split.train)
    fresh = np.random.default_rng(0).random((300, found.num_features)) < 0.8
    task = small_task()
    task.prepare(torch.device("cpu"))
    truth = task.rows(np.arange(300), fresh)["test_margins"].numpy()
    assert cl.correlate(found.predict(fresh), truth, "pearson").r.mean() > 0.8


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    whole = cl.attribute(small_task(), tmp_path / "whole", budget=200, **HOW)
    bought = []

    def interrupted(self, wanted):
        bought.append(wanted)
        return len(bought) < 3 and buy(self, wanted)

    buy = Holdings.buy
    monkeypatch.setattr(Holdings, "buy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cl.attribute(small_task(), tmp_path / "out", budget=200, **HOW)
    monkeypatch.setattr(Holdings, "buy", buy)
    found = cl.attribute(small_task(), tmp_path / "out", budget=200, **HOW)
    assert found.cost == whole.cost
    assert np.allclose(found.weight, whole.weight, atol=1e-5 * np.abs(whole.weight).max())


def test_it_stops_at_the_correlation_it_was_asked_for(tmp_path):
    found = cl.attribute(small_task(), tmp_path / "out", until=0.5, **HOW)
    last = found.summary["autopilot"]["purchases"][-1]
    assert last["next"] == "stop: 0.5 is reached" and last["correlation"] >= 0.5
    assert last["rows"] >= 40 and last["interval_95"][0] is not None


def test_what_cannot_be_scaled_is_done_with_rows_alone(tmp_path):
    found = cl.attribute(small_task(ablate="resample"), tmp_path / "out", budget=150, **HOW)
    told = found.summary["autopilot"]
    assert "in its place" in told["without_gradient_passes"]
    assert found.cost.passes <= 150 and not told["purchases"][-1]["passes"]
    assert open_passes(tmp_path / "out" / "store") is None


def judged(rows, passes, mean):
    scores = type("Scores", (), {"mean": mean, "mean_low": 0.0, "mean_high": 1.0})()
    return Judgement(Amounts(rows, passes), scores, 0.9, None)


def test_what_brings_more_for_its_cost_is_bought():
    class Nothing:
        no_passes, components = None, 80

        def tried(self):
            return np.arange(10)

    def choice(ahead, goal=None, now=None):
        now, goal = now or judged(100, 32, 0.6), goal or Goal(budget=10_000)
        return choose(now, ahead, goal, Nothing(), 0.0)

    more, why = choice(Forecast(passes=0.1, rows=0.05))
    assert more == Amounts(100, 56) and "gradient passes" in why
    more, why = choice(Forecast(passes=0.02, rows=0.05))
    assert more == Amounts(160, 32) and "+0.050" in why
    assert choice(Forecast(passes=0.1, rows=math.nan))[1] == "more rows: to try them"
    more, why = choice(Forecast(0.1, 0.0), Goal(budget=215))
    assert more == Amounts(100 + 19, 32) and "budget" in why
    assert choice(Forecast(0.1, 0.0), Goal(budget=196))[0] == Amounts(100, 32)
    assert choice(Forecast(0.001, 0.002), Goal())[1].startswith("stop: doubling")
    more, why = choice(Forecast(0.1, 0.1, math.nan))
    assert more == Amounts(100, 32, 10) and "to try it" in why
    tried = Judgement(Amounts(100, 32, 10), judged(0, 0, 0.6).scores, 0.9, None)
    assert choice(Forecast(0.1, 0.1, 0.08), now=tried)[0] == Amounts(100, 32, 80)
    assert choice(Forecast(0.1, 0.1, 0.06), now=tried)[0].alone == 10  # 70 passes for it
    assert choice(Forecast(0.1, 0.1, math.nan), Goal(budget=250))[0].alone == 0  # all cost 81
    near, _ = choice(Forecast(0.0, 0.1), Goal(until=0.63), judged(100, 32, 0.6))
    assert near == Amounts(math.ceil(100 * 2**0.3), 32)  # as much as is needed
    sure = choice(Forecast(0.1, 0.1), Goal(until=0.5), judged(32, 16, 0.6))
    assert sure[0] == Amounts(40, 16) and "to be sure" in sure[1]


def test_judging_uses_no_row_that_is_fitted(tmp_path):
    cl.attribute(small_task(), tmp_path / "out", budget=100, **HOW)
    store = cl.Store.open(tmp_path / "out" / "store")
    task = small_task()
    task.prepare(torch.device("cpu"))
    holdings = Holdings(store, task, torch.device("cpu"))
    fitted, judging = holdings.fitted(48), holdings.judging(48)
    assert not set(fitted) & set(judging) and len(fitted) + len(judging) == 48
    now = judge(holdings, Amounts(48, 8), 48)
    assert now.scores.num_rows == len(judging) and now.found.summary["solver"] == "bayes"
    assert len(read_passes(store, slice(0, None, 3)).outputs[0]) == 4
    some, whole = read_passes(store, slice(1, None, 3)), read_passes(store)
    assert np.array_equal(some.masks(slice(0, 3)), whole.masks(slice(0, 11))[[1, 4, 7]])


@pytest.mark.parametrize(
    "goal", [{"until": 1.5}, {"budget": 10}, {"minutes": 0}, {"minutes": math.nan}]
)
def test_goals_that_cannot_be_are_refused(goal, tmp_path):
    with pytest.raises(CoarlibError, match=next(iter(goal))):
        cl.attribute(small_task(), tmp_path / "out", **goal, **HOW)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_attributions_and_a_report(tmp_path, capsys):
    task = f"{ROOT / 'tests' / 'zoo' / 'scalable_tasks.py'}:SmallTask"
    words = [task, "--out", str(tmp_path / "out"), "--budget", "120", "--fraction", "0.2"]
    main = load("attribute").main
    main([*words, "--dry_run"])
    assert "16 gradient passes and 32 ablations of 20%" in capsys.readouterr().out
    main(words)
    out = capsys.readouterr().out
    assert "held-out correlation" in out and "next: coar evaluate" in out
    result = tmp_path / "out" / "attributions"
    assert cl.Attributions.load(result).summary["autopilot"]["purchases"]
    assert (result / "report.html").stat().st_size > 10_000
    with pytest.raises(CoarlibError, match="is there already"):
        main(words)


def test_leaving_out_alone_is_tried_on_some_components_before_all_are_bought(tmp_path):
    task = small_task()
    store = cl.Store.create(tmp_path / "store", task, 120, 0.8, device="cpu")
    holdings = Holdings(store, task, torch.device("cpu"))
    count, tried = holdings.components, holdings.tried()
    assert holdings.buy(Amounts(120, 8))
    now = judge(holdings, Amounts(120, 8), 120)
    assert math.isnan(forecast(holdings, now).alone) and holdings.alone() is None
    assert holdings.buy(Amounts(120, 8, len(tried)))
    assert holdings.amounts == Amounts(120, 8, len(tried))
    assert holdings.amounts.cost == 120 + 24 + len(tried) + 1
    found = holdings.alone(slice(2, 5))
    assert np.flatnonzero(found.known).tolist() == tried.tolist()
    masks = np.ones((2, count), bool)
    masks[0, tried[0]] = False
    without, intact = task.rows(np.arange(2), masks)["test_margins"].numpy()[:, 2:5]
    assert np.allclose(found.effect[tried[0]], intact - without, atol=1e-5)
    assert not found.effect[~found.known].any()
    gain = forecast(holdings, judge(holdings, holdings.amounts, 120)).alone
    assert math.isfinite(gain)
    assert holdings.buy(Amounts(120, 8, count)) and holdings.amounts.alone == count
    whole = judge(holdings, holdings.amounts, 120)
    assert forecast(holdings, whole).alone == -math.inf
    assert whole.scores.mean > now.scores.mean - 0.02  # nothing is lost by knowing more


def test_leaving_out_alone_is_bought_where_it_tells_all(tmp_path):
    torch.manual_seed(0)
    examples = torch.randn(20, 160), torch.arange(20) % 3
    linear = torch.nn.Linear(160, 3)  # effects add up
    task = cl.ablate(linear, examples, "linear_input", outputs={"test_margins": "logit"})
    store = cl.Store.create(tmp_path / "store", task, FIRST.rows, 0.8, device="cpu")
    holdings = Holdings(store, task, torch.device("cpu"))
    holdings.no_passes = "not here"
    noted = []
    now, _ = pursue(holdings, Goal(until=0.97), lambda *line: noted.append(line), 0.0)
    assert now.amounts.alone == 160 and now.scores.mean > 0.97
    assert now.amounts.cost < 350 and any("to try it" in why for _, why in noted)


class Halves(torch.nn.Module):
    """Two layers of units side by side, of which the second hardly counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(9, 12), torch.nn.Linear(9, 12)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.one(x)) + 0.02 * torch.tanh(self.other(x)))


def test_groups_come_first_and_then_the_members_of_those_that_matter(tmp_path):
    torch.manual_seed(0)
    examples = torch.randn(10, 9), torch.arange(10) % 3
    net = Halves()
    parts = Hierarchy(find_components(net, "linear_row", exclude="head"), "layer")
    task = cl.ablate(net, examples, parts)
    found = cl.attribute(task, tmp_path / "out", budget=400, **HOW)
    told = found.summary["autopilot"]
    assert told["opened"] == ["one"] and told["groups"]["one"] > 0.9
    assert found.feature_names == [f"one.weight[{at}]" for at in range(12)] + ["other"]
    spent = told["forward_passes_for_groups"]
    assert FIRST.cost <= spent <= 100 and found.cost.passes + spent <= 400
    whole = found.effect("one.*")
    assert len(whole.index) == 12 and whole.error is not None and whole.unexplained < 0.5
    named = cl.ablate(net, examples, find_components(net, "linear_row", exclude="head"))
    again = cl.attribute(
        named, tmp_path / "named", budget=200, coarse={"a": "one", "b": "other"}, **HOW
    )
    assert again.summary["autopilot"]["opened"] == ["a"]
