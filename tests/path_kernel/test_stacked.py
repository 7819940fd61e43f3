"""Several updates in one launch: the numbers of one by one, where the model allows it."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.devices import float32_products
from coarlib.history import TrainingLoss, open_run, record
from coarlib.history.queries import Queries
from coarlib.path_kernel import explain
from coarlib.path_kernel.stacked_segments import stacked_model

EXPLAIN = importlib.import_module("coarlib.path_kernel.explain")
FEATURES = importlib.import_module("coarlib.path_kernel.features")
TOKENS, SAMPLES, UPDATES = 6, 24, 9
BATCHES = [torch.arange(first, first + 5 + first % 3) for first in range(UPDATES)]


class Attention(nn.Module):
    """Embedding, a layer called twice with ReLU in place, attention, biases: kinks and sharing."""

    def __init__(self, *, tied=False, first=False, scaled=False, padded=False, keys=False, **last):
        super().__init__()
        self.again = nn.Linear(8, 8) if last else None
        self.embedding, self.layer = nn.Embedding(TOKENS, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, TOKENS, bias=False)
        self.act, self.first = nn.ReLU(inplace=True), first
        self.scale = nn.Parameter(torch.ones(8)) if scaled else None
        self.padding, self.keys = -1 if padded else None, nn.Linear(8, 8) if keys else None
        if last:  # the weight's name is that of the layer which is called last
            self.layer.weight = self.again.weight
        if "leaky" in last:  # what fx cannot see, and float32 would not
            self.again.register_forward_hook(lambda _, __, out: out + 1e-4 * out.mean(1, True))
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        stream = F.embedding(tokens, self.embedding.weight, self.padding)
        if self.scale is not None:
            stream = stream * self.scale
        keys = stream if self.keys is None else self.keys(stream)
        mixed = F.scaled_dot_product_attention(stream, keys, stream)
        mixed = mixed.transpose(0, 1) if self.first else mixed
        mixed = self.layer(self.act(self.layer(mixed)))
        mixed = mixed.transpose(0, 1) if self.first else mixed
        if self.again is not None:
            return self.head(self.again(mixed))[:, -1].log_softmax(-1)
        return self.head(mixed.sum(1)).log_softmax(-1)


def recorded(path, **options):
    torch.manual_seed(0)
    tokens = torch.randint(0, TOKENS, (SAMPLES + 4, 3))
    tokens[SAMPLES : SAMPLES + 2].clamp_(max=TOKENS - 2)  # nothing padded where a pass is watched
    data, points = (
        (tokens[at], tokens[at].sum(1) % TOKENS) for at in (slice(SAMPLES), slice(SAMPLES, None))
    )
    model, loss = Attention(**options).double(), TrainingLoss(F.nll_loss)
    optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.5)
    settings = {"samples": data, "loss": loss, "num_steps": UPDATES, "max_batch": 7}
    with record(model, optimizer, path, quiet=True, **settings) as history:
        for batch in BATCHES:
            optimizer.zero_grad()
            F.nll_loss(model(data[0][batch]), data[1][batch]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            history.batch(batch)
            optimizer.step()
    return open_run(path, model, loss, data), points


@pytest.mark.parametrize(
    ("output", "tolerance", "close"), [("all", 1e-2, 1e-11), ("log_probability", 1e-4, 1e-8)]
)  # nodes are placed at kinks, which rounding moves a little
@pytest.mark.parametrize("count_at", ["taken", "acted"])
def test_updates_together_alone_and_by_any_model_agree(
    tmp_path, monkeypatch, output, tolerance, close, count_at
):
    run, points = recorded(tmp_path / "h")
    by = ["sample", "step", ("tensor", "step"), ("sample", "tensor"), ("sample", "step")]
    asked = {"output": output, "tolerance": tolerance, "by": by, "quiet": True}
    asked["count_at"] = count_at
    together = explain(run, *points, **asked)
    alone = explain(run, *points, memory=400_000, **asked)
    monkeypatch.setattr(FEATURES, "CACHE", 1)
    in_parts = explain(run, *points, **asked)
    monkeypatch.setattr(EXPLAIN, "stacked_model", lambda *_: None)
    plain = explain(run, *points, **asked)
    assert np.abs(together.by("sample")).max() > 1e-2
    for name, values in plain.arrays.items():
        for found in (together, in_parts, alone):
            np.testing.assert_allclose(found[name], values, rtol=0, atol=close, err_msg=name)


@pytest.mark.parametrize("odd", ["tied", "first", "scaled", "padded", "keys", "last", "leaky"])
def test_a_model_whose_updates_cannot_go_together_is_seen(tmp_path, odd):
    for options, usable in (({}, True), ({odd: True}, odd in {"keys", "last"})):
        run, points = recorded(tmp_path / str(len(options)), **options)
        queries = Queries(run.model, *points)
        queries.count_outputs(run.walk.theta(0))
        names = run.walk.history.settings.tracked
        assert (stacked_model(run, queries, names) is not None) == usable


def test_float32_products_leave_the_setting_as_it_was():
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            for tf32 in (False, True):
                with float32_products(tf32):
                    assert torch.backends.cuda.matmul.allow_tf32 == tf32
                    assert torch.backends.cudnn.allow_tf32 == tf32
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
