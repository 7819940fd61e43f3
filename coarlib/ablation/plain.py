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
    if any(map(_is_adapted, model.modules())):
        model = copy.deepcopy(model)
        if callable(merge := getattr(model, "merge_and_unload", None)):
            model = merge()
        for name, module in list(model.named_modules()):
            if _is_adapted(module):
                module.merge()
                owner, _, key = name.rpartition(".")
                model.get_submodule(owner)._modules[key] = module.base_layer
    if any(map(_reparametrised, model.modules())):
        for module in model.modules():
            for hook in _old_hooks(module):  # what they compute anew cannot be copied
                name = getattr(hook, "name", None) or hook._tensor_name
                setattr(module, name, getattr(module, name).detach())
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
        If it is no module, was compiled by torch.jit, has uninitialised or quantised weights, or a
        batch norm without statistics of its own, which would make every row depend on the batch.
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
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TaskError(
            f"{source} was compiled by torch.jit, which hides layers and weights: give the model "
            "that it was made of"
        )
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


def is_quantised(module: nn.Module) -> bool:
    """Whether a module's weights are not the real numbers that they stand for."""
    kinds = [x.dtype for x in module.parameters(recurse=False)]
    return "quantized" in type(module).__module__ or any(
        not (dtype.is_floating_point or dtype.is_complex) for dtype in kinds
    )


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module._modules.get("base_layer"), nn.Module) and hasattr(module, "merge")


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
    if not parametrize.is_parametrized(module):
        return
    # A copy shares its class, which holds the properties, with the original: torch's own
    # remove_parametrizations would take them from both.
    values = {name: getattr(module, name).detach().clone() for name in _parametrised(module)}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _parametrised(module: nn.Module) -> list[str]:
    return list(module.get_submodule("parametrizations")._modules)
