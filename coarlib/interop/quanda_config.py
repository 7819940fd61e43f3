"""quanda's benchmark configurations, read without quanda: model, training, data, where files lie.

quanda names models, transforms and data sets by its own registries and the Hugging Face hub. Where
quanda cannot be imported, or data are one's own, ``module.name`` and ``dataset_str`` may be
``package.module:name`` or ``file.py:name``: a class of models, and a function that returns a
Dataset of (input, target) pairs or a pair of arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional

from coarlib.errors import SetupError, nearest
from coarlib.files import whole_file
from coarlib.loading import load_yaml
from coarlib.retraining.data import as_data
from coarlib.retraining.trainer import Trainer
from coarlib.setups import find as found_by_name

__all__ = ["dataset", "folders", "is_config", "read_config", "trainer"]

_CONFIGS = "benchmarks/resources/configs"
_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "nll": functional.nll_loss,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "bce": functional.binary_cross_entropy,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
}
_SCHEDULERS = {
    "constant": torch.optim.lr_scheduler.ConstantLR,
    "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
    "linear": torch.optim.lr_scheduler.LinearLR,
    "one_cycle": torch.optim.lr_scheduler.OneCycleLR,
    "step": torch.optim.lr_scheduler.StepLR,
}
_NEEDED = ("model", "train_dataset", "id", "bench_save_dir")


def is_config(content: object) -> bool:
    """Whether parsed YAML is a configuration of one of quanda's benchmarks."""
    return isinstance(content, Mapping) and "bench_save_dir" in content and "model" in content


def read_config(config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return a configuration given as a dict, a path of YAML, or a name that quanda ships.

    Raises
    ------
    SetupError
        If there is none, or a key that is needed is missing.
    """
    content = config if isinstance(config, Mapping) else _read(_config_file(str(config)))
    missing = [key for key in _NEEDED if key not in content]
    if missing:
        raise SetupError(f"quanda's configuration lacks {', '.join(missing)}")
    return dict(content)


def _read(file: Path) -> Mapping[str, Any]:
    content = load_yaml(file, SetupError)
    if not isinstance(content, Mapping):
        raise SetupError(f"{file} is no configuration of quanda")
    return content


def _config_file(name: str) -> Path:
    """Return the file of a path, a benchmark's name (``mnist_linear_datamodeling``), or its id."""
    if Path(name).is_file():
        return Path(name)
    found = importlib.util.find_spec("quanda")
    for folder in map(Path, (found and found.submodule_search_locations) or ()):
        if (file := folder / _CONFIGS / f"{name}.yaml").is_file():
            return file
        text = (folder / "benchmarks/resources/config_map.py").read_text(encoding="utf-8")
        _, _, rest = text.partition(f'"{name}"')
        word = next((w for w in rest.replace('"', " ").split() if w.endswith(".yaml")), None)
        if word is not None:
            return folder / _CONFIGS / Path(word).name
    raise SetupError(
        f"there is no configuration {name}: give a path, a dict, or a benchmark's name where "
        "quanda is installed"
    )


def folders(config: Mapping[str, Any]) -> tuple[Path, Callable[[int | None], Path]]:
    """Return quanda's directory of metadata, and of the model of a subset (None: of all data)."""
    root = Path(config["bench_save_dir"])
    name = str(config.get("ckpt", config["id"])).split("/")[-1]
    subset = str(config.get("subset_ckpt", name)).split("/")[-1]

    def checkpoint(i: int | None) -> Path:
        return root / "ckpt" / (name if i is None else f"{subset}_lds_subset_{i}")

    return root / "metadata" / f"{config['id']}_metadata", checkpoint


def dataset(config: Mapping[str, Any], which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets of ``train_dataset``, ``val_dataset`` or ``eval_dataset``.

    Splits are quanda's (a permutation of seed 42), read from the metadata if they are there.
    """
    settings = config.get(which)
    if settings is None:
        raise SetupError(f"quanda's configuration lacks {which}")
    inputs, targets = _whole_dataset(settings)
    if settings.get("split_ref") is None:
        return inputs, targets
    recipes = config.get("splits") or {}
    if settings["split_ref"] not in recipes:
        raise SetupError(f"splits of quanda's configuration lacks {settings['split_ref']}")
    parts = _split(folders(config)[0], recipes[settings["split_ref"]], len(inputs))
    kept = parts[settings.get("split_name", "train")]
    return inputs[kept], targets[kept]


def _split(folder: Path, recipe: Mapping[str, Any], size: int) -> dict[str, torch.Tensor]:
    file = folder / recipe["filename"]
    if file.is_file():
        return {name: torch.tensor(part, dtype=torch.int64) for name, part in _read(file).items()}
    order = torch.randperm(size, generator=torch.Generator().manual_seed(42))
    found, start = {}, 0
    for name, ratio in recipe["ratios"].items():
        found[name] = order[start : start + int(ratio * size)]
        start += len(found[name])
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(file, "w") as stream:
        yaml.safe_dump({name: part.tolist() for name, part in found.items()}, stream)
    return found


def _whole_dataset(settings: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    name = str(settings.get("dataset_str"))
    if ":" in name:
        made = _named(name)
        made = made() if callable(made) else made
        return as_data(*made) if isinstance(made, tuple) else as_data(made, None)
    try:
        hub = importlib.import_module("datasets")
        split = settings.get("dataset_split", "train")
        found = hub.load_dataset(name, settings.get("dataset_config"), split=split)
    except Exception as error:  # no package, no network, no such data
        reason = " ".join(str(error).split())[:200]
        raise SetupError(
            f"the data set {name} cannot be loaded ({reason}); dataset_str may also be "
            "file.py:function that returns (inputs, targets)"
        ) from error
    transform = _of_quanda("sample_transforms", "sample_transforms", settings.get("transforms"))
    column = next((c for c in ("image", "img") if c in found.column_names), None)
    if column is None:
        raise SetupError(f"the data set {name} has no images; only images and own data are read")
    inputs = torch.stack([torch.as_tensor(transform(example[column])) for example in found])
    return as_data(inputs, torch.tensor(found["label"]))


def _named(name: str) -> Any:
    return found_by_name(name, object, "task.py", SetupError)


def _of_quanda(module: str, registry: str, name: str | None) -> Any:
    """Look a name up in one of quanda's registries."""
    try:
        known = getattr(importlib.import_module(f"quanda.benchmarks.resources.{module}"), registry)
    except Exception as error:  # quanda raises whatever its pinned dependencies raise
        raise SetupError(
            f"{name} is a name of quanda's, which cannot be imported here; file.py:name works "
            "without it"
        ) from error
    if name not in known:
        raise SetupError(f"quanda has no {name}{nearest(str(name), known)}")
    return known[name]


def trainer(config: Mapping[str, Any], batch_size: int = 64) -> Trainer:
    """Return how the configuration trains, on its ``train_dataset``.

    Optimizer, loss, schedule (stepped every epoch, as Lightning does) and clipping are those of
    ``model.trainer``; quanda's own order of examples cannot be had, as it depends on Lightning's.

    Raises
    ------
    SetupError
        Naming the setting that is unknown.
    """
    module = config["model"]["module"]
    settings = dict(config.get("counterfactual_trainer") or config["model"]["trainer"])
    name = str(module["name"])
    kind = _named(name) if ":" in name else _of_quanda("pl_modules", "pl_modules", name)
    loss = _chosen(_LOSSES, settings.get("criterion", "cross_entropy"), "criterion")
    epochs = int(settings["max_epochs"])
    return Trainer(
        partial(kind, **(module.get("args") or {})),
        *dataset(config, "train_dataset"),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=_chosen(_OPTIMIZERS, settings["optimizer"], "optimizer"),
        options={"lr": float(settings["lr"]), **(settings.get("optimizer_kwargs") or {})},
        schedule=_by_epoch(settings, epochs),
        loss=partial(_each, loss, dict(settings.get("criterion_kwargs") or {})),
        clip_norm=settings.get("gradient_clip_val"),
    )


def _each(
    loss: Callable[..., torch.Tensor],
    options: dict[str, Any],
    outputs: Any,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Loss of each example, of an output's ``logits`` if it has them."""
    outputs = getattr(outputs, "logits", outputs)
    found = loss(outputs, targets, **{**options, "reduction": "none"})
    return found.flatten(1).mean(1) if found.shape == outputs.shape and found.ndim > 1 else found


def _by_epoch(settings: Mapping[str, Any], epochs: int) -> Any:
    """Return a schedule that is stepped once an epoch."""
    if settings.get("scheduler") is None:
        return "constant"
    kind = _chosen(_SCHEDULERS, settings["scheduler"], "scheduler")
    options = dict(settings.get("scheduler_kwargs") or {})
    shadow = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        inner, factors = kind(shadow, **options), []
        for _ in range(epochs):
            factors.append(shadow.param_groups[0]["lr"])
            shadow.step()
            inner.step()
    except (TypeError, ValueError) as error:
        raise SetupError(
            f"scheduler_kwargs {options} do not fit {kind.__name__}: {error}"
        ) from error

    def schedule(
        optimizer: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        each = max(1, steps // epochs)
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: factors[min(step // each, epochs - 1)]
        )

    return schedule


def _chosen(known: Mapping[str, Any], name: Any, what: str) -> Any:
    if name not in known:
        raise SetupError(
            f"quanda's {what} {name} is none of {', '.join(known)}{nearest(str(name), known)}"
        )
    return known[name]
