"""From a model to attributions in one call: what is bought, when it stops, that it goes on."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from paths import ROOT
from scalable_tasks import small_task
from scipy import stats

import coarlib as cl
from coarlib.ablation import ComponentTask, Hierarchy, find_components
from coarlib.autopilot import run
from coarlib.autopilot.choices import FIRST, ROWS_ALONE, WIDE, Goal, choose, verdict
from coarlib.autopilot.groups import coarse_goal
from coarlib.autopilot.holdings import Amounts, Holdings
from coarlib.autopilot.judge import (
    BIAS,
    FOLDS,
    HALVES_LEFT,
    WIDER,
    Forecast,
    Judgement,
    Known,
    _continued,
    final_fit,
    forecast,
    judge,
)
from coarlib.autopilot.run import pursue
from coarlib.commands.__main__ import load
from coarlib.errors import CoarlibError
from coarlib.gradient_passes import open_passes, read_passes, read_trials
from coarlib.regression import StoreRows
from coarlib.regression.heldout import score_arrays
from coarlib.regression.solvers import Bayes
from coarlib.statistics.intervals import correlation_limits, standard_error

HOW = {"fraction": 0.2, "device": "cpu", "quiet": True}


def test_it_stops_within_the_budget_and_says_what_it_bought(tmp_path):
    found = cl.attribute(small_task(), tmp_path / "out", budget=260, **HOW)
    told = found.summary["autopilot"]
    costs = [entry["forward_passes"] for entry in told["purchases"]]
    assert costs[0] == FIRST.cost and costs == sorted(costs)
    assert 250 < found.cost.passes <= 260 and found.cost.passes == costs[-1]
    assert "budget" in told["purchases"][-2]["next"]
    assert json.loads((tmp_path / "out" / "purchases.json").read_text()) == told["purchases"]
    assert found.held_out.num_rows == told["purchases"][-1]["trials"] >= 24
    fresh = np.random.default_rng(0).random((300, found.num_features)) < 0.8
    task = small_task()
    task.prepare(torch.device("cpu"))
    truth = task.rows(np.arange(300), fresh)["test_margins"].numpy()
    assert cl.correlate(found.predict(fresh), truth, "pearson").r.mean() > 0.8


def test_the_task_is_prepared_once_however_much_is_bought(tmp_path, monkeypatch):
    prepared = []
    prepare = ComponentTask.prepare
    monkeypatch.setattr(
        ComponentTask, "prepare", lambda task, device: prepared.append(prepare(task, device))
    )
    found = cl.attribute(small_task(), tmp_path / "out", budget=200, **HOW)
    assert len(found.summary["autopilot"]["purchases"]) > 2 and len(prepared) == 1


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
    noted = json.loads((tmp_path / "out" / "purchases.json").read_text())
    told = whole.summary["autopilot"]["purchases"]  # and why, from the beginning
    assert [one for one in noted if one in told] == noted and noted[0] == told[0]
    assert np.allclose(found.weight, whole.weight, atol=1e-5 * np.abs(whole.weight).max())


def test_it_stops_at_the_correlation_it_was_asked_for(tmp_path):
    found = cl.attribute(small_task(), tmp_path / "out", until=0.5, **HOW)
    last = found.summary["autopilot"]["purchases"][-1]
    assert last["next"].startswith("stop: 0.5 is reached") and last["correlation"] >= 0.5
    assert last["correlation"] - last["interval_95"][0] <= WIDE
    assert found.summary["autopilot"]["goal"] == verdict(0.5, found.held_out)
    assert last["trials"] >= FIRST.trials and last["interval_95"][0] is not None
    held = found.held_out
    assert held.mean == pytest.approx(held.pearson.mean()) and held.num_rows == last["trials"]
    assert f"over {last['trials']} trials" in repr(held)
    found.save(tmp_path / "kept")
    assert cl.Attributions.load(tmp_path / "kept").held_out.unit == "trials"


def test_an_out_that_was_begun_otherwise_is_refused(tmp_path):
    cl.attribute(small_task(), tmp_path / "out", budget=80, **HOW)
    for other in ({"seed": 5}, {"fraction": 0.1}):
        with pytest.raises(
            CoarlibError, match=r"was begun with fraction 0.2 and seed 0, not 0\.[12]"
        ):
            cl.attribute(small_task(), tmp_path / "out", budget=90, **HOW | other)
    for share in (0, -1, 0.7, 1, float("nan")):
        with pytest.raises(CoarlibError, match="fraction must be above 0 and at most 2/3"):
            cl.attribute(small_task(), tmp_path / "new", budget=80, **HOW | {"fraction": share})
    assert not (tmp_path / "new").exists()
    with pytest.raises(CoarlibError, match="store is a store; give a directory of its own"):
        cl.attribute(small_task(), tmp_path / "out" / "store", budget=80, **HOW)


def folds(bias, spread):
    """What is known where folds' correlations are .6 and .7, from 3/4 and 7/8 of all."""
    scores = score_arrays(np.eye(30)[:, :2] + np.arange(30)[:, None], np.eye(30)[:, 1:3])
    influence = spread * np.random.default_rng(0).normal(size=30)

    class Folds(Known):
        def judged(self, fitted=None, device="cpu", num_folds=4):
            r = {4: 0.6, 8: 0.7}[num_folds]
            found = replace(scores, pearson=np.full(2, r), mean=r, influence=r * influence)
            return SimpleNamespace(scores=found, bias=bias)

    trials = SimpleNamespace(plan=SimpleNamespace(fraction=0.5))
    return Folds(None, None, None, trials, None, np.zeros(60)).told(), influence


def test_cross_validation_tells_of_the_fit_of_everything():
    told, influence = folds(bias=-0.01, spread=0.5)
    share = np.log(8 / 7) / np.log(7 / 6)
    step = (0.1 * share + BIAS * 0.01) / (1 - 0.7**2)
    assert told.mean == pytest.approx(np.tanh(np.arctanh(0.7) + step)) and told.unit == "trials"
    assert np.allclose(told.influence, WIDER * (0.7 + 0.1 * share) * influence)
    plain = correlation_limits(0.7, told.influence)
    for end, before in zip((told.mean_low, told.mean_high), plain, strict=True):
        assert end == pytest.approx(np.tanh(np.arctanh(before) + step))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_a_trial_that_is_most_of_a_correlation_does_not_make_it_one(spread):
    """Its jackknife bias was added whatever its error, and what came to be above 1 was 1 ± 0."""
    told, influence = folds(bias=-0.4, spread=spread)
    error = float(standard_error(0.7 * influence))
    assert told.mean < 1 and told.mean_high - told.mean_low > error
    share = np.log(8 / 7) / np.log(7 / 6)
    step = (0.1 * share + min(BIAS * 0.4, error)) / (1 - 0.7**2)
    assert told.mean == pytest.approx(np.tanh(np.arctanh(0.7) + step))


def test_trials_that_ablate_nothing_make_no_interval(tmp_path):
    task = small_task()
    for fraction, trials, known in ((0.2, 24, True), (0.04, 48, False), (0.04, 96, True)):
        store = cl.Store.create(
            tmp_path / f"{fraction}{trials}", task, 4, 1 - fraction, device="cpu"
        )
        holdings = Holdings(store, task, torch.device("cpu"))
        assert holdings.buy(Amounts(4, 8, 0, trials))
        now = judge(holdings, holdings.amounts)  # of 16 components
        ablated = np.random.default_rng(0).binomial(16, fraction, 10**6)
        assert now.known.tails == pytest.approx(max(0, stats.kurtosis(ablated)), abs=0.05)
        telling = trials * (ablated > 0).mean() / (1 + now.known.tails)
        assert now.known.telling == pytest.approx(telling, rel=0.01)
        assert math.isfinite(now.scores.mean_low) == known
        assert math.isfinite(now.known.told().mean_low) == known


def test_what_cannot_be_scaled_is_done_with_rows_alone(tmp_path):
    found = cl.attribute(small_task(ablate="resample"), tmp_path / "out", budget=150, **HOW)
    told = found.summary["autopilot"]
    assert "in its place" in told["without_gradient_passes"]
    assert found.cost.passes == 150 and not told["purchases"][-1]["passes"]
    assert told["purchases"][0]["rows"] == ROWS_ALONE.rows and told["doubling_rows_brings"] > 0
    assert found.held_out.num_rows == found.summary["num_rows"]  # every row judges
    assert open_passes(tmp_path / "out" / "store") is None


class ThroughNumpy(torch.nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy())


class Steep(torch.nn.Module):
    def forward(self, x):
        return x * 1e30


@pytest.mark.parametrize(
    ("last", "why"), [(ThroughNumpy, "cannot be differentiated"), (Steep, "gradients")]
)
def test_a_model_without_usable_gradients_is_attributed_with_rows_alone(tmp_path, last, why):
    torch.manual_seed(0)
    examples = torch.randn(6, 5), torch.arange(6) % 8
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), last())
    task = cl.ablate(model, examples, components="linear_row", outputs="logit")
    found = cl.attribute(task, tmp_path / "out", budget=90, **HOW)
    assert why in found.summary["autopilot"]["without_gradient_passes"]
    assert found.cost.passes == 90 and found.held_out.mean > 0.99


def judged(amounts, mean=0.6, low=0.55):
    scores = SimpleNamespace(mean=mean, mean_low=low, mean_high=1.0, unit="trials")
    return Judgement(amounts, scores, 0.9, None)


def test_what_brings_more_for_its_cost_is_bought():
    class Nothing:
        no_passes, components = None, 80

        def tried(self):
            return np.arange(10)

    def choice(ahead, goal=None, now=None):
        now, goal = now or judged(Amounts(8, 64, 0, 96)), goal or Goal(budget=10_000)
        return choose(now, ahead, goal, holdings, 0.0)

    holdings, have = Nothing(), Amounts(8, 64, 0, 96)
    more, why = choice(Forecast(passes=0.1, trials=0.04))
    assert more == Amounts(8, 104, 0, 160) and "gradient passes" in why  # a third are trials
    more, why = choice(Forecast(passes=0.08, trials=0.05))
    assert "gradient passes" in why  # trials bring a little more a forward pass, not surely
    more, why = choice(Forecast(passes=0.08, trials=0.07))
    assert more == Amounts(8, 64, 0, 96 + 176) and "+0.070" in why
    more, why = choice(Forecast(0.1, 0.0), Goal(budget=330))
    assert more == Amounts(8, 72, 0, 104) and "budget" in why
    assert choice(Forecast(0.1, 0.0), Goal(budget=300))[0] == Amounts(8, 64, 0, 96)
    assert choice(Forecast(0.001, 0.002), Goal())[1].startswith("stop: doubling")
    more, why = choice(Forecast(0.1, 0.1, alone=math.nan))
    assert more == Amounts(8, 64, 10, 96) and "to try it" in why
    tried = judged(Amounts(8, 64, 10, 96))
    assert choice(Forecast(0.1, 0.05, alone=0.08), now=tried)[0] == Amounts(8, 64, 80, 96)
    assert choice(Forecast(0.1, 0.05, alone=0.02), now=tried)[0].alone == 10  # 70 passes for it
    assert choice(Forecast(0.1, 0.1, alone=math.nan), Goal(budget=350))[0].alone == 0  # all cost 81
    near, _ = choice(Forecast(0.0, 0.1), Goal(until=0.63))
    assert near == Amounts(8, 64, 0, 96 + 56)  # no more than a fifth
    reached = choice(Forecast(0.1, 0.1), Goal(until=0.5))
    assert reached == (Amounts(8, 64, 0, 96), "stop: 0.5 is reached")
    barely = choice(Forecast(0.1, 0.1), Goal(until=0.58))
    assert barely[0] == reached[0] and barely[1].endswith("95% interval still contains less")
    wide = judged(Amounts(8, 64, 0, 96), low=0.45)
    more, why = choice(Forecast(0.1, 0.0), Goal(until=0.5), wide)  # trials narrow an interval
    assert more == Amounts(8, 64, 0, 96 + 56)
    assert why == "more trials: 0.5 is reached, but may be 0.15 less"
    assert choice(Forecast(0.1, 0.0), Goal(until=0.5, budget=296), wide)[0] == have
    for cost, words in ((96, "more"), (400, "stop: no output that is predicted varies")):
        silent = judged(Amounts(8, 64, 0, cost), math.nan, math.nan)
        for goal in (Goal(), Goal(until=0.5)):
            assert choice(Forecast(math.nan, math.nan), goal, silent)[1].startswith(words)
    few = judged(have, low=math.nan)
    more, why = choice(Forecast(0.1, 0.0), Goal(until=0.5), few)
    assert more.trials == 96 + 56 and why.endswith("0.5 is reached, by too few for an interval")
    far = SimpleNamespace(mean=0.6, mean_low=0.58, mean_high=0.62, unit="trials")
    far = Judgement(have, far, 0.9, None)
    assert choice(Forecast(0.004, 0.001), Goal(until=0.7), far)[1].startswith(
        "stop: 0.7 is out of reach: more gradient passes: twice as many are forecast to bring"
    )
    for nearer in (
        (Forecast(0.02, 0.001), Goal(until=0.7)),  # more is to be gained
        (Forecast(0.004, 0.001, alone=math.nan), Goal(until=0.7)),  # or may be
        (Forecast(0.004, 0.001), Goal(until=0.63)),  # less is wanted
        (Forecast(0.004, 0.001), Goal(until=0.7, budget=10_000)),  # as much as there is
    ):
        assert choice(*nearer, far)[0].cost > have.cost
    holdings.no_passes = "not here"
    rows = judged(Amounts(100, 0))
    assert choice(Forecast(rows=0.1), now=rows)[0] == Amounts(160, 0)
    assert choice(Forecast(rows=0.1), Goal(budget=130), rows)[0] == Amounts(130, 0)


def test_gains_are_continued_over_what_was_spent():
    halving = HALVES_LEFT ** np.arange(1, 4)  # of the gains of doublings: 100 to 200, to 400 …
    assert _continued(1.0, (100, 200), 200, 200) == pytest.approx(halving[0])
    assert _continued(1.0, (100, 200), 400, 400) == pytest.approx(halving[1])
    assert _continued(1.0, (100, 200), 200, 600) == pytest.approx(halving[:2].sum())
    assert _continued(1.0, (100, 400), 400, 400) == pytest.approx(halving[1] / (1 + halving[0]))


def test_trials_are_predicted_by_fits_that_have_not_seen_them(tmp_path):
    task = small_task()
    store = cl.Store.create(tmp_path / "store", task, 8, 0.8, device="cpu")
    holdings = Holdings(store, task, torch.device("cpu"))
    assert holdings.buy(Amounts(8, 8, 0, 24))
    now = judge(holdings, holdings.amounts)
    kept = read_trials(store)
    assert now.scores.num_rows == 24 and kept.forward_passes == 24
    masks = kept.masks(slice(0, 11), holdings.components)
    rows = task.rows(np.arange(11), masks[:, 5] == 1)["test_margins"].numpy()
    assert np.allclose(rows.diagonal(), kept.outputs[5], atol=1e-5)  # each its own ablation
    predicted = np.empty((24, 11))
    for fold in range(FOLDS):
        out = np.arange(24) % FOLDS == fold
        own = {"passes": read_passes(store), "trials": kept.some(~out)}
        solver = Bayes(**own, groups=now.known.layers, draws=0)
        weight = cl.fit(StoreRows(store), solver=solver, held_out=0).weight
        predicted[out] = np.einsum("tkn,nt->kt", masks[:, out] - np.float32(0.8), weight)
    r = cl.correlate(predicted, kept.outputs, "pearson").r
    assert now.scores.mean == pytest.approx(r.mean(), abs=1e-4)
    whole = final_fit(holdings, holdings.amounts, torch.device("cpu"))
    assert whole.held_out.num_rows == 24 and whole.cost.passes == 8 + 24 + 24


@pytest.mark.parametrize(
    "goal",
    [{"until": 1.5}, {"until": "0.8"}, {"until": math.nan}, {"budget": 10}, {"budget": math.nan},
     {"budget": 99.5}, {"minutes": 0}, {"minutes": math.nan}, {"minutes": "5"}],
)  # fmt: skip
def test_goals_that_cannot_be_are_refused(goal, tmp_path):
    with pytest.raises(CoarlibError, match=next(iter(goal))):
        cl.attribute(small_task(), tmp_path / "out", **goal, **HOW)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    task, out = f"{ROOT / 'tests' / 'zoo' / 'scalable_tasks.py'}:SmallTask", tmp_path / "out"
    for words, why in {
        ("--until", "1.5"): "until is a correlation",
        ("--budget", "10"): "budget must be at least",
        ("--minutes", "-1"): "minutes must be above 0",
        ("--fraction", "0.9"): "fraction must be above 0 and at most 2/3",
    }.items():
        for more in ([], ["--dry_run"]):
            with pytest.raises(CoarlibError, match=why):
                load("attribute").main([task, "--out", str(out), *words, *more])
    assert not out.exists()
    cl.attribute(small_task(), out, budget=68, **HOW)
    with pytest.raises(CoarlibError, match=r"was begun with fraction 0\.2 and seed 0, not 0\.1"):
        load("attribute").main([task, "--out", str(out), "--fraction", "0.1", "--dry_run"])
    capsys.readouterr()


def test_a_correlation_that_no_linear_model_reaches_is_given_up(tmp_path):
    how = HOW | {"fraction": 0.5}
    found = cl.attribute(small_task(), tmp_path / "out", until=0.995, **how)
    last = found.summary["autopilot"]["purchases"][-1]
    assert last["next"].startswith("stop: 0.995 is out of reach: ")
    assert found.summary["autopilot"]["goal"] == "0.995 is not reached"


def test_an_out_of_an_older_version_goes_on_or_is_refused(tmp_path):
    """Before there were trials, 32 rows and 16 passes were bought first."""
    task, out = small_task(), tmp_path / "out"
    store = cl.Store.create(out / "store", task, 32, 0.8, device="cpu")
    assert Holdings(store, task, torch.device("cpu")).buy(Amounts(32, 16))
    before = [{"rows": 32, "passes": 16, "forward_passes": 80, "correlation": 0.5, "next": "more"}]
    (out / "purchases.json").write_text(json.dumps(before))
    found = cl.attribute(small_task(), out, budget=200, **HOW)
    told = found.summary["autopilot"]["purchases"]
    assert told[0] == before[0] and told[1]["trials"] == FIRST.trials and found.cost.passes <= 200
    for content in ("{", '{"a": 1}', "[1]"):
        (out / "purchases.json").write_text(content)
        with pytest.raises(CoarlibError, match=r"purchases\.json (is not|does not)"):
            cl.attribute(small_task(), out, budget=200, **HOW)


def test_several_outputs_are_refused_before_anything_is_bought(tmp_path):
    outputs = {"one": "logit", "other": lambda logits, labels: logits[:, 0]}
    with pytest.raises(CoarlibError, match="the task has one, other: give it one of them"):
        cl.attribute(small_task(outputs=outputs), tmp_path / "out", budget=100, **HOW)
    assert not (tmp_path / "out").exists()


def test_refusals_name_nothing_that_attribute_does_not_take(tmp_path):
    cl.attribute(small_task(), tmp_path / "out", budget=68, **HOW)
    for change, why in (
        (lambda logits: logits[:, 0] * torch.nan, r"first nan at target 0.*leave out the examples"),
        (lambda logits: logits[:, 0] + 1, "was begun with another task.* or another out$"),
    ):
        other = small_task(outputs={"test_margins": lambda logits, y, make=change: make(logits)})
        where = "new" if "nan" in why else "out"
        with pytest.raises(CoarlibError, match=why) as refused:
            cl.attribute(other, tmp_path / where, budget=100, **HOW)
        assert "allow" not in str(refused.value)


def test_the_command_writes_attributions_and_a_report(tmp_path, capsys):
    task = f"{ROOT / 'tests' / 'zoo' / 'scalable_tasks.py'}:SmallTask"
    words = [task, "--out", str(tmp_path / "out"), "--budget", "120", "--fraction", "0.2"]
    main = load("attribute").main
    main([*words, "--dry_run"])
    assert "16 gradient passes, 16 trials and 4 ablations of 20%" in capsys.readouterr().out
    main(words)
    out = capsys.readouterr().out
    assert "held-out correlation" in out and "next: coar evaluate" in out
    result = tmp_path / "out" / "attributions"
    assert cl.Attributions.load(result).summary["autopilot"]["purchases"]
    assert (result / "report.html").stat().st_size > 10_000
    with pytest.raises(CoarlibError, match="is there already"):
        main(words)


def test_who_shares_the_work_and_is_done_last_finds_the_result(tmp_path, capsys, monkeypatch):
    task = f"{ROOT / 'tests' / 'zoo' / 'scalable_tasks.py'}:SmallTask"
    words = [task, "--out", str(tmp_path), "--budget", "68", "--fraction", "0.2", "--claim"]
    module = load("attribute")
    alone = module.attribute

    def beside(*args, **options):
        monkeypatch.setattr(module, "attribute", alone)
        module.main(words)
        return alone(*args, **options)

    monkeypatch.setattr(module, "attribute", beside)
    module.main(words)
    last = capsys.readouterr().out.splitlines()[-2:]
    assert "others that share the work were done first" in last[0]
    assert last[1].startswith("next: coar evaluate")


def test_leaving_out_alone_is_tried_on_some_components_before_all_are_bought(tmp_path):
    task = small_task()
    store = cl.Store.create(tmp_path / "store", task, 120, 0.8, device="cpu")
    holdings = Holdings(store, task, torch.device("cpu"))
    count, tried = holdings.components, holdings.tried()
    bought = Amounts(80, 8, 0, 40)
    assert holdings.buy(bought)
    now = judge(holdings, bought)
    assert math.isnan(forecast(holdings, now).alone) and holdings.alone() is None
    assert holdings.buy(replace(bought, alone=len(tried)))
    assert holdings.amounts == replace(bought, alone=len(tried))
    assert holdings.amounts.cost == 120 + 24 + len(tried) + 1
    found = holdings.alone(slice(2, 5))
    assert np.flatnonzero(found.known).tolist() == tried.tolist()
    masks = np.ones((2, count), bool)
    masks[0, tried[0]] = False
    without, intact = task.rows(np.arange(2), masks)["test_margins"].numpy()[:, 2:5]
    assert np.allclose(found.effect[tried[0]], intact - without, atol=1e-5)
    assert not found.effect[~found.known].any()
    gain = forecast(holdings, judge(holdings, holdings.amounts)).alone
    assert math.isfinite(gain)
    assert holdings.buy(replace(bought, alone=count)) and holdings.amounts.alone == count
    whole = judge(holdings, holdings.amounts)
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
    assert now.amounts.cost < 400 and any("to try it" in why for _, why in noted)


def test_groups_are_bought_no_longer_than_members():
    assert coarse_goal(Goal(until=0.8)) == Goal(until=0.8) and coarse_goal(Goal()) == Goal()
    assert coarse_goal(Goal(until=0.8, budget=400, minutes=3)) == Goal(budget=100, minutes=3)
    assert coarse_goal(Goal(budget=100)).budget == FIRST.cost


class Halves(torch.nn.Module):
    """Two layers of units side by side, of which the second hardly counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(9, 12), torch.nn.Linear(9, 12)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.one(x)) + 0.02 * torch.tanh(self.other(x)))


def test_groups_come_first_and_then_the_members_of_those_that_matter(tmp_path, monkeypatch):
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
    shutil.rmtree(tmp_path / "out" / "groups")  # other ablations of groups might say otherwise
    monkeypatch.setattr(run, "what_matters", lambda *_: ["one", "other"])
    more = cl.attribute(task, tmp_path / "out", budget=500, **HOW)
    assert more.summary["autopilot"]["opened"] == ["one"] and more.cost.passes > found.cost.passes
    monkeypatch.undo()
    whole = found.effect("one.*")
    assert len(whole.index) == 12 and whole.error is not None and whole.unexplained < 0.5
    named = cl.ablate(net, examples, find_components(net, "linear_row", exclude="head"))
    again = cl.attribute(
        named, tmp_path / "named", budget=200, coarse={"a": "one", "b": "other"}, **HOW
    )
    assert again.summary["autopilot"]["opened"] == ["a"]
