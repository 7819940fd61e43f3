"""What commands leave: the next one, as it can be pasted, and arguments that --config replays."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from coarlib.commands import leaving
from coarlib.commands.__main__ import load, modules
from coarlib.store import Store

# demo and the commands of a queue have tests of their own; completion's output is a script.
ELSEWHERE = {"demo", "completion", "cancel", "logs", "warmup"}
ELSEWHERE |= {"push", "pull"}  # they ask a hub: tests/interop/test_hub.py
LOSSES = """
from coarlib import outputs
from task import MineTask
class Losses(MineTask):
    outputs = {"losses": outputs.cross_entropy}
"""
PLAN = {"store": "planned", "spec": "mine/spec.json", "task": "mine/task.py", "rows_per_job": 200}
TASK, HISTORY = "--task mine/task.py", "--task digits --set num_train=40 --set num_steps=4"
# A command, what it leaves its arguments in, and the command it names.
STEPS = [
    ("new_setup mine", None, "components --task mine/task.py"),
    (f"components {TASK}", None, f"initialize_store STORE {TASK} --rows 1000 --keep 0.95"),
    (f"components {TASK} --out c.json", "c.arguments.yaml", "initialize_store STORE"),
    (f"initialize_store s {TASK} --rows 60 --keep 0.8", "s/arguments.yaml", "make_dataset s"),
    ("initialize_store d --spec digits_test", "d/arguments.yaml", "make_dataset d --task digits"),
    ("digits.make_dataset d --dry_run", None, "digits.make_dataset d"),
    (f"make_dataset s {TASK} --set seed=0 --rows 0:40", None,
     f"make_dataset s {TASK} --set seed=0"),
    ("status s", None, "make_dataset s --task TASK"),
    (f"train_subset s {TASK} --idx 40", None, f"make_dataset s {TASK}"),
    (f"make_dataset s {TASK}", None, "run_regression s"),
    ("verify s", None, "run_regression s"),
    ("provenance s 3", None, "recompute s 3 --task TASK"),
    (f"recompute s 3 {TASK}", None, "verify s"),
    ("merge t s", "t/arguments.yaml", "run_regression t"),
    ("grow t --rows 70", None, "make_dataset t --task TASK"),
    ("add_output s losses --task losses.py --rows 0:50", "s/added/losses/arguments.yaml",
     "add_output s losses --task losses.py"),
    ("add_output s losses --task losses.py", "s/added/losses/arguments.yaml",
     "run_regression s --y_name losses"),
    (f"gradient_passes s {TASK} --passes 8", None, "run_regression s"),
    ("attribute mine/task.py --out a --budget 200", "a/arguments.yaml", "evaluate a/attributions"),
    ("write_dataset s --out s.beton", "s.arguments.yaml", "run_regression s.beton"),
    ("power s --points 2 --held_out 0.3", None, "run_regression s --held_out 0.3"),
    ("run_regression s --solver ridge --dry_run", None, "run_regression s --solver ridge"),
    ("run_regression s --solver ridge --targets 0:20", "s_attributions/arguments.yaml",
     "report s_attributions"),
    ("moments s --out m --count 1 --index 0", None, "moments s --out m --count 1 --join"),
    ("moments s --out m --count 1 --join", None, "run_regression s --out m"),
    ("fit_targets s --out f --lam 0.1 --solver ridge --index 0 --count 2", None,
     "fit_targets s --count 2 --out f --solver ridge --lam 0.1 --join"),
    ("fit_targets s --out f --lam 0.1 --solver ridge --index 1 --count 2",
     "f.targets/1/arguments.yaml", "fit_targets s"),
    ("fit_targets s --out f --count 2 --join", "f/arguments.yaml", "report f"),
    ("power s --points 2 --held_out 0.3", None, "grow s --rows 120"),
    ("verify s", None, "report s_attributions"),
    (f"gradient_scores {TASK} --models 2 --out g.npz", "g.arguments.yaml",
     "run_regression STORE --prior_scores g.npz"),
    (f"evaluate f {TASK} --ablations 4 --fractions 0.2 --baselines random --out e",
     "e/arguments.yaml", "report f --evaluation e/evaluation.json"),
    (f"edit f {TASK} --target 0-9 --largest 2 --allowed_loss 1 --out x", "x/arguments.yaml",
     f"report f {TASK}"),
    (f"report f {TASK}", "f/report.arguments.yaml", f"evaluate f {TASK}"),
    ("report s_attributions --out r.html", "r.arguments.yaml", "power s"),
    ("score_lds s A=random.npy B=f --kind pearson --allow_fitted_rows", None,
     "score_lds s A=random.npy B=f --allow_fitted_rows --kind pearson --out lds.json"),
    ("score_lds s random.npy --kind pearson --out b/lds.json", "b/lds.arguments.yaml",
     "scoreboard b"),
    ("scoreboard b", None, "scoreboard b --out scoreboard.pdf"),
    ("scoreboard b --out b.tex", "b.arguments.yaml", "scoreboard b --out b.pdf"),
    ("export_bank s bank --format trak", "bank/arguments.yaml", "score_lds s SCORES"),
    ("import_bank i --masks bank/mask.npy --outputs bank/val_margins.npy", "i/arguments.yaml",
     "run_regression i"),
    ("lds_benchmark --bank i --scores mine=random.npy --kind pearson --out l",
     "l/i/arguments.yaml", "scoreboard l/i"),
    (f"record_history h/history {HISTORY}", "h/history/arguments.yaml",
     f"explain h/history {HISTORY} --out h/explanation"),
    (f"explain h/history {HISTORY} --num_test 2 --out h/explanation --tolerance 0.1",
     "h/explanation/arguments.yaml", "plot_explanation h/explanation"),
    (f"metagradient h/meta {HISTORY} --history h/history --num_test 2 --removals 0",
     "h/meta/arguments.yaml", "report h/meta.attributions"),
    ("plot_explanation h/explanation", "h/plots/arguments.yaml", "report h/explanation"),
    (f"plot_history h/history {HISTORY} --points 2", "h/plots/training.arguments.yaml",
     "explain h/history"),
    ("submit plan.yaml --dry_run", None, "submit plan.yaml"),
    ("submit plan.yaml --local 1", None, "report planned"),
]  # fmt: skip


def read(line):
    """The arguments of ``name words …``."""
    name, *words = shlex.split(line)
    return load(name).COMMAND.parse(words)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with what a user brings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses.py").write_text(f"import sys\nsys.path.append('mine')\n{LOSSES}")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    (tmp_path / "b").mkdir()
    np.save("random.npy", np.random.default_rng(0).normal(size=(8, 20)))
    return tmp_path


def test_every_command_names_the_next_and_keeps_its_arguments(place, capsys):
    for line, kept, following in STEPS:
        name, *words = shlex.split(line)
        load(name).main([*words, "--quiet"])
        said = capsys.readouterr()
        named = [one for one in (said.out + said.err).splitlines() if one.startswith("next: coar ")]
        assert named, line
        named = shlex.split(named[-1].removeprefix("next: coar "))
        wanted = shlex.split(following)
        assert named[0] == wanted[0] and set(wanted) <= set(named), (line, named)
        read(shlex.join(named))
        if kept is not None:
            # A block of targets keeps those of a run_regression that fits it.
            does_it = "run_regression" if "f.targets" in kept else name
            again, asked = read(f"{does_it} --config {kept}"), read(line)
            for key in asked.given - {"index", "count", *(("out",) if does_it != name else ())}:
                assert getattr(again, key) == getattr(asked, key), (line, key)
    seen = {line.split()[0] for line, _, _ in STEPS}
    workers = {name for name in modules() if "." in name}
    assert set(modules()) - seen - workers - ELSEWHERE == set()


def test_a_store_names_no_code_but_coarlibs_own(place):
    for line in ("new_setup mine", STEPS[3][0], f"make_dataset s {TASK} --rows 0:2"):
        load(line.split()[0]).main([*shlex.split(line)[1:], "--quiet"])
    store = Store.open("s")
    assert leaving.after_rows(store) == "next: coar make_dataset s --task TASK"


def test_a_name_that_begins_with_a_dash_is_no_flag():
    assert leaving.next_step("status", Path("-x"), out="-y") == "next: coar status ./-x --out ./-y"
    assert leaving.next_step("grow", "a b", rows=-1) == "next: coar grow 'a b' --rows -1"
