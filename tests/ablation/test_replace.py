import numpy as np
import pytest
import torch
from tiny_models import TiedEmbedding, TinyResNet, images, randomised
from torch import nn

from coarlib.ablation import ActivationAblation, ComponentTask, Examples, find_components
from coarlib.errors import ComponentError, TaskError

TOLERANCE = 1e-5


def model_and_mask():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return randomised(model), torch.tensor([True, False, True, False])


def run(model, inputs, components, mask, replacement, **options):
    with torch.no_grad(), ActivationAblation(model, components, replacement, **options) as ablation:
        ablation.apply(mask)
        return model(inputs)


def test_replacements_are_what_they_say():
    model, mask = model_and_mask()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    components = find_components(model, ["linear_row"], include=["0"])
    with torch.no_grad():
        hidden = model[0](inputs)
        reference = model[0](inputs * 2 + 1).mean(0)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(4))
        expected = {
            "zero": torch.where(mask, hidden, 0),
            "mean": torch.where(mask, hidden, reference),
            "resample": torch.where(mask, hidden, hidden[order]),
        }
        expected = {key: model[2](model[1](value)) for key, value in expected.items()}
    for name, outputs in expected.items():
        found = run(
            model, inputs, components, mask, name, reference=lambda: model(inputs * 2 + 1), seed=4
        )
        torch.testing.assert_close(found, outputs, atol=TOLERANCE, rtol=TOLERANCE)


def test_zero_takes_the_bias_too_and_leaves_the_model_alone():
    model, _ = model_and_mask()
    components = find_components(model, ["linear_row"], include=["2"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = run(model, torch.ones(1, 3), components, torch.tensor([False, False]), "zero")
    assert not found.any() and model[2].bias.abs().min() > 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_of_tokens_and_means_over_several_batches():
    model = randomised(TiedEmbedding())
    components = find_components(model, ["linear_input"], exclude=["head"])
    tokens = torch.arange(6).view(2, 3)

    def reference():
        model(tokens[:1])
        model(tokens[1:])

    with torch.no_grad():
        mean = model.embed(tokens).flatten(0, 1).mean(0)
        expected = model.head(torch.tanh(model.hidden(mean.expand(2, 3, 4))))
    found = run(
        model, tokens, components, torch.zeros(4, dtype=torch.bool), "mean", reference=reference
    )
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_misuse_is_refused():
    model, _ = model_and_mask()
    components = find_components(model, ["linear_row"])
    with pytest.raises(ComponentError, match="not by nothing"):
        ActivationAblation(model, components, "nothing")
    with pytest.raises(ComponentError, match="reference examples"):
        ActivationAblation(model, components, "mean")
    with pytest.raises(ComponentError, match="never reach"):
        ActivationAblation(model, components, "mean", reference=lambda: None)


class SmallTask(ComponentTask):
    def model(self):
        return randomised(TinyResNet())

    def components(self, model):
        return find_components(model)

    def examples(self):
        return Examples((images(12),), torch.arange(12) % 5)


def test_a_task_ablates_as_asked_and_every_way_is_another():
    masks = np.ones((2, 16), bool)
    masks[1, [3, 9]] = False
    rows = {}
    for ablate in ("zero_weights", "scale_weights", "zero", "mean", "resample"):
        task = SmallTask(ablate=ablate)
        task.prepare(torch.device("cpu"))
        rows[ablate] = task.rows(np.arange(2), masks)["test_margins"]
        intact = rows["zero_weights"][0]
        torch.testing.assert_close(rows[ablate][0], intact, atol=TOLERANCE, rtol=TOLERANCE)
        assert (rows[ablate][1] - intact).abs().max() > 100 * TOLERANCE
    ablated = torch.stack([row[1] for row in rows.values()])
    distances = torch.cdist(ablated, ablated) + torch.eye(len(ablated))
    assert distances.min() > 100 * TOLERANCE
    with pytest.raises(TaskError, match="ablate must be zero_weights"):
        SmallTask(ablate="zeros")


def test_mean_ablation_does_not_depend_on_the_batch_size():
    masks = np.random.default_rng(0).random((3, 16)) < 0.7
    found = []
    for batch_size in (5, 12):
        task = SmallTask(batch_size, ablate="mean")
        task.prepare(torch.device("cpu"))
        found.append(task.rows(np.arange(3), masks)["test_margins"])
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=TOLERANCE)
