"""dattri's signatures: its own results where it is right, ours where it is not."""

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from coarlib.errors import ScoringError
from coarlib.interop import dattri as ours

TOLERANCE = 1e-12


@pytest.fixture
def theirs():
    return pytest.importorskip("dattri.metric", reason="dattri is not installed")


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    indices = torch.stack([torch.randperm(100, generator=generator)[:50] for _ in range(30)])
    values = torch.stack([score[subset].sum(0) for subset in indices])
    values += 5 * torch.randn(30, 6, generator=generator, dtype=torch.float64)
    return score, values, indices


def test_lds_equals_dattris(theirs):
    score, values, indices = problem()
    for found, expected in zip(
        ours.lds(score, (values, indices)), theirs.lds(score, (values, indices)), strict=True
    ):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_lds_of_float32_scores_ties_where_dattris_does_not(theirs):
    score, values, indices = problem()
    levels = score.sign() * (score.abs() > 0.4)
    right = ours.lds(levels.long(), (values, indices))[0]  # integers: exact in any arithmetic
    found = ours.lds((0.1 * levels).float(), (values, indices))[0]
    dattris = theirs.lds((0.1 * levels).float(), (values, indices))[0]
    torch.testing.assert_close(found, right.float(), atol=1e-7, rtol=0)
    assert (dattris - right).abs().max() > 1e-4


def test_lds_takes_ragged_subsets():
    score, values, indices = problem()
    ragged = [subset[: 30 + row] for row, subset in enumerate(indices.tolist())]
    assert torch.isfinite(ours.lds(score, (values, ragged))[0]).all()


def test_loo_corr_equals_dattris_for_rows_in_order(theirs):
    score, _, _ = problem()
    losses = 10 + 0.3 * score + torch.randn(100, 6, dtype=torch.float64)
    removed = torch.arange(100.0)  # dattri's own ground truth is float32
    for found, expected in zip(
        ours.loo_corr(score, (losses, removed)),
        theirs.loo_corr(score, (losses, removed)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-6)


def test_loo_corr_uses_the_removed_indices_unlike_dattri(theirs):
    score, _, _ = problem()
    order = torch.randperm(100)
    found = ours.loo_corr(score, (score[order], order))[0]
    torch.testing.assert_close(found, torch.ones(6, dtype=torch.float64))
    assert theirs.loo_corr(score, (score[order], order))[0].abs().max() < 0.5
    margin = ours.loo_corr(score, (-score[order], order), higher_is_better=True)[0]
    torch.testing.assert_close(margin, found)
    with pytest.raises(ScoringError, match="whole numbers"):
        ours.loo_corr(score, (score, torch.arange(100) + 0.5))


def test_auc_equals_dattris_without_ties_and_is_half_when_all_tie(theirs):
    score = torch.randn(200)
    wrong = (torch.rand(200) < 0.2).long()
    wrong[0], wrong[1] = 1, 0
    auc, (fpr, tpr, thresholds) = ours.mislabel_detection_auc(score, wrong)
    assert auc == pytest.approx(float(theirs.mislabel_detection_auc(score, wrong)[0]), abs=1e-6)
    assert fpr.shape == tpr.shape == thresholds.shape == (201,)
    assert ours.mislabel_detection_auc(torch.zeros(200), wrong)[0] == 0.5
    assert ours.mislabel_detection_auc(torch.zeros(200), wrong.flip(0))[0] == 0.5


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_flip_label_takes_arrays_and_is_seeded(kind):
    label = torch.arange(50) % 5
    label = label if kind == "tensor" else label.numpy()
    flipped, indices = ours.flip_label(label, None, 0.3, seed=1)
    assert len(set(indices)) == 15
    assert all((flipped[i] != label[i]).item() == (i in indices) for i in range(50))
    assert (ours.flip_label(label, p=0.3, seed=1)[0] == flipped).all()


def nearest_mean(loader):
    """A model that remembers the class means of its training data."""
    inputs, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    model = torch.nn.Linear(1, 1)
    model.means = torch.stack([inputs[labels == c].mean() for c in (0, 1)])
    return model


def predict(model, loader):
    assert not model.training
    (inputs, _) = next(iter(loader))
    return (inputs - model.means).abs().argmin(dim=1)


@pytest.mark.parametrize("sampler", [False, True])
def test_brittleness_finds_the_smallest_removal_that_flips(sampler):
    inputs = torch.cat([torch.tensor([-6.0] * 4 + [0.0] * 6), torch.ones(10)])
    labels = torch.tensor([0] * 10 + [1] * 10)
    data = TensorDataset(inputs[:, None], labels)
    chosen = list(range(20)) if not sampler else list(range(19, -1, -1))
    options = {"sampler": SubsetRandomSampler(chosen)} if sampler else {}
    loader = DataLoader(data, batch_size=4, **options)
    test = DataLoader(TensorDataset(torch.tensor([[0.1]]), torch.tensor([1])))
    scores = (inputs == -6).float()[chosen]  # removing the outliers moves class 0 to the sample
    args = (loader, test, scores, nearest_mean, predict)
    flipped_at = [
        k
        for k in range(5)
        if abs(0.1 - float(torch.tensor([-6.0] * (4 - k) + [0.0] * 6).mean())) < 0.9
    ]
    assert ours.brittleness(*args, search_space=range(5)) == flipped_at[0] > 0
    assert ours.brittleness(*args, search_space=[0]) is None
    with pytest.raises(ScoringError, match="scores are of 3 examples"):
        ours.brittleness(loader, test, torch.ones(3), nearest_mean, predict)


def test_a_benchmark_that_dattri_downloaded_is_read(tmp_path):
    folder = tmp_path / "benchmark" / "mnist_mlp"
    score, values, indices = problem()
    (folder / "lds").mkdir(parents=True)
    torch.save(values, folder / "lds" / "target_values_lds.pt")
    for part in ("models_full", "models_half"):
        for number in (10, 2, 0):
            (folder / part / str(number)).mkdir(parents=True)
            torch.save({}, folder / part / str(number) / "model_weights_0.pt")
    options = {"model": "mlp", "dataset": "mnist", "metric": "lds", "download_path": tmp_path}
    with pytest.raises(ScoringError, match=r"indices_lds.pt is asked for.* let dattri fetch"):
        ours.load_benchmark(**options)
    torch.save(indices, folder / "lds" / "indices_lds.pt")
    inputs, truth = ours.load_benchmark(**options, redownload=False)
    assert [file.parent.name for file in inputs["models_half"]] == ["0", "2", "10"]
    expected = ours.lds(score, (values, indices))[0]
    torch.testing.assert_close(ours.lds(score, truth)[0], expected)


def trained_on(loader):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for inputs, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def label_of(model, loader):
    (inputs, _) = next(iter(loader))
    return model(inputs).argmax(dim=1)


def test_brittleness_is_dattris(theirs):
    """In dattri's order of examples, which small batches make matter."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 2, generator=generator)
    labels = (inputs.sum(1) + 0.5 * torch.randn(40, generator=generator) > 0).long()
    chosen = torch.randperm(40, generator=generator).tolist()
    loader = DataLoader(
        TensorDataset(inputs, labels), batch_size=3, sampler=SubsetRandomSampler(range(40))
    )
    found = []
    for place in chosen[:20]:
        near = torch.randn(1, 2, generator=generator) * 0.3
        test = DataLoader(TensorDataset(near, labels[place : place + 1]))
        scores = (inputs @ near[0]) * (2 * labels - 1) * (2 * labels[place] - 1)
        args = (loader, test, scores, trained_on, label_of)
        found.append(ours.brittleness(*args, search_space=range(40)))
        assert found[-1] == theirs.brittleness(*args, search_space=list(range(40)))
    assert len(set(found) - {None, 0}) > 3
