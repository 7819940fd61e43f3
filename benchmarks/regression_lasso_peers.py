"""The peers of regression_lasso.py, run by it in an interpreter that has them (numpy only here)."""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

TOL = 1e-6
PACKAGES = {
    "scikit-learn Gram": "scikit-learn",
    "celer": "celer",
    "skglm": "skglm",
    "adelie covariance": "adelie",
    "python-glmnet": "glmnet",
}
PEERS = tuple(PACKAGES)


def relative_gap(x, y, w, lam):
    """Duality gap of lasso weights relative to half the variance, in float64."""
    n = len(y)
    residual = y - x @ w
    q = x.T @ residual / n
    rr, ry, yy = residual @ residual / n, y @ residual / n, y @ y / n
    s = min(ry / rr, lam / max(np.abs(q).max(), 1e-300))
    return (0.5 * rr + lam * np.abs(w).sum() - (s * ry - 0.5 * s * s * rr)) / (0.5 * yy)


def run_peer(name, x, y, lams):
    """Return the path's coefficients [M, L] and the CPU seconds, for one target."""
    if name == "scikit-learn Gram":
        from sklearn.linear_model import lasso_path

        gram = x.T @ x
        started = time.process_time()
        coefficients = lasso_path(x, y, alphas=lams, precompute=gram, Xy=x.T @ y, tol=TOL)[1]
    elif name == "celer":
        from celer import celer_path

        started = time.process_time()
        coefficients = celer_path(x, y, "lasso", alphas=lams, tol=TOL)[1]
    elif name == "skglm":
        from skglm.datafits import Quadratic
        from skglm.penalties import L1
        from skglm.solvers import AndersonCD
        from skglm.utils.jit_compilation import compiled_clone

        solver = AndersonCD(tol=1e-6 * np.sqrt(y @ y / len(y)), fit_intercept=False)
        arguments = compiled_clone(Quadratic()), compiled_clone(L1(1.0))
        solver.path(x, y, *arguments, lams[:2])
        started = time.process_time()
        coefficients = solver.path(x, y, *arguments, lams)[1]
    elif name == "adelie covariance":
        import adelie

        n = len(y)
        a, v = np.asfortranarray(x.T @ x / n), x.T @ y / n
        started = time.process_time()
        state = adelie.gaussian_cov(
            A=adelie.matrix.dense(a, method="cov", n_threads=1), v=v, lmda_path=lams, tol=1e-12,
            early_exit=False, progress_bar=False, n_threads=1,
        )  # fmt: skip
        coefficients = state.betas.toarray().T
    else:
        from glmnet import ElasticNet

        model = ElasticNet(alpha=1, lambda_path=lams, standardize=False, n_splits=0, tol=1e-10,
                           fit_intercept=False)  # fmt: skip
        started = time.process_time()
        coefficients = model.fit(x, y).coef_path_
    return np.asarray(coefficients), time.process_time() - started


def main(folder):
    """Run in the peers' interpreter: read the arrays, write a JSON of times and gaps."""
    data = np.load(folder / "problem.npz")
    x, y, lams = data["x"], data["y"], data["lams"]
    results = {}
    for name in PEERS:
        try:
            run_peer(name, x[:200], y[:200, 0].copy(), lams[0][:3])  # compile
            times, gaps = [], []
            for t in range(y.shape[1]):
                w, seconds = run_peer(name, x, np.ascontiguousarray(y[:, t]), lams[t])
                times.append(seconds)
                lengths = range(0, w.shape[1], 9)
                gaps += [relative_gap(x, y[:, t], w[:, i], lams[t][i]) for i in lengths]
            results[name] = {"CPU seconds a target": np.mean(times), "largest gap": max(gaps),
                             "path length": w.shape[1],
                             "version": metadata.version(PACKAGES[name])}  # fmt: skip
        except Exception as error:  # a peer that does not install or run is reported as such
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(name, results[name], flush=True)
    (folder / "peers.json").write_text(json.dumps(results))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        print("regression_lasso.py runs this")
