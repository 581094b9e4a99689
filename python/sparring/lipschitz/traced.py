"""A network's forward as a graph, by `torch.fx`: all that the walker needs of tracing."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn

from sparring.lipschitz import layers


def traced(root: nn.Module) -> fx.Graph:
    """The graph of the forward of a module, which is traced as it is: pass a copy. Any exception: it cannot be traced.

    Modules that are operations of their own, and all of torch's, are nodes. Arguments that have a default keep it.
    """
    return _Tracer().trace(root, concrete_args=_defaults(root))


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is looked at as a whole, rather than at what its forward does."""
    return _Tracer().is_leaf_module(module, "")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return layers.is_known(m) or super().is_leaf_module(m, module_qualified_name)


def _defaults(root: nn.Module) -> dict[str, Any]:
    _, *others = inspect.signature(root.forward).parameters.values()
    return {p.name: p.default for p in others if p.default is not inspect.Parameter.empty}
