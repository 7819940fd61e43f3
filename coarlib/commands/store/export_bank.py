"""Write a store of retrained models as another program reads it; the reverse of import_bank.

    coar export_bank STORE OUT --format trak|datamodels|dattri|quanda

trak: mask.npy and val_margins.npy. datamodels: a directory for its scripts. dattri: a retrain
directory (needs --checkpoints). quanda: lds_subsets.yaml, models with --checkpoints, cached logits
with --logits. Only completed rows are written, once their checksums are verified.
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands.arguments import PLAIN, Param, Whole, nearest, parse, run
from coarlib.errors import ArgumentError
from coarlib.interop.bank_exports import (
    FORMATS,
    export_datamodels,
    export_dattri,
    export_quanda,
    export_trak,
)
from coarlib.store import Store

POSITIONAL = {
    "store": Param(str, "directory of the store", required=True),
    "out": Param(str, "directory to write", required=True),
}
SECTIONS = {
    PLAIN: {
        "format": Param(str, ", ".join(FORMATS), required=True),
        "x_name": Param(str, "the store's array of masks (default: the design's)"),
        "y_name": Param(str, "its outputs (trak, datamodels; default: the only ones)"),
        "checkpoints": Param(str, "directory of the retrained models (dattri, quanda)"),
        "runs": Param(Whole(1), "models a subset (dattri)", default=1),
        "logits": Param(str, "an output [T, C] to write as cached logits (quanda)"),
        "batch_size": Param(Whole(1), "evaluation batch of the cached logits (quanda)", default=8),
        "name": Param(str, "the benchmark's id (quanda)", default="coarlib"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Export the store that the arguments name."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    given = args.options
    store = Store.open(args.store)
    if given.format == "dattri":
        if given.checkpoints is None:
            raise ArgumentError("--checkpoints is required: a dattri directory holds the models")
        rows = export_dattri(store, args.out, given.checkpoints, given.x_name, given.runs)
    elif given.format == "quanda":
        rows = export_quanda(
            store,
            args.out,
            given.name,
            checkpoints=given.checkpoints,
            x_name=given.x_name,
            logits=given.logits,
            batch_size=given.batch_size,
        )
    elif given.format in FORMATS:
        export = export_trak if given.format == "trak" else export_datamodels
        rows = export(store, args.out, given.x_name, given.y_name)
    else:
        known = ", ".join(FORMATS)
        raise ArgumentError(
            f"--format must be one of {known}, not {given.format}{nearest(given.format, FORMATS)}"
        )
    print(f"{rows} rows of {store.path} written to {args.out} as {given.format} reads them")


if __name__ == "__main__":
    run(main)
