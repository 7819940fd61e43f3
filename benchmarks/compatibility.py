"""Write docs/compatibility.md: which systems' files and calls work, by running the tests of each.

    python benchmarks/compatibility.py

A case is a test, or several. "with the program itself" says that the test runs that program; where
it is not installed the test is skipped, and the table says so.
"""

import re
import subprocess
import sys
from pathlib import Path

import reporting

ROOT = Path(__file__).resolve().parent.parent
INTEROP, COMMANDS = "tests/interop/", "tests/commands/"
# System, package whose version is told, direction, what works, tests; formats without a package
# that can be installed name what they were written for.
CASES = [
    ("COAR", None, "both", "its commands and configuration files; its stores",
     [f"{COMMANDS}test_setups_upstream.py::test_the_readme_command_of_upstream_runs",
      "tests/store/test_adopt.py"]),
    ("datamodels", None, "in", "task modules that parse fastargs inside main",
     [f"{COMMANDS}test_datamodels_modules.py"]),
    ("datamodels", None, "out", "masks, margins, _completed.npy",
     [f"{INTEROP}test_bank_exports.py::test_datamodels_files_are_a_store_of_theirs"]),
    ("dattri", "dattri", "both", "retraining directories and metrics, with the program itself",
     [f"{INTEROP}test_dattri_retraining.py", f"{INTEROP}test_dattri_metrics.py"]),
    ("dattri", "dattri", "out", "a store as its directory, measured by the program itself",
     [f"{INTEROP}test_bank_exports.py::test_dattri_measures_what_the_store_holds"]),
    ("dattri", "dattri", "in", "its published benchmarks (import_bank --format dattri)",
     [f"{INTEROP}test_bank_formats.py::test_folders[dattri]"]),
    ("ffcv", "ffcv", "both", ".beton files, with the program itself",
     ["tests/beton/test_ffcv.py"]),
    ("quanda", None, "both", "configuration, checkpoints, logits, explanations (0.5.0)",
     [f"{INTEROP}test_quanda.py",
      f"{INTEROP}test_bank_exports.py::"
      "test_quandas_directory_holds_subsets_models_and_cached_logits"]),
    ("ExPLAIND", None, "in", "its calls, and checkpoints as version 0.0.2 writes them",
     [f"{INTEROP}test_explaind.py"]),
    ("TRAK", None, "both", "the tutorial's files, and its scores (traker 0.3.2)",
     [f"{INTEROP}test_bank_formats.py::test_folders[trak]",
      f"{INTEROP}test_bank_formats.py::test_the_subsets_of_traks_tutorial_are_drawn_again",
      f"{INTEROP}test_bank_exports.py::test_traks_files_come_back_as_the_store"]),
    ("kronfluence", None, "in", "masks, margins and losses of its examples (1.0.1)",
     [f"{INTEROP}test_bank_formats.py::test_folders[kronfluence]"]),
    ("context-cite", None, "in", "masks and logits that a ContextCiter keeps (0.0.4)",
     [f"{INTEROP}test_bank_formats.py::test_what_a_context_citer_keeps"]),
    ("STRIDE", None, "in", "JSON lines of subsets and losses (2026)",
     [f"{INTEROP}test_bank_formats.py::test_strides_lines"]),
    ("bergson", None, "in", "folders of scores, bfloat16 too",
     ["tests/scoring/test_score_files.py"]),
    ("safetensors", "safetensors", "in", "masks, outputs and scores",
     ["tests/scoring/test_score_files.py::test_safetensors_files"]),
    ("transformers", "transformers", "in", "models as they are",
     ["tests/ablation/test_transformers.py"]),
]  # fmt: skip
HEAD = """# What works with what

Written by `python benchmarks/compatibility.py`, which runs the tests of each line. *In* is from the
other system to here, *out* from here to it. Where no version stands the format is read or written
by its description, for the version in brackets.

<!-- not measured: versions and numbers of tests -->

| system | direction | version tried | what works | tests |
|---|---|---|---|---|
"""


def main():
    rows = []
    for system, package, direction, _, tests in CASES:
        version = "" if package is None else reporting.versions(package)[package] or "not installed"
        rows.append({"system": system, "direction": direction, "version": version})
        rows[-1] |= outcome(tests)
        print(rows[-1], flush=True)
    reporting.save("compatibility", {"cases": rows}, "numpy", "torch")
    (ROOT / "docs" / "compatibility.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """Return the page of the docs for rows of a result."""
    lines = []
    for (system, _, direction, what, _), row in zip(CASES, rows, strict=True):
        said = [f"{row['passed']} passed"]
        said += [f"{row['skipped']} skipped (not installed)"] * bool(row["skipped"])
        said += [f"{row['failed']} failed"] * bool(row["failed"])
        version = row["version"] or "–"
        lines.append(f"| {system} | {direction} | {version} | {what} | {', '.join(said)} |\n")
    return HEAD + "".join(lines)


def outcome(tests):
    """Run tests and count what became of them."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "-rN", *tests], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    found = {key: 0 for key in ("passed", "skipped", "failed")}
    for line in done.stdout.splitlines():
        if progress := re.fullmatch(r"([.sFEx]+)\s*(\[ *\d+%\])?", line.strip()):
            found["passed"] += progress[1].count(".")
            found["skipped"] += progress[1].count("s")
            found["failed"] += progress[1].count("F") + progress[1].count("E")
    if not sum(found.values()):
        raise SystemExit(f"no test ran of {tests}:\n{done.stdout[-2000:]}{done.stderr[-500:]}")
    return found


if __name__ == "__main__":
    main()
