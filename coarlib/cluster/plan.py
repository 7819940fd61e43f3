"""The plan of a computation that is larger than one machine: one small YAML, checked once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from coarlib.errors import ClusterError, nearest
from coarlib.loading import load_yaml

__all__ = ["Environment", "Plan", "Resources", "Step", "load_plan", "parse_plan"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Limits as sbatch takes them: minutes, minutes:seconds, [days-]hours[:minutes[:seconds]].
TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}")
MEMORY = re.compile(r"\d+[KMGT]?")
RUNTIMES = ("apptainer", "singularity", "pyxis")
# Lines of sbatch that would contradict what the scripts rely on.
OWN_OPTIONS = ("array", "dependency", "output", "error", "signal", "requeue", "no-requeue", "wrap")


@dataclass(frozen=True)
class Resources:
    """What one job asks SLURM for.

    Attributes
    ----------
    time : str
        Limit as sbatch takes it, e.g. ``01:00:00``; array tasks of 15 to 60 minutes suit queues.
    cpus, gpus, nodes : int
        CPUs of each worker, GPUs of each node, nodes of each job.
    memory : str, optional
        Of each node, e.g. ``16G``.
    partition, account, qos, constraint, exclude : str, optional
    sbatch : tuple of str
        Further options as sbatch takes them, e.g. ``--mail-type=FAIL``.
    """

    time: str = "01:00:00"
    cpus: int = 1
    gpus: int = 0
    nodes: int = 1
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least("resources.cpus", self.cpus, 1)
        _at_least("resources.gpus", self.gpus, 0)
        _at_least("resources.nodes", self.nodes, 1)
        if not TIME.fullmatch(self.time):
            raise ClusterError(
                f"resources.time must be minutes or [DAYS-]HOURS:MINUTES:SECONDS in quotes, not "
                f"{self.time!r}"
            )
        if self.memory is not None and not MEMORY.fullmatch(self.memory):
            raise ClusterError(f"resources.memory must be like 16G, not {self.memory!r}")
        for option in self.sbatch:
            name = option.removeprefix("--").split("=")[0].split(" ")[0]
            if not option.startswith("-") or name in OWN_OPTIONS or "\n" in option:
                raise ClusterError(
                    f"resources.sbatch takes further options of sbatch, dashes included, not "
                    f"{option!r} (the plan sets {', '.join(OWN_OPTIONS)} itself)"
                )


@dataclass(frozen=True)
class Environment:
    """What a job needs before Python starts.

    Attributes
    ----------
    setup : tuple of str
        Shell lines, e.g. ``module load cuda`` or ``source venv/bin/activate``.
    python : str, optional
        The interpreter; the one that submits by default.
    container : str, optional
        Image to run Python in.
    mounts : tuple of str
        ``outside:inside`` for the container; the working directory and the store are not added.
    runtime : str
        ``apptainer``, ``singularity`` or ``pyxis`` (srun --container-image).
    """

    setup: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    mounts: tuple[str, ...] = ()
    runtime: str = "apptainer"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ClusterError(
                f"environment.runtime must be one of {', '.join(RUNTIMES)}, not {self.runtime!r}"
            )


@dataclass(frozen=True)
class Step:
    """One command after the store is complete: the fit, the score, the report.

    Attributes
    ----------
    name : str
    run : tuple of str
        The words of a ``coar`` command, e.g. ``("run_regression", "--config", "fit.yaml")``.
    creates : str, optional
        A path whose existence means that the step is done; it is then passed over.
    array : int
        Run so many copies at once, ``{index}`` in the words being 0, 1, … (target blocks, say).
    resources : Resources
    """

    name: str
    run: tuple[str, ...]
    creates: str | None = None
    array: int = 1
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        _check_name("then: name", self.name)
        _at_least(f"then: {self.name}: array", self.array, 1)
        if not self.run:
            raise ClusterError(f"then: {self.name}: run must be a coar command")


@dataclass(frozen=True)
class Plan:
    """Fill a store by array jobs, verify it, then fit, score and report.

    Attributes
    ----------
    store : str
        Directory of the store.
    task : str
        A set-up's name, ``package.module:Class`` or ``file.py:Class``; or a module with a worker
        of its own, such as ``estimate.digits.make_dataset``.
    task_args : dict
        The task's settings.
    worker_args : dict
        Further arguments of the worker (``rows_per_batch``, ``device`` …).
    spec : str, optional
        Initialise the store from this file if it does not exist.
    name : str
        Prefix of the job names; the store's directory name by default.
    rows_per_job : int
        Array task i fills rows i·R to (i+1)·R.
    concurrent_jobs : int, optional
        At most so many array tasks at once.
    workers_per_job : int
        Workers that share the rows of a job, on each node (several fit one GPU).
    tries : int
        How often the array is submitted at most, the first time included.
    warn_seconds : int
        How long before the time limit a job is warned, to finish the rows in hand.
    resources, environment
    then : tuple of Step
    directory : str
        Where the jobs run; relative paths of the plan are relative to it.
    """

    store: str
    task: str
    task_args: dict[str, Any] = field(default_factory=dict)
    worker_args: dict[str, Any] = field(default_factory=dict)
    spec: str | None = None
    name: str = ""
    rows_per_job: int = 1000
    concurrent_jobs: int | None = None
    workers_per_job: int = 1
    tries: int = 3
    warn_seconds: int = 120
    resources: Resources = field(default_factory=Resources)
    environment: Environment = field(default_factory=Environment)
    then: tuple[Step, ...] = ()
    directory: str = "."

    def __post_init__(self) -> None:
        for key in ("rows_per_job", "workers_per_job", "tries", "warn_seconds"):
            _at_least(key, getattr(self, key), 1)
        if self.concurrent_jobs is not None:
            _at_least("concurrent_jobs", self.concurrent_jobs, 1)
        if not self.name:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.store_path.absolute().name)
            object.__setattr__(self, "name", name.lstrip(".-") or "store")
        _check_name("name", self.name)
        for what in ("task_args", "worker_args"):
            for key in getattr(self, what):  # a worker's options are made of them
                if not isinstance(key, str) or not key.isidentifier():
                    raise ClusterError(f"{what}: {key!r} is not the name of an argument")
        names = [step.name for step in self.then]
        for name in names:
            if names.count(name) > 1 or name in ("fill", "verify"):
                raise ClusterError(f"then: two steps are called {name!r}")

    @property
    def store_path(self) -> Path:
        """The store, from anywhere."""
        return Path(self.directory, self.store)

    @property
    def run_path(self) -> Path:
        """Where scripts, logs and the record of submissions are kept: beside the store."""
        store = self.store_path.absolute()
        return store.with_name(f"{store.name}.jobs")

    def num_blocks(self, num_models: int) -> int:
        """How many array tasks cover the store."""
        return -(-num_models // self.rows_per_job)

    def as_yaml(self) -> str:
        """Return the plan in the form that :func:`parse_plan` reads."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False)


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan.

    Raises
    ------
    ClusterError
        If the file cannot be read, or a key is unknown, missing or wrong.
    """
    content = load_yaml(path, ClusterError)
    try:
        return parse_plan(content)
    except ClusterError as error:
        raise ClusterError(f"{path}: {error}") from error


def parse_plan(content: object) -> Plan:
    """Check the content of a plan; ClusterError names what is wrong."""
    values = _checked(Plan, content, "")
    resources = _build(Resources, values.pop("resources", {}), "resources")
    environment = _build(Environment, values.pop("environment", {}), "environment")
    steps = values.pop("then", ())
    if not isinstance(steps, list | tuple):
        raise ClusterError("then must be a list of steps (name, run)")
    then = tuple(_step(step, f"then[{i}]", resources) for i, step in enumerate(steps))
    return Plan(**values, resources=resources, environment=environment, then=then)


def _step(content: object, where: str, base: Resources) -> Step:
    values = _checked(Step, content, where)
    wanted = _checked(Resources, values.pop("resources", {}), f"{where}.resources")
    words = values.pop("run")
    try:
        split = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{where}.run must be the words of a command: {error}") from error
    # A step is one job that needs no array's accelerator; place and billing carry over.
    single = {"cpus": 1, "gpus": 0, "nodes": 1, "memory": None}
    resources = replace(base, **{**single, **wanted})
    return Step(**values, run=tuple(split), resources=resources)


_Section = TypeVar("_Section", Resources, Environment)


def _build(cls: type[_Section], content: object, where: str) -> _Section:
    return cls(**_checked(cls, content, where))


def _checked(cls: type[Any], content: object, where: str) -> dict[str, Any]:
    """Return a mapping's values by the field types of ``cls``; ClusterError if they do not fit."""
    if not isinstance(content, Mapping):
        raise ClusterError(f"{where or 'the plan'} must map keys to values")
    known = {item.name: str(item.type) for item in fields(cls)}
    result = {}
    for key, value in content.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ClusterError(f"unknown key {name}{nearest(str(key), known)}")
        if value is not None:
            result[str(key)] = _typed(known[key], value, name)
    if cls in (Plan, Step):
        for key in ("store", "task") if cls is Plan else ("name", "run"):
            if key not in result:
                raise ClusterError(f"{where + '.' if where else ''}{key} is missing")
    return result


def _typed(wanted: str, value: object, name: str) -> Any:
    if wanted.startswith("tuple[str") and not name.endswith(".run"):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
            raise ClusterError(f"{name} must be a list of texts, not {value!r}")
        return tuple(items)
    if wanted.startswith("dict") and not isinstance(value, Mapping):
        raise ClusterError(f"{name} must map names to values, not {value!r}")
    if wanted.startswith("int") and (not isinstance(value, int) or isinstance(value, bool)):
        raise ClusterError(f"{name} must be a whole number, not {value!r}")
    if wanted.startswith("str"):
        if isinstance(value, int) and name.endswith(("time", "memory")):
            # YAML reads 01:00:00 as 3600, so a bare number of that size is a trap, not minutes.
            raise ClusterError(f"{name} must stand in quotes, as in {name}: '{value}'")
        if not isinstance(value, str) or not value or "\n" in value:
            raise ClusterError(f"{name} must be a text of one line, not {value!r}")
    return value


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ClusterError(f"{name} must be at least {least}, not {value}")


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ClusterError(f"{what} {name!r} must be letters, digits, '_', '.' and '-'")


def _plain(value: Any) -> Any:
    """Drop what is unset and turn tuples into lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item not in (None, (), {}, "")}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
