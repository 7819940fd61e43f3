"""The code of docs/scoring.md runs as it is printed."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scoring.md"


def test_the_page_runs(tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 7
    namespace = {"directory": tmp_path / "retrained"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name} block {number + 1}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "LDS 0." in printed
    assert namespace["correlation"].shape == (8,)
    assert namespace["measured"].shape == (12, 2, 16)
    assert namespace["result"].interval.low > 0.3
