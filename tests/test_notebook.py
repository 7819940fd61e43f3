"""The notebook of the README: from a model to attributions in ten lines, without a class."""

import pytest
import torch

import coarlib as cl

ROWS = 60


def from_model_to_attributions(model, examples, components, rows):
    """What the README shows, line by line."""
    task = cl.ablate(model, examples, components=components)
    store = cl.Store.create("out/store", task, rows=rows, keep_prob=0.95)
    cl.fill(store, task)
    return store, cl.fit(store)


def check(store, found, features, targets):
    """Everything else that the README shows of a result."""
    assert len(store.completed_rows()) == store.num_models
    assert found.weight.shape == (features, targets) and found.held_out.num_rows >= 6
    assert len(repr(found).splitlines()) == 3 and "<svg" in found._repr_html_()
    top = found.top(0)
    assert len(top) == 10 and all("[" in name for name in top.names)
    assert found.to_dataframe().loc[top.names[0], 0] == found.weight[top.index[0], 0]
    assert dict(found.to_xarray().sizes) == {"feature": features, "target": targets}
    masks, outputs = store.array("masks"), store.array("test_margins")
    again = cl.fit(masks, outputs, "ridge")
    scores = [cl.lds(fit.weight, masks, outputs) for fit in (found, again)]
    assert scores[0].num_subsets == store.num_models
    paired = cl.compare(*scores)
    assert paired.difference == scores[0].mean - scores[1].mean
    assert paired.interval.low <= paired.difference <= paired.interval.high


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
def test_the_digits_model():
    pytest.importorskip("sklearn")
    from estimate.digits.model import DigitsResNet, digits

    torch.manual_seed(0)
    images, labels = digits(held_out=True)
    model = DigitsResNet().eval()
    store, found = from_model_to_attributions(
        model, (images[:40], labels[:40]), "conv_filter", ROWS
    )
    check(store, found, 240, 40)


@pytest.mark.usefixtures("folder")
def test_a_random_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(50, (12, 16))
    store, found = from_model_to_attributions(model, (tokens, tokens), "mlp_neuron", ROWS)
    check(store, found, 128, 12)
