"""Models that take several tensors: both explanations of one recorded run, without a wrapper."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from coarlib.errors import HistoryError
from coarlib.history import Samples, TrainingLoss, open_run, record
from coarlib.history.inputs import as_inputs
from coarlib.metagradient import metagradients
from coarlib.path_kernel import explain

transformers = pytest.importorskip("transformers")
LENGTH, WORDS, COUNT, UPDATES = 5, 11, 8, 4


def token_loss(logits, tokens):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def quantity(logits, tokens):
    return -token_loss(logits[None], tokens[None])


def language_model(seed=0):
    """A random GPT-2 (LayerNorm, attention) whose output layer is its embedding."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": WORDS,
        "n_positions": LENGTH,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    shape |= {"bos_token_id": 0, "eos_token_id": 0}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**shape, **none, attn_implementation="eager", use_cache=False)
    return transformers.GPT2LMHeadModel(config).double()


def data():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, WORDS, (COUNT + 2, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::3, 0] = 0
    train = {"input_ids": tokens[:COUNT], "attention_mask": mask[:COUNT]}
    test = {"input_ids": tokens[COUNT:], "attention_mask": mask[COUNT:]}
    return (train, tokens[:COUNT]), (test, tokens[COUNT:])


def trained(recording=None, weights=None):
    model = language_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    (inputs, targets), _ = data()
    weights = torch.ones(COUNT, dtype=torch.float64) if weights is None else weights
    history = None if recording is None else recording(model, optimizer).__enter__()
    for step in range(UPDATES):
        batch = [(4 * step + k) % COUNT for k in range(4)]
        optimizer.zero_grad()
        logits = model(**{key: values[batch] for key, values in inputs.items()}).logits
        losses = [token_loss(x[None], t[None]) for x, t in zip(logits, targets[batch], strict=True)]
        (torch.stack(losses) * weights[batch]).mean().backward()
        if history is not None:
            history.batch(batch)
        optimizer.step()
    if history is not None:
        history.__exit__(None, None, None)
    return model


def test_a_language_model_without_a_wrapper_is_recorded_and_explained_twice(tmp_path):
    train, (inputs, targets) = data()
    loss = TrainingLoss(token_loss)
    options = {"samples": train, "loss": loss, "num_steps": UPDATES, "max_batch": 4, "quiet": True}
    model = trained(lambda m, o: record(m, o, tmp_path / "h", **options))
    run = open_run(tmp_path / "h", language_model(3), loss, train)
    found = explain(run, inputs, targets, output=quantity, quiet=True)
    own = [
        float(quantity(model(**{k: v[n : n + 1] for k, v in inputs.items()}).logits[0], targets[n]))
        for n in range(2)
    ]
    np.testing.assert_allclose(found["final"][:, 0], own, rtol=0, atol=1e-12)
    assert found.verdict().share < 1e-5

    effects = metagradients(run, inputs, targets, output=quantity, removals=0, quiet=True).effects
    for sample in (0, 5):
        ends = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            weights = torch.ones(COUNT, dtype=torch.float64)
            weights[sample] = factor
            other = trained(weights=weights)
            logits = other(**inputs).logits
            ends.append([float(quantity(x, t)) for x, t in zip(logits, targets, strict=True)])
        slope = (np.array(ends[0]) - np.array(ends[1])) / 2e-5
        np.testing.assert_allclose(effects[0, :, sample], slope, rtol=0, atol=1e-6)


def test_tuples_of_tensors_and_datasets_of_them_are_the_same_samples():
    first, second, targets = torch.randn(6, 2), torch.arange(6), torch.arange(6)
    tensors = Samples(((first, second), targets))
    dataset = Samples(
        torch.utils.data.StackDataset(torch.utils.data.TensorDataset(first, second), targets)
    )
    for samples in (tensors, dataset):
        (x, y), z = samples.take(np.array([3, 1]))
        assert torch.equal(x, first[[3, 1]])
        assert torch.equal(y, z)
    assert tensors.digest() == dataset.digest()


def test_samples_of_any_dtype_have_a_digest():
    digests = [
        Samples((torch.ones(2, dtype=dtype), torch.zeros(2))).digest()
        for dtype in (torch.bfloat16, torch.float16, torch.bool)
    ]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(np.zeros(3), "must be a tensor"), ((torch.zeros(2), torch.zeros(3)), "differ in their numb")],
)
def test_other_inputs_are_refused(inputs, message):
    with pytest.raises(HistoryError, match=message):
        as_inputs(inputs)
