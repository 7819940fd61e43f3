"""Publish a store, a bank or attributions on the Hugging Face hub.

    coar push out/digits/store OWNER/NAME

A card says the regime. Large files that have arrived are not sent again when a push that stopped is
started anew. The hub's client says who you are (hf auth login, HF_TOKEN).
"""

from __future__ import annotations

from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import next_step
from coarlib.interop.hub import push

COMMAND = Command(
    "push",
    __doc__,
    {
        "store": common.store("directory of the store, bank or attributions"),
        "repo": Param(str, "OWNER/NAME of the data set", required=True, positional=True),
        "private": common.flag("make a new data set a private one"),
        "revision": Param(str, "branch", default="main"),
        "endpoint": Param(str, "address of the hub; default: HF_ENDPOINT, or Hugging Face's"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Push."""
    args = COMMAND.parse(argv)
    options = {"private": args.private, "revision": args.revision, "endpoint": args.endpoint}
    print(f"published as {push(args.store, args.repo, **options)}")
    print(next_step("pull", f"out/{args.repo.rpartition('/')[2]}", args.repo))


if __name__ == "__main__":
    run(main)
