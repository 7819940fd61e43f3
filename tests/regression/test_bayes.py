"""One Bayesian model for all evidence: against brute force, and its coverage by simulation."""

import numpy as np
import pytest
import torch

import coarlib as cl
from coarlib.errors import RegressionError
from coarlib.gradient_passes import PassPlan, PassSums, Trials
from coarlib.gradient_passes.plan import on_path
from coarlib.regression.bayes import factors
from coarlib.regression.bayes.factors import FactorPrior, Marginals
from coarlib.regression.bayes.mean import PriorMean
from coarlib.regression.bayes.observations import Observations
from coarlib.regression.rows import ArrayRows
from coarlib.regression.solvers import Auto, Bayes, InformedPrior, SharedPrior

CPU = "cpu"


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class World:
    """Weights drawn from the model, with passes and rows that observe them."""

    def __init__(self, seed, features=50, targets=40, passes=48, rows=30, noise=0.5):
        rng = np.random.default_rng(seed)
        size = rng.lognormal(0, 1, features)
        shared = rng.normal(size=(targets, 3)) * 0.5
        scores = shared @ rng.normal(size=(3, features))
        self.weight = ((scores + 0.5 * rng.normal(size=(targets, features))) * size).T
        plan = PassPlan.for_fraction(0.2, seed=seed, passes=passes)
        masks = np.stack([plan.draw(k, slice(0, targets), features) for k in range(passes)])
        along = on_path(masks).transpose(0, 2, 1)  # [K, N, T]
        slopes = self.weight + rng.normal(size=along.shape) * size[:, None]
        outputs = np.einsum("ktn,nt->kt", masks, self.weight)
        outputs += noise * outputs.std() * rng.normal(size=outputs.shape)
        self.passes = PassSums(
            plan,
            np.arange(passes),
            outputs + 3,
            np.arange(targets),
            (slopes * along).sum(0).astype("f4"),
            (slopes**2 * along).sum(0).astype("f4"),
            along.sum(0).astype("f4"),
            (0.5 * self.weight + rng.normal(size=self.weight.shape)).astype("f4"),
        )
        self.masks = rng.random((rows, features)) < 0.8
        self.outputs = self.masks @ self.weight + 3
        self.outputs += noise * self.outputs.std() * rng.normal(size=self.outputs.shape)

    def fit(self, **options):
        solver = Bayes(passes=self.passes, **options)
        return cl.fit(self.masks, self.outputs, solver, held_out=0, device=CPU)


def test_the_posterior_under_factors_is_that_of_the_whole_gaussian(monkeypatch):
    monkeypatch.setattr(factors, "LOADING_PRECISION", 1e12)  # as if loadings were known
    features, targets = 4, 6
    sizes = torch.tensor([0.3, 1.0, 2.0, 0.1]).double()
    prior = FactorPrior(sizes, normal(targets, 2), torch.rand(targets).double())
    centre, seen = normal(features, targets, seed=1), normal(features, targets, seed=2)
    precision = torch.rand(features, targets).double() * 3
    precision[1, 2] = 0
    found, better = prior.step(centre, precision, seen)
    shared = prior.loadings @ prior.loadings.T + torch.diag(prior.own)
    for j in range(features):
        inverse = torch.linalg.inv(prior.variance[j] * shared)
        spread = torch.linalg.inv(inverse + torch.diag(precision[j]))
        mean = spread @ (inverse @ centre[j] + precision[j] * seen[j])
        torch.testing.assert_close(found.mean[j], mean)
        torch.testing.assert_close(found.variance[j], spread.diagonal())
    assert float(better.total.mean()) == pytest.approx(1)


def test_em_finds_which_components_matter_and_which_targets_are_alike():
    truth = World(3, features=300, passes=1, rows=2)
    noise = 0.3
    seen = torch.from_numpy(truth.weight) + noise * normal(*truth.weight.shape)
    prior = FactorPrior.start(torch.ones(300).double(), 40, 3)
    precision = torch.full_like(seen, noise**-2)
    for _ in range(60):
        found, prior = prior.step(torch.zeros_like(seen), precision, seen)
    size = np.sqrt((truth.weight**2).mean(1))
    assert np.corrcoef(np.log(size), np.log(prior.variance.sqrt().numpy()))[0, 1] > 0.9
    learnt = (prior.loadings @ prior.loadings.T).numpy()
    scaled = truth.weight / size[:, None]
    off = ~np.eye(40, dtype=bool)
    assert np.corrcoef(learnt[off], (scaled.T @ scaled / 300)[off])[0, 1] > 0.9
    error = (found.mean - torch.from_numpy(truth.weight)).square().mean()
    assert float(error) < 0.8 * noise**2


def test_trials_tell_of_the_level_as_well_as_rows_do():
    world = World(2, features=12, targets=5, passes=6, rows=4)
    plan, which = PassPlan.of_trials(0.3), np.arange(5)
    masks = np.stack([plan.draw(k, slice(0, 5), 12) for k in range(40)])
    outputs = np.einsum("ktn,nt->kt", masks, world.weight) + 8
    found = world.fit(trials=Trials(plan, np.arange(40), outputs, which))
    rows = (world.outputs - world.masks @ found.weight).mean(0)
    own = (outputs - np.einsum("ktn,nt->kt", masks, found.weight)).mean(0)
    assert np.allclose(found.bias, (4 * rows + 40 * own) / 44, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 25])
def test_both_forms_are_bayes_with_free_means(rows):
    world = World(1, features=12, targets=5, passes=6, rows=max(rows, 1))
    x = torch.from_numpy(world.masks[:rows]).double()
    y = torch.from_numpy(world.outputs[:rows])
    x, y = (x - x.mean(0), y - y.mean(0)) if rows else (x, y)
    scale = np.full(5, 2.0)
    common = (rows, x.T @ y / 2, (y / 2).square().sum(0))
    trials = Trials(PassPlan.of_trials(0.3), np.arange(4), normal(4, 5).numpy(), np.arange(5))
    own = [world.passes, trials]
    dual = Observations(*common, masks=x, outputs=y / 2, own=own, scale=scale)
    primal = Observations(*common, gram=x.T @ x, own=own, scale=scale)
    prior = Marginals(normal(12, 5), torch.rand(12, 5).double() + 0.1)
    noise = torch.rand(3, 5).double() + 0.2
    one, other = dual.posterior(prior, noise), primal.posterior(prior, noise)
    for name in ("errors", "freedom"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.weights.mean, other.weights.mean)
    torch.testing.assert_close(one.weights.variance, other.weights.variance)
    z = np.concatenate([kind.masks(slice(0, 5), 12) for kind in own], 1)
    z, given = torch.from_numpy(z).double(), np.concatenate([kind.outputs for kind in own])
    for t in range(5):  # an intercept for each kind of observation, with no prior
        design = torch.cat([x, z[t]])
        kinds = torch.zeros(len(design), 3).double()
        kinds[:rows, 0], kinds[rows : rows + 6, 1], kinds[rows + 6 :, 2] = 1, 1, 1
        kinds = kinds[:, kinds.any(0)]
        whole = torch.cat([design, kinds], 1)
        measured = torch.cat([y[:, t], torch.from_numpy(given[:, t])]) / 2
        weight = 1 / noise[:, t].repeat_interleave(torch.tensor([rows, 6, 4]))
        start = torch.zeros(whole.shape[1], whole.shape[1]).double()
        start[:12, :12] = torch.diag(1 / prior.variance[:, t])
        inverse = torch.linalg.inv(start + whole.T @ (weight[:, None] * whole))
        pull = start[:, :12] @ prior.mean[:, t] + whole.T @ (weight * measured)
        torch.testing.assert_close(one.weights.mean[:, t], (inverse @ pull)[:12])
        torch.testing.assert_close(one.weights.variance[:, t], inverse.diagonal()[:12])
        hat = (whole @ inverse * whole).sum(1) * weight
        left = torch.stack([x.sum() for x in (1 - hat).split([rows, 6, 4])])
        torch.testing.assert_close(one.freedom[:, t], left)
        sd = inverse.diagonal()[:12].sqrt()
        for form in (dual, primal):
            drawn = form.draws(prior, noise, 4000)[:, :, t].double()
            together = drawn.T @ drawn / 4000
            correlation = inverse[:12, :12] / sd[:, None] / sd
            assert float((together - correlation).abs().max()) < 0.1


def test_multiples_of_guesses_are_weighted_least_squares_by_group():
    guesses, groups = normal(2, 30, 7), torch.arange(30) % 3
    precision, seen = torch.rand(30, 7).double(), normal(30, 7, seed=4)
    mean = PriorMean(guesses, groups)
    centre = mean.fit(precision, seen)
    for group in range(3):
        inside = groups == group
        a = guesses[:, inside].reshape(2, -1).T * precision[inside].reshape(-1, 1).sqrt()
        b = (seen * precision.sqrt())[inside].reshape(-1)
        expected = torch.linalg.lstsq(a, b).solution
        torch.testing.assert_close(mean.multiples[group], expected)
        torch.testing.assert_close(
            centre[inside], torch.einsum("s,snt->nt", expected, guesses[:, inside])
        )


def test_intervals_cover_and_evidence_adds_up():
    covered, strongest, errors, sets = [], [], [], []
    for seed in range(6):
        world = World(seed)
        found = world.fit()
        for features in (np.arange(10), np.arange(37), np.arange(0, 50, 3)):
            low, high = found.effect(features).interval()
            truth = world.weight[features].sum(0)
            sets.append(((low <= truth) & (truth <= high)).mean())
        low, high = found.interval()
        inside = (low <= world.weight) & (world.weight <= high)
        covered.append(inside.mean())
        top = np.argsort(-np.abs(found.weight), 0)[:5]
        strongest.append(np.take_along_axis(inside, top, 0).mean())
        plain = np.square(world.passes.kept_means / 0.5 - world.weight).mean()
        rows = cl.fit(world.masks, world.outputs, "shared_prior", held_out=0, device=CPU)
        errors.append([np.square(x - world.weight).mean() for x in (found.weight, rows.weight)])
        errors[-1].append(plain)
    assert 0.9 <= np.mean(covered) <= 0.98
    assert 0.88 <= np.mean(strongest) <= 0.98
    assert 0.9 <= np.mean(sets) <= 0.98
    mean = np.mean(errors, 0)
    assert mean[0] < 0.6 * mean[1] and mean[0] < 0.6 * mean[2]


def test_without_passes_it_is_the_shared_and_the_informed_prior():
    world = World(5, rows=80)
    rows = world.masks, world.outputs
    same = [(Bayes(), SharedPrior())]
    scores, groups = world.passes.kept_means, np.arange(50) // 10
    same.append((Bayes(scores=scores, groups=groups), InformedPrior(scores=scores, groups=groups)))
    for one, other in same:
        found, expected = (cl.fit(*rows, solver, device=CPU) for solver in (one, other))
        assert np.array_equal(found.weight, expected.weight)


def test_auto_keeps_it_where_it_predicts_best_and_says_what_it_cost():
    world = World(7, rows=60)
    found = cl.fit(world.masks, world.outputs, Auto(passes=world.passes), device=CPU)
    assert found.summary["solver"] == "bayes"
    assert found.cost.passes == 60 + 3 * 48
    assert "48 gradient passes" in found.summary["status"]
    assert found.summary["candidates"]["bayes"] > found.summary["candidates"]["ridge"]


def test_what_does_not_fit_is_refused():
    world = World(2)
    with pytest.raises(RegressionError, match="50 components and 40 targets, the rows of 50 and 3"):
        cl.fit(world.masks, world.outputs[:, :3], Bayes(passes=world.passes), device=CPU)
    with pytest.raises(RegressionError, match="at least one factor"):
        Bayes(factors=0)
    assert Bayes(passes=world.passes, scores=world.passes.kept_means).prior_passes is None
    assert ArrayRows(world.masks, world.outputs).num_features == 50


def test_variances_stay_above_nothing_however_sure_observations_are():
    """Slopes of 10,000 times the outputs' size left -1e-8, and a factor that could not be taken."""
    rng = np.random.default_rng(0)
    shape = 2000, 3
    precision = torch.from_numpy(10.0 ** rng.uniform(-3, 25, shape))
    prior = FactorPrior.start(torch.from_numpy(10.0 ** rng.uniform(-8, 8, shape[0])), 3, 1)
    found, better = prior.step(torch.zeros(shape).double(), precision, torch.ones(shape).double())
    assert (found.variance > 0).all() and (better.variance > 0).all()
