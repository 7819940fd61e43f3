"""Make a store of a published bank of retrained models: masks or index lists, and outputs.

    python -m estimate.import_bank --logging.logdir STORE --bank.masks mask.npy \\
        --bank.outputs val_margins.npy

Masks: .npy of masks [M, N] or of indices [M, k], or quanda's lds_subsets.yaml; index lists need
--bank.num_examples. Outputs: .npy [M, T]. Then score_lds, write_dataset and run_regression work.
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import Param, Whole, parse, run
from coarlib.interop.banks import read_masks, write_bank
from coarlib.scoring.score_files import load_scores

SECTIONS = {
    "logging": {"logdir": Param(str, "directory of the new store", required=True)},
    "bank": {
        "masks": Param(str, "masks or index lists: .npy, or quanda's .yaml", required=True),
        "outputs": Param(str, "outputs of the models, [M, T]: .npy or .pt", required=True),
        "num_examples": Param(Whole(1), "N, where the file holds index lists"),
        "x_name": Param(str, "name of the store's array of masks", default="masks"),
        "y_name": Param(str, "name of the store's array of outputs", default="test_margins"),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the bank and write the store."""
    args = parse(__doc__ or "", SECTIONS, argv)
    bank = args.bank
    store = write_bank(
        args.logging.logdir,
        read_masks(bank.masks, bank.num_examples),
        load_scores(bank.outputs),
        x_name=bank.x_name,
        y_name=bank.y_name,
        notes=f"imported from {bank.masks} and {bank.outputs}",
    )
    print(f"{store.path} holds {store.num_models} rows: {store.describe()}")


if __name__ == "__main__":
    run(main)
