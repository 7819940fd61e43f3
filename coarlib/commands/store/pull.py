"""Fetch a store, a bank or attributions that coar push published, and check every file.

    coar pull out/digits OWNER/NAME

A pull that stopped goes on; the directory appears once all of it is there and is what was pushed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import next_step
from coarlib.interop.hub import pull
from coarlib.interop.published import MARGINS, MASKS
from coarlib.regression.result_files import DATAMODELS

COMMAND = Command(
    "pull",
    __doc__,
    {
        "store": common.store("new directory"),
        "repo": Param(str, "OWNER/NAME of the data set", required=True, positional=True),
        "revision": Param(str, "branch, tag or commit", default="main"),
        "endpoint": Param(str, "address of the hub; default: HF_ENDPOINT, or Hugging Face's"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Pull."""
    args = COMMAND.parse(argv)
    path = pull(args.repo, args.store, revision=args.revision, endpoint=args.endpoint)
    print(f"{path} is what was pushed: all digests fit")
    print(_next(path))


def _next(path: Path) -> str:
    if (path / DATAMODELS).is_file():
        return next_step("report", path)
    if (path / MASKS).is_file():
        masks, outputs = path / MASKS, path / MARGINS
        return next_step("import_bank", f"{path}_store", masks=masks, outputs=outputs)
    return next_step("run_regression", path)


if __name__ == "__main__":
    run(main)
