"""Figures of what training did: curves, influence over steps, kernels, most helpful examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import effects
from coarlib.path_kernel import Decomposition
from coarlib.path_kernel.studies import balance as weighed
from coarlib.path_kernel.studies import influence_over_steps as influence_by_tensor
from coarlib.path_kernel.studies import layer_kernels as kernels_by_tensor
from coarlib.path_kernel.studies import similarity as cosines_of
from coarlib.plots.attribution_figures import draw_image
from coarlib.plots.style import DIVERGING, SEQUENTIAL, drawn_on, line_style, panels_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "helpful_and_harmful",
    "influence_over_steps",
    "kernel_similarity",
    "layer_kernels",
    "source_balance",
    "training_curves",
]

UNITS = {
    "logit": "logit of the label",
    "log_probability": "log-probability of the label (nats)",
    "margin": "margin of the label",
    "all": "outputs",
}


def output_of(found: Decomposition) -> str:
    """Say what an explanation explains, with its unit."""
    name = str(found.about.get("output", "output"))
    return UNITS.get(name, name)


def training_curves(
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    *,
    axes: Any = None,
) -> Figure:
    """Draw accuracy and loss along a training run.

    Parameters
    ----------
    curves : mapping of name to (steps, accuracy, loss)
        Such as ``{"training": …, "held-out": …}``.
    axes : two matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    """
    with panels_on(axes, 1, 2, (8.5, 3)) as (figure, grid):
        left, right = grid[0]
        for at, (name, (steps, accuracy, loss)) in enumerate(curves.items()):
            left.plot(steps, accuracy, label=name, **line_style(at))
            right.plot(steps, loss, label=name, **line_style(at))
        left.set(xlabel="update of training", ylabel="accuracy")
        right.set(xlabel="update of training", ylabel="loss (nats)")
        left.legend()
        return figure


def influence_over_steps(found: Decomposition, *, axes: Axes | None = None) -> Figure:
    """Draw how much each tensor moved the outputs at each update.

    Parameters
    ----------
    found : Decomposition
        Accumulated by ``tensor+step``.
    """
    values, names = influence_by_tensor(found), list(found.about["tensors"])
    first, last = found.about["first"], found.about["last"]
    with drawn_on(axes, (7.4, 1.2 + 0.28 * len(names))) as (figure, panel):
        drawn = panel.imshow(
            np.log10(values + 1e-12 * values.max()),
            aspect="auto",
            cmap=SEQUENTIAL,
            extent=(first, last, len(names) - 0.5, -0.5),
            interpolation="nearest",
        )
        panel.set_yticks(range(len(names)), names)
        panel.set_xlabel("update at which the gradient was taken")
        label = f"log₁₀ mean |contribution|\nto the {output_of(found)}"
        figure.colorbar(drawn, ax=panel, label=label)
        return figure


def source_balance(found: Decomposition, *, axes: Any = None) -> Figure:
    """Draw what data and regularisation together, and against each other, have done.

    Parameters
    ----------
    found : Decomposition
        Accumulated by ``step`` or ``tensor+step``.
    axes : two matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    """
    parts = weighed(found)
    first, last = found.about["first"], found.about["last"]
    with panels_on(axes, 1, 2, (8.5, 3.2)) as (figure, grid):
        pairs = zip(grid[0], (parts.signed, parts.absolute), ("signed", "absolute"), strict=True)
        for panel, curves, title in pairs:
            for at, (source, curve) in enumerate(curves.items()):
                if curve.any():
                    steps = np.linspace(first, last, len(curve) + 1)[1:]
                    panel.plot(steps, curve, label=source.replace("_", " "), **line_style(at))
            panel.set(title=title, xlabel="update of training")
        grid[0][0].set_ylabel(f"contribution so far\nto the {output_of(found)}")
        grid[0][0].legend()
        return figure


def layer_kernels(
    found: Decomposition,
    order: tuple[NDArray[Any], NDArray[Any]] | None = None,
    names: Sequence[str] | None = None,
    *,
    axes: Any = None,
) -> Figure:
    """Draw the kernel of each tensor: what each training example gave each test point.

    Parameters
    ----------
    found : Decomposition
        Accumulated by ``sample+tensor``.
    order : (int64 [N], int64 [D]), optional
        In which test points and training examples stand, such as by class.
    names : sequence of str, optional
        Which tensors; all by default.
    axes : matplotlib.axes.Axes, one a tensor, optional
        Where to draw; by default a new figure.
    """
    kernels = kernels_by_tensor(found)
    chosen = list(kernels) if names is None else list(names)
    with panels_on(axes, 1, len(chosen), (1.2 + 3.4 * len(chosen), 3.2)) as (figure, grid):
        for panel, name in zip(grid[0], chosen, strict=True):
            values = kernels[name] if order is None else kernels[name][np.ix_(*order)]
            limit = float(np.percentile(np.abs(values), 99)) or 1.0
            drawn = panel.imshow(values, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit)
            panel.set(title=name, xlabel="training example")
            figure.colorbar(drawn, ax=panel, label=f"contribution to the {output_of(found)}")
        grid[0][0].set_ylabel("test point")
        return figure


def kernel_similarity(
    found: Decomposition,
    order: NDArray[Any] | None = None,
    of_what: str = "test point",
    *,
    axes: Axes | None = None,
) -> Figure:
    """Draw which test points rest on the same training examples.

    Parameters
    ----------
    found : Decomposition
        Accumulated by ``sample``.
    order : int64 [N], optional
        In which test points stand.
    of_what : str
        What they are.
    """
    vectors = np.asarray(found.by("sample"))
    cosines = cosines_of(vectors.reshape(len(vectors), -1))
    if order is not None:
        cosines = cosines[np.ix_(order, order)]
    with drawn_on(axes, (4.6, 3.8)) as (figure, panel):
        drawn = panel.imshow(cosines, cmap=DIVERGING, vmin=-1, vmax=1)
        panel.set(xlabel=of_what, ylabel=of_what)
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_major_locator().set_params(integer=True)
        figure.colorbar(drawn, ax=panel, label="cosine of attribution vectors")
        return figure


def helpful_and_harmful(
    images: NDArray[Any],
    training: NDArray[Any],
    weights: NDArray[Any],
    *,
    titles: Sequence[str] | None = None,
    training_titles: Sequence[str] | None = None,
    count: int = 4,
    axes: Any = None,
) -> Figure:
    """Draw test images with the training images that helped and harmed each most.

    Parameters
    ----------
    images : array [Q, H, W] or [Q, H, W, 3]
        Test images.
    training : array [D, h, w] or [D, h, w, 3]
        Training images.
    weights : float [Q, D]
        What each training example adds to each test image's output.
    titles, training_titles : sequence of str, optional
        Classes, say.
    count : int
        Training images of either kind.
    axes : matplotlib.axes.Axes [Q, 2 * count + 1], optional
        Where to draw; by default a new figure.
    """
    lines, count = len(images), min(count, len(training) // 2)
    width = 2 * count + 1
    with panels_on(axes, lines, width, (0.95 * width, 1.35 * lines)) as (figure, grid):
        for line, image in enumerate(images):
            draw_image(grid[line][0], image, "" if titles is None else titles[line])
            order = np.argsort(-np.asarray(weights[line]), kind="stable")
            chosen = [*order[:count], *order[::-1][:count]]
            said = effects(np.asarray(weights[line])[chosen])
            for panel, at, (effect, _) in zip(grid[line][1:], chosen, said, strict=True):
                name = "" if training_titles is None else f"{training_titles[at]}: "
                draw_image(panel, training[at], f"{name}{effect}")
        for panel, word in ((grid[-1][0], "test"), (grid[-1][1], "helped most →")):
            panel.set_xlabel(word)
        if count:
            grid[-1][count + 1].set_xlabel("harmed most →")
        return figure
