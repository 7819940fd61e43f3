"""Digests of what a row is a function of: tensors, settings, and the code that measures.

Two workers may write into one store if and only if their tasks have one identity, so a digest must
be the same on every machine and change with whatever can change a row. Code counts by its source
without comments, docstrings and formatting, together with what it calls in its own module and
what it closes over; where a module lies, or whether it ran as ``__main__``, does not count. This
package's own functions and classes count by name and :data:`MEANING`, so that a store which one
version began can be finished by another.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import xxhash

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Classes of these count by name: torch wraps methods of an optimizer's class when it is first used.
_LIBRARIES = ("builtins", "numpy", "torch", "torchvision", "transformers")
MEANING = 1
"""To be raised when an output, or a way of ablating, of this package gives other numbers."""

_FUNCTIONS = (FunctionType, MethodType, functools.partial)


class Identity:
    """Collects what something depends on; :meth:`hexdigest` names the whole.

    Values are added in order, each with its kind, so that no two sequences of different values
    run together.
    """

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()
        self._seen: dict[int, tuple[int, Any]] = {}  # the object too, so that its id stays taken

    def hexdigest(self) -> str:
        """Return the digest of everything added so far, 32 hexadecimal digits."""
        return self._digest.hexdigest()

    def copy(self) -> Identity:
        """Return another one that holds what was added so far."""
        other = Identity()
        other._digest, other._seen = self._digest.copy(), dict(self._seen)
        return other

    def add(self, *values: Any) -> Identity:
        """Add plain values, tensors, arrays, functions, modules, and sequences or mappings of them.

        Anything else counts by its class and the plain values, tensors and functions among its
        attributes.
        """
        for value in values:
            self._add(value)
        return self

    def _add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, Mapping):
            self._text(f"mapping {len(value)}")
            for key in value:
                self.add(key, value[key])
        elif hasattr(value, "detach") or isinstance(value, np.ndarray | np.generic):
            self._array(value)
        elif isinstance(value, Sequence | set | frozenset | range):
            self._text(f"sequence {len(value)}")
            self.add(*(value if isinstance(value, Sequence) else sorted(value, key=repr)))
        elif id(value) in self._seen:
            self._text(f"again {self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = len(self._seen), value
            self._object(value)

    def add_method(self, owner: Any, name: str) -> Identity:
        """Add a method of an object: all its definitions along the classes, and settings it reads.

        Settings are the attributes of the object, plain values or functions, that the code names.
        """
        for kind in type(owner).__mro__:
            if isinstance(code := vars(kind).get(name), FunctionType):
                self._add(code)
                for word in _names(code.__code__):
                    value = getattr(owner, "__dict__", {}).get(word)
                    if value is not None and isinstance(value, (*_PLAIN, *_FUNCTIONS)):
                        self.add(word, value)
        return self

    def add_model(self, model: Any) -> Identity:
        """Add a network: classes and settings of its modules, how they run, and all tensors.

        How a module of a library runs is its version's affair and does not count. Settings are
        numbers, sequences of them, and what a module says of itself when it is printed.
        """
        for path, module in model.named_modules():
            kind = type(module)
            self.add(path, kind.__qualname__, module.extra_repr())
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                self.add_method(module, "forward")
            for name, value in sorted(vars(module).items()):
                if not name.startswith("_") and name != "training" and _is_setting(value):
                    self.add(name, value)
        for name, tensor in (*model.state_dict().items(), *model.named_buffers()):
            self.add(name, tensor)
        return self

    def _object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self.add("partial", value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            self._text("method")
            self.add_method(value.__self__, value.__name__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type) and value.__module__.partition(".")[0] in _LIBRARIES:
            self._text(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, type) and _is_ours(value):
            self._text(f"coarlib {MEANING} {value.__qualname__}")
        elif isinstance(value, type):
            methods = {k: v for k, v in vars(value).items() if isinstance(v, FunctionType)}
            self.add(value.__qualname__, dict(sorted(methods.items())))
        elif callable(value) and not hasattr(value, "__dict__"):
            self._text(getattr(value, "__qualname__", type(value).__qualname__))
        else:
            self._text(f"object {type(value).__qualname__}")
            self.add_method(value, "__call__")
            for name in sorted(vars(value) if hasattr(value, "__dict__") else ()):
                attribute = vars(value)[name]
                if isinstance(attribute, (*_PLAIN, FunctionType)) or hasattr(attribute, "detach"):
                    self.add(name, attribute)

    def _function(self, function: FunctionType) -> None:
        """Add a function's name and source, its defaults, and what it reads from outside."""
        source = f"coarlib {MEANING}" if _is_ours(function) else _source(function)
        self.add(function.__qualname__, source, function.__defaults__)
        self.add(function.__kwdefaults__ or {})
        for cell in function.__closure__ or ():
            try:
                self._add(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        if _is_ours(function):
            return
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            own = getattr(value, "__module__", None) == function.__module__
            if (isinstance(value, FunctionType) and own) or isinstance(value, int | float | str):
                self.add(name, value)

    def _array(self, value: Any) -> None:
        if hasattr(value, "detach"):
            value = value.detach()
            self._text(f"array {str(value.dtype).removeprefix('torch.')} {list(value.shape)}")
            self._digest.update(_tensor_bytes(value))
            return
        value = np.asarray(value)
        self._text(f"array {value.dtype.name} {list(value.shape)}")
        self._digest.update(np.ascontiguousarray(value).data.cast("B") if value.size else b"")

    def _text(self, text: str) -> None:
        encoded = text.encode()
        self._digest.update(f"{len(encoded)}:".encode() + encoded)


def _is_ours(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "coarlib"


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, bool | int | float)


def _tensor_bytes(tensor: Any) -> Any:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        tensor = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _names(code: CodeType) -> list[str]:
    """Return the global names and attributes that code reads, also in functions inside it."""
    inside = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return sorted({*code.co_names, *(name for names in inside for name in names)})


def _source(function: FunctionType) -> str:
    """Return the source without comments, docstrings and layout; bytecode where there is none."""
    try:
        if function.__name__ == "<lambda>":
            return _source_of_lambda(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, LookupError):
        return _bytecode(function.__code__)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _source_of_lambda(function: FunctionType) -> str:
    """Return a lambda's own source, not its neighbours' on the same line; LookupError if unsure."""
    tree = ast.parse("".join(inspect.findsource(function)[0]))
    places = set(function.__code__.co_positions())
    found = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda) and _place(node.body) in places
    }
    if len(found) != 1:
        raise LookupError(function.__qualname__)
    return found.pop()


def _place(node: ast.expr) -> tuple[int, int | None, int, int | None]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _bytecode(code: CodeType) -> str:
    constants = [
        _bytecode(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts
    ]
    return json.dumps([code.co_code.hex(), constants, list(code.co_names)])
