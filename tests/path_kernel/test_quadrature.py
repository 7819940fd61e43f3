"""Nodes along one update: what is certified holds, with as few gradients as it takes."""

import pytest
import torch

from coarlib.path_kernel.intervals import GAUSS_2
from coarlib.path_kernel.quadrature import Quadrature, _Refinement

PAIRS = 40


class Curves:
    """K outputs of each pair that bend, and turn at two kinks."""

    def __init__(self, outputs: int) -> None:
        draw = torch.Generator().manual_seed(outputs)
        self.kinks = torch.rand(PAIRS, 2, generator=draw, dtype=torch.float64)
        self.turns = torch.randn(PAIRS, 2, outputs, generator=draw, dtype=torch.float64)
        self.bent = torch.randn(PAIRS, outputs, generator=draw, dtype=torch.float64)

    def values_at(self, which, points, alpha):
        past = (alpha[:, None] - self.kinks[points]).relu()
        bent = torch.sin(self.bent[points] * alpha[:, None])
        return bent + torch.einsum("mj,mjk->mk", past, self.turns[points])

    def slopes_at(self, which, points, alpha):
        past = (alpha[:, None] > self.kinks[points]).double()
        bent = self.bent[points] * torch.cos(self.bent[points] * alpha[:, None])
        return bent + torch.einsum("mj,mjk->mk", past, self.turns[points])

    def slopes_of(self, which, points, alpha):
        return self.slopes_at(which, points, torch.full(points.shape, alpha, dtype=torch.float64))


def ends(curves):
    points = torch.arange(PAIRS)
    places = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, PAIRS)
    return points, *(curves.values_at(points, points, alpha) for alpha in places)


@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_nodes_give_the_change_within_the_tolerance(outputs, tolerance):
    curves = Curves(outputs)
    points, before, after = ends(curves)
    nodes = Quadrature(tolerance).nodes(curves, points, points, before, after)
    slopes = curves.slopes_at(nodes.pair, nodes.pair, nodes.alpha)
    by_nodes = torch.zeros_like(before).index_add_(0, nodes.pair, nodes.weight[:, None] * slopes)
    torch.testing.assert_close(by_nodes, nodes.integral, rtol=0, atol=1e-12)
    assert (after - before - by_nodes).abs().max() <= tolerance
    total = torch.zeros(PAIRS, dtype=torch.float64).index_add_(0, nodes.pair, nodes.weight)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert ((nodes.alpha > 0) & (nodes.alpha < 1) & (nodes.weight > 0)).all()


def test_the_midpoint_is_taken_wherever_it_is_good_enough():
    curves, tolerance = Curves(5), 1e-3
    points, before, after = ends(curves)
    allowed = torch.full((PAIRS,), tolerance, dtype=torch.float64)
    refine = _Refinement(curves, points, points, allowed)
    two = refine.run(before, after)
    few = refine.by_middles(two)
    assert (two.first == GAUSS_2).all()
    pieces = torch.sort(few.point + few.a).indices
    few = few.pick(pieces)
    follows = few.point[1:] == few.point[:-1]
    torch.testing.assert_close(few.a[1:][follows], few.b[:-1][follows], rtol=0, atol=0)
    nodes = [((each.share > 0).sum() + (each.share < 1).sum()).item() for each in (two, few)]
    assert nodes[1] < 0.75 * nodes[0]
    missed = torch.zeros(PAIRS, dtype=torch.float64).index_add_(0, few.point, few.errors.amax(1))
    assert missed.max() <= tolerance


def test_a_tolerance_that_cannot_be_met_costs_no_accuracy():
    """Many kinks, one of them steep and near the start, as after an update that was too large."""
    curves = Curves(5)
    torch.manual_seed(0)
    curves.kinks = torch.rand(PAIRS, 40, dtype=torch.float64)
    curves.kinks[:, 0] = 1e-9
    curves.turns = torch.randn(PAIRS, 40, 5, dtype=torch.float64)
    curves.turns[:, 0] *= 1e5
    points, before, after = ends(curves)
    missed = [
        (after - before - Quadrature(each).integral(curves, points, points, before, after)).abs()
        for each in (1e-3, 0.0)
    ]
    assert missed[0].max() < 1e-3
    assert missed[1].max() < 1e-3
