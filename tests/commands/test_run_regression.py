"""run_regression as users call it."""

import json

import numpy as np
import pytest
import torch
from paths import ROOT

from coarlib.commands.fit.run_regression import main
from coarlib.commands.store.verify import main as run_verify
from coarlib.errors import ArgumentError, CoarlibError, TornRowError
from coarlib.regression import Attributions, Moments, open_rows
from coarlib.regression.moments.checkpoint import save_moments
from coarlib.regression.solvers.prior import save_prior_scores
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.layout import ArrayFile
from coarlib.store.spec import parse_spec

TRUE_EFFECT = 1e-3
SETUPS = ("cifar_resnet", "imagenet_resnet", "imagenet_vit", "gpt2_tinystories")


def linear_store(path, rows=100, features=12, targets=5, completed=None):
    rng = np.random.default_rng(0)
    path.mkdir()
    masks = rng.random((rows, features)) < 0.9
    weight = rng.normal(size=(features, targets))
    np.save(path / "masks.npy", masks)
    np.save(path / "test_margins.npy", (masks @ weight + 3).astype(np.float32))
    np.save(path / "_completed.npy", np.ones(rows, bool) if completed is None else completed)
    return weight


@pytest.fixture
def fit_args(tmp_path):
    def build(**changes):
        values = {
            "data.data_path": tmp_path / "store",
            "data.num_train": 80,
            "data.num_val": 20,
            "cfg.out_dir": tmp_path / "out",
            "cfg.k": 1,
            "cfg.manual_max_lambda": 0,
            "cfg.batch_size": 7,
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [str(w) for k, v in values.items() if v is not None for w in (f"--{k}", v)]

    return build


def test_golden_linear_model(tmp_path, fit_args, capsys):
    weight = linear_store(tmp_path / "store")
    main(fit_args())
    out = capsys.readouterr().out
    assert "held-out correlation 1.000" in out and "all 100 rows" in out
    saved = torch.load(tmp_path / "out" / "datamodels.pt", weights_only=True)
    assert np.abs(saved["weight"].numpy() - weight).max() < TRUE_EFFECT
    assert np.abs(saved["bias"].numpy() - 3).max() < TRUE_EFFECT
    assert saved["lam"].tolist() == [0.0] * 5
    assert Attributions.load(tmp_path / "out").summary["seed"] is None


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("size", ["", "_test"])
def test_published_configurations(tmp_path, capsys, setup, size):
    linear_store(tmp_path / "store")
    config = ROOT / "estimate" / setup / f"regression_config{size}.yaml"
    words = ["--config", config, "--data.data_path", tmp_path / "store"]
    words += ["--cfg.out_dir", tmp_path / "out"]
    words += [] if size else ["--data.num_train", 90, "--data.num_val", 10]
    main([str(word) for word in words])
    assert "cfg.true_random is ignored" in capsys.readouterr().err
    assert Attributions.load(tmp_path / "out").weight.shape == (12, 5)


def test_the_seeds_command_line(tmp_path, command):
    linear_store(tmp_path / "store")
    result = command(
        "run_regression",
        "--config",
        "cifar_resnet/regression_config_test.yaml",
        "--data.data_path",
        tmp_path / "store",
        "--cfg.out_dir",
        tmp_path / "out",
        cwd="estimate",
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "datamodels.pt").is_file()


def test_few_rows_fall_back_to_ridge_and_say_so(tmp_path, fit_args, capsys):
    linear_store(tmp_path / "store", features=150)
    main(fit_args())
    assert "ridge with λ by cross-validation" in capsys.readouterr().err
    assert Attributions.load(tmp_path / "out").lam[0] > 0


def test_target_range(tmp_path, fit_args):
    weight = linear_store(tmp_path / "store")
    main(fit_args(data__target_start_ind=1, data__target_end_ind=3))
    assert np.abs(Attributions.load(tmp_path / "out").weight - weight[:, 1:3]).max() < TRUE_EFFECT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_train": 95}, "100 completed rows"),
        ({"data__target_start_ind": 1, "data__target_end_ind": 999}, "are not all in"),
        ({"data__target_start_ind": 3, "data__target_end_ind": 3}, "name no targets"),
        ({"data__target_start_ind": -1}, "name no targets"),
        ({"data__target_start_ind": 50}, "which has fewer"),
        ({"data__y_name": "margins"}, "no array 'margins'"),
        ({"cfg__k": 3}, "k must be 1"),
        ({"cfg__solver": "rigde"}, "did you mean 'ridge'"),
        ({"cfg__solver": "ridge", "cfg__lam": -1}, "not negative"),
        ({"data__data_path": "nowhere.beton"}, "does not exist"),
        ({"cfg__device": "abacus"}, "abacus"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, fit_args, changes, message):
    linear_store(tmp_path / "store")
    with pytest.raises(CoarlibError, match=message):
        main(fit_args(**changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--solver ridge --l1_ratio 0.5", r"--l1_ratio .* solver ridge: .* \(lasso\)"),
        ("--solver least_squares --lam 0.1", r"--lam .* least_squares: .*\(ridge, lasso, conj"),
        ("--lam 0.1", r"--lam is no option of solver auto"),
        ("--solver shared_prior --positive", r"--positive .* \(lasso\)"),
        ("--solver ridge --tol 1e-6", r"--tol .* \(lasso, conjugate_gradients, saga\)"),
        ("--solver ridge --lr 0.1", r"--lr .* \(saga, fast_l1\)"),
        ("--solver lasso --batch_size 10", r"--batch_size .* \(saga, fast_l1\)"),
        ("--solver lasso --stop_eps 1e-3", r"--stop_eps .* \(fast_l1\)"),
        ("--solver lasso --folds 3", r"--folds .* \(ridge\)"),
        ("--solver ridge --lam 0.1 --folds 3", r"--folds .* ridge at a given λ"),
        (
            "--solver lasso --manual_max_lambda 0",
            r"--manual_max_lambda .* \(least_squares, fast_l1",
        ),
        (
            "--solver ridge --manual_max_lambda 0.2",
            r"--manual_max_lambda .* \(lasso, saga, fast_l1",
        ),
        ("--solver ridge --prior_scores x.npz", r"--prior_scores .*\(auto, shared_prior, "),
        ("--solver ridge --prior_passes 3", r"--prior_passes .*\(auto, shared_prior, "),
        ("--solver fast_l1 --tol 1e-4", r"--tol is no option of solver fast_l1"),
        ("--solver fast_l1 --memory_gb 4", r"--memory_gb is no option of solver fast_l1"),
        ("--k 1 --manual_max_lambda 0 --l1_ratio 0.5", r"--l1_ratio .* solver least_squares"),
        ("--held_out 0.2 --num_val 20", "not both"),
        ("--prior_passes 3", "which are not given"),
    ],
)
def test_options_that_a_solver_has_not_are_refused(tmp_path, words, message):
    linear_store(tmp_path / "store")
    with pytest.raises(CoarlibError, match=message) as caught:
        main([str(tmp_path / "store"), "--out", str(tmp_path / "out"), *words.split()])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("solver", ["ridge", "auto", "lasso", "saga", "shared_prior"])
def test_upstreams_file_goes_with_every_solver(tmp_path, capsys, solver):
    linear_store(tmp_path / "store")
    config = ROOT / "estimate" / "cifar_resnet" / "regression_config_test.yaml"
    words = [tmp_path / "store", "--config", config, "--out", tmp_path / "out", "--solver", solver]
    main([str(word) for word in words] + ["--lam", "0.01"] * (solver == "saga"))
    err = capsys.readouterr().err
    assert f"no effect on solver {solver}" in err and "early_stopping.check_every" in err
    taken = {"saga": ("cfg.lr", "cfg.batch_size"), "lasso": ("cfg.eps",)}.get(solver, ())
    for key in ("cfg.lr", "cfg.batch_size", "cfg.eps", "cfg.manual_max_lambda"):
        assert (key in err) is (key not in taken), key


def test_options_of_a_file_reach_the_solver(tmp_path, capsys):
    linear_store(tmp_path / "store")
    (tmp_path / "fit.yaml").write_text("solver: lasso\nk: 7\neps: 0.01\nl1_ratio: 0.9\n")
    words = [tmp_path / "store", "--config", tmp_path / "fit.yaml", "--out", tmp_path / "out"]
    main([str(word) for word in words])
    assert "no effect" not in capsys.readouterr().err
    lam = Attributions.load(tmp_path / "out").path["lam"]
    assert lam.shape == (5, 7) and np.allclose(lam[:, -1] / lam[:, 0], 0.01)
    (tmp_path / "fit.yaml").write_text("solver: ridge\nl1_ratio: 0.9\n")
    with pytest.raises(CoarlibError, match=r"fit.yaml: l1_ratio is no option of solver ridge"):
        main([str(word) for word in words[:-1]] + [str(tmp_path / "again")])


@pytest.mark.parametrize("solver", ["informed_prior", "auto"])
def test_a_prior_costs_what_its_file_says(tmp_path, capsys, solver):
    weight = linear_store(tmp_path / "store")
    scores, groups = tmp_path / "scores.npz", np.zeros(12, np.int64)
    save_prior_scores(scores, weight, groups, 48)
    base = [str(tmp_path / "store"), "--solver", solver, "--prior_scores"]
    main([*base, str(scores), "--out", str(tmp_path / "out")])
    assert "together 148" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cost"] == {"rows": 100, "prior_passes": 48, "forward_passes": 148}
    np.save(tmp_path / "other.npy", weight)
    main([*base, str(tmp_path / "other.npy"), "--out", str(tmp_path / "unknown")])
    assert "unknown cost" in capsys.readouterr().out
    assert not Attributions.load(tmp_path / "unknown").cost.complete
    words = ["--prior_passes", "13", "--out", str(tmp_path / "said")]
    main([*base, str(tmp_path / "other.npy"), *words])
    assert Attributions.load(tmp_path / "said").cost.passes == 113


def test_rows_that_are_not_completed_do_not_count(tmp_path, fit_args):
    linear_store(tmp_path / "store", completed=np.arange(100) % 5 != 0)
    with pytest.raises(CoarlibError, match="80 completed rows"):
        main(fit_args())


@pytest.fixture
def filled_store(tmp_path):
    """A store of coarlib's own: 110 rows of a linear truth, 100 of them filled, with checksums."""
    weight = linear_store(tmp_path / "arrays", rows=110)
    spec = {
        "num_models": 110,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [12]},
            "test_margins": {"dtype": "float32", "shape": [5]},
        },
    }
    initialize(tmp_path / "store", parse_spec(json.dumps(spec)))
    rows = np.r_[0:40, 50:110]
    arrays = {key: np.load(tmp_path / "arrays" / f"{key}.npy")[rows] for key in spec["schema"]}
    with RowWriter(Store.open(tmp_path / "store")) as writer:
        writer.write(rows, arrays)
    return weight


def tear(store, row):
    file = ArrayFile.read(store / "test_margins.npy")
    with file.path.open("r+b") as handle:
        handle.seek(file.offset + row * file.row_bytes)
        handle.write(b"torn")


def test_torn_rows_stop_a_fit_and_are_repaired(tmp_path, fit_args, filled_store, capsys):
    for row in (13, 60):
        tear(tmp_path / "store", row)
    with pytest.raises(TornRowError, match=r"2 of the 100 rows .*\(rows 13, 60\).*coar verify"):
        main(fit_args())
    assert not (tmp_path / "out").exists()
    assert run_verify([str(tmp_path / "store"), "--repair"]) is None
    with pytest.raises(CoarlibError, match="98 completed rows"):
        main(fit_args())
    main(fit_args(data__num_train=78))
    assert "98 rows match their checksums" in capsys.readouterr().out
    found = Attributions.load(tmp_path / "out").weight
    assert np.abs(found - filled_store).max() < TRUE_EFFECT


def test_only_the_rows_of_the_fit_are_verified(tmp_path, fit_args, filled_store):
    tear(tmp_path / "store", 105)  # completed row 95
    main(fit_args(data__num_train=75))
    with pytest.raises(TornRowError, match=r"1 of the 100 rows .*\(rows 105\)"):
        main(fit_args(cfg__out_dir=tmp_path / "all"))
    main(fit_args(cfg__out_dir=tmp_path / "unverified", data__verify=0))


@pytest.mark.parametrize(
    ("how", "left_out", "said"),
    [
        ("rows", [], "rows were left out because of 2 of 5 targets (target 1, 3)"),
        ("targets", [1, 3], "targets with NaN or infinite outputs: 2 of 5 targets (target 1, 3)"),
        ("alone", [], "targets with NaN or infinite outputs: 2 of 5 targets (target 1, 3)"),
    ],
)
def test_outputs_that_are_not_finite(tmp_path, fit_args, capsys, how, left_out, said):
    weight = linear_store(tmp_path / "store")
    outputs = np.load(tmp_path / "store" / "test_margins.npy")
    outputs[[4, 7], 1], outputs[50, 3] = np.inf, np.nan
    np.save(tmp_path / "store" / "test_margins.npy", outputs)
    main([*fit_args(), "--nonfinite", how])
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    found = Attributions.load(tmp_path / "out").weight
    assert np.flatnonzero(np.isnan(found).any(0)).tolist() == left_out
    kept = np.setdiff1d(np.arange(5), left_out)
    np.testing.assert_allclose(found[:, kept], weight[:, kept], atol=TRUE_EFFECT)


def test_a_word_that_is_no_way_to_leave_out_is_refused(tmp_path, fit_args):
    linear_store(tmp_path / "store")
    with pytest.raises(ArgumentError, match="rows, targets, alone"):
        main([*fit_args(), "--nonfinite", "drop"])
    with pytest.raises(ArgumentError, match="goes with other solvers than fast_l1"):
        main([*fit_args(cfg__solver="fast_l1"), "--nonfinite", "alone"])
    assert not (tmp_path / "out").exists()


def test_a_result_is_never_overwritten(tmp_path, fit_args):
    linear_store(tmp_path / "store")
    main(fit_args())
    before = (tmp_path / "out" / "datamodels.pt").read_bytes()
    with pytest.raises(CoarlibError, match="already exists"):
        main(fit_args())
    assert (tmp_path / "out" / "datamodels.pt").read_bytes() == before


def test_missing_arguments_are_named(fit_args):
    with pytest.raises(ArgumentError, match="STORE is required"):
        main(fit_args(data__data_path=None))


def test_a_lasso_path_as_upstream_configures_it(tmp_path, fit_args):
    linear_store(tmp_path / "store")
    main(fit_args(cfg__k=30, cfg__manual_max_lambda=-1, cfg__eps=1e-4))
    result = Attributions.load(tmp_path / "out")
    assert result.path["lam"].shape == (5, 30)
    assert np.allclose(result.path["lam"][:, -1] / result.path["lam"][:, 0], 1e-4)
    assert result.summary["solver"] == "lasso"


def test_auto_prints_every_candidate(tmp_path, fit_args, capsys):
    linear_store(tmp_path / "store")
    main(fit_args(cfg__solver="auto"))
    out = capsys.readouterr().out
    for name in ("ridge: held-out", "shared_prior: held-out", "lasso: held-out", "chosen"):
        assert name in out
    assert "predicted: about" in out


def test_an_interrupted_run_resumes_and_leaves_no_trace(tmp_path, fit_args, capsys):
    weight = linear_store(tmp_path / "store")
    source = open_rows(tmp_path / "store")
    done = np.arange(30)
    save_moments(
        tmp_path / "out" / "partial" / "train.npz",
        Moments.from_rows(source, done),
        done,
        source.identity(done),
    )
    main(fit_args())
    assert "resuming: 30 of 80 rows" in capsys.readouterr().out
    assert not (tmp_path / "out" / "partial").exists()
    assert np.abs(Attributions.load(tmp_path / "out").weight - weight).max() < TRUE_EFFECT


def test_too_little_memory_is_said_before_anything_is_read(tmp_path, fit_args):
    linear_store(tmp_path / "store")
    with pytest.raises(CoarlibError, match="GiB may be used"):
        main(fit_args(cfg__memory_gb=0.01))
    assert not (tmp_path / "out").exists()


def test_streaming_solvers(tmp_path, fit_args):
    weight = linear_store(tmp_path / "store")
    main(fit_args(cfg__solver="conjugate_gradients"))
    assert np.abs(Attributions.load(tmp_path / "out").weight - weight).max() < 10 * TRUE_EFFECT
    main(fit_args(cfg__solver="saga", cfg__lam=0.01, cfg__out_dir=tmp_path / "saga"))
    assert Attributions.load(tmp_path / "saga").gap.max() <= 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
def test_fast_l1_without_cuda(tmp_path, fit_args):
    linear_store(tmp_path / "store")
    with pytest.raises(CoarlibError, match="needs a CUDA device"):
        main(fit_args(cfg__solver="fast_l1"))
