"""Take the pictures in docs/pictures/screens: the report, the documentation, notebooks' outputs.

    python benchmarks/screenshots.py [OUT_OF_DEMO]

OUT_OF_DEMO is what `coar demo` made (out/demo); it is made where it is missing, in some minutes.
Needs Chromium and the docs extra. Look at every picture afterwards.
"""

import base64
import html
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "report")]
from chromium import Browser  # noqa: E402

SCREENS = ROOT / "docs" / "pictures" / "screens"
DESKTOP, PHONE = (1280, 800), (390, 844)
NOTEBOOKS = ("components_of_your_cnn", "reading_explaind")
PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>body{font:15px system-ui;margin:1rem 2rem;
max-width:60rem}pre{white-space:pre-wrap;background:#f6f8fa;padding:.5rem;margin:.4rem 0}
img{max-width:100%}.code{border-left:4px solid #0072b2}</style>"""


def main(demo):
    SCREENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        report = report_of(Path(demo))
        site = site_in(place / "site")
        shots = [
            ("report-desktop", report, DESKTOP, False),
            ("report-dark", report, DESKTOP, True),
            ("report-phone", report, PHONE, False),
            ("docs-home", site / "index.html", DESKTOP, False),
            ("docs-home-phone", site / "index.html", PHONE, False),
            ("docs-gallery", site / "gallery.html", DESKTOP, False),
            ("docs-benchmarks", site / "benchmarks.html", DESKTOP, False),
        ]
        for at, name in enumerate(NOTEBOOKS):
            page = place / f"{name}.html"
            page.write_text(outputs_of(name), encoding="utf-8")
            shots.append((f"notebook{'' if at == 0 else f'-{at + 1}'}", page, (900, 1000), False))
        with Browser(place / "profile") as browser:
            for name, page, size, dark in shots:
                browser.size(*size)
                browser.dark(dark)
                browser.open(page.as_uri())
                browser.do("document.querySelectorAll('[data-md-component=dialog]').forEach("
                           "e => e.remove())")  # fmt: skip
                browser.screenshot(SCREENS / f"{name}.png")
                wide = browser.do("document.documentElement.scrollWidth")
                print(f"{name}: {wide} pixels wide, {size[0]} are there; {browser.problems}")
                browser.problems.clear()


def report_of(demo):
    """The demo's report, made where it is missing."""
    coar = [sys.executable, "-m", "coarlib"]
    if not (demo / "attributions").is_dir():
        subprocess.run([*coar, "demo", "--out", str(demo), "--quiet"], check=True)
    subprocess.run([*coar, "report", str(demo), "--quiet"], check=True)
    return (demo / "report.html").resolve()


def site_in(place):
    """Build the documentation."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = ["mkdocs", "build", "-q", "-d", str(place)]
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, check=True)
    return place


def outputs_of(name):
    """A notebook as a plain page: its words, the last lines of its code, its outputs."""
    book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    parts = [PAGE]
    for cell in book["cells"]:
        text = html.escape("".join(cell["source"]))
        if cell["cell_type"] == "markdown":
            parts.append(f"<p>{text.replace('## ', '').replace('# ', '')}</p>")
            continue
        short = text.split("\n")[-4:]
        parts.append(f'<pre class="code">{chr(10).join(short)}</pre>')
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = base64.b64encode(base64.b64decode(data["image/png"])).decode()
                parts.append(f'<img src="data:image/png;base64,{picture}">')
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                said = output.get("text") or data.get("text/plain", "")
                parts.append(f"<pre>{html.escape(''.join(said))}</pre>")
    return "\n".join(parts)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
