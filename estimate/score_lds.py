"""Score attributions on held-out rows: ``python -m score_lds`` in this folder, as in COAR."""

from coarlib.commands.arguments import run
from coarlib.commands.judge.score_lds import main

if __name__ == "__main__":
    run(main)
