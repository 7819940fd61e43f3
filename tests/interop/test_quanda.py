"""quanda's configuration, dict and id: trained, cached and scored as its page documents."""

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from coarlib.commands.judge.lds_benchmark import main as lds_benchmark
from coarlib.commands.judge.train_subset import main as train_subset
from coarlib.errors import CoarlibError, SetupError, StoreError
from coarlib.interop.banks import quanda_checkpoints, read_quanda_logits, read_quanda_subsets
from coarlib.interop.quanda import LinearDatamodeling
from coarlib.interop.quanda_config import read_config, trainer

pytest.importorskip("safetensors", reason="safetensors is not installed")

DATA = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

generator = torch.Generator().manual_seed(0)
X = torch.randn(60, 6, generator=generator)
Y = (X @ torch.randn(6, 3, generator=generator)).argmax(1)

def train():
    return TensorDataset(X[:50], Y[:50])

def test():
    return X[50:], Y[50:]

class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.body(x)
"""
CONFIG = """
model:
  pretrained_model_name: null
  module:
    name: {file}:Net
    args:
      hidden: 7
  trainer:
    optimizer: sgd
    optimizer_kwargs:
      weight_decay: 0.0
    criterion: cross_entropy
    criterion_kwargs: {{}}
    scheduler: step
    scheduler_kwargs:
      step_size: 2
    lr: 0.2
    max_epochs: 4
    seed: 42
    num_workers: 8
    enable_progress_bar: false
train_dataset:
  dataset_str: {file}:train
  dataset_split: train
  transforms: null
  split_ref: mine
  split_name: train
val_dataset:
  dataset_str: {file}:train
  split_ref: mine
  split_name: val
eval_dataset:
  dataset_str: {file}:test
splits:
  mine:
    filename: mine_split.yaml
    ratios:
      train: 0.8
      val: 0.2
    seed: 42
id: 1a2b3c4-default_LDS
bench: LDS
bench_save_dir: {folder}
repo_id: quanda-bench-test
correlation_fn: spearman
seed: 42
device: cpu
m: 30
alpha: 0.5
subset_ids: lds_subsets.yaml
ckpt: quanda-bench-test/1a2b3c4-default_LDS
batch_size: 8
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(DATA)
    text = CONFIG.format(file=tmp_path / "mine.py", folder=tmp_path / "bench")
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


class Similarity:
    """An explainer as quanda's are called."""

    def __init__(self, model, train_dataset, scale=1.0):
        self.inputs, self.targets = train_dataset.tensors
        self.scale = scale

    def explain(self, test_data, targets):
        same = torch.where(targets[:, None] == self.targets[None], 1.0, -1.0)
        return self.scale * (test_data @ self.inputs.T) * same


def test_the_page_of_quanda_runs(file, tmp_path):
    device = "cpu"
    lds_train_config = str(file)
    LinearDatamodeling.train(
        lds_train_config,
        device=device,
        skip_subsets=True,
    )
    for idx in range(3):
        LinearDatamodeling.train_subset(
            lds_train_config,
            idx=idx,
            device=device,
        )
    models = quanda_checkpoints(tmp_path / "bench", "1a2b3c4-default_LDS")
    assert len(models) == 3
    before = [model.stat().st_mtime_ns for model in models]
    LinearDatamodeling.train(yaml.safe_load(file.read_text()))  # a dict; the other subsets
    models = quanda_checkpoints(tmp_path / "bench", "1a2b3c4-default_LDS")
    assert len(models) == 30
    assert [model.stat().st_mtime_ns for model in models[:3]] == before
    lds_bench = LinearDatamodeling.load_pretrained(
        bench_id=lds_train_config, cache_dir=str(tmp_path / "bench"), device=device
    )
    expl_cache_dir = str(tmp_path / "lds_explanations")
    LinearDatamodeling.explain(
        config=lds_train_config,
        explainer_cls=Similarity,
        expl_kwargs={"scale": 2.0},
        cache_dir=expl_cache_dir,
        device=device,
        batch_size=8,
    )
    subset_logits_dir = LinearDatamodeling.cache_subset_logits(
        config=lds_train_config,
        cache_dir=str(tmp_path / "lds_subset_logits"),
        device=device,
        batch_size=8,
    )
    lds_results = lds_bench.evaluate(
        explainer_cls=Similarity,
        expl_kwargs={"scale": 2.0},
        cache_dir=expl_cache_dir,
        use_cached_expl=True,
        subset_logits_dir=subset_logits_dir,
        batch_size=8,
    )
    assert lds_results == lds_bench.evaluate(explainer_cls=Similarity)
    for idx in reversed(range(30)):  # a subset each, as workers of an array job
        one_by_one = LinearDatamodeling.cache_subset_logits_per_idx(
            config=lds_train_config,
            idx=idx,
            cache_dir=str(tmp_path / "lds_subset_logits_by_idx"),
            device=device,
            batch_size=8,
        )
    np.testing.assert_array_equal(
        read_quanda_logits(one_by_one), read_quanda_logits(subset_logits_dir)
    )
    with pytest.raises(SetupError, match="no subset 30 of 30"):
        LinearDatamodeling.cache_subset_logits_per_idx(lds_train_config, 30)
    assert lds_results["ci_low"] < lds_results["score"] < lds_results["ci_high"]
    assert lds_results["score"] > 0.1


def test_files_are_quandas(file, tmp_path):
    LinearDatamodeling.train(file, skip_subsets=True)
    folder = tmp_path / "bench" / "metadata" / "1a2b3c4-default_LDS_metadata"
    torch.manual_seed(42)  # as quanda's DatasetSplit
    split = yaml.safe_load((folder / "mine_split.yaml").read_text())
    assert split["train"] == torch.randperm(50)[:40].tolist()
    generator = torch.Generator().manual_seed(42)
    for subset in read_quanda_subsets(folder / "lds_subsets.yaml"):
        assert subset.tolist() == torch.randperm(40, generator=generator)[:20].tolist()
    assert yaml.safe_load((folder / "lds_subsets.yaml").read_text())


def test_a_subset_alone_is_the_subset_among_others(file, tmp_path):
    config = read_config(file)
    alone = LinearDatamodeling.train_subset(config, 4)
    together = LinearDatamodeling.train({**config, "bench_save_dir": str(tmp_path / "other")})
    for one, other in zip(alone.model(4).parameters(), together.model(4).parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_is_that_of_the_configuration(file):
    made = trainer(read_config(file), batch_size=8)
    subset = np.arange(20)
    found = made.train(subset, 42)
    expected = made.new_model(42)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.2, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    batches = list(made.batches(subset, 42))
    for epoch in range(4):
        for batch in batches[3 * epoch : 3 * epoch + 3]:
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(expected(made.inputs[batch]), made.targets[batch]).backward()
            optimizer.step()
        scheduler.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_be_read_is_named(file, tmp_path):
    config = read_config(file)

    def changed(**others):
        return {**config, **others}

    model, settings = config["model"], config["model"]["trainer"]
    for wrong, words in (
        (changed(model={**model, "module": {"name": "ResNet9"}}), "name of quanda's"),
        (changed(model={**model, "trainer": {**settings, "optimizer": "sdg"}}), "mean 'sgd'"),
        (changed(model={**model, "trainer": {**settings, "scheduler": "plateau"}}), "is none of"),
        (changed(train_dataset={"dataset_str": "no/such-data"}), "cannot be loaded"),
        (changed(splits={}), "lacks mine"),
        ({"id": "x"}, "lacks model, train_dataset, bench_save_dir"),
        ("no_such_bench", "there is no configuration no_such_bench"),
    ):
        with pytest.raises(SetupError, match=words):
            LinearDatamodeling.train_subset(wrong, 0)
    with pytest.raises(SetupError, match="no subset 30 of 30"):
        LinearDatamodeling.train_subset(config, 30)
    with pytest.raises(StoreError, match="train it first"):
        LinearDatamodeling.load_pretrained(changed(bench_save_dir=str(tmp_path / "empty")))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(CoarlibError, match="is not plain YAML"):
        read_config(tmp_path / "broken.yaml")


def test_the_commands_take_quandas_configuration(file, tmp_path, capsys):
    train_subset(["--config-path", str(file), "--idx", "2"])
    assert "subset 2 of 30 is trained" in capsys.readouterr().out
    train_subset(["--config", str(file), "--idx=3", "--device", "cpu"])
    assert len(list((tmp_path / "bench" / "ckpt").glob("*/model.safetensors"))) == 2
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).normal(size=(40, 10)))
    lds_benchmark(["--config", str(file), "--scores", f"mine={tmp_path / 'scores.npy'}"])
    table = capsys.readouterr().out
    assert "30 subsets, 10 targets (1a2b3c4-default_LDS)" in table
    assert "mine" in table
    with pytest.raises(SetupError, match="no subset 99 of 30"):
        train_subset(["--config", str(file), "--idx", "99"])
