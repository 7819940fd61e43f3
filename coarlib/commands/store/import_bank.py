"""Make a store of a published bank of retrained models: masks or index lists, and outputs.

    coar import_bank STORE --masks mask.npy --outputs val_margins.npy
    coar import_bank STORE --format kronfluence --bank examples/glue/files

Masks: .npy, .npz, .pt or .safetensors of masks [M, N] or of indices [M, k], quanda's
lds_subsets.yaml, or a directory of dattri's retrain_lds; index lists need --num_examples. Outputs:
[M, T], or [M, runs, T]. With --format, a file or directory as that program leaves it. Then
score_lds, write_dataset and run_regression work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.errors import ArgumentError
from coarlib.interop.bank_formats import BANK_FORMATS, ForeignBank
from coarlib.interop.banks import completed_beside, read_masks, read_outputs, write_bank

COMMAND = Command(
    "import_bank",
    __doc__,
    {
        "store": common.store("directory of the new store", "logging.logdir"),
        "masks": Param(
            str,
            "masks or index lists: .npy, .npz, .pt, .safetensors, quanda's .yaml",
            also=("bank.masks",),
        ),
        "outputs": Param(
            str,
            "outputs of the models, [M, T] or [M, runs, T]: .npy, .npz, .pt, .safetensors",
            also=("bank.outputs",),
        ),
        "format": Param(Choice(tuple(BANK_FORMATS)), "whose file or directory --bank is"),
        "bank": Param(str, "instead of --masks and --outputs: what --format names"),
        "num_examples": Param(
            Whole(1), "N, where the file holds index lists", also=("bank.num_examples",)
        ),
        "x_name": Param(
            str, "name of the store's array of masks", default="masks", also=("bank.x_name",)
        ),
        "y_name": Param(
            str,
            "name of the store's array of outputs",
            default="test_margins",
            also=("bank.y_name",),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the bank and write the store."""
    args = COMMAND.parse(argv)
    bank = _read(args)
    store = write_bank(
        args.store,
        bank.masks,
        bank.outputs,
        x_name=args.x_name,
        y_name=args.y_name,
        completed=bank.completed,
        notes=bank.notes,
    )
    rows = len(store.completed_rows())
    missing = store.num_models - rows
    print(
        f"{store.path} holds {rows} rows: {store.describe()}"
        + (f"; {missing} more were not completed in the bank" if missing else "")
    )
    keep_arguments(args, store.path)
    print(next_step("run_regression", args.store))


def _read(args: Arguments) -> ForeignBank:
    """Read what was named in one of the two ways."""
    files, foreign = (args.masks, args.outputs), (args.format, args.bank)
    if all(foreign) and not any(files):
        found = BANK_FORMATS[args.format](Path(args.bank), args.num_examples)
        notes = f"imported from {args.bank}: {found.notes}"
        return ForeignBank(found.masks, found.outputs, notes, found.completed)
    if any(foreign) or not all(files):
        raise ArgumentError("give --masks and --outputs, or else --format and --bank")
    return ForeignBank(
        read_masks(args.masks, args.num_examples),
        read_outputs(args.outputs),
        f"imported from {args.masks} and {args.outputs}",
        completed_beside(args.masks, args.outputs),
    )


if __name__ == "__main__":
    run(main)
