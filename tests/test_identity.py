import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.identity import Identity
from coarlib.outputs import cross_entropy, margin, per_sequence

FACTOR = 2.0


def digest(*values):
    return Identity().add(*values).hexdigest()


def helper(x):
    return x * FACTOR


def scaled(x):
    """Say one thing."""
    return helper(x)


def power(exponent):
    return lambda x: x**exponent


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (True, 1),
        ("ab", ("a", "b")),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (np.zeros(3), np.ones(3)),
        (margin, cross_entropy),
        (per_sequence(margin), per_sequence(cross_entropy)),
        (functools.partial(pow, 2), functools.partial(pow, 3)),
        (power(2), power(3)),
        (nn.CrossEntropyLoss(ignore_index=1), nn.CrossEntropyLoss(ignore_index=2)),
        ({"a": margin, "b": margin}, {"a": margin, "b": cross_entropy}),
    ],
)
def test_different_things_have_different_digests(left, right):
    assert digest(left) != digest(right)
    assert digest(left) == digest(left)
    assert digest(left, right) != digest(right, left)


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.bfloat16)])
def test_tensors_of_any_kind_have_one(tensor):
    assert digest(tensor) == digest(tensor.clone()) != digest(tensor * 2)


def test_code_counts_by_its_source_and_by_what_it_calls_and_reads(monkeypatch):
    before = digest(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert digest(scaled) != before
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert digest(scaled) == before
    monkeypatch.setitem(globals(), "helper", power(2))
    assert digest(scaled) != before


def test_comments_docstrings_and_the_name_of_the_module_do_not_count(tmp_path):
    (tmp_path / "one.py").write_text("def f(x):\n    '''Doc.'''\n    return x + 1  # why\n")
    (tmp_path / "two.py").write_text("import sys\ndef f(x):\n\n    return (x+1)\n")
    (tmp_path / "three.py").write_text("def f(x):\n    return x + 2\n")
    code = "from {0} import f; from coarlib.identity import Identity; "
    code += "print(Identity().add(f).hexdigest())"
    found = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
             + code.format(name)], check=True, capture_output=True, text=True,
        ).stdout
        for name in ("one", "two", "three")
    ]  # fmt: skip
    assert found[0] == found[1] != found[2]


def test_lambdas_on_one_line_are_told_apart():
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert digest(one) != digest(two)
    both = [lambda x: x[:, 0], lambda x: x[:, 1]]
    assert Identity().add(both[0]).hexdigest() != Identity().add(both[1]).hexdigest()


class Net(nn.Module):
    def __init__(self, factor=1.0, slope=0.1, shift=0.0, path="a", act=nn.LeakyReLU):
        super().__init__()
        self.linear, self.act = nn.Linear(2, 2), act(slope)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.factor, self.path = factor, path
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x):
        return self.act(self.linear(x)) * self.factor + self.shift


class OtherNet(Net):
    def forward(self, x):
        return -super().forward(x)


def test_models_of_the_same_weights_count_with_settings_code_and_all_buffers():
    def of(model):
        return Identity().add_model(model).hexdigest()

    assert of(Net()) == of(Net(path="b")) == of(Net().eval())
    OtherNet.__qualname__ = Net.__qualname__
    others = [Net(2.0), Net(slope=0.2), Net(shift=1.0), Net(act=nn.ELU), OtherNet()]
    assert len({of(Net()), *map(of, others)}) == 6


def test_methods_count_with_the_settings_they_read():
    class Owner:
        def __init__(self, shift, place):
            self.shift, self.place = shift, place

        def run(self, x):
            return x + self.shift

    assert digest(Owner(1, "a").run) == digest(Owner(1, "b").run) != digest(Owner(2, "a").run)


def test_an_optimizer_that_was_used_is_the_same_class():
    before = Identity().add(torch.optim.RAdam).hexdigest()
    torch.optim.RAdam([torch.zeros(1, requires_grad=True)])  # torch wraps methods of the class
    assert Identity().add(torch.optim.RAdam).hexdigest() == before
    assert Identity().add(torch.optim.NAdam).hexdigest() != before


def test_code_of_the_package_counts_by_name_and_what_it_closes_over(monkeypatch):
    """A store that one version began is finished by another, which is written otherwise."""

    def rewritten(logits, targets):
        return logits[:, 0]

    before = digest(margin)
    rewritten.__module__, rewritten.__qualname__ = margin.__module__, margin.__qualname__
    assert digest(rewritten) == before
    rewritten.__module__ = "mine"
    assert digest(rewritten) != before
    assert len({digest(x) for x in (margin, cross_entropy, per_sequence(margin))}) == 3
    assert digest(per_sequence(margin)) != digest(per_sequence(cross_entropy))
    monkeypatch.setattr("coarlib.identity.MEANING", 2)
    assert digest(margin) != before
