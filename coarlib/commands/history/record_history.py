"""Train a set-up and record its history (ExPLAIND); run it again to go on after a stop.

coar record_history out/digits_path/history --task digits --set num_steps=100
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.history.histories import HISTORY, build, explain_next
from coarlib.commands.leaving import keep_arguments
from coarlib.devices import resolve_device
from coarlib.history import History
from coarlib.history.setups import train_with_history
from coarlib.tracking import tracked

COMMAND = Command(
    "record_history",
    __doc__,
    {
        **HISTORY,
        "every": Param(
            Whole(1),
            "keep every k-th state, replay the others",
            default=1,
            also=("history.every",),
        ),
        "storage": Param(
            str,
            "float32, float64 or bfloat16; the model's own if not given",
            also=("history.storage",),
        ),
        "log": common.log(),
        "stop_at": Param(
            Whole(1), "stop before this update (and go on later)", also=("history.stop_at",)
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and record."""
    args = COMMAND.parse(argv)
    setup, device = build(args), resolve_device(args.device)
    about = {"task": args.task, "settings": args.set, "every": args.every}
    with tracked(args.log, args.history, about):
        model = train_with_history(
            setup,
            args.history,
            device,
            args.stop_at,
            every=args.every,
            storage=args.storage,
        )
    history = History(args.history)
    with torch.no_grad():
        for name, (inputs, targets) in (
            ("training", setup.train_samples()),
            ("held-out", setup.test_samples()),
        ):
            right = model(inputs.to(device)).argmax(-1).cpu() == targets
            print(f"{name} accuracy {right.float().mean():.3f} on {len(targets)} samples")
    print(
        f"{history.last} of {setup.num_steps} updates recorded in {args.history}, "
        f"{history.nbytes() / 1e6:.1f} MB"
    )
    keep_arguments(args, args.history)
    print(explain_next(args))


if __name__ == "__main__":
    run(main)
