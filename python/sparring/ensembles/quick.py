"""Layers that take less time in training than torch's on a CPU, in whose place they come.

ReLU with the max-pooling after it is one kernel, forward and backward; other ReLU work in place; dropout draws sixteen
bits an entry instead of one number.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparring.gradients import kernels
from sparring.gradients.image_steps import pair
from sparring.gradients.lowering import traced


class ReluPool(nn.Module):
    """``max_pool2d(relu(x))``, (B, C, H, W) to (B, C, H', W'), to the bit."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool = self.pool
        size, stride, padding, dilation = map(pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
        if kernels.supported(x) and kernels.relu_pool_fits(size, padding, dilation):
            y: Tensor = _ReluPool.apply(x, size, stride, padding, pool.ceil_mode)  # type: ignore[no-untyped-call]
            return y
        return cast(Tensor, pool(x.relu()))


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Any, stride: Any, padding: Any, ceil_mode: bool) -> Tensor:
        y, index = kernels.relu_pool(x, None, size, stride, padding, "relu", ceil_mode=ceil_mode)
        ctx.save_for_backward(index)
        ctx.options = (tuple(x.shape[2:]), size, stride, padding)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return kernels.relu_pool_backward(grad, index, *ctx.options), None, None, None, None


class Dropout(nn.Module):
    """`torch.nn.Dropout` on a CPU, with other draws; its probability is rounded to a multiple of 2^-16."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = round(p * 2**16) / 2**16

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not x.is_cpu or self.p == 1:
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()] >= round(self.p * 2**16) - 2**15
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        kept = kept.as_strided(x.shape, x.stride()) if last else kept.view(x.shape)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


class Quick(NamedTuple):
    """A network with these layers, and whether images may be in channels-last form, in which they take less time."""

    network: nn.Module
    channels_last: bool


def quick(model: nn.Module) -> Quick:
    """A copy of `model` with these layers where they fit; its tensors have the same names."""
    model = copy.deepcopy(model)
    graph = traced(model)
    known = not isinstance(graph, str)
    if isinstance(graph, fx.Graph):
        _join_relus(model, graph)
        known = all(node.target != "view" for node in graph.nodes)
    for name, module in [*model.named_modules()]:
        if type(module) is nn.Dropout and name:
            model.set_submodule(name, Dropout(module.p))
    return Quick(model, known)


def _join_relus(model: nn.Module, graph: fx.Graph) -> None:
    modules = dict(model.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or {node.op, before.op} != {"call_module"} or len(before.users) > 1:
            continue
        name, earlier = str(node.target), str(before.target)
        if max(calls.count(name), calls.count(earlier)) > 1:
            continue
        module, source = modules[name], modules[earlier]
        if type(module) is nn.MaxPool2d and type(source) is nn.ReLU and not module.return_indices:
            model.set_submodule(earlier, nn.Identity())
            model.set_submodule(name, ReluPool(module))
        elif type(module) is nn.ReLU and type(source) in (nn.Conv2d, nn.Linear):
            module.inplace = True
