"""The training loop of ExPLAIND's README, with its imports changed, and what follows from it."""

import pytest
import torch
from torch import nn

from coarlib.errors import HistoryError
from coarlib.interop.explaind import (
    AdamWOptimizerPath,
    DataPath,
    ExactPathKernelModel,
    ModelPath,
    RegularizedCrossEntropyLoss,
    SGDOptimizerPath,
)


class Classifier(nn.Module):
    """Log-probabilities of the sum of two tokens."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.hidden, self.decoder = nn.Linear(6, 12), nn.Linear(12, 7)

    def forward(self, tokens):
        hidden = torch.tanh(self.hidden(self.embedding(tokens).sum(1)))
        return self.decoder(hidden).log_softmax(-1)


class Pairs(torch.utils.data.Dataset):
    def __init__(self):
        self.data = torch.cartesian_prod(torch.arange(7), torch.arange(7))
        self.targets = self.data.sum(1) % 7

    def __getitem__(self, index):
        return self.data[index], self.targets[index]

    def __len__(self):
        return len(self.data)


def train(directory, make_optimizer=AdamWOptimizerPath, alpha=0.0, epochs=3, batch_size=20):
    """The README's loop, word for word but for the set-up's names."""
    torch.manual_seed(0)
    checkpoint_path = f"{directory}/"
    train_loader = torch.utils.data.DataLoader(Pairs(), batch_size=batch_size, shuffle=True)
    model = Classifier().double()
    model = ModelPath(model, device="cpu", checkpoint_path=checkpoint_path + "model_checkpoint.pt")
    loss_fct = RegularizedCrossEntropyLoss(alpha=alpha, p=2, device="cpu")
    optimizer = make_optimizer(model, checkpoint_path=checkpoint_path + "optimizer_checkpoint.pt")
    data_path = DataPath(
        train_loader,
        checkpoint_path=checkpoint_path + "data_checkpoint.pt",
        overwrite=True,
        full_batch=False,
    )
    for _epoch in range(epochs):
        for batch in data_path.dataloader:
            x, y = data_path.get_batch(batch)
            optimizer.zero_grad()
            output = model.forward(x)
            l, _reg = loss_fct(output, y, params=model.parameters(), output_reg=True)  # noqa: E741
            l.backward()
            optimizer.step()

            # log checkpoint values we need for epk prediction
            model.log_checkpoint()
            optimizer.log_checkpoint()
    optimizer.save_checkpoints()
    model.save_checkpoints()
    data_path.save_checkpoints()
    return model, optimizer, loss_fct, data_path


def momentum(model, **paths):
    return SGDOptimizerPath(model, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01, **paths)


@pytest.mark.parametrize("make_optimizer", [AdamWOptimizerPath, momentum])
@pytest.mark.parametrize("alpha", [0.0, 0.01])
def test_readme_loop_and_prediction(tmp_path, make_optimizer, alpha):
    model, optimizer, loss_fct, data_path = train(tmp_path, make_optimizer, alpha)
    epk = ExactPathKernelModel(
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fct,
        data_path=data_path,
        integral_eps=0.01,
        evaluate_predictions=True,
        keep_param_wise_kernel=True,
        param_wise_kernel_keep_out_dims=True,
    )
    x, y = Pairs().data[:4], Pairs().targets[:4]
    prediction, initial, kernel, regularisation, _ = epk.predict(
        x, y_test=y, keep_kernel_matrices=True
    )
    torch.testing.assert_close(prediction, model(x).detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(initial, model(x, step=0).detach(), rtol=0, atol=1e-12)
    assert kernel["hidden.weight"].shape == (4, 1, 7, 49)
    data = sum(kernel.values()).sum((1, 3))
    torch.testing.assert_close(initial + data + regularisation, prediction, rtol=0, atol=1e-9)


def test_saved_logs_are_read_again(tmp_path):
    """README: loading the checkpoints later gives the same explanation."""
    model, optimizer, loss_fct, data_path = train(tmp_path, epochs=1)
    paths = {name: f"{tmp_path}/{name}_checkpoint.pt" for name in ("model", "optimizer", "data")}
    again = ModelPath(Classifier().double(), checkpoint_path=paths["model"])
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=20)
    logs = (
        AdamWOptimizerPath(again, checkpoint_path=paths["optimizer"]),
        DataPath(loader, checkpoint_path=paths["data"]),
    )
    first = ExactPathKernelModel(model, optimizer, loss_fct, data_path)
    second = ExactPathKernelModel(again, logs[0], loss_fct, logs[1])
    x = Pairs().data[:2]
    torch.testing.assert_close(second.predict(x)[0], first.predict(x)[0], rtol=0, atol=1e-12)


def test_logs_that_do_not_fit_together_are_refused(tmp_path):
    model, optimizer, loss_fct, data_path = train(tmp_path, epochs=1)
    model.log_checkpoint()
    with pytest.raises(HistoryError, match="do not fit together"):
        ExactPathKernelModel(model, optimizer, loss_fct, data_path)


def test_batch_norm_is_refused_when_the_path_begins():
    with pytest.raises(HistoryError, match="BatchNorm1d 'layer'"):
        ModelPath(WithNorm())


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.BatchNorm1d(3)


def test_forward_leaves_the_training_mode_alone():
    model = ModelPath(Classifier())
    model.train()
    model.forward(torch.zeros(1, 2, dtype=torch.int64))
    assert model.model.training


def test_optimizers_share_no_checkpoints():
    first, second = (AdamWOptimizerPath(ModelPath(Classifier())) for _ in range(2))
    first.checkpoints.append({})
    assert not second.checkpoints


def rewritten_as_explaind_does(directory, model, optimizer, data):
    """The three files in explaind 0.0.2's own form (its add_to_history and log_batch)."""

    def by_name(flat):
        pieces = flat.split(optimizer.table.sizes)
        shaped = zip(optimizer.table.names, pieces, optimizer.table.shapes, strict=True)
        return {f"model.{name}": piece.view(shape) for name, piece, shape in shaped}

    moments = [entry["second_moment"] for entry in optimizer.checkpoints]
    entries = [
        {"exp_avg_sq": by_name(flat), "exp_avg": by_name(0 * flat)}
        for flat in [0 * moments[0], *moments]
    ]
    torch.save(entries, directory / "optimizer_checkpoint.pt")
    pairs = data.dataset
    batches = [
        {"X": pairs.data[numbers], "y": pairs.targets[numbers], "indices": numbers}
        for numbers in data.checkpoints
    ]
    torch.save(batches, directory / "data_checkpoint.pt")
    return entries


def test_checkpoints_of_explaind_itself_are_read(tmp_path):
    model, optimizer, loss, data = train(tmp_path)
    points = data.dataset.data[:2]
    wanted = ExactPathKernelModel(model, optimizer, loss, data).predict(points)
    entries = rewritten_as_explaind_does(tmp_path, model, optimizer, data)

    def again():
        read = ModelPath(Classifier().double(), checkpoint_path=tmp_path / "model_checkpoint.pt")
        steps = AdamWOptimizerPath(read, checkpoint_path=tmp_path / "optimizer_checkpoint.pt")
        loader = torch.utils.data.DataLoader(Pairs(), batch_size=20)
        batches = DataPath(loader, checkpoint_path=tmp_path / "data_checkpoint.pt")
        return ExactPathKernelModel(read, steps, loss, batches)

    torch.testing.assert_close(again().predict(points)[0], wanted[0], rtol=0, atol=1e-12)
    del entries[3]["exp_avg_sq"]["model.decoder.bias"]
    torch.save(entries, tmp_path / "optimizer_checkpoint.pt")
    with pytest.raises(HistoryError, match=r"by explaind.*no second moment of decoder.bias"):
        again()
    torch.save([{"X": points}], tmp_path / "data_checkpoint.pt")
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=20)
    with pytest.raises(HistoryError, match="no batches of sample numbers"):
        DataPath(loader, checkpoint_path=tmp_path / "data_checkpoint.pt")
    with pytest.raises(HistoryError, match="no checkpoints of this model"):
        ModelPath(nn.Linear(3, 2), checkpoint_path=tmp_path / "model_checkpoint.pt")
