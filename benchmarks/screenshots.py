"""Take the pictures in docs/pictures/screens: the report, the documentation.

    python benchmarks/screenshots.py [OUT_OF_DEMO]

OUT_OF_DEMO is what `coar demo` made (out/demo); it is made where it is missing, in some minutes.
Needs Chromium and the docs extra. Look at every picture afterwards.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "report")]
from chromium import Browser  # noqa: E402

SCREENS = ROOT / "docs" / "pictures" / "screens"
DESKTOP, PHONE = (1280, 800), (390, 844)
NOTEBOOKS = {"notebook": "components_of_your_cnn", "notebook-2": "reading_explaind"}


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
        for name, page in NOTEBOOKS.items():
            shots.append((name, site / "notebooks" / f"{page}.html", DESKTOP, False))
        with Browser(place / "profile") as browser:
            for name, page, size, dark in shots:
                browser.size(*size)
                browser.dark(dark)
                browser.open(page.as_uri())
                browser.do("document.querySelectorAll('[data-md-component=dialog]').forEach("
                           "e => e.remove())")  # fmt: skip
                if name in NOTEBOOKS:  # what it shows, not how it begins
                    browser.do("document.querySelectorAll('h2')[1].scrollIntoView()")
                    time.sleep(1)  # the page's header changes as it scrolls
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


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
