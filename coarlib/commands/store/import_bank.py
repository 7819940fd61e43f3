"""Make a store of a published bank of retrained models: masks or index lists, and outputs.

    coar import_bank STORE --masks mask.npy --outputs val_margins.npy

Masks: .npy of masks [M, N] or of indices [M, k], or quanda's lds_subsets.yaml; index lists need
--num_examples. Outputs: .npy [M, T]. Then score_lds, write_dataset and run_regression work.
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.interop.banks import completed_beside, read_masks, write_bank
from coarlib.scoring.score_files import load_scores

COMMAND = Command(
    "import_bank",
    __doc__,
    {
        "store": common.store("directory of the new store", "logging.logdir"),
        "masks": Param(
            str,
            "masks or index lists: .npy, or quanda's .yaml",
            required=True,
            also=("bank.masks",),
        ),
        "outputs": Param(
            str,
            "outputs of the models, [M, T]: .npy or .pt",
            required=True,
            also=("bank.outputs",),
        ),
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
    store = write_bank(
        args.store,
        read_masks(args.masks, args.num_examples),
        load_scores(args.outputs),
        x_name=args.x_name,
        y_name=args.y_name,
        completed=completed_beside(args.masks, args.outputs),
        notes=f"imported from {args.masks} and {args.outputs}",
    )
    rows = len(store.completed_rows())
    missing = store.num_models - rows
    print(
        f"{store.path} holds {rows} rows: {store.describe()}"
        + (f"; {missing} more were not completed in the bank" if missing else "")
    )
    keep_arguments(args, store.path)
    print(next_step("run_regression", args.store))


if __name__ == "__main__":
    run(main)
