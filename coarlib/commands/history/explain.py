"""Explain predictions of a recorded run by training samples, tensors and steps (ExPLAIND).

coar explain out/digits_path/history --task digits --out out/digits_path/explanation
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.history.histories import HISTORY, build
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.history import open_run
from coarlib.path_kernel import explain
from coarlib.tracking import tracked

COMMAND = Command(
    "explain",
    __doc__,
    {
        **HISTORY,
        "out": common.out(
            "store of results, one row per test point", "explain.out", required=True
        ),
        "by": Param(
            str,
            "axes, comma-separated, e.g. sample,tensor,step,tensor+step",
            default="sample,tensor+step",
            also=("explain.by",),
        ),
        "quantity": Param(
            str, "all, logit, log_probability or margin", default="logit", also=("explain.output",)
        ),
        "num_test": Param(
            Whole(1), "how many held-out points", default=20, also=("explain.num_test",)
        ),
        "rows": common.rows("test points of this process"),
        "start": Param(
            Whole(0), "first test point of this process", default=0, also=("explain.start",)
        ),
        "stop": Param(
            Whole(1), "last test point of this process, plus 1", also=("explain.stop",)
        ),
        "step_window": Param(
            Whole(1),
            "updates in one entry of the step axis",
            default=1,
            also=("explain.step_window",),
        ),
        "count_at": Param(
            str,
            "where a gradient's effect is counted: at the update that has taken it, or acted",
            default="taken",
            also=("meaning", "explain.meaning"),
        ),
        "tolerance": Param(
            float,
            "largest quadrature error of an output in one update",
            also=("explain.tolerance",),
        ),
        "memory_mb": Param(
            Whole(1),
            "memory for gradients; 512 on a processor, a quarter of what an accelerator has free",
            also=("explain.memory_mb",),
        ),
        "attributions": common.flag(
            "also write Attributions beside the results", "explain.attributions"
        ),
        "log": common.log(),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Explain."""
    args = COMMAND.parse(argv)
    setup = build(args)
    device = resolve_device(args.device)
    chosen = open_run(
        args.history,
        setup.model().to(device),
        setup.loss(),
        setup.train_samples(),
        replay_tolerance=0.0,
    )
    inputs, targets = (tensor[: args.num_test] for tensor in setup.test_samples())
    with tracked(args.log, args.out, {"task": args.task, "settings": args.set, "by": args.by}):
        found = explain(
            chosen,
            inputs,
            targets,
            output=args.quantity,
            by=[item.split("+") for item in args.by.split(",")],
            step_window=args.step_window,
            count_at=args.count_at,
            tolerance=args.tolerance,
            memory=None if args.memory_mb is None else args.memory_mb * 2**20,
            out=args.out,
            rows=range(*_rows(args, len(inputs))),
        )
    if found is None:
        print(f"{args.out} still lacks test points that other processes compute")
        print(again(args, rows=None, start=None, stop=None))
        return
    for name, value in found.checks().items():
        print(f"{name:22} {value:.2g}")
    print(found.verdict())
    if args.attributions:
        found.attributions().save(f"{args.out}.attributions")
        print(f"attributions of training samples are in {args.out}.attributions")
    keep_arguments(args, args.out)
    print(next_step("plot_explanation", args.out))


def _rows(args: Arguments, count: int) -> tuple[int, int]:
    if args.rows is None:
        return args.start, min(args.stop or count, count)
    if {"start", "stop"} & args.given:
        raise ArgumentError("--rows A:B takes the place of --start and --stop")
    return common.rows_of(args.rows, count)


if __name__ == "__main__":
    run(main)
