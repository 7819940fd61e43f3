"""Outputs under masks of real numbers, and their gradients, for every kind of component."""

import copy

import numpy as np
import pytest
import torch
from scalable_tasks import EXAMPLES, KINDS, small_task, task_of

from coarlib.errors import ComponentError
from coarlib.gradient_passes.plan import PassPlan, on_path
from coarlib.gradient_passes.scaling import ByActivations, ByWeights, scaling_of

CPU = torch.device("cpu")
KEY = "test_margins"


def by_hand(task, mask, example, factor=0.0):
    """One output of a copy of the model whose weights are scaled by a mask."""
    model = copy.deepcopy(task.model())
    with torch.no_grad():
        for part in task.component_set.channels(model):
            entries = torch.ones(part.count, dtype=torch.float64)
            for component, channel in zip(part.component, part.channel, strict=True):
                entries[channel] *= mask[component]
            parameter = model.get_parameter(part.path)
            scale = factor + (1 - factor) * part.entries(entries, parameter.shape)
            parameter.copy_(parameter * scale)
        _, batch = next(iter(task.batches(EXAMPLES)))
        one = batch.take(slice(example, example + 1))
        return float(task.outputs[KEY](task.predict(model, one.inputs), one.targets))


@pytest.mark.parametrize(("kind", "mode"), KINDS.items(), ids=lambda x: str(x))
def test_outputs_and_gradients_are_those_of_scaled_weights(kind, mode):
    task = task_of(kind)
    task.prepare(CPU)
    scaling = scaling_of(task, task.outputs[KEY])
    assert isinstance(scaling, ByActivations if mode == "activations" else ByWeights)
    _, batch = next(iter(task.batches(3)))
    plan = PassPlan(on_path=0.5, ablated=0.2)
    masks = torch.from_numpy(plan.draw(0, slice(0, len(batch)), len(task.component_set))).float()
    outputs, slopes = scaling.run(masks, batch)
    double = next(task.model().parameters()).dtype == torch.float64
    step, allowed = (1e-4, 2e-3) if double else (2e-3, 2e-2)
    generator = np.random.default_rng(0)
    for example in range(len(batch)):
        mask = masks[example].double()
        expected = by_hand(task, mask, example)
        assert abs(float(outputs[example]) - expected) < 1e-4 * (1 + abs(expected))
        for component in generator.permutation(len(mask))[:3]:
            up, down = mask.clone(), mask.clone()
            up[component] += step
            down[component] -= step
            slope = (by_hand(task, up, example) - by_hand(task, down, example)) / (2 * step)
            size = 1 + float(slopes.abs().max())
            assert abs(float(slopes[example, component]) - slope) < allowed * size
    assert float(slopes.abs().max()) > 1e-3


@pytest.mark.parametrize("way", ["zero_weights", "scale_weights", "zero_activation", "mean"])
def test_a_mask_of_zeros_and_ones_is_a_row(way):
    task = small_task(ablate=way, scale=0.3)
    task.prepare(CPU)
    scaling = scaling_of(task, task.outputs[KEY])
    kept = torch.rand(len(task.component_set), generator=torch.Generator().manual_seed(1)) < 0.6
    row = task.rows(np.array([0]), kept.numpy()[None])[KEY][0]
    for where, batch in task.batches():
        outputs, _ = scaling.run(kept.float().expand(len(batch), -1), batch)
        torch.testing.assert_close(outputs, row[where], atol=1e-4, rtol=1e-4)


def test_the_mean_of_slopes_on_paths_is_the_mean_effect():
    """E[∂y/∂m] along paths is E[y(1) - y(0)], without the bias of saturation."""
    task = small_task()
    task.prepare(CPU)
    count = len(task.component_set)
    scaling, plan = scaling_of(task, task.outputs[KEY]), PassPlan(on_path=0.3, ablated=0.1, seed=5)
    _, batch = next(iter(task.batches(1)))
    many = batch.take(torch.zeros(3000, dtype=torch.long))
    masks = torch.from_numpy(plan.draw(0, slice(0, 3000), count)).float()
    _, slopes = scaling.run(masks, many)
    component = int(slopes.mean(0).abs().argmax())
    along = torch.from_numpy(on_path(masks.double().numpy()))[:, component]
    found = slopes[along, component]
    ends = []
    for value in (1.0, 0.0):
        fixed = masks.clone()
        fixed[:, component] = value
        ends.append(scaling.run(fixed, many)[0])
    effect = ends[0] - ends[1]
    spread = float(found.std()) / len(found) ** 0.5 + float(effect.std()) / 3000**0.5
    assert abs(float(found.mean() - effect.mean())) < 4 * spread
    assert float(effect.mean().abs()) > 4 * spread  # the test could fail


def test_the_model_is_left_as_it_was():
    for kind in ("filters", "experts"):
        task = task_of(kind)
        task.prepare(CPU)
        model = task.model()
        before = copy.deepcopy(model.state_dict())
        learning = [parameter.requires_grad for parameter in model.parameters()]
        _, batch = next(iter(task.batches(2)))
        masks = torch.full((len(batch), len(task.component_set)), 0.5)
        scaling_of(task, task.outputs[KEY]).run(masks, batch)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == learning


def test_what_cannot_be_scaled_says_so():
    task = small_task(ablate="resample")
    task.prepare(CPU)
    with pytest.raises(ComponentError, match="puts another example's in its place"):
        scaling_of(task, task.outputs[KEY])
    counted = small_task(outputs={"answer": lambda logits, y: logits[:, 0].detach()})
    counted.prepare(CPU)
    _, batch = next(iter(counted.batches()))
    masks = torch.ones(len(batch), len(counted.component_set))
    with pytest.raises(ComponentError, match="cannot be differentiated"):
        scaling_of(counted, counted.outputs["answer"]).run(masks, batch)
