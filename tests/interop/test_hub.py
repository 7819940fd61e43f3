"""push and pull against a stand-in of the hub's HTTP interface."""

import json

import numpy as np
import pytest
from zoo.hub import LARGE, Hub

from coarlib.commands.store import pull as pull_command
from coarlib.commands.store import push as push_command
from coarlib.errors import StoreError
from coarlib.interop.banks import write_bank
from coarlib.interop.hub import pull, push
from coarlib.interop.published import load_bank
from coarlib.regression import Attributions, fit
from coarlib.scoring import lds
from coarlib.store import Store
from coarlib.store.verify import verify

constants = pytest.importorskip("huggingface_hub.constants")
REPO = "someone/halves"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((60, 40)) < 0.5
    outputs = (masks @ rng.standard_normal((40, 30)) + rng.standard_normal((60, 30))).astype("f4")
    return write_bank(tmp_path / "store", masks, outputs, notes="of a test")


def test_a_hub_that_is_not_there_is_one_sentence(store, tmp_path):
    for endpoint in ("http://127.0.0.1:1", "http://no-such-hub.invalid"):
        with pytest.raises(StoreError, match="cannot be reached"):
            push(store.path, REPO, endpoint=endpoint)
        with pytest.raises(StoreError, match="cannot be reached"):
            pull(REPO, tmp_path / "pulled", endpoint=endpoint)


def test_what_is_pulled_is_what_was_pushed(hub, store, tmp_path):
    (store.path / "claims").mkdir(exist_ok=True)
    (store.path / "claims" / "0.0").write_text("x")
    url = push(store.path, REPO, endpoint=hub.url)
    assert url.startswith(f"{hub.url}/datasets/{REPO}/commit/")
    assert any(len(content) >= LARGE for content in hub.state(REPO).values()) and hub.uploaded
    path = pull(REPO, tmp_path / "pulled", endpoint=hub.url)
    mine, theirs = (
        {f.relative_to(p).as_posix(): f.read_bytes() for f in p.rglob("*") if f.is_file()}
        for p in (store.path, path)
    )
    del mine["claims/0.0"]
    assert mine == theirs
    report = verify(Store.open(path))
    assert report.checked == 60 and report.sound
    scores = np.random.default_rng(1).standard_normal((40, 30))
    results = [
        lds(scores, s.array("masks"), s.array("test_margins")) for s in (store, Store.open(path))
    ]
    np.testing.assert_array_equal(results[0].correlation, results[1].correlation)
    assert results[0].regime == results[1].regime
    card = hub.state(REPO)["README.md"].decode()
    kept = results[0].regime.kept
    assert f"{kept:.0%} kept, 60 subsets" in card and results[0].regime.digest[:8] in card
    assert "coar pull halves someone/halves" in card


def test_a_push_sends_what_has_arrived_no_second_time(hub, store):
    push(store.path, REPO, endpoint=hub.url)
    sent = list(hub.uploaded)
    push(store.path, REPO, endpoint=hub.url)
    assert hub.uploaded == sent and len(hub.commits[REPO]) >= 2


def test_a_pull_that_stopped_goes_on(hub, store, tmp_path):
    push(store.path, REPO, endpoint=hub.url)
    names = [name for name in json.loads(hub.state(REPO)["coarlib.json"])["files"]]
    hub.missing = {names[-1]}
    with pytest.raises(StoreError, match="cannot be reached or refuses"):
        pull(REPO, tmp_path / "pulled", endpoint=hub.url)
    assert not (tmp_path / "pulled").exists()
    hub.missing, hub.fetched = set(), []
    pull(REPO, tmp_path / "pulled", endpoint=hub.url)
    assert set(hub.fetched) <= {"coarlib.json", names[-1]}
    with pytest.raises(StoreError, match="is there already"):
        pull(REPO, tmp_path / "pulled", endpoint=hub.url)


def test_a_damaged_file_is_named_and_fetched_again(hub, store, tmp_path):
    push(store.path, REPO, endpoint=hub.url)
    hub.damage = {"masks.npy"}
    assert "masks.npy" in hub.state(REPO)
    with pytest.raises(StoreError, match=r"masks.npy of someone/halves is not the file"):
        pull(REPO, tmp_path / "pulled", endpoint=hub.url)
    hub.damage = set()
    assert Store.open(pull(REPO, tmp_path / "pulled", endpoint=hub.url)).completed().all()


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../x", ".ssh/x", "a\\b", "README.md", "a//b", ""]
)
def test_a_list_that_names_files_elsewhere_is_refused(hub, store, tmp_path, name):
    push(store.path, REPO, endpoint=hub.url)
    content = json.loads(hub.state(REPO)["coarlib.json"])
    content["files"][name] = "0" * 64
    hub.state(REPO)["coarlib.json"] = json.dumps(content).encode()
    with pytest.raises(StoreError, match="which is no file inside it"):
        pull(REPO, tmp_path / "pulled", endpoint=hub.url)
    assert not (tmp_path / "x").exists()


def test_attributions_and_banks(hub, store, tmp_path):
    fit((store.array("masks")[:], store.array("test_margins")[:]), "ridge").save(tmp_path / "fit")
    push(tmp_path / "fit", "someone/fit", endpoint=hub.url)
    found = Attributions.load(pull("someone/fit", tmp_path / "pulled", endpoint=hub.url))
    np.testing.assert_array_equal(found.weight, Attributions.load(tmp_path / "fit").weight)
    (tmp_path / "bank").mkdir()
    for name, key in (("mask", "masks"), ("val_margins", "test_margins")):
        np.save(tmp_path / "bank" / f"{name}.npy", store.array(key))
    push(tmp_path / "bank", "someone/bank", endpoint=hub.url)
    bank = load_bank(pull("someone/bank", tmp_path / "pulled_bank", endpoint=hub.url))
    np.testing.assert_array_equal(bank.outputs, store.array("test_margins"))


def test_refusals_are_one_sentence(hub, tmp_path):
    with pytest.raises(StoreError, match="holds no store"):
        push(tmp_path, REPO, endpoint=hub.url)
    with pytest.raises(StoreError, match="someone/nothing cannot be reached or refuses"):
        pull("someone/nothing", tmp_path / "p", endpoint=hub.url)
    with pytest.raises(StoreError, match="cannot be reached or refuses"):
        pull("no good name", tmp_path / "p", endpoint=hub.url)


def test_the_commands(hub, store, tmp_path, capsys):
    push_command.main([str(store.path), REPO, "--endpoint", hub.url])
    assert f"next: coar pull out/halves {REPO}" in capsys.readouterr().out
    pull_command.main([str(tmp_path / "p"), REPO, "--endpoint", hub.url])
    assert "all digests fit" in capsys.readouterr().out
