"""One grammar: what every command takes, by which names, and that one name means one thing."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from coarlib.commands import common, leaving
from coarlib.commands.__main__ import OTHER_NAMES, commands, load, main, modules, overview
from coarlib.commands.arguments import Command
from coarlib.commands.help import note

CALL = re.compile(r"(?:coar|python -m estimate\.)\s?([\w.]+)((?: [^`|\n;&)]*)?)")
NAMES = Path(__file__).with_name("names_that_stay.txt")
COMMANDS = {name: load(name).COMMAND for name in modules()}
# What one name is, in every command that has it.
ONE_MEANING = ("rows", "task", "set", "device", "config", "quiet", "x_name", "seed", "dry_run")
WITHOUT_PLACE = {  # their first argument is nothing that is there already
    *("lds_benchmark", "demo", "gradient_scores", "new_setup", "completion", "warmup"),
}


def names_that_stay():
    """(command, name) of every line of the file."""
    command = section = ""
    for line in NAMES.read_text().splitlines():
        if line.startswith("#"):
            continue
        if line.endswith(":"):
            command = line[:-1]
            continue
        words = line.split()
        if not line.startswith("    "):
            section, words = words[0], words[1:]
        yield from ((command, word if section == "-" else f"{section}.{word}") for word in words)


def test_the_list_of_all_arguments():
    """Run with -s to see it."""
    for name, command in COMMANDS.items():
        print(f"\n{name}")
        for key, param in command.own.items():
            also = f"  = {' '.join(param.also)}" if param.also else ""
            print(f"  {command.shown(key):<22} {note(param)}{also}")
    assert len(COMMANDS) >= 38
    assert [name for name, command in COMMANDS.items() if not command.own] == ["warmup"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_keeps_the_rules(name):
    command = COMMANDS[name]
    assert isinstance(command, Command) and command.name == name
    assert f"coar {name.split('.')[0]}" in command.text or "." in name, "no example"
    keys = list(command.own)
    placed = [key for key in keys if command.own[key].positional]
    assert name in WITHOUT_PLACE or placed[:1] == keys[:1], "the place comes first"
    spelled = [alias for key, param in command.params.items() for alias in (key, *param.also)]
    assert len(spelled) == len(set(spelled)), "a name means two things"
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in keys)
    assert not {"out_dir", "out_path", "to", "task_args", "base_dir", "logdir"} & set(keys)
    for param in command.own.values():
        assert param.desc


def test_one_name_means_one_thing():
    for key in ONE_MEANING:
        found = {name: c.params[key] for name, c in COMMANDS.items() if key in c.params}
        assert len({type(param.checker) for param in found.values()}) == 1, key
        assert len({param.many for param in found.values()}) == 1, key
    stores = [c.own["store"].positional for name, c in COMMANDS.items() if "store" in c.own]
    assert stores.count(False) == 1  # of report, whose place is a result
    for name, command in COMMANDS.items():
        if "task" in command.own and "make_dataset" not in name:
            assert "set" in command.own, name


@pytest.mark.parametrize(("command", "name"), list(names_that_stay()))
def test_names_stay_for_ever(command, name):
    known = COMMANDS[command]
    assert name.replace("-", "_") in known.names() or name in known.ignored


def test_names_of_the_docs_and_scripts_are_accepted():
    """Every flag of every command line in docs, README, SLURM and run scripts exists."""
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("slurm/*")]
    pages += ROOT.glob("estimate/*/run.sh")
    seen = 0
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(
            r"(?:coar|python -m estimate\.)\s?([\w.]+)((?: [^`|\n;&)]*)?)", text
        ):
            command = COMMANDS.get(OTHER_NAMES.get(found[1], found[1]))
            for flag in re.findall(r" (--[\w.-]+)", found[2]) if command else ():
                seen += 1
                known = {name.replace("-", "_") for name in (*command.names(), "help")}
                plain = flag[2:].replace("-", "_").rstrip(".")
                assert plain in known or plain in command.ignored, f"{page}: {found[0]}"
    assert seen > 50


SEEDS = [
    "initialize_store --logging.logdir S --logging.spec cifar_resnet/spec_test.json",
    "cifar_resnet.make_dataset --expt.base_dir S --expt.subsample_prob 0.95 --expt.batch_size 500 "
    "--expt.start_index 0 --expt.end_index 100 --expt.model_path m.pt --expt.beton_path b.beton",
    "write_dataset --cfg.data_dir S --cfg.out_path S/component_datasets.beton --cfg.x_name masks "
    "--cfg.y_name test_margins --cfg.ignore_completed",
    f"run_regression --config {ROOT}/estimate/cifar_resnet/regression_config_test.yaml "
    "--data.data_path S/component_datasets.beton --cfg.out_dir S/coar_attributions.pt",
    "make_dataset --worker.index 3 --worker.main_import my_module --worker.logdir S",
]


@pytest.mark.parametrize("line", SEEDS, ids=lambda line: line.split()[0])
def test_upstreams_command_lines_are_read_as_printed(line):
    name, *words = shlex.split(line)
    args = COMMANDS[name].parse(words)
    assert args.store.startswith("S")


def test_help_is_by_room_and_short(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert text.strip() == overview().strip()
    assert all(len(line) <= 110 for line in text.splitlines()[:-1])
    assert all(f"  {name} " in text for name in commands() if "." not in name)
    main(["--version"])
    assert re.fullmatch(r"coarlib \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_usage_says_coar(capsys):
    with pytest.raises(SystemExit):
        main(["run_regression", "--help"])
    assert capsys.readouterr().out.startswith("usage: coar run_regression STORE")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, capsys):
    main(["completion", shell])
    text = capsys.readouterr().out
    assert "run_regression" in text and "digits" in text and "held_out" in text
    if shell == "bash":
        ask = 'COMP_WORDS=(coar make_dataset S --ta); COMP_CWORD=3; _coar; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", text + ask], capture_output=True, text=True)
        assert done.stdout.strip() == "--task", done.stderr


def test_the_next_step_can_be_pasted():
    line = leaving.next_step(
        "make_dataset", "a b", task="t.py", set={"x": 1, "y": "it's"}, rows=None
    )
    assert line.startswith("next: coar make_dataset 'a b' --task t.py")
    args = COMMANDS["make_dataset"].parse(shlex.split(line)[3:])
    assert (args.store, args.task, args.set) == ("a b", "t.py", {"x": 1, "y": "it's"})


def test_results_are_named_beside_their_store():
    for path, expected in (
        ("out/store", "out/attributions"),
        ("out/digits", "out/digits_attributions"),
        ("out/rows.beton", "out/attributions"),
        ("out/x.beton", "out/x_attributions"),
        ("out/x_attributions", "out/x_attributions"),
    ):
        assert str(common.beside(path, "attributions")) == expected


def test_messages_of_the_library_name_parameters_not_flags():
    """No text outside the commands that holds a flag, but for docstrings and SLURM's options."""
    for path in ROOT.glob("coarlib/**/*.py"):
        if {"commands", "cluster"} & set(path.parts):
            errors = (ast.Raise,)
        else:
            errors = (ast.Raise, ast.Call, ast.Assign, ast.Return)
        if "commands" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for part in ast.walk(node) if isinstance(node, errors) else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    assert not re.search(r"--[a-z]", part.value), f"{path}: {part.value}"


def test_python_m_coarlib_is_coar():
    done = subprocess.run([sys.executable, "-m", "coarlib", "--version"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"coarlib ")
