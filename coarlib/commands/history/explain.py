"""Explain predictions of a recorded run by training samples, tensors and steps (ExPLAIND).

    python -m estimate.explain --setup.name digits --history.path out/digits_path/history \\
        --explain.out out/digits_path/explanation
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.commands.history.histories import SECTION, build
from coarlib.devices import resolve_device
from coarlib.history import open_run
from coarlib.path_kernel import explain
from coarlib.path_kernel.explain import DEFAULT_MEMORY

SECTIONS = {
    "setup": SECTION,
    "history": {"path": Param(str, "directory of the history", required=True)},
    "explain": {
        "out": Param(str, "store of results, one row a test point", required=True),
        "by": Param(str, "axes, e.g. sample,tensor,step,tensor+step", default="sample,tensor+step"),
        "output": Param(str, "all, logit, log_probability or margin", default="logit"),
        "num_test": Param(Whole(1), "how many held-out points", default=20),
        "start": Param(Whole(0), "first test point of this process", default=0),
        "stop": Param(Whole(1), "last test point of this process, plus 1"),
        "step_window": Param(Whole(1), "updates in one entry of the step axis", default=1),
        "meaning": Param(str, "taken or acted", default="taken"),
        "tolerance": Param(float, "largest quadrature error of an output in one update"),
        "memory_mb": Param(Whole(1), "memory for gradients", default=DEFAULT_MEMORY // 2**20),
        "attributions": Param(Boolean(), "also write Attributions beside the results", default="0"),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Explain."""
    args = parse(__doc__ or "", SECTIONS, argv)
    setup, asked = build(args.setup), args.explain
    device = resolve_device(args.setup.device)
    chosen = open_run(
        args.history.path,
        setup.model().to(device),
        setup.loss(),
        setup.train_samples(),
        replay_tolerance=0.0,
    )
    inputs, targets = (tensor[: asked.num_test] for tensor in setup.test_samples())
    found = explain(
        chosen,
        inputs,
        targets,
        output=asked.output,
        by=[item.split("+") for item in asked.by.split(",")],
        step_window=asked.step_window,
        count_at=asked.meaning,
        tolerance=asked.tolerance,
        memory=asked.memory_mb * 2**20,
        out=asked.out,
        rows=range(asked.start, min(asked.stop or len(inputs), len(inputs))),
    )
    if found is None:
        print(f"{asked.out} still lacks test points that other processes compute")
        return
    for name, value in found.checks().items():
        print(f"{name:22} {value:.2g}")
    if asked.attributions:
        found.attributions().save(f"{asked.out}.attributions")
        print(f"attributions of training samples are in {asked.out}.attributions")


if __name__ == "__main__":
    run(main)
