"""Set-ups and tasks by name: the one place that turns what a user typed into an object.

A set-up is a folder of ``estimate`` with a ``task.py`` (rows of a store) or a ``setup.py`` (a
training run with a history); its folder's name is its name. Anything else is named as
``package.module:Name`` or ``file.py:Name``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from coarlib.errors import CoarlibError, SetupError, TaskError, nearest
from coarlib.task import ModuleTask, Task, own_argv

PACKAGE = "estimate"
TASK_FILE, HISTORY_FILE, WORKER_FILE = "task.py", "setup.py", "make_dataset.py"
MAKERS = ("task", "make_task")  # functions that a module without a Task class may define
Made = TypeVar("Made")


def names(file: str = TASK_FILE) -> dict[str, Path]:
    """Return {name: folder} of the set-ups that hold ``file``, found without importing them."""
    spec = importlib.util.find_spec(PACKAGE)
    places = () if spec is None else spec.submodule_search_locations or ()
    found = {
        path.parent.name: path.parent for place in places for path in Path(place).glob(f"*/{file}")
    }
    return dict(sorted(found.items()))  # fmt: skip


def is_shipped(task: str) -> bool:
    """Whether ``task`` is the whole name of a task that came with coarlib.

    What a store says may choose among these and nothing else: it may come from a stranger.
    """
    place, colon, wanted = task.partition(":")
    known = {name: f"{PACKAGE}.{name}.{Path(TASK_FILE).stem}" for name in names()}
    if place not in known and place not in known.values():
        return False
    return not colon or re.fullmatch(r"[A-Z]\w*Task", wanted, re.ASCII) is not None


def shipped_file(path: str | Path, kind: str = "specs") -> Path:
    """Find a file of the set-ups: as given, else by its name among those that coarlib ships.

    Parameters
    ----------
    path : str or Path
        ``specs/digits.json``, ``digits`` or, as upstream has it, ``digits/spec.json``.
    kind : str
        The folder they are shipped in.

    Returns
    -------
    Path
        ``path`` itself if nothing fits.
    """
    path = Path(path)
    if path.is_file():
        return path
    asked = [path.stem]
    if path.stem.startswith("spec"):
        asked.append(path.parent.name + path.stem.removeprefix("spec"))
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    for place in places:
        for folder in (place / kind, place.parent / kind):
            for file in sorted(folder.glob("*.*")):
                if file.stem in asked and path.suffix in ("", file.suffix):
                    return file
    return path


def load(
    name: str,
    settings: Mapping[str, Any] | None = None,
    logdir: str | Path = ".",
    words: Sequence[str] = (),
) -> Task:
    """Build the task called ``name``.

    Parameters
    ----------
    name : str
        A set-up (``digits``), ``package.module:Name`` or ``path/to/file.py:Name``. ``Name`` is a
        Task class, a function that returns a Task, or a Task; it may be left out where the module
        defines exactly one Task class, else one Task, a function ``task`` or ``make_task``, or a
        datamodels-style ``main(*_, index, logdir)``. A file's own folder is on the import path
        while it loads.
    settings : mapping, optional
        Keyword arguments of the class or the function.
    logdir : str or Path
        Passed to a datamodels-style ``main``.
    words : sequence of str
        Arguments that a datamodels-style module parses itself.

    Raises
    ------
    TaskError
        If the set-up, the module, the name or a setting does not exist.
    """
    settings = dict(settings or {})
    with own_argv(words):
        found = find(name, Task, TASK_FILE, TaskError)
    is_main = not inspect.isclass(found) and not isinstance(found, Task) and callable(found)
    if is_main and "index" in inspect.signature(found).parameters:
        return ModuleTask(found, logdir, words)
    if words:
        raise TaskError(f"{name} parses no arguments of its own, so {words[0]} is unknown")
    if isinstance(found, Task):
        if settings:
            raise TaskError(f"{name} is a task already and takes no settings ({_some(settings)})")
        return found
    if not callable(found):
        raise TaskError(f"{name} is no Task but {type(found).__name__}")
    made = build(found, settings, f"task {name}", TaskError)
    if not isinstance(made, Task):
        raise TaskError(f"{name} returns {type(made).__name__}, not a Task")
    return made


def build(
    make: Callable[..., Any], settings: Mapping[str, Any], what: str, error: type[CoarlibError]
) -> Any:
    """Call ``make`` with the settings; ``error`` names one that it does not take, or lacks."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return make(**settings)
    known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    any_name = len(known) < len(signature.parameters)
    for key in settings:
        if key not in known and not any_name:
            raise error(f"{what} has no setting {key}{nearest(key, known)} (it has {_some(known)})")
    try:
        signature.bind(**settings)
    except TypeError as problem:
        raise error(f"{what} cannot be built with {_some(settings)}: {problem}") from problem
    try:
        return make(**settings)
    except TypeError as problem:
        raise error(f"{what} cannot be built with {dict(settings)}: {problem}") from problem


def find(
    name: str, kind: type[Any], file: str | None = None, error: type[CoarlibError] = SetupError
) -> Any:
    """Return what ``name`` names: a class of ``kind``, an instance, or a function.

    Parameters
    ----------
    name : str
        As in :func:`load`.
    kind : type
        What is looked for in a module where ``:Name`` is left out.
    file : str, optional
        The file of a set-up's folder that defines it, where set-ups have such.
    error : subclass of CoarlibError
        What is raised.
    """
    place, _, wanted = name.partition(":")
    shipped = {} if file is None else names(file)
    folder = place if place in shipped else f"{place}_path"  # set-ups of histories end so
    if file is not None and folder in shipped:
        module = _import(f"{PACKAGE}.{folder}.{Path(file).stem}", error)
    elif place.endswith(".py"):
        module = _import_file(Path(place), error)
    elif not place or place.startswith("."):
        raise error(f"{name!r} names nothing; say {_forms(shipped)}")
    else:
        module = _import(place, error, f"; say {_forms(shipped)}{nearest(place, shipped)}")
    if wanted:
        if not hasattr(module, wanted):
            known = [key for key in vars(module) if not key.startswith("_")]
            raise error(f"{place} defines no {wanted}{nearest(wanted, known)}")
        return getattr(module, wanted)
    return _only_one(module, kind, name, error)


def _only_one(module: ModuleType, kind: type[Any], name: str, error: type[CoarlibError]) -> Any:
    own = vars(module)
    classes = [
        value
        for value in own.values()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    made = {id(value): value for value in own.values() if isinstance(value, kind)}
    for found in (classes, list(made.values())):
        if len(found) == 1:
            return found[0]
        if found:
            raise error(f"{name} defines {len(found)} of them; say which one as {name}:NAME")
    for key in (*MAKERS, "main"):
        if callable(own.get(key)):
            return own[key]
    what = kind.__name__
    raise error(
        f"{name} defines no {what}: define a class, a {what}, or a function task() that returns one"
        + (", or a datamodels-style main(*_, index, logdir)" if kind is Task else "")
    )


def _import(name: str, error: type[CoarlibError], hint: str = "") -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise error(f"cannot import {name}: {problem}{hint}") from problem


def _import_file(path: Path, error: type[CoarlibError]) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None or not path.is_file():
        raise error(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _on_the_path(str(path.resolve().parent)):
            spec.loader.exec_module(module)
    except CoarlibError:
        raise
    except (Exception, SystemExit) as problem:
        del sys.modules[spec.name]
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise error(f"{path} cannot be loaded ({reason})") from problem
    return module


def _module_name(path: Path) -> str:
    """Return the file's stem, or another name where that would hide a module from elsewhere."""
    there = sys.modules.get(path.stem)
    same = there is None or getattr(there, "__file__", None) in (str(path), str(path.resolve()))
    return path.stem if same else f"{path.stem}_of_{path.resolve().parent.name}"


@contextlib.contextmanager
def _on_the_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _forms(shipped: Mapping[str, Path]) -> str:
    also = f" or a set-up ({', '.join(shipped)})" if shipped else ""
    return f"package.module:Name, file.py:Name{also}"


def _some(words: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(words) or "none"
