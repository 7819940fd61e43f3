"""Write a commented template of a set-up for your own model: task, spec, configuration.

    coar new_setup NAME
    coar new_setup NAME --dir FOLDER

The template runs as it is (a small untrained network on random images), so that every part can be
replaced one by one.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import next_step
from coarlib.errors import ArgumentError

COMMAND = Command(
    "new_setup",
    __doc__,
    {
        "name": Param(
            str, "name of the folder to make", required=True, positional=True, also=("setup.name",)
        ),
        "dir": Param(str, "where to make it", default=".", also=("setup.dir",)),
    },
)

TASK = '''"""What is measured when components of a model are ablated."""

import torch
from torch import nn

from coarlib import outputs
from coarlib.ablation import ComponentTask, Examples, find_components


class {title}Task(ComponentTask):
    # Array of the spec -> what it records. coarlib.outputs has margins, losses, logits and
    # per_sequence(...) for language models; any function (logits, targets) -> [T] will do.
    outputs = {{"test_margins": outputs.margin}}

    def __init__(self, seed: int = 0, batch_size: int = 500):
        # Arguments are set on the command line: --set seed=1.
        super().__init__(batch_size)
        self.seed = seed

    def model(self):
        # Return your trained model. Load weights with
        # coarlib.inputs.checkpoints.read_weights(path, "where to get them").
        torch.manual_seed(self.seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 10),
        )

    def components(self, model):
        # Kinds: conv_filter, linear_row, attention_head, mlp_neuron, ... (coarlib.ablation.KINDS);
        # include=["layer1.*"] and exclude=[...] choose modules by name.
        return find_components(model, ["conv_filter"])

    def examples(self):
        # The examples whose outputs are recorded: inputs of the model, and targets.
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(20, 3, 8, 8, generator=generator)
        return Examples((images,), torch.arange(20) % 10)

    # Override predict(network, inputs) if the model takes or returns something else than
    # network(*inputs) -> logits.
'''

SPEC = """{
    "num_models": 200,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [8]},
        "test_margins": {"dtype": "float16", "shape": [20]}
    },
    "design": {"kind": "bernoulli", "keep_prob": 0.9, "seed": 0},
    "notes": "shape of masks: number of components; of test_margins: number of examples"
}
"""

CONFIG = """# The first rows fit, the next ones are held out for the score.
data:
  num_train: 150
  num_val: 50
cfg:
  k: 1
  solver: ridge
"""

STEPS = """wrote {folder}/task.py, spec.json and regression_config.yaml; it runs as it is:

  coar initialize_store {folder}/store --spec {folder}/spec.json
  coar make_dataset {folder}/store --task {folder}/task.py
  coar run_regression {folder}/store
  coar evaluate {folder}/attributions --task {folder}/task.py
{next}"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the template."""
    args = COMMAND.parse(argv)
    if not args.name.isidentifier():
        raise ArgumentError(f"a set-up needs a name of letters, digits and _, not {args.name!r}")
    folder = Path(args.dir) / args.name
    if folder.exists():
        raise ArgumentError(f"{folder} exists already; give another name or move it away")
    folder.mkdir(parents=True)
    title = "".join(word.capitalize() for word in args.name.split("_"))
    (folder / "task.py").write_text(TASK.format(title=title), encoding="utf-8")
    (folder / "spec.json").write_text(SPEC, encoding="utf-8")
    (folder / "regression_config.yaml").write_text(CONFIG, encoding="utf-8")
    print(
        STEPS.format(
            folder=shlex.quote(str(folder)), next=next_step("components", task=folder / "task.py")
        )
    )


if __name__ == "__main__":
    run(main)
