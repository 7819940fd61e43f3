"""Explanations: outputs, axes, tiles, stores of results, quadrature, attributions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.recorded_runs import Run, tiny_data, tiny_model

from coarlib.ablation import find_components
from coarlib.errors import HistoryError, TornRowError
from coarlib.history import open_run, record
from coarlib.history.training import TrainingLoss
from coarlib.path_kernel import Decomposition, explain, predict
from coarlib.regression import Attributions
from coarlib.store import Store

RUN = Run("AdamW", {"lr": 0.05, "weight_decay": 0.5})


@pytest.fixture(scope="module")
def sub(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "h"
    model = RUN.record(path)
    return open_run(path, model, RUN.loss(), tiny_data()[0])


@pytest.fixture(scope="module")
def test_points():
    return tiny_data()[1]


def run(sub, points, **options):
    return explain(sub, *points, quiet=True, **options)


def closely(sub, points, **options):
    """Parts of outputs differ by more than the tolerance of their sum; here they are compared."""
    return run(sub, points, tolerance=1e-11, **options)


def test_a_scalar_output_is_that_column_of_all_outputs(sub, test_points):
    inputs, targets = test_points
    everything = closely(sub, test_points)
    rows = np.arange(len(targets))
    wanted = everything.by("sample")[rows, targets.numpy()]
    np.testing.assert_allclose(
        closely(sub, test_points, output="logit").by("sample")[:, 0], wanted, atol=1e-6
    )
    pairs = torch.stack([targets, (targets + 1) % 5], 1)
    contrast = closely(sub, (inputs, pairs), output="contrast").by("sample")[:, 0]
    other = everything.by("sample")[rows, pairs[:, 1].numpy()]
    np.testing.assert_allclose(contrast, wanted - other, atol=1e-6)
    own = run(sub, test_points, output=lambda logits, target: logits.square().sum())
    assert own.by("sample").shape == (2, 1, 10)
    assert own.checks()["total"] < 1e-5
    for name in ("log_probability", "margin"):
        assert run(sub, test_points, output=name).checks()["total"] < 1e-5


def test_components_split_their_tensors(sub, test_points):
    components = find_components(tiny_model(), ["linear_row"])
    by = ["component", "tensor", ("sample", "component"), ("component", "step")]
    for count_at in ("taken", "acted"):
        found = run(sub, test_points, by=by, components=components, count_at=count_at)
        per_component, per_tensor = found.by("component"), found.by("tensor")
        rows = [components.indices(name) for name in ("0.weight", "2.weight")]
        for index, group in zip((0, 2), rows, strict=True):
            np.testing.assert_allclose(
                per_component[..., list(group)].sum(-1), per_tensor[..., index], atol=1e-12
            )
        np.testing.assert_allclose(
            found.by("sample", "component").sum(2), per_component, atol=1e-12
        )
        np.testing.assert_allclose(found.by("component", "step").sum(-1), per_component, atol=1e-12)


@pytest.mark.parametrize("count_at", ["taken", "acted"])
def test_tiles_do_not_change_results(sub, test_points, count_at):
    by = ["sample", ("sample", "step"), "tensor"]
    whole = run(sub, test_points, by=by, count_at=count_at)
    tiled = run(sub, test_points, by=by, count_at=count_at, memory=30_000)
    for name in whole.arrays:
        np.testing.assert_allclose(tiled[name], whole[name], rtol=0, atol=1e-12, err_msg=name)


def test_step_windows_add_up(sub, test_points):
    single = run(sub, test_points, by=["step"]).by("step")
    double = run(sub, test_points, by=["step"], step_window=4).by("step")
    assert double.shape[-1] == 2
    np.testing.assert_allclose(double[..., 0], single[..., :4].sum(-1), atol=1e-12)
    np.testing.assert_allclose(double[..., 1], single[..., 4:].sum(-1), atol=1e-12)


def test_results_are_a_store_that_resumes_and_is_shared(sub, test_points, tmp_path):
    out = tmp_path / "results"
    assert run(sub, test_points, out=out, rows=range(1)) is None
    with pytest.raises(HistoryError, match="lacks 1 of 2 test points"):
        Decomposition.open(out)
    before = Store.open(out).checksums()[0]
    finished = run(sub, test_points, out=out)
    assert Store.open(out).checksums()[0] == before
    memory = run(sub, test_points)
    for name in memory.arrays:
        np.testing.assert_allclose(finished[name], memory[name], rtol=0, atol=1e-12)
    with pytest.raises(HistoryError, match="another explanation"):
        run(sub, test_points, out=out, tolerance=1e-3)
    with open(out / "data_by_sample.npy", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"?")
    for read in (lambda: Decomposition.open(out), lambda: run(sub, test_points, out=out)):
        with pytest.raises(TornRowError, match=r"1 completed rows of .*results do not match"):
            read()


def test_attributions_can_be_saved_and_read(sub, test_points, tmp_path):
    found = run(sub, test_points)
    attributions = found.attributions()
    assert attributions.weight.shape == (10, 10)
    attributions.save(tmp_path / "a")
    again = Attributions.load(tmp_path / "a")
    np.testing.assert_allclose(
        again.bias + again.weight.sum(0), found["final"].reshape(-1), rtol=0, atol=1e-5
    )


def test_prediction_by_forward_mode_is_that_of_the_decomposition(sub, test_points):
    fast = predict(sub, *test_points, decay_apart=True, quiet=True)
    plain = predict(sub, *test_points, quiet=True)
    np.testing.assert_allclose(plain.prediction, fast.prediction, atol=1e-9)
    full = run(sub, test_points)
    np.testing.assert_allclose(fast.prediction, full.prediction, atol=1e-5)
    np.testing.assert_allclose(fast["weight_decay"], full["weight_decay"], atol=1e-4)
    assert fast.checks()["total"] < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["samples"]}, "did you mean 'sample'"),
        ({"by": ["component"]}, "needs components="),
        ({"by": [("tensor", "component")]}, "give one axis or a pair"),
        ({"output": "logits"}, "did you mean 'logit'"),
        ({"count_at": "both"}, "taken or acted"),
        ({"memory": 0}, "at least 1 byte"),
        ({"output": 3}, "a name or a function, not 3"),
        ({"output": lambda outputs, _: outputs.argmax()}, "at least one number in torch.float64"),
        ({"output": lambda outputs, _: outputs[:0]}, "not 0 in torch.float64"),
        ({"output": lambda outputs, _: None}, "points 0 to 1 cannot be computed .AttributeError"),
        ({"output": lambda outputs, target: outputs.sum() / (0 * target)}, "point . has outputs"),
    ],
)
def test_bad_requests_are_one_clear_sentence(sub, test_points, options, message):
    with pytest.raises(HistoryError, match=message):
        run(sub, test_points, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs, targets: (inputs[:0], targets[:0]), "no test points"),
        (lambda inputs, targets: (inputs, targets - 9), "points 0 to 1 cannot.*out of bounds"),
        (lambda inputs, targets: (inputs[:, :2], targets), "points 0 to 1 cannot.*multiplied"),
        (lambda inputs, targets: (inputs * torch.nan, targets), "point 0 has outputs"),
    ],
)
def test_bad_test_points_are_named(sub, test_points, change, message):
    with pytest.raises(HistoryError, match=message):
        run(sub, change(*test_points), output="logit")


def test_updates_that_cannot_be_split_further_end(sub, test_points):
    inputs, targets = test_points
    found = run(sub, (inputs * 1e300, targets))
    assert np.isfinite(found.by("sample")).all()


class Several(nn.Module):
    """Outputs of which a loss and a quantity choose."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 5), kind

    def forward(self, x):
        return self.kind([("logits", self.layer(x)), ("inputs", x)])


@pytest.mark.parametrize(
    ("kind", "place"), [(dict, "logits"), (lambda pairs: tuple(dict(pairs).values()), 0)]
)
def test_models_may_return_several_tensors(tmp_path, kind, place):
    torch.manual_seed(0)
    data, points = tiny_data()
    model, plain = Several(kind).double(), nn.Linear(3, 5).double()
    plain.load_state_dict(model.layer.state_dict())
    found = []
    for each, own in (
        (model, lambda outputs, *_: outputs[place]),
        (plain, lambda outputs, *_: outputs),
    ):
        loss = TrainingLoss(lambda o, t, own=own: F.cross_entropy(own(o), t))
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        path = tmp_path / str(len(found))
        with record(each, optimizer, path, samples=data, loss=loss, num_steps=2, max_batch=10) as h:
            for _ in range(2):
                optimizer.zero_grad()
                loss.function(each(data[0]), data[1]).backward()
                h.batch(range(10))
                optimizer.step()
        history = open_run(path, each, loss, data)
        found.append(explain(history, *points, output=own, quiet=True).by("sample"))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda layer: nn.utils.parametrizations.weight_norm(layer),
            "forward AD with _weight_norm",
        ),
        (torch.nn.utils.weight_norm, "cannot be copied"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_torch_cannot_do_with_a_model_is_one_sentence(tmp_path, make, message):
    model, loss = nn.Sequential(make(nn.Linear(3, 5))).double(), TrainingLoss(F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data, points = tiny_data()
    with record(
        model, optimizer, tmp_path, samples=data, loss=loss, num_steps=1, max_batch=10
    ) as h:
        F.cross_entropy(model(data[0]), data[1]).backward()
        h.batch(range(10))
        optimizer.step()
    with pytest.raises(HistoryError, match=message):
        explain(open_run(tmp_path, model, loss, data), *points, quiet=True)


class Modular(nn.Module):
    """(a + b) mod 11 with ReLU: kinks that quadrature has to find."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 32)
        self.decoder = nn.Linear(32, 11)

    def forward(self, tokens):
        return self.decoder(F.relu(self.hidden(self.embedding(tokens).sum(1)))).log_softmax(-1)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "total"),
    [(torch.float64, None, 1e-5), (torch.float32, None, 1e-3), (torch.float64, 1e-3, 2e-2)],
)
def test_kinks_are_integrated_to_the_stated_tolerance(tmp_path, dtype, tolerance, total):
    torch.manual_seed(0)
    tokens = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    data = tokens, tokens.sum(1) % 11
    model = Modular().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=1.0)
    loss = TrainingLoss(F.nll_loss)
    options = {"samples": data, "loss": loss, "num_steps": 15, "max_batch": 40, "quiet": True}
    with record(model, optimizer, tmp_path / "h", **options) as history:
        for batch in torch.randperm(121).split(40)[:3] * 5:
            optimizer.zero_grad()
            F.nll_loss(model(data[0][batch]), data[1][batch]).backward()
            history.batch(batch)
            optimizer.step()
    points = data[0][:3], data[1][:3]
    found = explain(
        open_run(tmp_path / "h", model, loss, data), *points, quiet=True, tolerance=tolerance
    )
    checks = found.checks()
    allowed = found.about["tolerance"]
    assert checks["largest_step_residual"] <= max(allowed, 2e-4 * (dtype == torch.float32))
    assert checks["total"] < total
    assert checks["sum_of_parts"] < 1e-6
    if tolerance:
        assert checks["total"] > 1e-6  # a loose tolerance is used
