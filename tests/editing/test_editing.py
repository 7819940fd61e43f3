import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from coarlib.ablation import find_components
from coarlib.editing import (
    Edit,
    Effect,
    choose,
    effects,
    plan_edit,
    rank_components,
    score_components,
)
from coarlib.errors import ComponentError
from coarlib.regression.fit import fit
from coarlib.regression.moments import Moments
from coarlib.regression.rows import ArrayRows
from estimate.digits.model import digits
from estimate.digits.task import DigitsTask

FORGOTTEN = 8


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_the_statistic_is_welchs_t_up_to_the_divisor(targets, references, seed):
    weight = np.random.default_rng(seed).normal(size=(6, targets + references))
    at = np.arange(targets + references)
    found = score_components(weight, at < targets, at >= targets)
    t, r = weight[:, :targets], weight[:, targets:]
    n, m = targets / (targets - 1), references / (references - 1)
    error = np.sqrt(t.var(1, ddof=1) / n / targets + r.var(1, ddof=1) / m / references)
    np.testing.assert_allclose(found, (t.mean(1) - r.mean(1)) / error)
    if targets > 15 and references > 15:
        oracle = stats.ttest_ind(t, r, axis=1, equal_var=False).statistic
        np.testing.assert_allclose(found, oracle, rtol=0.05)


def test_constant_attributions_score_without_nan():
    weight = np.array([[1.0, 1, 1, 1], [2, 2, 0, 0]])
    assert score_components(weight, [0, 1], [2, 3]).tolist() == [0, np.inf]
    assert score_components(weight, [0, 1], [2, 3], "mean_difference").tolist() == [0, 2]
    assert score_components(weight, [0, 1], [2, 3], "target_mean").tolist() == [1, 2]


def test_order_effects_and_choice():
    weight = np.array([[3.0, 0, 0], [-2, 0, 1], [0, 1, 0], [2, 3, 0]])
    scores = score_components(weight, [0], [1, 2], "mean_difference")
    order = rank_components(scores, raise_target=False)
    assert order.tolist() == [0, 3, 2, 1]
    assert rank_components(scores, raise_target=True).tolist() == [1, 2, 3, 0]
    groups = (np.array([0]), np.array([1]), np.array([2]))
    found = effects(lambda masks: masks @ weight, order, [0, 1, 2, 4], groups)
    assert found[0] == Effect(0, 3, 4, 1) and found[1] == Effect(1, 0, 4, 1)
    assert found[2] == Effect(2, -2, 1, 1) and found[3] == Effect(4, 0, 0, 0)
    assert choose(found, raise_target=False, allowed_loss=0.5).count == 2
    assert choose(found, raise_target=True, allowed_loss=0.5).count == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: Edit(
                nn.Linear(2, 2), find_components(nn.Linear(2, 2), ["linear_row"]), w > 0
            ),
            "takes indices of components, not bool values",
        ),
        (
            lambda m: Edit(
                nn.Linear(2, 2), find_components(nn.Linear(2, 2), ["linear_row"]), [[1]]
            ),
            "takes a list of components, not an array of shape",
        ),
        (lambda w: effects(lambda m: m @ w, np.arange(2), [], ([0], [1], [1])), "no size of edit"),
        (lambda w: choose([Effect(0, 0, 0, 0)], True, float("nan")), "not nan"),
        (lambda w: choose([Effect(0, 0, 0, 0)], True, -0.1), "at least 0"),
        (lambda w: score_components(w, [0], [1], "t_lik"), "did you mean 't_like'"),
        (lambda w: score_components(w, [], [1]), "at least one each"),
        (lambda w: effects(lambda m: m @ w, np.arange(2), [3], ([0], [1], [1])), "there are 2"),
        (lambda w: choose([Effect(1, 0, 0, 0)], True, 0), "needs the intact model"),
        (
            lambda w: Edit(nn.Linear(2, 2), find_components(nn.Linear(2, 2), ["linear_row"]), [2]),
            "component 2 does not exist",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ComponentError, match=message):
        call(np.ones((2, 2)))


def test_an_edit_is_undone_bit_for_bit_and_can_be_saved(tmp_path):
    model = nn.Linear(3, 4)
    components = find_components(model, ["linear_row"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with Edit(model, components, [1, 3]):
        torch.save(model.state_dict(), tmp_path / "edited.pt")
        assert not model.weight[[1, 3]].any()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    saved = torch.load(tmp_path / "edited.pt", weights_only=True)
    assert not saved["weight"][[1, 3]].any() and torch.equal(saved["bias"], model.bias)


@pytest.fixture(scope="module")
def attributed(tmp_path_factory):
    """The digits task, its attributions from 800 ablations, and a way to measure masks."""
    task = DigitsTask(str(tmp_path_factory.mktemp("digits") / "model.pt"))
    task.prepare(torch.device("cpu"))

    def measure(masks):
        return task.rows(np.arange(len(masks)), masks)["test_margins"].numpy()

    masks = np.random.default_rng(0).random((800, 240)) < 0.9
    weight = fit(Moments.from_rows(ArrayRows(masks, measure(masks))), "ridge").weight
    return weight, measure


def right(margins):
    return margins > 0


def test_forgetting_a_class_of_digits(attributed):
    """Chosen on half of the held-out digits, judged on the other half."""
    weight, measure = attributed
    labels, validation = digits(True)[1].numpy(), np.arange(450) % 2 == 0

    def groups(half):
        target, other = half & (labels == FORGOTTEN), half & (labels != FORGOTTEN)
        return target, other, other

    options = {"raise_target": False, "allowed_loss": 0.1, "largest": 12, "value": right}
    plan = plan_edit(weight, measure, groups(validation), groups(~validation), **options)
    before, after = plan.before, plan.after
    print(
        f"accuracy on {FORGOTTEN}: {before.target:.0%} -> {after.target:.0%}, on the other "
        f"digits: {before.rest:.1%} -> {after.rest:.1%}, by ablating {after.count} of 240 filters"
    )
    assert before.target > 0.9 and after.target < 0.2
    assert after.rest > before.rest - 0.1
    assert after.count == len(plan.ablated) <= 12 and plan.measured <= 2 * 48 + 1
    counts = [effect.count for effect in plan.validation]
    assert counts == list(range(len(counts))) and counts[-1] >= after.count


def test_mending_errors_of_digits(attributed):
    """Each wrong digit is made right by a few filters; what that costs is measured elsewhere."""
    weight, measure = attributed
    intact = measure(np.ones((1, 240), np.bool_))[0]
    wrong, half = np.flatnonzero(intact <= 0), np.arange(450) % 2 == 0
    options = {"raise_target": True, "allowed_loss": 0.02, "value": right}
    mended = []
    for error in wrong:
        target = np.arange(450) == error
        halves = [(target, side & ~target, side & ~target) for side in (half, ~half)]
        plan = plan_edit(weight, measure, *halves, **options)
        print(f"digit {error}: {len(plan.ablated)} filters, {plan.before} -> {plan.after}")
        assert plan.before.target == 0 and plan.after.reference > plan.before.reference - 0.05
        mended.append(plan.after.target)
    assert len(wrong) and np.mean(mended) > 0.5


def test_an_empty_half_is_refused():
    some, none = np.arange(3) == 0, np.zeros(3, np.bool_)
    with pytest.raises(ComponentError, match="an example each, in both halves"):
        plan_edit(
            np.ones((2, 3)),
            lambda masks: masks @ np.ones((2, 3)),
            (some, ~some, ~some),
            (some, none, ~some),
            raise_target=True,
            allowed_loss=0,
        )


def test_a_costly_component_is_left_out_and_the_next_one_taken():
    """The component that attributions name first costs too much: a search by prefixes stops."""
    target_gain, cost = np.array([9.0, 3, 2, 0]), np.array([5.0, 0, 0.1, 0])

    def measure(masks):
        gone = 1.0 - masks
        return -np.stack([gone @ target_gain, gone @ cost, gone @ cost], 1)

    weight = np.stack([target_gain, cost * 0, cost * 0], 1)
    groups = tuple(np.array([i]) for i in range(3))
    options = {"raise_target": False, "allowed_loss": 1.0, "largest": 3}
    plan = plan_edit(weight, measure, groups, groups, statistic="mean_difference", **options)
    assert plan.ablated.tolist() == [1, 2] and plan.after == Effect(2, -5.0, -0.1, -0.1)
    assert [effect.target for effect in plan.validation] == [0, -3, -5]


@given(st.permutations(range(3)), st.booleans())
def test_edits_may_be_undone_in_any_order(order, twice):
    model = nn.Linear(3, 4)
    components = find_components(model, ["linear_row"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ablated = [[0, 1], [1, 2], [3]]
    edits = [Edit(model, components, some) for some in ablated]
    holding = set(range(3))
    for which in order:
        edits[which].undo()
        if twice:
            edits[which].undo()
        holding.remove(which)
        gone = sorted({row for other in holding for row in ablated[other]})
        assert [row for row in range(4) if not model.weight[row].any()] == gone
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_scaled_weights_are_an_edit_too():
    model = nn.Linear(3, 4)
    before = model.weight.detach().clone()
    with Edit(model, find_components(model, ["linear_row"]), [2], factor=0.5):
        torch.testing.assert_close(model.weight[2], before[2] * 0.5)
