import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from coarlib import outputs
from coarlib.errors import TaskError

TOLERANCE = 1e-5


@given(st.integers(1, 8), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_outputs_agree_with_scipy(examples, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=5, size=(examples, classes)).astype(np.float32)
    targets = rng.integers(classes, size=examples)
    rows = np.arange(examples)
    correct = logits[rows, targets]
    others = np.stack([np.delete(a, t) for a, t in zip(logits, targets, strict=True)])
    expected = {
        "logit": correct,
        "margin": correct - others.max(1),
        "margin_log_sum_exp": correct - logsumexp(others, axis=1),
        "cross_entropy": -log_softmax(logits, axis=1)[rows, targets],
        "log_probability": log_softmax(logits, axis=1)[rows, targets],
        "probability": np.exp(log_softmax(logits, axis=1)[rows, targets]),
    }
    for name, values in expected.items():
        found = outputs.OUTPUTS[name](torch.from_numpy(logits), torch.from_numpy(targets))
        np.testing.assert_allclose(found, values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_margin_is_positive_exactly_where_the_prediction_is_right():
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % 10
    right = logits.argmax(1) == targets
    assert torch.equal(outputs.margin(logits, targets) > 0, right)
    assert right.any() and not right.all()


def test_margin_leaves_its_input_alone():
    logits = torch.randn(4, 3)
    before = logits.clone()
    outputs.margin(logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(logits, before)


def test_log_sum_exp_margin_survives_a_certain_model():
    value = outputs.margin_log_sum_exp(torch.tensor([[80.0, -80.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(160.0)


def test_contrast():
    logits = torch.tensor([[1.0, 4.0, 2.0]])
    assert outputs.contrast(logits, torch.tensor([[1, 2]])).item() == pytest.approx(2.0)
    with pytest.raises(TaskError, match="two answers"):
        outputs.contrast(logits, torch.tensor([1]))


def test_sequence_output_ignores_padding_and_the_last_token():
    tokens = torch.tensor([[3, 1, 2, 0, 0], [4, 4, 1, 2, 3]])
    attention = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    targets = outputs.next_tokens(tokens, attention)
    assert targets.tolist() == [[1, 2, -100, -100, -100], [4, 1, 2, 3, -100]]
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    found = outputs.per_sequence(outputs.margin)(logits, targets)
    expected = [
        outputs.margin(logits[i, :n], targets[i, :n]).mean().item() for i, n in ((0, 2), (1, 4))
    ]
    assert found.tolist() == pytest.approx(expected, abs=TOLERANCE)
    logits[0, 2:] = 1e6
    assert outputs.per_sequence(outputs.margin)(logits, targets)[0].item() == pytest.approx(
        expected[0], abs=TOLERANCE
    )


@pytest.mark.parametrize("targets", [[0, 1], [0, 1, 3], [-1, 0, 1]])
def test_unfit_targets_are_refused(targets):
    with pytest.raises(TaskError):
        outputs.margin(torch.zeros(3, 3), torch.tensor(targets))


def test_unfit_sequences_are_refused():
    with pytest.raises(TaskError, match="do not fit"):
        outputs.per_sequence(outputs.margin)(torch.zeros(2, 5, 3), torch.zeros(2, 4).long())
