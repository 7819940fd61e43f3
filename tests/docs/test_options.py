"""Commands and arguments that the README and the docs name are there."""

import ast
import re

import pytest
from paths import ROOT

from coarlib.commands.__main__ import load, modules

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `coar NAME words …`, as far as its line, its quotes, or a pipe go.
CALL = re.compile(r"\b(?:coar |python -m estimate\.)(?P<name>[a-z_0-9.]+)(?P<words>[^\n`|\"']*)")
FLAG = re.compile(r"(?<![\w-])--(?P<name>[A-Za-z_][\w.-]*)")
ALL_ALONE = re.compile(r"`--(?P<name>[\w.-]+)")
NOT_OURS = {  # of scripts in benchmarks/, and of other people's modules
    "nodes",
    "training.epochs",
}


def names_of(command):
    found = {alias for key, param in command.params.items() for alias in (key, *param.also)}
    return found | set(command.ignored) | {"help"}


COMMANDS = {name: names_of(load(name).COMMAND) for name in modules()}
EVERY = set().union(*COMMANDS.values())


def missing(text):
    """(command or None, name) of every argument that is not there."""
    text = text.replace("\\\n", " ")
    for call in CALL.finditer(text):
        name = call["name"].rstrip(".")
        if name not in COMMANDS and not name.startswith("path"):
            yield name, None
        for flag in FLAG.finditer(call["words"]):
            if flag["name"].replace("-", "_") not in COMMANDS.get(name, EVERY):
                yield name, flag["name"]
    for flag in ALL_ALONE.finditer(text):
        if flag["name"].replace("-", "_") not in EVERY | NOT_OURS:
            yield None, flag["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_arguments_of_a_page_exist(page):
    assert list(missing(page.read_text(encoding="utf-8"))) == []


def test_the_readme_names_every_extra():
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    extras = next(
        [key.value for key in word.value.keys]
        for node in ast.walk(setup)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "extras_require"
    )
    said = (ROOT / "README.md").read_text(encoding="utf-8").partition("Extras: ")[2]
    assert sorted(re.findall(r"`(\w+)`", said.partition(".\n")[0])) == sorted(extras)


def test_what_is_not_there_is_found():
    said = "`coar fill x`, `coar power S --seeds 3` or\n`--no_such`"
    assert list(missing(said)) == [("fill", None), ("power", "seeds"), (None, "no_such")]
