"""Pages that mkdocs builds: commands from the code, benchmarks from results, notebooks as kept."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from coarlib.display import METHODS, number

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LONGEST_CELL = 80
NOTEBOOKS = ROOT / "notebooks"
WITH_INTERVAL = re.compile(r"(.+) \[(.+); (.+)\]")
ARGUMENT = re.compile(r"(?<![\w.-])--[\w.]+")
INLINE_CODE = re.compile(r"(?<!<pre>)<code>([^<]*--[^<]*)</code>")
TABLE = re.compile(r"<!-- table: (.*?) -->")


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not written."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, and the notebook itself to take home."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        page = notebook_page(path.name, json.loads(text))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        files.append(File.generated(config, f"notebooks/{path.name}", content=text))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Keep the arguments of commands in one piece: --rows is not to end a line as --."""

    def whole(found: re.Match[str]) -> str:
        kept = ARGUMENT.sub(lambda one: f'<span class="whole">{one[0]}</span>', found[1])
        return f"<code>{kept}</code>"

    return INLINE_CODE.sub(whole, html)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Fill in the generated parts, and where the repository is, if that is known."""
    if config.repo_url:
        markdown = markdown.replace("git clone REPOSITORY", f"git clone {config.repo_url}")
    makers = {
        "<!-- commands -->": commands,
        "<!-- benchmarks -->": benchmarks,
    }
    for mark, make in makers.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return TABLE.sub(lambda found: table_of(found[1]), markdown)


def _existing(nav: Any, docs: Path) -> Any:
    if isinstance(nav, str):
        there = (docs / nav).is_file() or (ROOT / nav).with_suffix(".ipynb").is_file()
        return nav if there else None
    if isinstance(nav, dict):
        kept = {title: _existing(part, docs) for title, part in nav.items()}
        return {title: part for title, part in kept.items() if part} or None
    return [part for part in (_existing(part, docs) for part in nav) if part]


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
    """Make the table that a directive describes.

    ``NAME/path/of/keys | column=Title, value [low; high]=Title`` has a line a record, or with
    ``line by column: value [low; high]`` one a value of ``line``, and a column a value of
    ``column``.
    """
    place, _, said = directive.partition("|")
    name, *keys = place.strip().split("/")
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    for key in keys:
        found = found[int(key)] if isinstance(found, list) else found[key]
    records = found if isinstance(found, list) else [found]
    if pivot := re.fullmatch(r"\s*(\w+) by (\w+): (.+)", said):
        return _crossed(records, *pivot.groups())
    pairs = [column.strip().split("=", 1) for column in said.split(",")]
    titles = [pair[-1] for pair in pairs]
    for key, *_ in pairs:
        if WITH_INTERVAL.fullmatch(key) is None and not any(key in record for record in records):
            raise KeyError(f"no record of {name} has {key!r}")
    rows = [[_shown(record, pair[0]) for pair in pairs] for record in records]
    return _grid(titles, rows)


def _crossed(records: list[Any], line: str, column: str, value: str) -> str:
    columns = list(dict.fromkeys(record[column] for record in records))
    lines = list(dict.fromkeys(record[line] for record in records))
    at = {(record[line], record[column]): _shown(record, value.strip()) for record in records}
    head = [line, *(f"{column} {one:g}" for one in columns)]
    return _grid(head, [[_name(one), *(at[one, c] for c in columns)] for one in lines])


def _shown(record: Any, key: str) -> str:
    """Show a value, with its interval if ``key`` names one: ``mean [low; high]``."""
    if ends := WITH_INTERVAL.fullmatch(key):
        value, low, high = (number(record[one]) for one in ends.groups())
        return f"{value} [{low}, {high}]"
    value = record.get(key)
    return _name(_significant(value) if isinstance(value, float) else _cell(value))


def _significant(value: float) -> str:
    """Three significant digits, no needless exponent."""
    if abs(value) >= 1000:
        return number(value, 0)
    return f"{value:#.3g}".removesuffix(".").replace("-", "−", int(value < 0))


def _name(value: Any) -> str:
    return METHODS.get(str(value), str(value))


def _grid(titles: list[str], rows: list[list[str]]) -> str:
    head = [_row(titles), _row(["---"] * len(titles))]
    return "\n".join([*head, *(_row(row) for row in rows)]) + "\n"


def notebook_page(name: str, book: Any) -> str:
    """Show a notebook as a page: words, code, and what it printed and drew."""
    parts = []
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    first, *rest = parts
    return "\n\n".join([first, f"Take it home: [{name}]({name}).", *rest]) + "\n"


def _output(output: Any) -> str:
    """Show one output: a picture, HTML, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        source = "".join(data["image/png"]).strip()
        return f'<img class="drawn" alt="what the cell draws" src="data:image/png;base64,{source}">'
    if "text/html" in data:
        return f'<div class="output">{"".join(data["text/html"])}</div>'.replace("\n\n", "\n")
    said = "".join(output.get("text") or data.get("text/plain", "")).rstrip()
    return f'<pre class="output"><code>{escape(said)}</code></pre>'.replace("\n\n", "\n \n")


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
