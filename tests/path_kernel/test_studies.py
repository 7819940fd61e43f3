"""Studies on decompositions, and the training-sample attributions against retraining (LDS)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.ablation import find_components
from coarlib.errors import HistoryError
from coarlib.history import open_run
from coarlib.history.setups import train_with_history
from coarlib.path_kernel import explain
from coarlib.path_kernel.studies import (
    balance,
    component_scores,
    influence_over_steps,
    layer_kernels,
    pruning_curves,
    similarity,
    training_curve,
)
from coarlib.scoring import lds
from estimate.digits_path.setup import DigitsPath

STEPS, TRAIN, TEST = 40, 60, 6


@pytest.fixture(scope="module")
def setup():
    return DigitsPath(num_train=TRAIN, num_steps=STEPS, batch_size=20, momentum=0.5)


@pytest.fixture(scope="module")
def trained(setup, tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "h"
    return path, train_with_history(setup, path, quiet=True)


@pytest.fixture(scope="module")
def components(trained):
    return find_components(trained[1], ["linear_row"])


@pytest.fixture(scope="module")
def found(setup, trained, components):
    inputs, targets = (t[:TEST] for t in setup.test_samples())
    return explain(
        open_run(trained[0], trained[1], setup.loss(), setup.train_samples()),
        inputs,
        targets,
        output="logit",
        by=[("sample", "tensor"), ("tensor", "step"), "sample", "component", "step"],
        components=components,
        step_window=10,
        tolerance=1e-3,
        quiet=True,
    )


def test_heat_maps_and_balance_agree_with_the_totals(found):
    kernels = layer_kernels(found)
    assert set(kernels) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    np.testing.assert_allclose(
        sum(kernels.values()).sum(1), found["data"][:, 0], rtol=1e-3, atol=1e-3
    )
    assert influence_over_steps(found).shape == (4, 4)
    weighed = balance(found)
    for source, curve in weighed.signed.items():
        np.testing.assert_allclose(curve[-1], found[source].mean(), rtol=1e-3, atol=1e-3)
        assert (np.diff(weighed.absolute[source]) >= 0).all()


def test_training_curve_ends_at_the_trained_model(setup, trained):
    inputs, targets = setup.test_samples()
    run = open_run(trained[0], trained[1], setup.loss(), setup.train_samples())
    curve = training_curve(run, inputs, targets, points=5)
    assert list(curve.steps) == [0, 10, 20, 29, 39, STEPS]
    with torch.no_grad():
        outputs = trained[1](inputs)
    assert curve.accuracy[-1] == (outputs.argmax(-1) == targets).double().mean()
    np.testing.assert_allclose(curve.loss[-1], F.cross_entropy(outputs, targets), rtol=1e-5)
    assert curve.loss[0] > curve.loss[-1]


def test_similarity_of_attribution_vectors(found):
    cosines = similarity(found.by("sample")[:, 0])
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-9)
    np.testing.assert_allclose(cosines, cosines.T, atol=1e-12)
    assert np.isnan(similarity(np.array([[1.0, 0.0], [0.0, 0.0]]))[0, 1])


def test_pruning_by_attribution_beats_pruning_at_random(setup, trained, components, found):
    inputs, targets = setup.test_samples()
    model = trained[1]
    before = [p.clone() for p in model.parameters()]
    scores = component_scores(found)
    curves = pruning_curves(
        model, components, {"kernel": scores, "reverse": -scores}, inputs, targets
    )
    for one, other in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    kernel, reverse = curves["kernel"].accuracy.mean(), curves["reverse"].accuracy.mean()
    assert kernel > reverse
    assert curves["kernel"].divergence[0] < 1e-6 < curves["kernel"].divergence[-1]
    with pytest.raises(HistoryError, match="must be"):
        pruning_curves(model, components, {"short": scores[:-1]}, inputs, targets)


def test_sample_attributions_predict_retraining(setup, found):
    """Linear datamodeling score on digits: subsets of the training set, trained anew."""
    inputs, targets = setup.train_samples()
    points, answers = (t[:TEST] for t in setup.test_samples())
    generator = np.random.default_rng(0)
    masks = np.stack([generator.permutation(TRAIN) < TRAIN // 2 for _ in range(24)])
    margins = []
    for mask in masks:
        kept = torch.from_numpy(np.flatnonzero(mask))
        model = setup.model()
        optimizer = setup.optimizer(model)
        for step in range(STEPS):
            batch = kept[torch.from_numpy(setup.batch(step, len(kept)))]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            margins.append(model(points).gather(1, answers[:, None]).squeeze(1).numpy())
    score = lds(found.attributions().weight, masks, np.array(margins), interval=False)
    assert score.mean > 0.2


def test_a_set_up_goes_on_where_it_stopped(setup, trained, tmp_path):
    train_with_history(setup, tmp_path / "h", stop_at=15, quiet=True)
    again = train_with_history(setup, tmp_path / "h", quiet=True)
    for one, other in zip(again.parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert isinstance(again, nn.Module)
