"""coar power STORE."""

import numpy as np
import pytest

from coarlib.commands.fit.power import main
from coarlib.errors import CoarlibError


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((400, 20)) < 0.8
    outputs = masks @ rng.normal(size=(20, 5)) + 2 * rng.normal(size=(400, 5))
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "margins.npy", outputs.astype(np.float16))
    np.save(tmp_path / "_completed.npy", np.ones(400, bool))
    return tmp_path


def test_prints_the_curve_and_the_prediction(store, capsys):
    main([str(store), "--solver", "shared_prior"])
    out = capsys.readouterr().out
    assert "doubling the rows to 640 is predicted to raise" in out
    assert out.count("(predicted)") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solver", "laso"], "did you mean 'lasso'"),
        (["--held_out", "1.5"], "between 0 and 1"),
        (["--held_out", "0.95"], "at least 32 rows"),
    ],
)
def test_bad_input(store, options, message):
    with pytest.raises(CoarlibError, match=message):
        main([str(store), *options])
