"""The numbers that `make demo` ends in: methods against ablations that no fit has seen."""

import re
import subprocess
import sys
import tempfile

import reporting

LINE = re.compile(
    r"^(?P<method>\S+) +(?P<forward_passes>[\d,]+) +(?P<mean>[+-]\d\.\d+) "
    r"\[(?P<low>[^,]+), (?P<high>[^\]]+)\]$",
    re.MULTILINE,
)


def main():
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "estimate.demo", "--demo.out_dir", out]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rows = [
        {"method": m["method"], "forward_passes": int(m["forward_passes"].replace(",", ""))}
        | {key: float(m[key]) for key in ("mean", "low", "high")}
        for m in LINE.finditer(said)
    ]
    reporting.table("correlation of predicted and true margins on unseen ablations", rows)
    reporting.save("demo", rows, "torch", "scikit-learn")


if __name__ == "__main__":
    main()
