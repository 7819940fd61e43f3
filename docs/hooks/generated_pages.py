"""Pages that mkdocs builds from the code: commands, benchmarks; and the pages that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LONGEST_CELL = 80
TABLE = re.compile(r"<!-- table: (.*?) -->")


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not written."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts."""
    makers = {
        "<!-- commands -->": commands,
        "<!-- benchmarks -->": benchmarks,
        "<!-- frontier -->": frontier,
    }
    for mark, make in makers.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return TABLE.sub(lambda found: table_of(found[1]), markdown)


def _existing(nav: Any, docs: Path) -> Any:
    if isinstance(nav, str):
        return nav if (docs / nav).is_file() else None
    if isinstance(nav, dict):
        kept = {title: _existing(part, docs) for title, part in nav.items()}
        return {title: part for title, part in kept.items() if part} or None
    return [part for part in (_existing(part, docs) for part in nav) if part]


def frontier() -> str:
    """Show accuracy against cost on the home page, or the report where that is not drawn yet."""
    if (ROOT / "docs" / "pictures" / "frontier.png").is_file():
        return (
            "![How well methods predict unseen ablations, against their cost]"
            "(pictures/frontier.png)\n"
        )
    return (
        "![The report of the demo: the verdict, every method's scores, and what decides three "
        "digits](pictures/screens/report-desktop.png)\n"
    )


def commands() -> str:
    """Describe every command: what it does, its arguments."""
    from coarlib.commands.__main__ import commands as find
    from coarlib.commands.__main__ import load
    from coarlib.commands.help import note

    parts = []
    for name, line in find().items():
        module = load(name)
        parts.append(f"## coar {name}\n\n{line}\n")
        rest = (module.__doc__ or "").split("\n", 1)
        if len(rest) > 1 and rest[1].strip():
            parts.append(f"```text\n{rest[1].strip()}\n```\n")
        command = module.COMMAND
        names = [(command.shown(key), param) for key, param in command.own.items()]
        if names:
            parts.append("| argument | meaning | other names |\n|---|---|---|")
            parts += [
                f"| `{shown}` | {_cell(note(p))} | {' '.join(f'`--{name}`' for name in p.also)} |"
                for shown, p in names
            ]
            parts.append("")
    return "\n".join(parts)


def benchmarks() -> str:
    """Turn every benchmarks/results/*.json into folded tables."""
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        said = ", ".join(f"{value}" for value in content.get("machine", {}).values())
        versions = content.get("versions", {})
        known = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
        lines = [f"Measured on {content.get('date', '?')}; machine: {said}; {known}.\n"]
        lines += _tables(content.get("results", content), 3)
        body = "\n".join("    " + line for line in "\n".join(lines).split("\n"))
        parts.append(f'??? note "{path.stem.replace("_", " ")}"\n\n{body}\n')
    return "\n".join(parts) or "There are no results yet: run `make bench`.\n"


def table_of(directive: str) -> str:
    """Make the table that ``NAME/path/of/keys | column=Title, column`` describes."""
    place, _, said = directive.partition("|")
    name, *keys = place.strip().split("/")
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    for key in keys:
        found = found[int(key)] if isinstance(found, list) else found[key]
    records = found if isinstance(found, list) else [found]
    pairs = [column.strip().split("=", 1) for column in said.split(",")]
    titles = [pair[-1] for pair in pairs]
    rows = [[_cell(record.get(pair[0])) for pair in pairs] for record in records]
    head = [_row(titles), _row(["---"] * len(titles))]
    return "\n".join([*head, *(_row(row) for row in rows)]) + "\n"


def _tables(value: Any, level: int, title: str = "") -> list[str]:
    """Lists of records become tables, records of numbers two columns, the rest recurses."""
    parts = [f"**{title}**\n"] if title else []
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        keys = list(dict.fromkeys(key for item in value for key in item))
        parts.append(_row(keys) + "\n" + _row(["---"] * len(keys)))
        parts += [_row([_cell(item.get(key)) for key in keys]) for item in value]
        return [*parts, ""]
    if not isinstance(value, dict):
        return [*parts, _cell(value), ""]
    flat = {key: item for key, item in value.items() if not _nested(item)}
    if flat:
        parts.append("| | |\n|---|---|")
        parts += [f"| {_cell(key)} | {_cell(item)} |" for key, item in flat.items()]
        parts.append("")
    for key, item in value.items():
        if _nested(item):
            parts += _tables(item, level + 1, str(key).replace("_", " "))
    return parts


def _nested(value: Any) -> bool:
    records = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) or records


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict):
        value = json.dumps(value)
        value = value if len(value) <= LONGEST_CELL else value[: LONGEST_CELL - 1] + "…"
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
