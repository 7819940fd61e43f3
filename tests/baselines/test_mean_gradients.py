"""Gradients averaged over ablated models equal their definition, and the command writes them."""

import numpy as np
import pytest
import torch
from tiny_models import TinyResNet, images, randomised

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.baselines.evaluation import baseline
from coarlib.baselines.mean_gradients import ablated_masks, group_index, mean_gradients
from coarlib.commands.fit import gradient_scores
from coarlib.errors import CoarlibError, ComponentError
from coarlib.masks import MaskDesign, draw
from coarlib.regression.solvers.prior import load_prior_scores

TOLERANCE = 1e-4
KEY = "test_margins"
TASK = f"{__file__}:SmallTask"


class SmallTask(ComponentTask):
    """Twelve images, in batches of five."""

    def __init__(self, **settings):
        super().__init__(5, **settings)
        self._model = randomised(TinyResNet())

    def model(self):
        return self._model

    def components(self, model):
        return find_components(model)

    def examples(self):
        return Examples((images(12),), torch.arange(12) % 5)


@pytest.fixture
def task():
    task = SmallTask()
    task.prepare(torch.device("cpu"))
    return task


def by_differentiating_weights(task, masks):
    """Σ w ∂o/∂w of the units a mask keeps, one example and mask at a time, then their mean."""
    model, components = task.model(), task.component_set
    parameters = components.parameters(model)
    intact = [parameter.detach().clone() for parameter in parameters]
    total = np.zeros((len(components), task.num_examples))
    for mask in masks:
        for group, parameter, weight, kept in zip(
            components,
            parameters,
            intact,
            torch.from_numpy(mask).split(components.sizes),
            strict=True,
        ):
            parameter.data = weight * group.kept_entries(kept, weight.shape)
        for example in range(task.num_examples):
            model.zero_grad()
            label = torch.tensor([example % 5])
            task.outputs[KEY](model(images(12)[example : example + 1]), label).sum().backward()
            column = []
            for group, parameter in zip(components, parameters, strict=True):
                product = (parameter * parameter.grad).detach()
                for unit in range(group.units):
                    one = torch.arange(group.units) == unit
                    column.append((product * group.kept_entries(one, product.shape)).sum().item())
            total[:, example] += column
    for parameter, weight in zip(parameters, intact, strict=True):
        parameter.data = weight
    return total / np.maximum(masks.sum(0), 1)[:, None]


def test_the_mean_over_ablated_models_is_its_definition(task):
    masks = draw(MaskDesign(keep_prob=0.7, seed=3), np.arange(4), len(task.component_set))
    masks[:, 0] = False  # kept by no mask
    before = {key: value.clone() for key, value in task.model().state_dict().items()}
    found = mean_gradients(task, masks, KEY, quiet=True)
    assert all(torch.equal(value, before[key]) for key, value in task.model().state_dict().items())
    expected = by_differentiating_weights(task, masks)
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
    assert not found[0].any() and np.abs(found[1:]).max() > 0.1


def test_at_the_intact_model_it_is_gradient_times_parameter(task):
    intact = ablated_masks(len(task.component_set), 0, 1)
    found = mean_gradients(task, intact, KEY, quiet=True)
    expected = baseline("gradient_parameter", task, KEY).scores
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def test_other_ablations_and_empty_sets_of_masks_are_refused(task):
    other = SmallTask(ablate="mean")
    other.prepare(torch.device("cpu"))
    masks = ablated_masks(len(task.component_set), 0.1, 2)
    with pytest.raises(ComponentError, match="ablates by mean"):
        mean_gradients(other, masks, KEY)
    for fraction, count in ((1.0, 4), (-0.1, 4), (0.1, 0)):
        with pytest.raises(ComponentError, match="at least one mask"):
            ablated_masks(5, fraction, count)


def test_the_command_writes_scores_that_a_fit_reads(task, tmp_path, capsys):
    out = tmp_path / "new" / "scores.npz"
    words = ["--scores.task", TASK, "--scores.out", str(out), "--scores.models", "3"]
    gradient_scores.main(words)
    assert "9 forward passes" in capsys.readouterr().out
    found = load_prior_scores(out)
    assert found["scores_cost"] == 9
    masks = ablated_masks(len(task.component_set), 0.05, 3)
    assert np.allclose(found["scores"], mean_gradients(task, masks, KEY, quiet=True), atol=1e-5)
    assert np.array_equal(found["groups"], group_index(task.component_set))
    with pytest.raises(CoarlibError, match="already exists"):
        gradient_scores.main(words)
    with pytest.raises(CoarlibError, match="must be one of test_margins"):
        gradient_scores.main([*words[:3], str(tmp_path / "x"), "--scores.output", "margins"])
