"""One Bayesian linear model for all evidence of the weights: gradient passes, scores, rows.

``factors`` is the prior that all targets share, ``mean`` what it is about, ``observations`` the
outputs of rows and passes, ``model`` joins them.
"""

from coarlib.regression.bayes.model import BayesFit, Evidence, fit_evidence

__all__ = ["BayesFit", "Evidence", "fit_evidence"]
