"""The code of a model as a graph of torch's own layers and functions."""

from __future__ import annotations

from torch import fx, nn

__all__ = ["traced"]


def traced(model: nn.Module) -> fx.Graph | None:
    """Trace a model of one input; None if its forward cannot be, or changes the model's state."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a user's forward raises when it meets a proxy
        return None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or any(_changes_state(node) for node in graph.nodes):
        return None
    return graph


class _Tracer(fx.Tracer):
    """Follows the code of everything but torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node."""
        return type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)


def _changes_state(node: fx.Node) -> bool:
    """Whether a node changes a parameter or a buffer, which are given anew in every call."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return (
        node.op in ("call_method", "call_function")
        and (name.endswith("_") or name in ("iadd", "imul", "isub", "setitem"))
        and any(part.op == "get_attr" for part in node.all_input_nodes[:1])
    )
