"""The interval of the cross-validated correlation covers that of the weights on endless trials."""

import numpy as np
import pytest
from scipy import stats

from coarlib.autopilot.judge import LAST_FOLDS, Known
from coarlib.gradient_passes import PassPlan, PassSums, Trials
from coarlib.gradient_passes.plan import on_path
from coarlib.regression import ArrayRows

FEATURES, TARGETS, PASSES, TRIALS, SHARE = 12, 16, 32, 24, 0.2
TIMES = 40


def drawn(plan, count):
    return np.stack([plan.draw(k, slice(0, TARGETS), FEATURES) for k in range(count)])


def known_of(seed, weight, noise):
    """What one run knows of a linear truth [N, T] under noise that trials do not share."""
    rng = np.random.default_rng(seed)
    plan = PassPlan.for_fraction(SHARE, seed=seed)
    trial_plan = PassPlan.of_trials(SHARE, seed=seed)
    masks = drawn(plan, PASSES)
    along = on_path(masks).transpose(0, 2, 1)
    slopes = weight + 1.5 * rng.normal(size=along.shape)

    def outputs(masks):
        clean = np.einsum("ktn,nt->kt", masks, weight)
        return clean + noise * rng.normal(size=clean.shape)

    sums = [x.sum(0).astype("f4") for x in (slopes * along, slopes**2 * along, along)]
    kept = (0.5 * weight + rng.normal(size=weight.shape)).astype("f4")
    targets = np.arange(TARGETS)
    passes = PassSums(plan, np.arange(PASSES), outputs(masks), targets, *sums, kept)
    trials = Trials(trial_plan, np.arange(TRIALS), outputs(drawn(trial_plan, TRIALS)), targets)
    rows = rng.random((8, FEATURES)) >= SHARE
    source = ArrayRows(rows, rows @ weight + noise * rng.normal(size=(8, TARGETS)))
    layers = np.arange(FEATURES) % 2
    return Known(source, np.arange(8), passes, trials, None, layers)


def test_intervals_cover_where_rows_alone_judge():
    """Rows that ablate few components: some are most of a correlation, or too few tell of it."""
    share, noise, rows = 0.05, 0.1, 80
    weight = np.random.default_rng(0).normal(size=(FEATURES, TARGETS))
    total = np.square(weight).sum(0) + noise**2 / (share * (1 - share))
    missed = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        masks = rng.random((rows, FEATURES)) >= share
        source = ArrayRows(masks, masks @ weight + noise * rng.normal(size=(rows, TARGETS)))
        known = Known(source, np.arange(rows), None, None, None, np.arange(FEATURES) % 2)
        assert known.share == pytest.approx(1 - masks.mean()) and known.telling < rows / 2
        found, told = known.fit().weight.astype(np.float64), known.told()
        r = (found * weight).sum(0) / np.sqrt(np.square(found).sum(0) * total)
        missed.append(r.mean() < told.mean_low or r.mean() > told.mean_high)  # NaN: none is told
    assert stats.binomtest(sum(missed), 24, 0.05, "greater").pvalue > 1e-3, np.mean(missed)


def test_intervals_cover_the_correlation_of_the_weights():
    weight = np.random.default_rng(0).normal(size=(FEATURES, TARGETS))
    spread, noise = SHARE * (1 - SHARE), 0.6
    total = spread * np.square(weight).sum(0) + noise**2
    covered = []
    for seed in range(TIMES):
        known = known_of(seed, weight, noise)
        scores, found = (
            known.judged(num_folds=LAST_FOLDS).scores,
            known.fit().weight.astype(np.float64),
        )
        with_truth = spread * (found * weight).sum(0)
        r = with_truth / np.sqrt(spread * np.square(found).sum(0) * total)  # of endless trials
        covered.append(scores.mean_low <= r.mean() <= scores.mean_high)
    assert stats.binomtest(sum(covered), TIMES, 0.95).pvalue > 1e-3, np.mean(covered)
