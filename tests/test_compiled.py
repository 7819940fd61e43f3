"""Compiled code is kept where the user may write, and nowhere that others can."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from coarlib import compiled


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """An installation that cannot be written, and a user whose directories are below tmp_path."""
    package = str(ROOT / "coarlib")
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) != package and allowed(path, mode)
    )
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path


def test_what_is_asked_for_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert compiled.cache_directory() == tmp_path


def test_the_package_then_the_users_cache_then_temporary_files(read_only):
    assert compiled.cache_directory() == read_only / "cache/coarlib"
    assert (read_only / "cache/coarlib").stat().st_mode & 0o777 == 0o700
    (read_only / "cache/coarlib").rmdir()
    (read_only / "cache/coarlib").write_text("no directory")
    assert compiled.cache_directory() == read_only / f"tmp/coarlib-{os.getuid()}"


def test_a_directory_that_others_can_write_is_not_loaded_from(read_only):
    (read_only / "cache").write_text("no directory")
    shared = read_only / f"tmp/coarlib-{os.getuid()}"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert compiled.cache_directory() is None
    shared.rmdir()
    (read_only / "mine").mkdir(mode=0o700)
    shared.symlink_to(read_only / "mine")
    assert compiled.cache_directory() is None


def test_without_any_place_functions_are_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(compiled, "_place", None)

    @compiled.njit()
    def twice(x):
        return 2 * x

    assert twice(4) == 8


def test_compiled_functions_call_each_other_and_are_kept(tmp_path):
    """The second process finds them, and the first knew without numba that there are none."""
    (tmp_path / "two.py").write_text(
        "import sys\nfrom coarlib.compiled import njit\n\n"
        "@njit()\ndef once(x):\n    return x + 1\n\n"
        "@njit()\ndef twice(x):\n    return once(once(x))\n\n"
        "print(twice.is_ready, 'numba' in sys.modules, twice(3))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(
            [sys.executable, "two.py"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["False", "False", "5"], ["True", "True", "5"]]


@pytest.mark.parametrize("rows", [1500, 800])
def test_a_first_fit_compiles_nothing(tmp_path, rows):
    """All solvers of auto and the learning curve, at the sizes of the digits stores."""
    code = f"""
import sys
import numpy as np
from coarlib.commands.fit.run_regression import main
rng = np.random.default_rng(0)
masks = rng.random(({rows}, 240)) < 0.9
outputs = masks @ rng.normal(size=(240, 20)) + 9 * rng.normal(size=({rows}, 20))
np.save("masks.npy", masks)
np.save("margins.npy", outputs.astype("f2"))
np.save("_completed.npy", np.ones({rows}, bool))
main([".", "--y_name", "margins", "--out", "out"])
sys.exit("numba" in sys.modules)
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lasso: held-out correlation" in done.stdout
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_warmup_compiles_everything_that_a_fit_needs(tmp_path):
    """After it, a lasso in another process loads all it runs."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "coarlib", "warmup"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout and not done.stderr
    kept = {file.name.split("-")[0] for file in tmp_path.rglob("*.nbi")}
    sources = [p for p in ROOT.glob("coarlib/**/*.py") if p.name != "compiled.py"]
    wanted = set()
    for source in sources:
        lines = source.read_text().splitlines()
        marks = [i for i, line in enumerate(lines) if line.startswith("@njit(")]
        for i in marks:
            name = next(x for x in lines[i:] if x.startswith("def ")).split()[1].split("(")[0]
            wanted.add(f"{source.stem}.{name}")
    assert wanted == kept
