"""Figures in the README and the docs are those of benchmarks/results, to the digits shown.

A paragraph or table after ``<!-- figures: NAME -->`` quotes ``benchmarks/results/NAME.json``: every
decimal number, power of ten and percentage in it is a number of that file, rounded. What is
computed from several numbers stands behind ``; also`` as an expression over the files, settings (a
level of 95%) behind ``; given``. Blocks in which nothing was measured say so: ``<!-- not measured:
reason -->``.
"""

import json
import re

import pytest
from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
FENCE = re.compile(r"^ *```.*?^ *```\s*?$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|<!-- (?!figures|not measured).*?-->", re.DOTALL)
MARK = re.compile(r"<!-- (?P<kind>figures|not measured): (?P<what>.*?) -->", re.DOTALL)
FIGURE = re.compile(
    r"(?<![\w.,/=<≥≤-])(?P<number>[+−-]?(?:\d*\.?\d+e[−-]?\d+|\d*\.\d+|\d+(?=\s?%)))"
    r"(?!(?!x\b)\w|\.|,\d)(?P<percent>\s?%)?"
)
SIGN = str.maketrans({"−": "-", "+": None})


def blocks(text):
    """(mark or None, block) of every paragraph and table, without code."""
    text, mark = CODE.sub("", FENCE.sub("", text)), None
    for block in re.split(r"\n\s*\n", text):
        mark = MARK.search(block) or mark
        if rest := MARK.sub("", block).strip():  # a mark may stand alone, before its block
            yield mark, rest
            mark = None


def figures(block):
    """(text, digits after the point, is a percentage) of every figure in a block."""
    for found in FIGURE.finditer(block):
        number = found["number"].translate(SIGN)
        digits, _, exponent = number.partition("e")
        yield number, len(digits.partition(".")[2]) - int(exponent or 0), bool(found["percent"])


def numbers(value):
    """Every number in some JSON, also those that stand in its texts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    if isinstance(value, str):
        return [float(number) for number in re.findall(r"\d+\.\d+", value)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def allowed(what):
    """(numbers that a mark allows, settings as they are written)."""
    names, *more = (part.strip() for part in what.split(";"))
    files = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names.split()}
    results = {name: content["results"] for name, content in files.items()}
    found, given = numbers(list(results.values())), []
    for part in more:
        kind, _, rest = part.partition(" ")
        if kind == "given":
            given += rest.split()
        else:
            assert kind == "also", f"{part} is neither 'also EXPRESSION' nor 'given NUMBERS'"
            found.append(float(eval(rest, {}, results)))
    return found, given


def is_quoted(figure, candidates):
    """Whether a figure is one of the candidates, rounded to the digits shown."""
    text, digits, percent = figure
    values = [*candidates, *(100 * v for v in candidates)] if percent else candidates
    return any(abs(value - float(text)) <= 0.5000001 * 10.0**-digits for value in values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_is_measured(page):
    wrong = []
    for mark, block in blocks(page.read_text(encoding="utf-8")):
        if mark is None:
            wrong += [("no mark", text, block.strip()[:60]) for text, *_ in figures(block)]
        elif mark["kind"] == "figures":
            known, given = allowed(mark["what"])
            wrong += [
                (mark["what"], text, block.strip()[:60])
                for text, *rest in figures(block)
                if text not in given and not is_quoted((text, *rest), known)
            ]
    assert wrong == []


def test_a_figure_that_is_not_in_its_file_is_found():
    assert is_quoted((".769", 3, False), [0.76934]) and is_quoted(("76.9", 1, True), [0.76934])
    assert not is_quoted((".770", 3, False), [0.76934])
    assert is_quoted(("1.2e-15", 16, False), [1.21e-15]) and is_quoted(("3e4", -4, False), [27e3])
    assert not is_quoted(("1.2e-15", 16, False), [1.3e-15])
    assert list(figures("6e−8, 1.30x")) == [("6e-8", 8, False), ("1.30", 2, False)]
    assert list(figures("a −.032 [.1, +2.50], 12 % of `0.5` and 3")) == [
        ("-.032", 3, False),
        (".1", 1, False),
        ("2.50", 2, False),
        ("12", 0, True),
        ("0.5", 1, False),
    ]
