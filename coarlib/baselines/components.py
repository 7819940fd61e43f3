"""Cheap attributions that an estimate from thousands of ablations has to beat.

All have the form of COAR's: ``scores [N, T]``, where the predicted change of output t under a mask
is the sum of the scores of the kept components.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ComponentError


def leave_one_out(masks: NDArray[np.bool_], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Return what each output loses when one component alone is ablated.

    Parameters
    ----------
    masks : bool [N + 1, N]
        Each component ablated alone, and once nothing ablated, in any order (the
        ``leave_one_out`` design).
    outputs : float [N + 1, T]

    Returns
    -------
    float64 [N, T]
        Output of the intact model minus output without the component.

    Raises
    ------
    ComponentError
        If a component is missing, or the intact model is.
    """
    ablated = (~masks).sum(1)
    intact = np.flatnonzero(ablated == 0)
    single = np.flatnonzero(ablated == 1)
    component = (~masks[single]).argmax(1)
    missing = sorted(set(range(masks.shape[1])) - set(component.tolist()))
    if not len(intact):
        raise ComponentError("leave-one-out needs a row in which every component is kept")
    if missing:
        raise ComponentError(
            f"leave-one-out needs a row for each component; {len(missing)} are missing, the first "
            f"is {missing[0]}"
        )
    effects = np.empty((masks.shape[1], outputs.shape[1]))
    effects[component] = outputs[intact[0]].astype(np.float64) - outputs[single]
    return effects


def random_scores(components: int, targets: int, seed: int = 0) -> NDArray[np.float64]:
    """Return standard normal scores [N, T]: what a method that knows nothing gets."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.standard_normal((components, targets))
