import copy

import numpy as np
import pytest
import torch
from linear_task import LinearTask
from tiny_models import Branching, SharedConv, TinyResNet, images, randomised
from torch import nn

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.ablation.fuse import fused_copy
from coarlib.errors import ComponentError, TaskError
from coarlib.outputs import cross_entropy, margin

CPU = torch.device("cpu")
TOLERANCE = 1e-5
"""Float32 rounding of margins of size 1-10."""
COUNT = 23
TARGETS = torch.arange(COUNT) % 5


class TinyTask(ComponentTask):
    outputs = {"test_margins": margin, "test_losses": cross_entropy}  # noqa: RUF012

    def __init__(self, model, inputs=None, targets=TARGETS, resident=True, **options):
        super().__init__(**options)
        self.given, self.inputs = model, images(COUNT) if inputs is None else inputs
        self.targets, self.resident = targets, resident

    def model(self):
        return self.given

    def components(self, model):
        return find_components(model, ["conv_filter", "linear_row"], exclude=["upconv"])

    def examples(self):
        return Examples((self.inputs,), self.targets, self.resident)


def prepared(task):
    task.prepare(CPU)
    return task


def random_masks(task, count=12, seed=0):
    return np.random.default_rng(seed).random((count, task.num_features)) < 0.7


def upstream_rows(model, components, masks, inputs, targets):
    """A deep copy a row, rows zeroed one index at a time."""
    found = []
    for mask in masks:
        ablated = copy.deepcopy(model).eval()
        for index in np.flatnonzero(~mask):
            group, unit = components.locate(int(index))
            with torch.no_grad():
                ablated.get_parameter(group.path)[unit] = 0
        with torch.no_grad():
            found.append(margin(ablated(inputs), targets))
    return torch.stack(found)


@pytest.mark.parametrize("architecture", [TinyResNet, SharedConv, Branching])
@pytest.mark.parametrize("fuse", [False, True])
def test_rows_equal_deep_copies_with_zeroed_rows(architecture, fuse):
    model = randomised(architecture())
    before = copy.deepcopy(model.state_dict())
    task = prepared(TinyTask(model, fuse=fuse))
    masks = random_masks(task)
    rows = task.rows(np.arange(12), masks)
    expected = upstream_rows(model, task.components(model), masks, task.inputs, TARGETS)
    np.testing.assert_allclose(rows["test_margins"], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert rows["test_margins"].std(0).min() > 100 * TOLERANCE
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("resident", [False, True])
def test_no_batch_size_and_no_order_changes_a_row(resident):
    model = randomised(TinyResNet())
    whole = prepared(TinyTask(model))
    masks = random_masks(whole)
    expected = whole.rows(np.arange(12), masks)
    for batch_size in (1, 7, 22, 1000):
        task = prepared(TinyTask(model, batch_size=batch_size, resident=resident))
        order = np.random.default_rng(batch_size).permutation(12)
        together = task.rows(order, masks[order])
        alone = task.rows(order[:1], masks[order[:1]])
        for key, values in expected.items():
            np.testing.assert_allclose(together[key], values[order], atol=TOLERANCE, rtol=TOLERANCE)
            np.testing.assert_allclose(
                alone[key], values[order[:1]], atol=TOLERANCE, rtol=TOLERANCE
            )
    assert task.tolerance > TOLERANCE


def test_an_error_in_the_model_leaves_it_intact():
    class Failing(TinyTask):
        calls = -100  # the probe's are not to fail

        def predict(self, network, inputs):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("cable pulled")
            return super().predict(network, inputs)

    model = randomised(TinyResNet())
    before = copy.deepcopy(model.state_dict())
    task = prepared(Failing(model, fuse=False))
    expected = prepared(TinyTask(model, fuse=False)).rows(np.arange(12), random_masks(task))
    task.calls = 0
    with pytest.raises(RuntimeError, match="cable"):
        task.rows(np.arange(12), random_masks(task))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    again = task.rows(np.arange(12), random_masks(task))
    assert torch.equal(again["test_margins"], expected["test_margins"])


def test_out_of_memory_halves_the_batch():
    class Small(TinyTask):
        def predict(self, network, inputs):
            if len(inputs[0]) > 6:
                raise torch.OutOfMemoryError("no room")
            return super().predict(network, inputs)

    model = randomised(TinyResNet())
    task = TinyTask(model, fuse=False)
    small = Small(model, fuse=False)
    masks = random_masks(prepared(task))
    rows = prepared(small).rows(np.arange(12), masks)
    assert small.batch_size == 6
    np.testing.assert_allclose(
        rows["test_margins"], task.rows(np.arange(12), masks)["test_margins"], atol=TOLERANCE
    )


def test_folding_happens_where_it_is_exact():
    fused = fused_copy(randomised(TinyResNet()))
    assert [n.target for n in fused.graph.nodes if n.op == "call_module"] == [
        *("conv1", "conv2", "upconv", "linear")
    ]
    shared = fused_copy(randomised(SharedConv()))
    assert "bn1" in str(getattr(shared, "graph", "bn1"))
    kept = fused_copy(randomised(TinyResNet()), keep={"bn1"})
    assert "bn1" in [n.target for n in kept.graph.nodes]


def test_a_model_in_training_mode_is_evaluated_in_evaluation_mode():
    model = nn.Sequential(randomised(TinyResNet()), nn.Dropout(0.5))
    evaluated = prepared(TinyTask(model)).rows(np.arange(2), np.ones((2, 21), bool))
    rows = prepared(TinyTask(model.train())).rows(np.arange(2), np.ones((2, 21), bool))
    assert torch.equal(rows["test_margins"], evaluated["test_margins"])


def test_the_identity_is_that_of_all_that_a_row_depends_on():
    def identity(seed=0, kind=TinyTask, **options):
        return prepared(kind(randomised(TinyResNet(), seed), **options)).identity()

    class OtherPredict(TinyTask):
        def predict(self, network, inputs):
            return -network(*inputs)

    class OtherOutputs(TinyTask):
        outputs = {"test_margins": cross_entropy, "test_losses": margin}  # noqa: RUF012

    class OtherScale(TinyTask):
        scale = 0.1

    assert TinyTask(randomised(TinyResNet())).identity() is None
    assert identity() == identity(batch_size=7, fuse=False, resident=False)
    others = [
        identity(1),
        identity(targets=TARGETS.flip(0)),
        identity(inputs=images(23, 2)),
        identity(kind=OtherPredict),
        identity(kind=OtherOutputs),
        identity(autocast="bf16"),
        identity(ablate="zero"),
        identity(ablate="scale_weights"),
        identity(ablate="scale_weights", kind=OtherScale),
    ]
    assert len({identity(), *others}) == 10


def test_the_layout_is_what_a_store_must_hold():
    layout = prepared(TinyTask(randomised(TinyResNet()))).layout()
    assert layout.num_features == 21 - 4
    assert layout.outputs == {
        "test_margins": ("float32", (COUNT,)),
        "test_losses": ("float32", (COUNT,)),
    }
    with pytest.raises(TaskError, match="write a spec"):
        LinearTask().layout()


def test_half_precision_stays_close_to_float32():
    model = randomised(TinyResNet())
    exact, rough = TinyTask(model), TinyTask(model, autocast="bf16")
    masks = random_masks(prepared(exact))
    rows = [task.rows(np.arange(12), masks)["test_margins"] for task in (exact, prepared(rough))]
    error = (rows[0] - rows[1]).abs().max()
    assert 0 < error < 0.05 * rows[0].abs().max()
    assert rows[1].dtype == torch.float32


def test_misuse_is_refused():
    model = randomised(TinyResNet())
    with pytest.raises(ComponentError, match="prepare"):
        TinyTask(model).rows(np.arange(1), np.ones((1, 17), bool))
    with pytest.raises(ComponentError, match="do not fit 17"):
        prepared(TinyTask(model)).rows(np.arange(1), np.ones((1, 16), bool))
    with pytest.raises(TaskError, match="one length"):
        prepared(TinyTask(model, targets=TARGETS[1:]))
    with pytest.raises(TaskError, match=r"autocast must be none, .*pure_fp16 or auto, not fp8"):
        TinyTask(model, autocast="fp8")
    with pytest.raises(TaskError, match="at least 1"):
        TinyTask(model, batch_size=0)


class Brittle(nn.Module):
    """Runs a plain model, then fails or lies as a compiled one might."""

    def __init__(self, network, failure):
        super().__init__()
        self.network, self.failure = network, failure

    def forward(self, *inputs):
        if self.failure == "raises":
            raise RuntimeError("no compiler\nfor a long story")
        return self.network(*inputs) + self.failure


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("raises", "since torch.compile failed here (RuntimeError: no compiler)"),
        (1.0, "the compiled model differs by"),
        (0.0, "times as fast"),
    ],
)
def test_compiling_falls_back_with_one_sentence(failure, words, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda network, options: Brittle(network, failure))
    plain, fast = Linear(), Linear(compiled=True)
    for task in (plain, fast):
        task.prepare(torch.device("cpu"))
    found = capsys.readouterr().err.strip()
    assert "\n" not in found and words in found
    assert isinstance(fast._fast, Brittle) is (failure == 0.0)
    masks = np.random.default_rng(0).random((3, fast.num_features)) < 0.6
    torch.testing.assert_close(*(t.rows(np.arange(3), masks) for t in (plain, fast)))


class Linear(ComponentTask):
    def model(self):
        torch.manual_seed(0)
        return nn.Linear(6, 4)

    def components(self, model):
        return find_components(model, ["linear_row"])

    def examples(self):
        torch.manual_seed(1)
        return Examples((torch.randn(8, 6),), torch.arange(8) % 4)


@pytest.mark.parametrize(("gain", "used"), [(2.0, True), (1.0, False)])
def test_left_open_compiling_waits_for_rows_and_has_to_pay(gain, used, monkeypatch, capsys):
    def times(run, network):
        return run(network), 1.0 if isinstance(network, nn.Linear) else 1 / gain

    monkeypatch.setattr(torch, "compile", lambda network, options: Brittle(network, 0.0))
    monkeypatch.setattr("coarlib.ablation.compiling._timed", times)
    monkeypatch.setattr("coarlib.ablation.tuned.patience", lambda device: 10.0)
    task = Linear(batch_size=5)
    task.prepare(torch.device("cpu"))
    masks = np.random.default_rng(0).random((3, task.num_features)) < 0.6
    before = task.rows(np.arange(3), masks)
    assert task._fast is None and task.compiled is None
    task._spent = 11.0
    after = task.rows(np.arange(3), masks)
    assert (task._fast is not None) is used
    assert ("not used" in capsys.readouterr().err) is not used
    assert task.batch_size == (4 if used else 5)  # two batches of one size
    torch.testing.assert_close(before, after)
    assert task.rows(np.arange(3), masks).keys() == after.keys()  # and is not tried again
    assert "compiled" not in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_rows_are_the_plain_ones(capsys):
    """Weights are masked in place: the compiled model has to see that."""
    plain, fast = Linear(), Linear(compiled=True)
    for task in (plain, fast):
        task.prepare(torch.device("cpu"))
    masks = np.random.default_rng(0).random((3, fast.num_features)) < 0.6
    rows = [t.rows(np.arange(3), masks)["test_margins"] for t in (plain, fast)]
    torch.testing.assert_close(*rows)
    assert not torch.equal(rows[0][0], rows[0][1])
