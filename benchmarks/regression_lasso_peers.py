"""The peers of regression_lasso.py, run by it in an interpreter that has them (numpy only here)."""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - the number of threads is read once

TOL = 1e-6
CHECKED = (9, 39, 69, 99)  # λ of the path whose gap is computed


def standardised(masks):
    """Columns of mean 0 and variance 1, float64 in Fortran's order."""
    x = np.asfortranarray(masks, np.float64)
    x -= x.mean(0)
    x /= x.std(0)
    return x


def relative_gap(x, y, w, lam):
    """Duality gap of lasso weights relative to half the variance, in float64."""
    n = len(y)
    residual = y - x @ w
    q = x.T @ residual / n
    rr, ry, yy = residual @ residual / n, y @ residual / n, y @ y / n
    s = min(ry / rr, lam / max(np.abs(q).max(), 1e-300))
    return (0.5 * rr + lam * np.abs(w).sum() - (s * ry - 0.5 * s * s * rr)) / (0.5 * yy)


# A peer: what it makes once of the standardised masks, and a path of one target from that.


def scikit_learn_path(gram, x, y, lams):
    from sklearn.linear_model import lasso_path

    return lasso_path(x, y, alphas=lams, precompute=gram, Xy=x.T @ y, tol=TOL)[1]


def celer_path(_, x, y, lams):
    from celer import celer_path

    return celer_path(x, y, "lasso", alphas=lams, tol=TOL)[1]


def skglm_path(parts, x, y, lams):
    from skglm.solvers import AndersonCD

    solver = AndersonCD(tol=TOL * np.sqrt(y @ y / len(y)), fit_intercept=False)
    return solver.path(x, y, *parts, lams)[1]


def skglm_parts(_):
    from skglm.datafits import Quadratic
    from skglm.penalties import L1

    return Quadratic(), L1(1.0)  # compiled where a path is first followed


def adelie_path(a, x, y, lams):
    import adelie

    state = adelie.gaussian_cov(
        A=adelie.matrix.dense(a, method="cov", n_threads=1), v=x.T @ y / len(y), lmda_path=lams,
        tol=1e-12, early_exit=False, progress_bar=False, n_threads=1,
    )  # fmt: skip
    return state.betas.toarray().T


PEERS = {
    "scikit-learn Gram": ("scikit-learn", lambda x: x.T @ x, scikit_learn_path),
    "celer": ("celer", lambda x: None, celer_path),
    "skglm": ("skglm", skglm_parts, skglm_path),
    "adelie covariance": ("adelie", lambda x: np.asfortranarray(x.T @ x / len(x)), adelie_path),
}


def one_round(set_up, path, masks, ys, lams):
    """CPU seconds of the set-up and, on average, of a target's path; the largest gap."""
    started = time.process_time()
    x = standardised(masks)
    shared = set_up(x)
    setup = time.process_time() - started
    seconds, gaps = [], []
    for y, lam in zip(np.ascontiguousarray(ys.T), lams, strict=True):
        started = time.process_time()
        w = np.asarray(path(shared, x, y, lam))
        seconds.append(time.process_time() - started)
        gaps += [relative_gap(x, y, w[:, i], lam[i]) for i in CHECKED if i < w.shape[1]]
    found = {"set-up": setup, "path": float(np.mean(seconds)), "length": float(w.shape[1])}
    return found | {"gap": float(max(gaps, default=np.nan))}


def main(folder):
    """Run in the peers' interpreter: read the arrays, write a JSON of times and gaps."""
    data = np.load(folder / "problem.npz")
    masks, y, lams = data["masks"], data["y"], data["lams"]
    results = {}
    for name, (package, set_up, path) in PEERS.items():
        try:
            one_round(set_up, path, masks[:200], y[:200, :1], lams[:1, :3])  # compile
            found = one_round(set_up, path, masks, y, lams)
            results[name] = found | {"package": package, "version": metadata.version(package)}
        except ImportError as error:  # a peer that is not installed is left out
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(name, results[name], flush=True)
    (folder / "peers.json").write_text(json.dumps(results))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        print("regression_lasso.py runs this")
