"""Components in groups: which belong together, what a whole group ablates, what is refined."""

import numpy as np
import pytest
import torch
from scalable_tasks import language_model, task_of
from torch import nn

import coarlib as cl
from coarlib.ablation import Hierarchy, find_components
from coarlib.errors import ComponentError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
            for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def parts(by):
    torch.manual_seed(0)
    return Hierarchy(find_components(Net()), by)


def test_parents_are_layers_blocks_or_what_is_named():
    assert parts("layer").parents == (
        "stem",
        "blocks.0.0",
        "blocks.0.2",
        "blocks.1.0",
        "blocks.1.2",
    )
    heads = Hierarchy(find_components(language_model("heads"), "attention_head"), "block")
    assert heads.parents == ("model.layers.0", "model.layers.1")
    named = parts({"first": "blocks.0.*", "second": "blocks.1.*"})
    assert named.parents == ("stem", "first", "second")
    assert named.parent.tolist() == [0] * 4 + [1] * 8 + [2] * 8
    with pytest.raises(ComponentError, match="by layer or block"):
        parts("stage")
    with pytest.raises(ComponentError, match="no component is left for third"):
        parts({"third": "blocks.7.*"})


def test_a_whole_group_ablates_what_all_its_members_do():
    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(6, 1, 8, 8)
    fine = parts({"first": "blocks.0.*", "second": "blocks.1.*"})
    task = cl.ablate(model, (images, torch.arange(6) % 3), fine)
    for ablate in ("zero_weights", "mean"):
        task = cl.ablate(model, (images, torch.arange(6) % 3), fine, ablate=ablate)
        opened = fine.refined(["second"])
        assert len(fine.coarse()) == 3 and len(opened) == 2 + 8
        assert opened.names[:2] == ("stem", "first")
        for which, mask in ((fine.coarse(), [1, 0, 1]), (opened, [1, 0] + [1, 0] * 4)):
            mask = np.array([mask], bool)
            spread = np.ones((1, 20), bool)
            spread[0, 4:12] = False
            if len(which) > 3:
                spread[0, 12:] = mask[0, 2:]
            found, expected = (
                rows_of(some, x)
                for some, x in ((task.with_components(which), mask), (task, spread))
            )
            torch.testing.assert_close(found, expected)
    with pytest.raises(ComponentError, match="no fourth to open"):
        fine.refined(["fourth"])


def rows_of(task, masks):
    task.prepare(torch.device("cpu"))
    return task.rows(np.arange(len(masks)), masks)["test_margins"]


def test_other_components_are_another_task():
    task = task_of("heads")
    task.prepare(torch.device("cpu"))
    whole = task.with_components(Hierarchy(task.component_set, "layer").coarse())
    whole.prepare(torch.device("cpu"))
    assert (task.num_features, whole.num_features) == (8, 2)
    assert whole.identity() != task.identity()
