"""Run every notebook, or those that are named, and keep what they show in them.

    python notebooks/run.py
    python notebooks/run.py reading_explaind

Prints how long each took. What depends on the machine (folders, process numbers) is not kept.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
MACHINE = (
    (re.escape(sys.executable), "python"),
    (re.escape(tempfile.gettempdir()) + r"/tmp\w+", "FOLDER"),
    (r"\b[\w.-]+-\d+-[0-9a-f]{16}\b", "WORKER"),
    (re.escape(str(HERE.parent)), "COARLIB"),
)
STEPS = 500  # seconds a cell may take


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in this environment; raise where a cell fails."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = str(HERE.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    os.environ.pop("MPLBACKEND", None)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=STEPS, kernel_name="python3").execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _forget_the_machine(output)
        if "outputs" in cell:
            cell.outputs = _without_warnings(cell.outputs)
    book.metadata["language_info"] = {"name": "python"}
    return book


def _forget_the_machine(output: nbformat.NotebookNode) -> None:
    texts = output.get("data", {})
    for key, text in texts.items():
        if key.startswith("text/"):
            texts[key] = _plain(text)
    if "text" in output:
        output["text"] = _plain(output["text"])


def _plain(text: str) -> str:
    for pattern, word in MACHINE:
        text = re.sub(pattern, word, text)
    return text


def _without_warnings(outputs: list) -> list:
    """Leave out what libraries print on standard error."""
    return [output for output in outputs if output.get("name") != "stderr"]


def main(names: list[str]) -> None:
    """Run notebooks and write them back with their outputs."""
    paths = sorted(HERE.glob("*.ipynb"))
    chosen = [path for path in paths if not names or path.stem in names]
    everything = time.monotonic()
    for path in chosen:
        started = time.monotonic()
        book = execute(path)
        nbformat.write(book, path)
        print(f"{path.stem:<45}{time.monotonic() - started:6.1f} s", flush=True)
    print(f"{'all together':<45}{time.monotonic() - everything:6.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
