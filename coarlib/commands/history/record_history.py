"""Train a set-up and record its history (ExPLAIND); run it again to go on after a stop.

python -m estimate.record_history --setup.name digits --history.path out/digits_path/history
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coarlib.commands.arguments import Param, Whole, parse, run
from coarlib.commands.history.histories import SECTION, build
from coarlib.devices import resolve_device
from coarlib.history import History
from coarlib.history.setups import train_with_history

SECTIONS = {
    "setup": SECTION,
    "history": {
        "path": Param(str, "directory of the history", required=True),
        "every": Param(Whole(1), "keep every k-th state, replay the others", default=1),
        "storage": Param(str, "float32, float64 or bfloat16; the model's own if not given"),
        "stop_at": Param(Whole(1), "stop before this update (and go on later)"),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and record."""
    args = parse(__doc__ or "", SECTIONS, argv)
    setup, device = build(args.setup), resolve_device(args.setup.device)
    model = train_with_history(
        setup,
        args.history.path,
        device,
        args.history.stop_at,
        every=args.history.every,
        storage=args.history.storage,
    )
    history = History(args.history.path)
    with torch.no_grad():
        for name, (inputs, targets) in (
            ("training", setup.train_samples()),
            ("held-out", setup.test_samples()),
        ):
            right = model(inputs.to(device)).argmax(-1).cpu() == targets
            print(f"{name} accuracy {right.float().mean():.3f} on {len(targets)} samples")
    print(
        f"{history.last} of {setup.num_steps} updates recorded in {args.history.path}, "
        f"{history.nbytes() / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    run(main)
