"""Reports of real runs, from the ablation of real networks to a real browser."""

import json

import numpy as np
import pytest
from paths import DATA, ROOT

from coarlib.commands.fit import run_regression
from coarlib.commands.judge import report
from coarlib.commands.store import initialize_store
from estimate.cifar_resnet import make_dataset

MODEL, IMAGES = DATA / "akamaster_resnet20-12fca82f.th", DATA / "cifar10_test1000_lossless.npz"
ROWS, TARGETS, HELD_OUT = 40, 60, 10
NAMES = "[...document.querySelectorAll('#examples tbody tr')].map(r => r.innerText)"


@pytest.fixture(scope="module")
def digits_run(demo_run):
    return demo_run[0]


@pytest.fixture(scope="module")
def resnet20_run(tmp_path_factory):
    if not (MODEL.exists() and IMAGES.exists()):
        pytest.skip(f"{MODEL.name} and {IMAGES.name} are not beside the checkout")
    out = tmp_path_factory.mktemp("resnet20")
    spec = json.loads((ROOT / "specs" / "cifar_resnet20.json").read_text())
    spec["num_models"], spec["schema"]["test_margins"]["shape"] = ROWS, [TARGETS]
    (out / "spec.json").write_text(json.dumps(spec))
    with np.load(IMAGES) as data:
        np.savez(out / "images.npz", x=data["x"][:TARGETS], y=data["y"][:TARGETS])
    store = str(out / "store")
    initialize_store.main(
        ["--logging.logdir", store, "--logging.spec", str(out / "spec.json"), "--quiet"]
    )
    make_dataset.main(
        [
            *("--expt.base_dir", store, "--expt.model_path", str(MODEL), "--quiet"),
            *("--expt.beton_path", str(out / "images.npz"), "--expt.threads", "1"),
        ]
    )
    run_regression.main(
        [
            *("--data.data_path", store, "--cfg.out_dir", str(out / "attributions"), "--quiet"),
            *("--data.num_train", str(ROWS - HELD_OUT), "--data.num_val", str(HELD_OUT)),
            *("--cfg.solver", "ridge", "--cfg.k", "1"),
        ]
    )
    return out


@pytest.mark.parametrize(
    ("run", "layer", "word"), [("digits_run", "conv", "7"), ("resnet20_run", "layer3", "frog")]
)
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_report_of_a_real_run_works_in_a_browser(request, browser, run, layer, word, size):
    out = request.getfixturevalue(run)
    report.main([str(out), "--quiet"])
    browser.problems.clear()
    browser.size(*size)
    browser.open((out / "report.html").as_uri())
    assert browser.do("document.documentElement.dataset.ready") == "1"
    assert browser.do("document.documentElement.scrollWidth") <= size[0]
    drawn = "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)"
    widths = browser.do(drawn)
    assert len(widths) >= 5 and min(widths) > 200
    assert browser.do("document.images.length") > 20  # the examples are shown
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.do(broken) == 0
    assert layer in browser.do("document.getElementById('layers-table').innerText")

    browser.do("document.getElementById('search').focus()")
    browser.type(word)
    found = browser.do(NAMES)
    number, of, every, _ = browser.do("document.getElementById('search-state').textContent").split()
    assert of == "of" and 0 < int(number) < int(every)
    assert found and all(word in text for text in found)
    browser.do("document.querySelectorAll('#examples thead button')[2].click()")
    values = [float(text.replace("\u2212", "-")) for text in browser.do(
        "[...document.querySelectorAll('#examples tbody tr')].map(r => r.cells[2].textContent)"
    )]  # fmt: skip
    assert values == sorted(values) and len(values) == len(found)
    assert browser.problems == []
