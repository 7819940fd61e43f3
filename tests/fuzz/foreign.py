"""What people may bring, at random: values that a task returns, and files of every kind.

``run(count, seed, folder)`` hands each to a command as a user would, and looks at what became of
it: done, or refused with exit code 2, one sentence and nothing left behind. All else is reported.
"""

import contextlib
import io
import shutil
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.commands.__main__ import main as coar
from coarlib.store import Store
from coarlib.task import Task

EXAMPLES, SUBSETS, TARGETS = 7, 12, 3
SHAPES = [(), (0,), (1,), (3,), (7,), (12,), (7, 1), (7, 5), (12, 7), (12, 3), (7, 3), (3, 7),
          (5, 7), (12, 2, 3), (7, 3, 6, 6), (7, 6, 6, 3), (0, 3), (12, 0), (2, 2, 2)]  # fmt: skip
NUMPY = ["?", "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", "c8", "U3", "O", "M8[s]",
         "m8[s]", "g", "V4"]  # fmt: skip
TORCH = [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.bfloat16,
         torch.float32, torch.float64, torch.complex64]  # fmt: skip
FILLS = ["zeros", "ones", "bits", "numbers", "nan", "inf", "some_nan", "huge", "negative", "index"]
PLACES = ["model", "components", "examples", "inputs", "targets", "predict", "output", "outputs",
          "transform", "rows", "row"]  # fmt: skip


class Odd(Exception):
    """What a user's own code may raise."""


@dataclass
class Outcome:
    """How often each thing happened, and what must not have."""

    counts: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)


def numbers(rng, shape):
    """float64 of a random filling."""
    fill, size = rng.choice(FILLS), shape
    made = {
        "zeros": lambda: np.zeros(size),
        "ones": lambda: np.ones(size),
        "bits": lambda: rng.integers(0, 2, size).astype(float),
        "numbers": lambda: rng.normal(size=size),
        "nan": lambda: np.full(size, np.nan),
        "inf": lambda: np.full(size, np.inf),
        "some_nan": lambda: np.where(rng.random(size) < 0.2, np.nan, rng.normal(size=size)),
        "huge": lambda: rng.normal(size=size) * 1e300,
        "negative": lambda: -np.ones(size),
        "index": lambda: rng.integers(0, EXAMPLES, size).astype(float),
    }
    return np.asarray(made[fill]())


def array(rng, shape=None):
    """A NumPy array of some dtype, shape, order and kind."""
    shape = SHAPES[rng.integers(len(SHAPES))] if shape is None else shape
    values, dtype = numbers(rng, shape), rng.choice(NUMPY)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        no_numbers = dtype in ("M8[s]", "m8[s]", "V4")
        made = np.zeros(shape, dtype) if no_numbers else values.astype(dtype)
    kind = rng.integers(6)
    if kind == 0:
        made = np.asfortranarray(made)
    elif kind == 1:
        made.flags.writeable = False
    elif kind == 2 and made.ndim and dtype not in ("O", "V4"):
        made = np.ma.masked_array(made, rng.random(made.shape) < 0.1)
    elif kind == 3 and made.ndim:
        made = np.repeat(made, 2, 0)[::2]  # not contiguous
    elif kind == 4 and dtype == "?" and made.size:
        made = (rng.integers(0, 4, made.shape).astype("u1")).view("?")
    return made


def tensor(rng, shape=None):
    shape = SHAPES[rng.integers(len(SHAPES))] if shape is None else shape
    with np.errstate(all="ignore"):
        made = torch.from_numpy(numbers(rng, shape)).to(TORCH[rng.integers(len(TORCH))])
    kind = rng.integers(8)
    if kind == 0 and made.ndim == 2 and made.dtype in (torch.float32, torch.int64):
        return made.to_sparse()
    if kind == 1 and made.is_floating_point():
        return made.requires_grad_()
    if kind == 2:
        return made.to("meta")
    return made


def pandas_thing(rng):
    pandas = __import__("pandas")
    kind = rng.integers(4)
    if kind == 0:
        return pandas.Series([1, None, 3] * 4, dtype="Int64")
    if kind == 1:
        return pandas.DataFrame(rng.normal(size=(12, 3)))
    if kind == 2:
        return pandas.DataFrame({"a": [True, None] * 6, "b": [1.0, 2.0] * 6}).convert_dtypes()
    return pandas.Series(["a", "b"] * 6, dtype="category")


def raises():
    raise Odd("the user's own\ncode failed")


def generator():
    yield torch.zeros(3)


def anything(rng, depth=2):
    """Any value at all."""
    simple = [None, True, 0, 3, -1.5, float("nan"), "text", "", b"bytes", (), [], {}, set(), 2**70,
              object(), Odd, lambda *a, **k: None, np.float32(2), Ellipsis, range(7), Path("x"),
              nn.Linear, torch.float32, slice(3)]  # fmt: skip
    kind = rng.integers(12)
    if kind < 3:
        return simple[rng.integers(len(simple))]
    if kind < 5:
        return array(rng)
    if kind < 8:
        return tensor(rng)
    if kind == 8:
        return pandas_thing(rng)
    if kind == 9 and depth:
        parts = [anything(rng, depth - 1) for _ in range(rng.integers(4))]
        return [tuple(parts), parts, {str(n): part for n, part in enumerate(parts)},
                dict(enumerate(parts)), iter(parts)][rng.integers(5)]  # fmt: skip
    if kind == 10:
        return [net(), net().state_dict(), find_components(net()), generator(), Examples,
                nn.Sequential(), nn.Identity(), nn.ModuleList([nn.Linear(2, 2)]),
                nn.LSTM(2, 2), nn.Linear(108, 5).double()][rng.integers(10)]  # fmt: skip
    return Odd


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


class Brought(ComponentTask):
    """A sound task, in which one thing is what ``value`` says."""

    def __init__(self, place, value):
        super().__init__()
        self.place, self.value = place, value
        if place == "outputs":
            self.outputs = value
        elif place == "output":
            self.outputs = {"test_margins": lambda logits, targets: self.given("output", None)}

    def given(self, place, sound):
        if self.place != place:
            return sound
        if self.value is Odd:
            raises()
        return self.value

    def model(self):
        return self.given("model", net())

    def components(self, model):
        sound = find_components(model, "conv_filter") if isinstance(model, nn.Module) else None
        return self.given("components", sound)

    def examples(self):
        images = torch.randn(EXAMPLES, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        inputs = self.given("inputs", images)
        targets = self.given("targets", torch.arange(EXAMPLES) % 5)
        if self.place == "examples":
            return self.given("examples", None)
        return (inputs, targets) if self.place != "inputs" else Examples(inputs, targets)

    def transform(self, batch):
        return self.given("transform", batch)

    def predict(self, network, inputs):
        return self.given("predict", super().predict(network, inputs))


class BroughtRows(Task):
    """A task whose rows are what ``value`` says, all of them or the one array."""

    def __init__(self, place, value):
        self.place, self.value = place, value

    def rows(self, indices, masks):
        if self.value is Odd:
            raises()
        return self.value if self.place == "rows" else {"test_margins": self.value}


CURRENT = None
TASK_FILE = """import sys
sys.path.insert(0, {folder!r})
import foreign

def task():
    return foreign.CURRENT
"""
SPEC = """{"num_models": 4, "schema": {"masks": {"dtype": "bool_", "shape": [4]},
"test_margins": {"dtype": "float32", "shape": [7]}},
"design": {"kind": "bernoulli", "keep_prob": 0.5, "seed": 0, "array": "masks"}}"""


def command(*words):
    """Run a command in this process: exit code, what it said, and a traceback if it left one."""
    said, code, trace = io.StringIO(), 0, ""
    heard = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with heard[0], heard[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            coar([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        except BaseException:
            trace = traceback.format_exc()
    return code, said.getvalue(), trace


def fault(code, said, trace):
    """What is wrong with how a command ended, or nothing."""
    if trace:
        return f"traceback: {trace[-1500:]}"
    if code not in (0, None, 2):
        return f"exit code {code}: {said[-300:]}"
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    if code == 2 and (len(errors) != 1 or not said.rstrip().endswith(errors[0])):
        return f"not one sentence: {said[-600:]}"
    if code == 2 and " (inside " in errors[0]:
        return f"a failure of the library's own: {errors[0]}"
    if code == 2 and (len(errors[0]) > 900 or "\x1b" in said):
        return f"not a clean sentence: {said[-900:]!r}"
    return ""


def try_task(rng, folder, outcome):
    """Make and fill a store from a task that returns something at random."""
    global CURRENT
    place, value = PLACES[rng.integers(len(PLACES))], anything(rng)
    kind = BroughtRows if place in ("rows", "row") else Brought
    store, file = folder / "store", folder / "task.py"
    file.write_text(TASK_FILE.format(folder=str(Path(__file__).parent)))
    (folder / "spec.json").write_text(SPEC)
    try:
        CURRENT = kind(place, value)
    except Exception as error:  # the class itself is the user's
        outcome.counts["not a task"] += 1
        return f"{place}: {error!r}", ""
    what = f"{place} = {str(value)[:200]} ({type(value).__name__})"
    sys.modules["foreign"] = sys.modules[__name__]
    if kind is Brought:
        code, said, trace = command(
            "initialize_store", store, "--rows", 4, "--task", f"{file}:task"
        )
        problem = fault(code, said, trace)
        if code == 2 and store.exists():
            problem = f"a store was left behind: {said}"
        if problem or code == 2:
            outcome.counts["refused" if code == 2 else "done"] += 1
            return what, problem
    else:
        command("initialize_store", store, "--spec", folder / "spec.json")
    code, said, trace = command("make_dataset", store, "--task", f"{file}:task")
    problem = fault(code, said, trace)
    done = len(Store.open(store).completed_rows())
    if not problem and code == 2 and done:
        problem = f"{done} rows were completed by a task that was refused: {said}"
    if not problem and code != 2:
        values = Store.open(store).array("test_margins")[:done]
        if done != 4 or not np.isfinite(values).all():
            problem = f"{done} rows, finite: {np.isfinite(values).all()}"
    outcome.counts["refused" if code == 2 else "done"] += 1
    return what, problem


def save(rng, path, value):
    """Write a value in some format; the path, or None if that format cannot hold it."""
    formats = [".npy", ".npz", ".pt", ".safetensors", ".yaml", ".txt", ".npy", ".pt"]
    path = path.with_suffix(formats[rng.integers(len(formats))])
    try:
        if path.suffix == ".npy":
            np.save(path, np.asarray(value), allow_pickle=True)
        elif path.suffix == ".npz":
            np.savez(path, **{str(n): np.asarray(value) for n in range(rng.integers(1, 3))})
        elif path.suffix == ".pt":
            torch.save(value, path, _use_new_zipfile_serialization=bool(rng.integers(2)))
        elif path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({"x": torch.as_tensor(np.asarray(value))}, path)
        elif path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(np.asarray(value).tolist(), default_flow_style=None))
        else:
            np.savetxt(path, np.asarray(value))
    except Exception:
        return None
    if rng.random() < 0.1:
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, max(1, len(data)), 3):
            data[place : place + 1] = bytes([rng.integers(256)])
        path.write_bytes(data[: rng.integers(len(data) + 1)] if rng.random() < 0.3 else data)
    return path


def masks_of(rng):
    bits = rng.random((SUBSETS, EXAMPLES)) < 0.5
    lists = [np.flatnonzero(row) for row in bits]
    kind = rng.integers(8)
    dtypes = ["?", "i1", "u1", "f4", "f8", "i8", ">f4"]
    if kind < 3:
        return bits.astype(dtypes[rng.integers(len(dtypes))])
    if kind == 3:
        return [torch.from_numpy(row) for row in lists]
    if kind == 4:
        return torch.from_numpy(bits).float().to_sparse()
    if kind == 5:
        halves = np.stack([rng.permutation(EXAMPLES)[:3] for _ in range(SUBSETS)])
        return halves.astype(["i8", "f4", "i4", "f8"][rng.integers(4)])
    return anything(rng, 1)


def matrix_of(rng, rows, columns):
    kind = rng.integers(5)
    if kind in (0, 4):
        return rng.normal(size=(rows, columns)).astype(["f2", "f4", "f8", ">f8"][rng.integers(4)])
    if kind == 1:
        return torch.randn(rows, columns).bfloat16()
    if kind == 2:
        return array(rng, [(rows, columns), (rows,), (rows, 2, columns)][rng.integers(3)])
    return anything(rng, 1)


def try_files(rng, folder, outcome):
    """Import a bank from files at random, and score scores at random against it."""
    masks, outputs = masks_of(rng), matrix_of(rng, SUBSETS, TARGETS)
    scores = matrix_of(rng, EXAMPLES, TARGETS)
    store = folder / "bank"
    files = []
    for name, value in (("m", masks), ("o", outputs), ("s", scores)):
        tries = (save(rng, folder / name, value) for _ in range(6))
        files.append(next((path for path in tries if path is not None), None))
    what = f"{files}: {str(masks)[:150]} | {str(outputs)[:150]} | {str(scores)[:150]}"
    if None in files:
        outcome.counts["no file"] += 1
        return what, ""
    words = ["--num_examples", EXAMPLES] if rng.random() < 0.7 else []
    code, said, trace = command(
        "import_bank", store, "--masks", files[0], "--outputs", files[1], *words
    )
    problem = fault(code, said, trace)
    if not problem and code == 2 and store.exists():
        problem = f"a store was left behind: {said}"
    outcome.counts["refused" if code == 2 else "done"] += 1
    if problem or code == 2:
        return what, problem
    how = ["--nonfinite", ["keep", "targets", "alone"][rng.integers(3)]]
    code, said, trace = command("score_lds", store, files[2], *how)
    outcome.counts["scores refused" if code == 2 else "scored"] += 1
    return what, fault(code, said, trace)


def run(count, seed, folder):
    """Try ``count`` things, every second a task and a set of files."""
    outcome = Outcome()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        place = folder / "case"
        place.mkdir()
        try:
            tried = try_files if number % 2 else try_task
            what, problem = tried(rng, place, outcome)
        finally:
            shutil.rmtree(place)
        if problem:
            outcome.wrong.append({"case": [seed, number], "what": what, "problem": problem})
    return outcome
