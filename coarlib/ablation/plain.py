"""Models as they are meant: without the wrappers and reparametrisations that people put on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from coarlib.errors import TaskError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_OLD_HOOKS = {"WeightNorm": remove_weight_norm, "SpectralNorm": remove_spectral_norm}


def plain(model: nn.Module) -> nn.Module:
    """Return a model whose weights are plain parameters, under the names its architecture gives.

    ``torch.compile`` and ``DataParallel`` wrappers are taken off. Of a model with adapters (PEFT),
    weight or spectral norm, pruning or other parametrisations, a copy comes back with these merged
    into the weights; other models come back themselves.
    """
    model = unwrapped(model)
    if callable(getattr(model, "merge_and_unload", None)) and _adapters(model):
        model = copy.deepcopy(model)
        model = model.merge_and_unload()  # type: ignore[operator]
    if any(map(_reparametrised, model.modules())):
        model = copy.deepcopy(model)
        for module in list(model.modules()):
            _bake(module)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` and ``DataParallel`` were given."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def checked_model(model: Any, source: str) -> nn.Module:
    """Return the plain model in evaluation mode, or say in one sentence why it is none.

    Raises
    ------
    TaskError
        If it is no module, has uninitialised or quantised weights, or a batch norm without
        statistics of its own, which would make every row depend on the batch.
    """
    if isinstance(model, Mapping):
        raise TaskError(
            f"{source} is a state dict, not a model: build the network and load it with "
            "network.load_state_dict(…)"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TaskError(f"{source} is the class {model.__name__}, not a model: call it")
    if not isinstance(model, nn.Module):
        why = "nothing (is a return missing?)" if model is None else f"{type(model).__name__}"
        raise TaskError(f"{source} must be a torch.nn.Module, not {why}")
    model = plain(model).eval()
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise TaskError(f"{name} of {source} is not initialised; run the model once first")
        if parameter.device.type == "meta":
            raise TaskError(f"{name} of {source} is on the meta device, so it holds no weights")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise TaskError(
                f"{name} of {source} is a batch norm without running statistics, so every output "
                "would depend on the other examples of its batch; train it with "
                "track_running_stats=True, or replace it"
            )
    return model


def _adapters(model: nn.Module) -> bool:
    return any(hasattr(module, "base_layer") for module in model.modules())


def _old_hooks(module: nn.Module) -> list[Any]:
    hooks = module._forward_pre_hooks.values()
    return [h for h in hooks if type(h).__name__ in _OLD_HOOKS or _is_pruning(h)]


def _is_pruning(hook: object) -> bool:
    return isinstance(hook, prune.BasePruningMethod)


def _reparametrised(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(_old_hooks(module))


@torch.no_grad()
def _bake(module: nn.Module) -> None:
    """Replace parametrised tensors by parameters of the value they have."""
    module.eval()  # spectral norm takes a step of its iteration whenever it is read in training
    for hook in _old_hooks(module):
        if _is_pruning(hook):
            prune.remove(module, hook._tensor_name)
        else:
            _OLD_HOOKS[type(hook).__name__](module, hook.name)
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
