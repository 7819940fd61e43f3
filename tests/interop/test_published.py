"""Published banks: fetched once, checked against their sha256, and never half there."""

import hashlib
import json
import tarfile

import numpy as np
import pytest

from coarlib.commands.judge.lds_benchmark import main
from coarlib.errors import ArgumentError, CoarlibError, ScoringError, StoreError, TornRowError
from coarlib.interop.bank_exports import export_trak
from coarlib.interop.banks import write_bank
from coarlib.interop.published import load_bank
from coarlib.scoring import lds
from coarlib.scoring.scoreboard import read_scoreboard

RNG = np.random.default_rng(0)
MASKS = RNG.random((40, 30)) < 0.5
EFFECTS = RNG.standard_normal((30, 5)).astype("f4")
OUTPUTS = (MASKS @ EFFECTS + RNG.standard_normal((40, 5))).astype("f4")


@pytest.fixture
def store(tmp_path):
    return write_bank(tmp_path / "published" / "mybank", MASKS, OUTPUTS)


@pytest.fixture
def archive(tmp_path, store):
    """The tar.gz of a store, and its sha256."""
    path = tmp_path / "mybank.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(store.path, "mybank")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def assert_is_the_bank(bank):
    np.testing.assert_array_equal(bank.masks, MASKS)
    np.testing.assert_array_equal(bank.outputs, OUTPUTS)


def test_a_store_or_the_tutorials_files_are_a_bank(tmp_path, store):
    assert_is_the_bank(load_bank(store.path))
    export_trak(store, tmp_path / "trak")
    assert_is_the_bank(load_bank(tmp_path / "trak"))
    with pytest.raises(StoreError, match="there is no bank at"):
        load_bank(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is that of an archive"):
        load_bank(store.path, sha256="0" * 64)


def test_a_url_is_fetched_once_and_is_what_was_published(tmp_path, archive):
    path, digest = archive
    cache = tmp_path / "cache"
    with pytest.raises(StoreError, match="say the sha256"):
        load_bank(path.as_uri(), None, cache)
    with pytest.raises(StoreError, match="is not the bank that was published"):
        load_bank(path.as_uri(), "0" * 64, cache)
    assert not list(cache.iterdir())
    assert_is_the_bank(load_bank(path.as_uri(), digest.upper(), cache))
    path.unlink()
    assert_is_the_bank(load_bank("https://example.invalid/mybank.tar.gz", digest, cache))
    with pytest.raises(StoreError, match="cannot fetch"):
        load_bank(path.as_uri(), "1" * 64, cache)
    with pytest.raises(StoreError, match="neither https, http nor file"):
        load_bank("ftp://example.invalid/x.tar", "1" * 64, cache)


def test_a_local_archive_needs_no_sha256_but_is_held_to_it(tmp_path, archive):
    path, digest = archive
    assert_is_the_bank(load_bank(path, None, tmp_path / "cache"))
    assert_is_the_bank(load_bank(path, digest, tmp_path / "cache"))
    with pytest.raises(StoreError, match="is not the archive"):
        load_bank(path, "0" * 64, tmp_path / "cache")


def test_what_is_no_bank_leaves_nothing_behind(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"not a tar at all")
    with pytest.raises(StoreError, match="is not a tar archive"):
        load_bank(tmp_path / "x.tar.gz", None, tmp_path / "cache")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(tmp_path / "x.tar.gz", "../outside")
    with pytest.raises(StoreError, match="would be extracted to"):
        load_bank(tmp_path / "evil.tar", None, tmp_path / "cache")
    assert not (tmp_path / "outside").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_row_of_a_bank_is_not_scored(store):
    file = store.path / "test_margins.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(TornRowError, match="the first is 39"):
        load_bank(store.path)


def test_the_benchmark_scores_files_on_a_bank_as_a_configuration_says(tmp_path, archive, capsys):
    path, digest = archive
    np.save(tmp_path / "true.npy", EFFECTS)
    config = tmp_path / "bench.yaml"
    lines = [
        f"  {key}: {value}"
        for key, value in {
            "bank": path.as_uri(),
            "sha256": digest,
            "cache_dir": tmp_path / "cache",
            "out_dir": tmp_path / "out",
            "kind": "spearman",
            "scores": f"{{yes: {tmp_path / 'true.npy'}}}",
        }.items()
    ]
    config.write_text("\n".join(["bench:", *lines]) + "\n")
    main(["--config", str(config)])
    assert "40 subsets, 5 targets (mybank.tar.gz)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "mybank" / "lds.json").read_text())["methods"]
    expected = lds(EFFECTS, MASKS, OUTPUTS)
    assert found["True"]["lds"] == pytest.approx(expected.mean, abs=1e-12)
    assert found["True"]["interval"]["low"] == pytest.approx(expected.interval.low)
    assert found["True"]["regime"] == expected.regime.to_json()
    assert read_scoreboard([tmp_path / "out"]).render("markdown").startswith("| method | LDS |")
    assert abs(found["random"]["lds"]) < 0.3 < found["True"]["lds"]


def test_what_a_bank_cannot_give_is_said(tmp_path, store):
    with pytest.raises(ArgumentError, match="there is no method trak"):
        main(["--bench.bank", str(store.path), "--bench.methods", "trak"])
    with pytest.raises(ArgumentError, match="name=file"):
        main(["--bench.bank", str(store.path), "--bench.scores", "file.npy"])
    np.save(tmp_path / "few.npy", EFFECTS[:-1])
    words = ["--bench.scores", f"few={tmp_path / 'few.npy'}", "--bench.out_dir", str(tmp_path)]
    with pytest.raises(ScoringError):
        main(["--bench.bank", str(store.path), *words])
    with pytest.raises(CoarlibError):
        main(["--bench.bank", str(store.path), "--bench.y_name", "nothing"])
