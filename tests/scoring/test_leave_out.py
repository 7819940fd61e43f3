"""Leave-one-out and leave-group-out correlations: alignment and sign."""

import numpy as np
import pytest
from scipy import stats

from coarlib.errors import ScoringError
from coarlib.scoring import UndefinedCorrelationWarning, group_loo, loo_corr

TOLERANCE = 1e-12


def additive(examples=50, targets=4, noise=0.5, seed=0):
    """A model whose output is the sum of what each example contributes."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((examples, targets))
    return (
        rng,
        scores,
        scores.sum(axis=0) + 100 - scores + noise * rng.standard_normal((examples, targets)),
    )


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall"])
def test_scores_are_aligned_by_the_removed_index(kind):
    rng, scores, without = additive()
    order = rng.permutation(50)[:30]
    found = loo_corr(scores, order, without[order], kind)
    oracle = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    for target in range(4):
        r, p = oracle[kind](scores[order, target], -without[order, target])
        assert found.r[target] == pytest.approx(r, abs=TOLERANCE)
        assert found.p[target] == pytest.approx(p, abs=TOLERANCE)
    assert (found.r > 0.5).all()


def test_the_sign_follows_what_the_output_is():
    _, scores, without = additive()
    margin = loo_corr(scores, np.arange(50), without)
    loss = loo_corr(scores, np.arange(50), -without, higher_is_better=False)
    np.testing.assert_allclose(margin.r, loss.r, atol=TOLERANCE)
    wrong = loo_corr(scores, np.arange(50), -without)
    np.testing.assert_allclose(wrong.r, -margin.r, atol=TOLERANCE)


def test_runs_are_averaged():
    rng, scores, without = additive()
    runs = without[:, None] + rng.standard_normal((50, 6, 4))
    np.testing.assert_allclose(
        loo_corr(scores, np.arange(50), runs).r,
        loo_corr(scores, np.arange(50), runs.mean(axis=1)).r,
    )


def test_groups_of_one_are_leave_one_out_and_groups_may_be_ragged():
    rng, scores, without = additive()
    singles = [[index] for index in range(50)]
    np.testing.assert_array_equal(
        group_loo(scores, singles, without, "pearson").r, loo_corr(scores, np.arange(50), without).r
    )
    groups = [rng.choice(50, rng.integers(1, 20), replace=False) for _ in range(30)]
    outputs = np.stack([-scores[group].sum(axis=0) for group in groups])
    np.testing.assert_allclose(group_loo(scores, groups, outputs).r, 1, atol=TOLERANCE)


def test_what_does_not_fit_is_named():
    _, scores, without = additive()
    with pytest.raises(ScoringError, match="example 50, but there are only 50"):
        loo_corr(scores, np.arange(1, 51), without)
    with pytest.raises(ScoringError, match="integer indices, not float"):
        loo_corr(scores, np.arange(50) + 0.5, without)
    with pytest.raises(ScoringError, match="30 masks but margins of 50"):
        loo_corr(scores, np.arange(30), without)
    without[:, 2] = 1
    with pytest.warns(UndefinedCorrelationWarning, match="target 2") as caught:
        loo_corr(scores, np.arange(50), without)
    assert caught[0].filename == __file__


def test_removed_examples_may_be_stored_as_floats():
    _, scores, without = additive()
    expected = loo_corr(scores, np.arange(50), without).r
    np.testing.assert_array_equal(loo_corr(scores, np.arange(50.0), without).r, expected)
