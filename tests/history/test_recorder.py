"""Recording: what is refused by name, what rows hold, resuming."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.recorded_runs import BATCHES, Run, tiny_data, tiny_model

from coarlib.errors import CoarlibError, HistoryError
from coarlib.history import History, TrainingLoss, open_run, record, restore, rows
from coarlib.history.reading import digest_of
from coarlib.path_kernel import explain

LOSS = TrainingLoss(F.cross_entropy)


def begin(path, model, optimizer, loss=LOSS, **options):
    options = {"num_steps": 6, "max_batch": 4, "quiet": True, **options}
    return record(model, optimizer, path, samples=tiny_data()[0], loss=loss, **options)


def one_step(history, model, optimizer, batch=BATCHES[0], declared=None):
    inputs, targets = tiny_data()[0]
    optimizer.zero_grad()
    F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
    history.batch(batch if declared is None else declared)
    optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.bfloat16, {}, "parameters are bfloat16; record them in float32"),
        (torch.float64, {"storage": "float8"}, "one of float32, float64, bfloat16, not 'float8'"),
    ],
)
def test_dtypes_that_cannot_be_recorded_are_refused(tmp_path, dtype, options, message):
    model = nn.Linear(3, 5, dtype=dtype)
    with pytest.raises(HistoryError, match=message):
        begin(tmp_path / "h", model, torch.optim.SGD(model.parameters(), 0.1), **options)


@pytest.mark.parametrize("wrong", [{"num_steps": "many"}, {"every": 0}, {"max_batch": -1}])
def test_counts_that_cannot_be_are_refused(tmp_path, wrong):
    model = tiny_model()
    with pytest.raises(CoarlibError, match=f"^{next(iter(wrong))} must be"):
        begin(tmp_path / "h", model, torch.optim.SGD(model.parameters(), 0.1), **wrong)


class Rare(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.BatchNorm1d(5), "BatchNorm1d '1'"),
        (nn.Dropout(0.1), "Dropout '1'"),
        (nn.RReLU(), "RReLU '1'"),
        (nn.BatchNorm1d(5, track_running_stats=False).eval(), "BatchNorm1d '1'"),
    ],
)
def test_inexact_modules_are_refused_by_name(tmp_path, module, name):
    model = nn.Sequential(nn.Linear(3, 5), module, nn.Linear(5, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(HistoryError, match=name):
        begin(tmp_path / "h", model, optimizer)
    assert not (tmp_path / "h").exists()


def test_switching_dropout_on_later_is_refused_at_that_step(tmp_path):
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5).eval(), nn.Linear(5, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        pytest.raises(HistoryError, match="Dropout '1'"),
        begin(tmp_path / "h", model, optimizer) as history,
    ):
        one_step(history, model, optimizer)
        model.train()
        one_step(history, model, optimizer)
    assert History(tmp_path / "h").num_updates == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.SGD(p, 0.1, maximize=True), "maximize"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
        (lambda p: Rare(p), "Rare"),
    ],
)
def test_optimizers_without_exact_kernel_are_refused_by_name(tmp_path, make, message):
    model = tiny_model()
    with pytest.raises(HistoryError, match=message):
        begin(tmp_path / "h", model, make(model.parameters()))


def test_gradients_that_are_not_of_the_declared_loss_are_refused(tmp_path):
    """Wrong sample numbers, a hidden loss term, a wrong reduction: all at the first step."""
    inputs, targets = tiny_data()[0]
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        pytest.raises(HistoryError, match="differs from that of the declared loss"),
        begin(tmp_path / "a", model, optimizer) as history,
    ):
        one_step(history, model, optimizer, declared=[0, 1, 2, 9])
    wrong = TrainingLoss(F.cross_entropy, "sum")
    with (
        pytest.raises(HistoryError, match="differs from that of the declared loss"),
        begin(tmp_path / "b", model, optimizer, wrong) as history,
    ):
        one_step(history, model, optimizer)
    with (
        pytest.raises(HistoryError, match="differs from that of the declared loss"),
        begin(tmp_path / "c", model, optimizer) as history,
    ):
        optimizer.zero_grad()
        penalty = 0.01 * sum(p.square().sum() for p in model.parameters())
        (F.cross_entropy(model(inputs[:4]), targets[:4]) + penalty).backward()
        history.batch([0, 1, 2, 3])
        optimizer.step()


def test_clipping_by_value_and_forgotten_batches_are_refused(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        pytest.raises(HistoryError, match="clip_grad_value_"),
        begin(tmp_path / "a", model, optimizer) as history,
    ):
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
    with pytest.raises(HistoryError, match="has no batch"), begin(tmp_path / "b", model, optimizer):
        optimizer.step()
    with (
        pytest.raises(HistoryError, match="max_batch"),
        begin(tmp_path / "c", model, optimizer) as history,
    ):
        history.batch(range(5))
    assert torch.nn.utils.clip_grad_value_.__module__.startswith("torch.")


def test_bytes_are_estimated_before_training(tmp_path, capsys):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    begin(tmp_path / "h", model, optimizer, quiet=False)
    said = capsys.readouterr().err
    settings = History(tmp_path / "h").settings
    assert f"{settings.num_bytes() / 1e6:.4g} MB" in said
    assert settings.num_bytes() >= 7 * 2 * 50 * 8


def test_recording_resumes_where_the_users_checkpoint_is(tmp_path):
    """Interrupted after 3 of 6 updates, restored to update 2, continued: as if uninterrupted."""
    run = Run("Adam", {"lr": 0.05, "weight_decay": 0.1})
    whole = run.record(tmp_path / "whole")
    data = tiny_data()[0]
    model = tiny_model()
    optimizer = run.build(model)
    checkpoints = []
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "h", model, optimizer) as history:
        for number, batch in enumerate(BATCHES):
            checkpoints.append(
                (
                    {k: v.clone() for k, v in model.state_dict().items()},
                    copy.deepcopy(optimizer.state_dict()),
                )
            )
            if number == 3:
                raise KeyboardInterrupt
            one_step(history, model, optimizer, batch)
    model = tiny_model(seed=5)
    optimizer = run.build(model)
    with pytest.raises(HistoryError, match="none of them"):
        begin(tmp_path / "h", model, optimizer)
    model.load_state_dict(checkpoints[2][0])
    optimizer.load_state_dict(checkpoints[2][1])
    with begin(tmp_path / "h", model, optimizer) as history:
        assert history.step == 2
        run.train(model, optimizer, data, 2, lambda n: history.batch(BATCHES[n]))
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    first, second = (History(tmp_path / name) for name in ("whole", "h"))
    assert first.num_updates == second.num_updates == 6
    for step in range(6):
        assert first.record(step).digest == second.record(step).digest
        assert (first.record(step).counts == second.record(step).counts).all()


def test_restore_puts_back_model_and_optimizer(tmp_path):
    run = Run("AdamW", {"lr": 0.05})
    whole = run.record(tmp_path / "whole")
    model = tiny_model()
    optimizer = run.build(model)
    with begin(tmp_path / "h", model, optimizer, keep_momentum=True) as history:
        for batch in BATCHES[:4]:
            one_step(history, model, optimizer, batch)
    model = tiny_model(seed=3)
    optimizer = run.build(model)
    assert restore(History(tmp_path / "h"), model, optimizer) == 4
    with begin(tmp_path / "h", model, optimizer, keep_momentum=True) as history:
        run.train(model, optimizer, tiny_data()[0], 4, lambda n: history.batch(BATCHES[n]))
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_another_run_does_not_overwrite_a_history(tmp_path):
    Run("AdamW", {"lr": 0.05}).record(tmp_path / "h")
    before = History(tmp_path / "h").record(0).digest
    with pytest.raises(HistoryError, match="another run"):
        Run("SGD", {"lr": 0.05}).record(tmp_path / "h")
    assert History(tmp_path / "h").record(0).digest == before


def test_other_samples_or_models_are_refused_when_explaining(tmp_path):
    run = Run("SGD", {"lr": 0.1})
    model = run.record(tmp_path / "h")
    inputs, targets = tiny_data()[0]
    with pytest.raises(HistoryError, match="not the training samples"):
        open_run(tmp_path / "h", model, LOSS, (inputs + 1, targets))
    with pytest.raises(HistoryError, match="no parameter"):
        open_run(tmp_path / "h", nn.Linear(3, 5).double(), LOSS, (inputs, targets))
    with pytest.raises(HistoryError, match="holds no training history"):
        open_run(tmp_path, model, LOSS, (inputs, targets))


def test_weights_of_samples_are_followed(tmp_path):
    """A loss with a weight a sample, declared with the batch."""
    train, test = tiny_data()
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.5)
    weights = np.array([0.1, 0.5, 0.3, 0.7])
    with begin(tmp_path / "h", model, optimizer, weighted=True, num_steps=3) as history:
        for batch in ([0, 1, 2, 3], [5, 6, 7, 8], [1, 4, 9, 2]):
            optimizer.zero_grad()
            losses = F.cross_entropy(model(train[0][batch]), train[1][batch], reduction="none")
            (losses * torch.from_numpy(weights)).sum().backward()
            history.batch(batch, weights)
            optimizer.step()
    found = explain(open_run(tmp_path / "h", model, LOSS, train), *test, quiet=True)
    assert found.checks()["total"] < 1e-5


def test_unused_parameters_do_not_move(tmp_path):
    """A tensor without a gradient is skipped by the optimizer, and so by the kernel."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 5).double(), nn.Linear(3, 5).double()

        def forward(self, x):
            return self.used(x)

    train, test = tiny_data()
    model = Partly()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.5)
    with begin(tmp_path / "h", model, optimizer) as history:
        for batch in BATCHES:
            one_step(history, model, optimizer, batch)
    found = explain(open_run(tmp_path / "h", model, LOSS, train), *test, by=["tensor"], quiet=True)
    assert found.checks()["total"] < 1e-5
    assert not found.by("tensor")[..., 2:].any()


def test_rows_are_right_beyond_one_buffer_and_after_parameters_moved(tmp_path, monkeypatch):
    """Buffers are used again, and ``p.data`` may come to lie elsewhere during training."""
    monkeypatch.setattr(rows, "MAX_BUFFERED_ROWS", 2)
    run = Run("Adam", {"lr": 0.05})
    expected = tiny_model()
    run.train(expected, run.build(expected), tiny_data()[0])
    model = tiny_model()
    optimizer = run.build(model)
    seen = []

    def before_step(number):
        seen.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        for parameter in model.parameters():
            old = parameter.data
            parameter.data = old.clone()
            old.fill_(float("nan"))  # what a recorder must not look at any more
        history.batch(BATCHES[number])

    with begin(tmp_path / "h", model, optimizer) as history:
        run.train(model, optimizer, tiny_data()[0], before_step=before_step)
    kept = History(tmp_path / "h")
    for step, theta in enumerate(seen):
        torch.testing.assert_close(kept.state(step).theta, theta, rtol=0, atol=0)
        assert kept.record(step).digest == digest_of(theta)
        assert kept.record(step).samples.tolist() == BATCHES[step]
    last = torch.cat([p.detach().reshape(-1) for p in expected.parameters()])
    torch.testing.assert_close(kept.state(6).theta, last, rtol=0, atol=0)


@pytest.mark.parametrize(
    "declared",
    [(2, 0, 1, 3), np.array([2, 0, 1, 3], np.uint8), torch.tensor([[2, 0], [1, 3]]), range(4)],
)
def test_sample_numbers_come_in_many_forms(tmp_path, declared):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with begin(tmp_path / "h", model, optimizer, num_steps=1) as history:
        one_step(history, model, optimizer, declared=declared)
    assert sorted(History(tmp_path / "h").record(0).samples) == [0, 1, 2, 3]


def test_samples_that_do_not_exist_are_named(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with begin(tmp_path / "h", model, optimizer) as history:
        for wrong in (-1, 10):
            with pytest.raises(HistoryError, match=f"sample {wrong} of the batch"):
                history.batch([0, wrong])
