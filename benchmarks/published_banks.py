"""Numbers that others published, from the files that they published, by this package.

    python benchmarks/published_banks.py [--quanda DIR] [--kronfluence DIR]

``--quanda`` is a checkout of quanda (github.com/dilyabareeva/quanda), whose tests hold a small bank
of LDS, five LeNets trained on halves of 480 MNIST digits, and the score of a similarity on it. The
digits come from ../shared/data. ``--kronfluence`` is a checkout of kronfluence
(github.com/pomonam/kronfluence), whose examples hold masks and outputs of 100 halves, no scores:
what a ridge regression on the other nine tenths of the rows predicts is measured (five ways of
cutting folds; the folds' intercepts are left out, since a fold's mean is low where the others' are
high). What is not given is left as it was measured before.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import reporting
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from coarlib.interop.bank_formats import BANK_FORMATS
from coarlib.interop.banks import quanda_checkpoints, read_quanda_subsets
from coarlib.regression import fit
from coarlib.scoring import correlation_interval, lds, spearman

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist_train10000_test3000.npz"
BENCH, NAME, TESTED = Path("tests/assets/mnist_local_bench"), "83edb41-default_LDS", 100
PUBLISHED = 0.2120000123977661
"""In tests/benchmarks/test_benchmarks.py of quanda, "mnist-linear-datamodeling"."""
EXAMPLES = {
    "RTE": ("glue", {"EK-FAC": 0.32, "diagonal": 0.15, "identity": 0.10}),
    "WikiText": ("wikitext", {"EK-FAC": 0.44, "identity": 0.12}),
}
"""Folders of kronfluence's examples, and LDS in their READMEs, whose scores are not published."""
FOLDS, CUTS = 10, 5


class LeNet(nn.Module):
    """quanda's network, by the names of its tensors."""

    def __init__(self):
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc_1, self.fc_2, self.fc_3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    @classmethod
    def of(cls, file):
        model = cls()
        model.load_state_dict(load_file(file))
        return model

    def features(self, images):
        for layer in (self.conv_1, self.conv_2):
            images = F.max_pool2d(layer(images).relu(), 2)
        return self.fc_2(self.fc_1(images.flatten(1)).relu())

    def forward(self, images):
        return self.fc_3(self.features(images).relu())


@torch.no_grad()
def quanda(checkout):
    """LDS of the cosine similarity of fc_2, of the predicted class's log-probability."""
    bench = checkout / BENCH
    folder = bench / "metadata" / f"{NAME}_metadata"
    train = yaml.safe_load((folder / "mnist_train_split.yaml").read_text())["train"]
    with np.load(MNIST, allow_pickle=False) as file:
        images = [torch.from_numpy(file[f"x_{part}"]) for part in ("train", "test")]
    images = [(part.float()[:, None] / 255 - 0.5) / 0.5 for part in images]
    inputs, tests = images[0][train], images[1][:TESTED]
    model = LeNet.of(bench / "ckpt" / NAME / "model.safetensors")
    pairs = model.features(inputs)[:, None], model.features(tests)[None]
    scores = F.cosine_similarity(*pairs, dim=2).numpy()
    predicted = model(tests).argmax(1, keepdim=True)
    retrained = [LeNet.of(file) for file in quanda_checkpoints(bench, NAME)]
    outputs = [m(tests).log_softmax(1).gather(1, predicted)[:, 0].numpy() for m in retrained]
    subsets = read_quanda_subsets(folder / "lds_subsets.yaml")
    found = lds(scores, subsets, np.stack(outputs), kind="kendall").mean
    print(f"quanda: LDS {found:.7f}, published {PUBLISHED:.7f}")
    return {"subsets": len(subsets), "targets": TESTED, "lds": found, "published": PUBLISHED}


def datamodel(folder):
    """LDS of ridge on rows that it was not fitted on."""
    bank = BANK_FORMATS["kronfluence"](folder, None)
    masks, outputs = np.asarray(bank.masks, bool), np.asarray(bank.outputs, np.float64)
    cuts = [unseen(masks, outputs, cut) for cut in range(CUTS)]
    intervals = [correlation_interval(cut, outputs) for cut in cuts]
    each = np.array([np.nanmean(spearman(cut, outputs)) for cut in cuts])
    ends = np.mean([[one.low, one.high] for one in intervals], 0)
    found = {"rows": len(masks), "examples": masks.shape[1], "targets": outputs.shape[1]}
    return found | {"lds": each.mean(), "interval": ends.tolist(), "cuts": each.tolist()}


def unseen(masks, outputs, cut):
    order, found = np.random.default_rng(cut).permutation(len(masks)), np.zeros(outputs.shape)
    for part in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, part)
        found[part] = masks[part] @ np.asarray(fit((masks[rest], outputs[rest]), "ridge").weight)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quanda", type=Path)
    parser.add_argument("--kronfluence", type=Path)
    asked = parser.parse_args()
    file = reporting.RESULTS / "published_banks.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    if asked.quanda is not None:
        results["quanda"] = quanda(asked.quanda)
    for name, (folder, published) in EXAMPLES.items():
        if asked.kronfluence is not None:
            found = datamodel(asked.kronfluence / "examples" / folder / "files")
            results[name] = found | {"published LDS of scores that are not": published}
            print(name, results[name], flush=True)
    reporting.save("published_banks", results, "torch")


if __name__ == "__main__":
    main()
