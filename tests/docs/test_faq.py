"""The page of error messages quotes messages that exist."""

import ast
import re

import pytest
from paths import ROOT

HEADING = re.compile(r"^### (.*)$", re.MULTILINE)
SPACE = re.compile(r"\s+")


def messages():
    """Every text of the library, with {} where a value stands."""
    found = []
    for path in (ROOT / "coarlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return SPACE.sub(" ", "\n".join(found))


KNOWN = messages()
QUOTED = [
    quote
    for heading in HEADING.findall((ROOT / "docs" / "faq.md").read_text(encoding="utf-8"))
    for quote in re.findall(r'"([^"]+)"', heading)
]


def test_there_are_some():
    assert len(QUOTED) >= 12


@pytest.mark.parametrize("quote", QUOTED)
def test_a_message_that_is_explained_exists(quote):
    assert quote in KNOWN
