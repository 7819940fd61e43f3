import re
from pathlib import Path


def test_the_python_of_the_guide_runs():
    guide = Path(__file__).parents[2] / "docs" / "ablation.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    exec(compile("\n".join(blocks), str(guide), "exec"), names)
    assert names["rows"]["test_margins"].shape == (4, 20)
    assert names["components"].name(3) == "0.weight[3]"
