"""A traced function returns what the function returns, bit for bit, with less to do."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from coarlib.history.gradients import differentiable_attention
from coarlib.metagradient.tracing import (
    WORTH_TRACING,
    Traced,
    accumulate,
    in_place,
    multiply_out,
    share_slopes,
    without_zeros,
)

NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), (4, 6)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 3),
            nn.GroupNorm(2, 2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (4, 1, 8, 8),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten()
        ),
        (4, 5, 8),
    ),
}


def hessian_products(network):
    def products(theta, inputs, targets, along):
        def loss(part):
            outputs = functional_call(network, part, (inputs,))
            return nn.functional.cross_entropy(outputs, targets)

        with differentiable_attention():
            return vmap(lambda d: jvp(grad(loss), (theta,), (d,))[1])(along)

    return products


def arguments(network, shape, seed=0):
    torch.manual_seed(seed)
    theta = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    along = {name: torch.randn(7, *p.shape) for name, p in theta.items()}
    return theta, torch.randn(shape), torch.arange(shape[0]) % 3, along


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_trace_returns_the_same_bits_with_fewer_operations(name):
    make, shape = NETWORKS[name]
    network = make().train()
    function = hessian_products(network)
    given = arguments(network, shape)
    trace = make_fx(function)(*given)
    before = len(trace.graph.nodes)
    without_zeros(trace)
    assert len(trace.graph.nodes) < 0.9 * before
    in_place(trace)
    assert any(node.target is torch.ops.aten.add_.Tensor for node in trace.graph.nodes)
    again = arguments(network, shape, seed=1)  # nothing of the first arguments is in it
    wanted = function(*again)
    kept = [leaf.clone() for leaf in tree_leaves(again)]
    for key, values in trace(*again).items():
        assert torch.equal(values, wanted[key]), key
    assert all(map(torch.equal, tree_leaves(again), kept))  # nothing is written into arguments


SLOPES = (torch.ops.aten.gelu_backward, torch.ops.aten.threshold_backward)


@pytest.mark.parametrize("activation", [nn.GELU, lambda: nn.GELU("tanh"), nn.ReLU])
def test_slopes_of_activations_are_computed_once_for_all_rows(activation):
    network = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 5), activation())
    function = hessian_products(network)
    given = arguments(network, (4, 6))
    trace = make_fx(function)(*given)
    without_zeros(trace)
    share_slopes(trace)
    in_place(trace)
    slopes = [
        node.meta["val"].shape
        for node in trace.graph.nodes
        if getattr(node.target, "overloadpacket", None) in SLOPES
    ]
    assert 2 <= len(slopes) <= 4 and set(slopes) == {(4, 5)}  # of both layers, and of gradients
    again = arguments(network, (4, 6), seed=1)
    wanted = function(*again)
    for key, values in trace(*again).items():
        torch.testing.assert_close(values, wanted[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_products_are_added_where_their_sum_goes(name):
    make, shape = NETWORKS[name]
    network = make().train()
    products = hessian_products(network)

    def adding(into, *given):
        return {key: into[key].add_(value) for key, value in products(*given).items()}

    given = arguments(network, shape)
    into = {key: torch.randn_like(value) for key, value in given[-1].items()}
    wanted = {key: into[key] + value for key, value in products(*given).items()}
    trace = make_fx(adding)(*tree_map(torch.clone, (into, *given)))
    without_zeros(trace)
    in_place(trace)
    accumulate(trace)
    folded = [n for n in trace.graph.nodes if n.target is torch.ops.aten.baddbmm_.default]
    assert folded
    if name == "linear":
        assert any(node.args[0].op == "placeholder" for node in folded)
    for key, values in trace(into, *given).items():
        torch.testing.assert_close(values, wanted[key], rtol=1e-4, atol=1e-5)
        assert values.data_ptr() == into[key].data_ptr()


def test_columns_times_rows_are_no_matrix_products():
    def function(column, row):
        return torch.bmm(column, row), torch.bmm(row, column)

    given = torch.randn(5, 3, 1), torch.randn(5, 1, 4)[..., :3]
    trace = make_fx(function)(*given)
    multiply_out(trace)
    kinds = [node.target for node in trace.graph.nodes if node.op == "call_function"]
    assert kinds == [torch.ops.aten.mul.Tensor, torch.ops.aten.bmm.default]
    for found, wanted in zip(trace(*given), function(*given), strict=True):
        torch.testing.assert_close(found, wanted)


def test_arguments_are_changed_once_a_call_also_when_it_is_traced():
    traced, total = Traced(lambda into, x: into.add_(x)), torch.zeros(3)
    for _ in range(2 * WORTH_TRACING):
        traced(total, torch.ones(3))
    assert torch.equal(total, torch.full((3,), 2.0 * WORTH_TRACING))


def test_only_shapes_that_come_again_and_again_are_traced():
    calls = []

    def function(x):
        calls.append(len(x))
        return x.sin()

    traced = Traced(function)
    for _ in range(3 * WORTH_TRACING):
        assert torch.equal(traced(torch.arange(5.0)), torch.arange(5.0).sin())
    assert calls == [5] * (WORTH_TRACING + 1)  # the last of them is the tracing
    traced(torch.arange(6.0))
    assert calls[-1] == 6


def test_what_cannot_be_traced_is_called():
    def function(x):
        return x * 2 if bool(x.sum() > 0) else x * 3

    traced = Traced(function)
    for _ in range(WORTH_TRACING + 2):
        assert torch.equal(traced(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(traced(-torch.ones(2)), torch.full((2,), -3.0))
