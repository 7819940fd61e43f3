"""A task of any model in one call, and one sentence for what cannot be one."""

import numpy as np
import pytest
import torch
from tiny_models import TinyResNet, images, randomised
from torch import nn
from torch.nn import functional as F

from coarlib.ablation import ComponentSet, Examples, ablate, find_components
from coarlib.errors import ComponentError, TaskError
from coarlib.outputs import IGNORED, cross_entropy, margin, next_tokens
from coarlib.setups import load

CPU = torch.device("cpu")
LABELS = torch.arange(9) % 5


def prepared(*given, **options):
    task = ablate(*given, **options)
    task.prepare(CPU)
    return task


def rows(task, seed=0):
    masks = np.random.default_rng(seed).random((3, task.num_features)) < 0.8
    return next(iter(task.rows(np.arange(3), masks).values()))


def test_tensors_arrays_and_examples_give_the_same_rows():
    model, x = randomised(TinyResNet()), images(9)
    expected = rows(prepared(model, Examples((x,), LABELS)))
    for given in [
        (x, LABELS),
        [x.numpy(), LABELS.numpy()],
        ((x,), LABELS.tolist()),
        ({"images": x}, LABELS.float()),
        (x, LABELS.to(torch.uint8)),
    ]:
        assert torch.equal(rows(prepared(model, given)), expected)
    layout = prepared(model, (x, LABELS)).layout()
    assert layout.num_features == 16 and layout.outputs == {"test_margins": ("float32", (9,))}


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ("cross_entropy", ["cross_entropy"]),
        (["margin", "logit"], ["margin", "logit"]),
        ({"a": "margin", "b": cross_entropy}, ["a", "b"]),
        (margin, ["margin"]),
        (lambda logits, labels: logits.sum(1), ["test_outputs"]),
    ],
)
def test_outputs_by_name_by_function_and_several(outputs, names):
    task = prepared(randomised(TinyResNet()), (images(9), LABELS), outputs=outputs)
    assert list(task.layout().outputs) == names


def test_components_by_kind_by_function_and_as_they_are():
    model, given = randomised(TinyResNet()), (images(9), LABELS)
    whole = prepared(model, given, ["conv_filter", "linear_row"]).component_set
    for components in (whole, lambda m: find_components(m, ["conv_filter", "linear_row"])):
        assert prepared(model, given, components).component_set == whole
    some = prepared(model, given, "conv_filter", include="conv*", exclude="conv2")
    assert isinstance(some.component_set, ComponentSet) and some.num_features == 6
    with pytest.raises(ComponentError, match=r"unknown kind .* did you mean 'conv_filter'.*block"):
        ablate(model, given, "conv_filters")


def test_the_model_is_left_as_it_was_and_settings_count():
    model, given = randomised(TinyResNet()), (images(9), LABELS)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tasks = [prepared(model, given, ablate=name) for name in ("zero_weights", "mean", "resample")]
    tasks += [prepared(model, given, ablate="scale_weights", scale=s) for s in (0.5, 0.1)]
    tasks += [prepared(model, given, predict=lambda network, inputs: -network(*inputs))]
    assert len({task.identity() for task in tasks}) == 6
    assert all(len(rows(task)) == 3 for task in tasks)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert prepared(model, given, names=[f"digit {i}" for i in range(9)]).texts()[8] == "digit 8"


def test_a_batch_weighs_what_a_batch_may_weigh():
    wide = nn.Sequential(nn.Linear(4, 400_000))
    given = torch.randn(30, 4), torch.arange(30)
    task = prepared(wide, given, "linear_row", outputs="logit")
    assert task.batch_size == 2**21 // 400_000
    assert prepared(randomised(TinyResNet()), (images(9), LABELS)).batch_size == 500


class Wrong(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.given = nn.Conv2d(3, 5, 3), forward

    def forward(self, x):
        return self.given(self.conv(x).mean((2, 3)))


def loss(logits, labels):
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "must be a torch.nn.Module, not nothing"),
        ({"model": TinyResNet().state_dict()}, "is a state dict"),
        ({"model": TinyResNet}, "is the class TinyResNet"),
        ({"model": nn.Sequential(nn.LazyConv2d(4, 3))}, "not initialised"),
        ({"model": nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3)))}, "compiled by torch.jit"),
        ({"model": nn.BatchNorm2d(3, track_running_stats=False)}, "batch norm without running"),
        ({"model": Wrong(lambda x: {"out": x})}, "returns dict, not a tensor of logits"),
        ({"model": Wrong(lambda x: x * torch.rand(()))}, "randomness"),
        ({"model": Wrong(lambda x: x - x.mean(0))}, "alone, or with other padding"),
        ({"model": Wrong(lambda x: x.cumsum(0))}, "in another order"),
        ({"model": Wrong(lambda x: x * 0)}, "changes no output"),
        ({"outputs": loss}, "returned a single number for 4 examples.*reduction='none'"),
        ({"outputs": lambda logits, labels: logits}, r"returned float32 \[4, 5\] for 4"),
        ({"outputs": lambda logits, labels: logits[0]}, r"returned float32 \[5\] for 4"),
        ({"outputs": lambda logits, labels: 1.0}, "returned float, not a tensor"),
        ({"outputs": lambda logits, labels: logits @ labels}, "fails on logits of .*RuntimeError"),
        ({"outputs": lambda logits, labels: logits[:, 0].to_sparse()}, "returned sparse_coo"),
        ({"outputs": lambda logits, labels: logits[:, 0].to("meta")}, "returned strided meta"),
        ({"outputs": "margins"}, "unknown output margins; did you mean 'margin'"),
        ({"outputs": {}}, "nothing to record"),
        ({"outputs": 3}, "not int"),
        ({"labels": LABELS + 0.5}, "classes are whole numbers"),
        ({"labels": LABELS + 1}, "targets run from 1 to 5, but the model has 5 classes"),
        ({"labels": LABELS[:3]}, "of one length"),
        ({"labels": None}, "only be left out where the first input is tokens"),
        ({"labels": ["cat"] * 9}, "no array of numbers"),
        ({"images": (images(9) * 255).to(torch.uint8)}, "float.* / 255"),
        ({"images": images(9).permute(0, 2, 3, 1)}, r"permute\(0, 3, 1, 2\)"),
        ({"images": [[1.0], [1.0, 2.0]]}, "no array of numbers"),
        ({"images": images(0)}, "at least 1"),
        ({"examples": images(9)}, "a pair"),
        ({"components": lambda m: None}, "returned NoneType, not a ComponentSet"),
        ({"components": "mlp_neuron"}, "mlp_neuron"),
        ({"ablate": "nought"}, "ablate must be"),
        ({"ablate": "resample", "images": images(1), "labels": LABELS[:1]}, "at least two"),
        ({"ablate": "scale_weights", "scale": float("nan")}, "scale must be a finite number"),
        ({"scale": "half"}, "scale must be a number"),
        ({"seed": 1.5}, "seed a whole one"),
        ({"names": ["one"]}, "names must be 9 texts"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_a_task_gets_one_sentence(changes, words):
    changes = dict(changes)
    model = changes.pop("model", randomised(TinyResNet()))
    given = changes.pop("images", images(9)), changes.pop("labels", LABELS)
    given = changes.pop("examples", given)
    components = changes.pop("components", "conv_filter")
    with pytest.raises((TaskError, ComponentError), match=words) as caught:
        rows(prepared(model, given, components, **changes))
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 30, "n_positions": 12}
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))


def test_a_hugging_face_model_of_tokens():
    model = gpt2()
    tokens = torch.randint(30, (4, 7), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(7) < torch.tensor([[7], [4], [5], [7]])).long()
    inputs = {"input_ids": tokens, "attention_mask": attention}
    explicit = prepared(model, (inputs, next_tokens(tokens, attention)), "attention_head")
    assert explicit.num_features == 8 and explicit.batch_size > 1
    expected = rows(explicit)
    labels = torch.where(attention.bool(), tokens, IGNORED)
    for given in ((inputs, None), inputs, (inputs, labels), {**inputs, "labels": labels}):
        assert torch.equal(rows(prepared(model, given, "attention_head")), expected)
    with torch.no_grad():
        logits = model(**inputs).logits
    masks = np.ones((1, 8), bool)
    found = explicit.rows(np.arange(1), masks)["test_margins"][0]
    for row, length in enumerate((7, 4, 5, 7)):
        margins = margin(logits[row, : length - 1], tokens[row, 1:length])
        torch.testing.assert_close(found[row], margins.mean(), atol=1e-5, rtol=1e-5)


def test_padding_that_the_model_attends_to_is_named():
    model = randomised(pytest.importorskip("transformers").BertForSequenceClassification(
        pytest.importorskip("transformers").BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=24, num_labels=5)))  # fmt: skip
    tokens = torch.randint(1, 30, (4, 7), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(7) < torch.tensor([[7], [4], [5], [7]])).long()
    good = prepared(
        model, ({"input_ids": tokens, "attention_mask": attention}, LABELS[:4]), "block"
    )
    assert rows(good).shape == (3, 4)


def test_a_task_in_a_file_is_loaded_by_its_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom torch import nn\nfrom coarlib.ablation import ablate\n"
        "torch.manual_seed(0)\nmodel = nn.Sequential(nn.Linear(4, 5))\n"
        "made = (torch.randn(6, 4), torch.arange(6) % 5)\n"
        "task = ablate(model, made, 'linear_row')\n"
        "def later(scale=0.5):\n"
        "    return ablate(model, made, 'linear_row', ablate='scale_weights', scale=scale)\n"
    )
    for name in ("mine.py:task", "mine.py"):
        task = load(str(tmp_path / name))
        task.prepare(CPU)
        assert task.num_features == 5
    assert load(f"{path}:later", {"scale": 0.1}).scale == 0.1
