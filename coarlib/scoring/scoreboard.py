"""A table of methods by LDS, for a page or a paper; scores of one regime only."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coarlib.errors import ScoringError, first_line, nearest, printable
from coarlib.loading import load_json
from coarlib.scoring.regime import Regime

__all__ = ["FORMATS", "Line", "Scoreboard", "read_scoreboard"]

HEADERS = ("method", "LDS", "95% interval", "of the ceiling", "95% interval", "p < .05")


@dataclass(frozen=True)
class Line:
    """One method: its name and its record (:func:`coarlib.scoring.records.lds_record`)."""

    method: str
    record: dict[str, Any]

    def cells(self) -> tuple[str, ...]:
        """Return what stands in the table."""
        record = self.record
        note = " (on rows that were fitted)" if record.get("includes_fitted_rows") else ""
        return (
            self.method + note,
            _number(record["mean"]),
            _interval(record.get("interval")),
            _percent(record.get("share_of_ceiling")),
            _interval(record.get("share_interval"), _percent),
            _percent(record.get("share_p_below_05")),
        )


@dataclass(frozen=True)
class Scoreboard:
    """Methods in descending order of LDS.

    Attributes
    ----------
    lines : tuple of Line
    regime : Regime
        That all were measured in.
    """

    lines: tuple[Line, ...]
    regime: Regime

    @property
    def caption(self) -> str:
        """What was measured, and the noise ceiling."""
        first = self.lines[0].record
        ceiling = first.get("noise_ceiling")
        text = f"LDS over {self.regime.num_targets} targets: {self.regime}"
        if ceiling is None:
            return text
        return f"{text}; noise ceiling {_number(ceiling)} {_interval(first['ceiling_interval'])}"

    def render(self, form: str) -> str:
        """Return the table as "markdown", "latex", "csv" or "html".

        Raises
        ------
        ScoringError
            For another form.
        """
        if form not in FORMATS:
            known = list(FORMATS)
            raise ScoringError(f"a table is {', '.join(known)}, not {form}{nearest(form, known)}")
        return FORMATS[form](self.caption, [line.cells() for line in self.lines])


def read_scoreboard(paths: Sequence[str | Path]) -> Scoreboard:
    """Read results of score_lds and lds_benchmark.

    Parameters
    ----------
    paths : sequence of str or Path
        Result files, and directories of them (other files there are passed over).

    Raises
    ------
    ScoringError
        If there are none, one is damaged, or two were measured in different regimes.
    """
    lines = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob("*.json") if file.is_file())
        files = inside if path.is_dir() else [path]
        for file in files:
            found = _read(file)
            if not found and not path.is_dir():
                raise ScoringError(f"{file} is not a result of score_lds with a regime")
            lines += found
    if not lines:
        raise ScoringError(f"no results of score_lds with a regime in {', '.join(map(str, paths))}")
    regimes = [Regime.from_json(line.record["regime"]) for line in lines]
    for line, regime in zip(lines, regimes, strict=True):
        differs = regimes[0].difference(regime)
        if differs:
            raise ScoringError(
                f"{lines[0].method} and {line.method} cannot stand in one table: they differ in "
                f"{differs}"
            )
    ordered = sorted(
        lines, key=lambda line: -(-2 if line.record["mean"] is None else line.record["mean"])
    )
    return Scoreboard(tuple(ordered), regimes[0])


def _read(file: Path) -> list[Line]:
    """Return the results in a file of score_lds or lds_benchmark; none of another JSON file."""
    content = load_json(file, ScoringError)
    if not isinstance(content, dict):
        return []
    records = content.get("methods") or {content.get("method") or file.stem: content}
    if not isinstance(records, dict) or not all(
        isinstance(record, dict) and "regime" in record for record in records.values()
    ):
        return []
    lines = [Line(printable(name), record) for name, record in records.items()]
    try:
        for line in lines:
            line.cells(), Scoreboard((line,), Regime.from_json(line.record["regime"])).caption
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoringError(f"{file} is damaged ({first_line(error)}); score again") from error
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _interval(record: dict[str, Any] | None, show: Callable[[Any], str] = _number) -> str:
    if record is None:
        return "–"
    if record["low"] is None:
        return str(record["text"]).strip("()")
    return f"[{show(record['low'])}, {show(record['high'])}]"


def _markdown(caption: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADERS, ["---"] * len(HEADERS), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"{table}\n\n{caption}\n"


def _latex(caption: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (HEADERS, *rows)]
    head, *body = lines
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    columns = "l" + "r" * (len(HEADERS) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            inner,
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption)}}}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    special = {c: "\\" + c for c in "&%$#_{}"} | {"<": "$<$", "×": r"$\times$", "–": "--"}
    special |= {"^": r"\^{}", "~": r"\~{}"}
    return "".join(special.get(letter, letter) for letter in text.replace("\\", "/"))


def _csv(_: str, rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADERS)
    writer.writerows(rows)
    return text.getvalue()


def _html(caption: str, rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    head = f"<caption>{html.escape(caption)}</caption>\n<thead>{line(HEADERS, 'th')}</thead>"
    return f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>\n"


FORMATS: dict[str, Callable[[str, Sequence[Sequence[str]]], str]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}
