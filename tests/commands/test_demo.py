import os
import re

import numpy as np
from matplotlib.image import imread

from coarlib.commands.start import demo
from coarlib.regression.attributions import Attributions
from coarlib.store import Store


def test_the_demo_beats_the_baselines_and_resumes(demo_run, capfd):
    out, printed = demo_run
    found = {
        line.split()[0]: [float(number) for number in re.findall(r"[-+]?\d\.\d{3}", line)]
        for line in printed.splitlines()
        if re.match(r"(COAR|leave-one-out|random) +[\d,]+ ", line)
    }
    coar, alone, random = (found[name] for name in ("COAR", "leave-one-out", "random"))
    for mean, low, high in (coar, alone, random):
        assert low <= mean <= high
    assert coar[0] > alone[0] > random[0]
    assert coar[1] > random[2] and abs(random[0]) < 0.1
    for stage in range(1, 6):
        assert re.search(rf"^== {stage} .*", printed, re.MULTILINE)
    assert len(re.findall(r"^   \d+\.\d s$", printed, re.MULTILINE)) == 5
    assert "held-out correlation" in printed and "leave-one-out less COAR: -" in printed
    figure = out / "figure.png"
    assert f"figure: {figure}" in printed
    pixels = imread(figure)
    assert pixels.shape[0] > 800 and np.ptp(pixels[..., :3]) > 0.9

    store = Store.open(out / "store")
    before = store.checksums().copy()
    demo.main(["--demo.out_dir", str(out), "--demo.size", "test"])
    again = capfd.readouterr().out
    assert f"next: coar report {out}\n" in again
    assert again.count("already there") >= 2
    assert again.count("0 rows written") == (os.cpu_count() or 1)  # a worker a core
    assert (store.checksums() == before).all()
    assert f"{coar[0]:+.3f}" in again
    attributions = Attributions.load(out / "attributions")
    assert attributions.cost.passes <= 160 and attributions.summary["num_rows"] == store.num_models
