"""Make a table of methods by LDS from what score_lds --out wrote, and a figure of it.

    coar scoreboard DIR
    coar scoreboard DIR more/lds.json --out table.tex

The table is printed as Markdown, or written as what the name of --out says: .md, .tex, .csv or
.html, or a figure as .pdf, .svg or .png. Scores of different regimes (kept fraction, subsets, runs,
seeds, output, masks and outputs) do not stand in one table: the difference is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.checkers import Choice, Paths
from coarlib.commands.leaving import again, keep_arguments
from coarlib.errors import ArgumentError
from coarlib.files import for_file, whole_file
from coarlib.scoring.scoreboard import FORMATS, read_scoreboard

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}
FIGURES = (".pdf", ".svg", ".png")
COMMAND = Command(
    "scoreboard",
    __doc__,
    {
        "results": Param(
            Paths(), "results of score_lds, or directories of them", required=True,
            positional=True, many=True,
        ),
        "format": Param(Choice(tuple(FORMATS)), "of the printed table", default="markdown"),
        "out": common.out("where to write the table or figure; its suffix says which"),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write the table."""
    args = COMMAND.parse(argv)
    board = read_scoreboard(list(args.results.values()))
    if args.out is None:
        print(board.render(args.format), end="")
        print(again(args, format=None, out="scoreboard.pdf"), file=sys.stderr)
        return
    path = Path(args.out)
    if path.suffix not in (*SUFFIXES, *FIGURES):
        known = ", ".join((*SUFFIXES, *FIGURES))
        raise ArgumentError(f"--out must end in one of {known}, not {args.out}")
    if path.suffix in FIGURES:
        from coarlib.plots import scoreboard

        figure = scoreboard(board)
        with whole_file(for_file(path)) as file:
            figure.savefig(file, format=path.suffix[1:])
    else:
        with whole_file(for_file(path), "w") as file:
            file.write(board.render(SUFFIXES[path.suffix]))
    print(f"wrote {path}")
    keep_arguments(args, path)
    print(again(args, out=path.with_suffix(".tex" if path.suffix in FIGURES else ".pdf")))


if __name__ == "__main__":
    run(main)
