"""Write a store of retrained models as another program reads it; the reverse of import_bank.

    coar export_bank STORE OUT --format trak|datamodels|dattri|quanda

trak: mask.npy and val_margins.npy. datamodels: a directory for its scripts. dattri: a retrain
directory (needs --checkpoints). quanda: lds_subsets.yaml, models with --checkpoints, cached logits
with --logits. Only completed rows are written, once their checksums are verified.
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.errors import ArgumentError
from coarlib.interop.bank_exports import (
    FORMATS,
    export_datamodels,
    export_dattri,
    export_quanda,
    export_trak,
)
from coarlib.store import Store

COMMAND = Command(
    "export_bank",
    __doc__,
    {
        "store": common.store(),
        "out": Param(str, "directory to write", required=True, positional=True),
        "format": Param(Choice(FORMATS), ", ".join(FORMATS), required=True),
        "x_name": common.x_name(),
        "y_name": Param(str, "its outputs (trak, datamodels); default: the only ones"),
        "checkpoints": Param(str, "directory of the retrained models (dattri, quanda)"),
        "runs": Param(Whole(1), "models of each subset (dattri)", default=1),
        "logits": Param(str, "an output [T, C] to write as cached logits (quanda)"),
        "batch_size": Param(Whole(1), "evaluation batch of the cached logits (quanda)", default=8),
        "name": Param(str, "the benchmark's id (quanda)", default="coarlib"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Export the store that the arguments name."""
    args = COMMAND.parse(argv)
    store = Store.open(args.store)
    if args.format == "dattri":
        if args.checkpoints is None:
            raise ArgumentError("--checkpoints is required: a dattri directory holds the models")
        rows = export_dattri(store, args.out, args.checkpoints, args.x_name, args.runs)
    elif args.format == "quanda":
        rows = export_quanda(
            store,
            args.out,
            args.name,
            checkpoints=args.checkpoints,
            x_name=args.x_name,
            logits=args.logits,
            batch_size=args.batch_size,
        )
    else:
        export = export_trak if args.format == "trak" else export_datamodels
        rows = export(store, args.out, args.x_name, args.y_name)
    print(f"{rows} rows of {store.path} written to {args.out} as {args.format} reads them")
    keep_arguments(args, args.out)
    print(next_step("score_lds", args.store, "SCORES", y_name=args.y_name or args.logits))


if __name__ == "__main__":
    run(main)
