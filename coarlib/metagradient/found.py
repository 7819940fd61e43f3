"""What differentiating through training found: derivatives by seed, and their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.metagradient.smoothness import Smoothness
from coarlib.regression import Attributions


@dataclass(frozen=True)
class Metagradients:
    """Derivatives of outputs with respect to the weight of each training sample.

    Attributes
    ----------
    effects : float32 or float64 [S, T, D]
        By seed, output (test point by test point) and training sample: derivative of the output
        with respect to a factor on the sample's loss. Positive: training on it raised the output.
    outputs : float64 [S, T]
        Outputs of the trained models.
    trained : bool [S, D]
        Which samples each seed trained on; the effects of the others are 0.
    smoothness : Smoothness or None
        Of the first seed; None where no removals were asked for.
    about : dict
    """

    effects: NDArray[Any]
    outputs: NDArray[np.float64]
    trained: NDArray[np.bool_]
    smoothness: Smoothness | None
    about: dict[str, Any]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Weighted mean over seeds, [D, T], as scoring takes them.

        Of the seeds that trained on a sample; 0 if none did. Where training is rough, derivatives
        of a few seeds are a hundred times those of the others. So seeds whose effects on an output
        have more than the median variance count by their inverse variance, the others equally.
        """
        weights = self.seed_weights
        total = sum(w[:, None] * e for w, e in zip(weights, self.effects, strict=True))
        counted = weights.T @ self.trained
        return np.divide(total, counted, out=np.zeros(counted.shape), where=counted > 0).T

    def toward(self, prior: NDArray[Any]) -> NDArray[np.float64]:
        """Posterior mean of the effects where other scores say what is to be expected, [D, T].

        The effects on an output are taken to be normal around a line through ``prior`` (both fitted
        to the mean over seeds), and that mean to be the effects and noise, whose variance follows
        from how far the seeds are apart. The fewer the seeds, the more the prior counts; with many
        it is :attr:`scores`. TRAK of the same seeds' models is a good one.

        Parameters
        ----------
        prior : float [D, T]
            Scores of any method, in any unit.

        Raises
        ------
        HistoryError
            If the prior has another shape or is not finite, or no sample was trained on by two
            seeds.
        """
        mean = self.scores
        prior = np.asarray(prior, np.float64)
        if prior.shape != mean.shape:
            raise HistoryError(f"the prior is {prior.shape}, not {mean.shape} [samples, outputs]")
        if not np.isfinite(prior).all():
            sample, output = np.argwhere(~np.isfinite(prior))[0]
            raise HistoryError(
                f"the prior is not finite, first at sample {sample}, output {output}; give scores "
                "that are numbers throughout"
            )
        several = self.trained.sum(0) > 1
        if not several.any():
            raise HistoryError("no sample was trained on by two seeds: give more seeds")
        weights, apart = self.seed_weights, np.zeros(mean.T.shape)
        for own, effects, trained in zip(weights, self.effects, self.trained, strict=True):
            apart += np.square(own[:, None] * (effects - mean.T)) * trained
        number = self.trained.sum(0)[several]
        apart = apart[:, several] / np.square(weights.T @ self.trained)[:, several]
        noise = (apart * number / (number - 1)).mean(1)
        centre, along = mean.mean(0), prior - prior.mean(0)
        along *= np.ptp(prior, 0) > 0  # what is left of equal scores is rounding
        size = np.square(along).sum(0)
        slope = np.divide((along * mean).sum(0), size, out=np.zeros_like(size), where=size > 0)
        expected = centre + slope * along
        left = np.square(mean - expected).mean(0)
        real = np.divide(left - noise, left, out=np.zeros_like(left), where=left > noise)
        return expected + real * (mean - expected)

    @property
    def seed_weights(self) -> NDArray[np.float64]:
        """What each seed counts for each output in :attr:`scores`, [S, T], at most 1."""
        variance = np.stack(
            [
                np.var(effects[:, own], 1, dtype=np.float64)
                for effects, own in zip(self.effects, self.trained, strict=True)
            ]
        )
        median = np.median(variance, 0)
        return np.divide(median, variance, out=np.ones_like(variance), where=variance > median)

    def attributions(self) -> Attributions:
        """Return the scores as attributions; ``bias`` is the output less all effects."""
        scores = self.scores
        correlation = None if self.smoothness is None else self.smoothness.correlation
        return Attributions(
            weight=scores.astype(np.float32),
            bias=self.outputs.mean(0) - scores.sum(0),
            lam=np.zeros(scores.shape[1]),
            mean_mask=np.ones(len(scores)),
            gap=np.full(scores.shape[1], np.nan),
            summary={"method": "metagradient", "smoothness": correlation, **self.about},
        )
