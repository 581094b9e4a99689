"""Layers of M networks at once, and a network with its layers replaced by these.

What passes between layers holds the members' features side by side, member by member: (B, M F), or (B, M C, H, W) for
images. So whatever works on each feature or channel by itself serves M networks as it serves one, the first layer of
all of them is one matrix product or one convolution, and later ones are batched products or grouped convolutions. A
layer takes the features that all members share, (B, F), as well as those side by side.

In memory the examples of a feature lie next to each other, as linear layers leave them: then the weights are the large
factor of every product, forward and backward, and none of them is turned over.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparring.gradients.lowering import traced
from sparring.gradients.products import product_with_few
from sparring.tracing import PLAIN


class StackedLinear(nn.Module):
    """M linear layers: (B, F) or (B, M F) to (B, M H). The weight is (M, H, F), the bias (M, H) or None."""

    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = stacked_parameter([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else stacked_parameter([layer.bias for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        members, units, features = self.weight.shape
        if _shares(x, 2, features, members, self):
            y: Tensor = _SharedProduct.apply(self.weight.flatten(0, 1), x)  # type: ignore[no-untyped-call]
            return (y if self.bias is None else y + self.bias.view(-1, 1)).t()
        x = x.t().reshape(members, features, x.shape[0])
        y = torch.bmm(self.weight, x) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(2), self.weight, x)
        return y.view(members * units, x.shape[2]).t()

    def extra_repr(self) -> str:
        members, units, features = self.weight.shape
        return f"members={members}, in_features={features}, out_features={units}, bias={self.bias is not None}"


class StackedConv2d(nn.Module):
    """M convolutions: (B, C, H, W) or (B, M C, H, W) to (B, M O, H', W'). The weight is (M, O, C / groups, h, w)."""

    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        first = layers[0]
        if first.padding_mode != "zeros":
            raise NotStacked(f"a convolution with padding_mode {first.padding_mode!r}")
        self.weight = stacked_parameter([layer.weight for layer in layers])
        self.bias = (
            None if first.bias is None else stacked_parameter([cast(nn.Parameter, layer.bias) for layer in layers])
        )
        self.stride, self.padding, self.dilation, self.groups = (
            first.stride,
            first.padding,
            first.dilation,
            first.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        members, channels = self.weight.shape[0], self.weight.shape[2] * self.groups
        shared = _shares(x, 4, channels, members, self)
        if shared and self.groups > 1:
            x = x.repeat(1, members, 1, 1)
        groups = 1 if shared and self.groups == 1 else members * self.groups
        bias = None if self.bias is None else self.bias.flatten()
        return F.conv2d(x, self.weight.flatten(0, 1), bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, groups={self.groups}"


class StackedBatchNorm(nn.Module):
    """M batch normalisations of (B, M F) or (B, M C, H, W). Tensors are (M, F), the count of batches is (M,)."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        super().__init__()
        first = layers[0]
        self.eps, self.momentum, self.features = first.eps, first.momentum, first.num_features
        for name in ("weight", "bias"):
            values = [getattr(layer, name) for layer in layers]
            self.register_parameter(name, None if values[0] is None else stacked_parameter(values))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            values = [getattr(layer, name) for layer in layers]
            self.register_buffer(name, None if values[0] is None else torch.stack(values))
        self.members = len(layers)

    def forward(self, x: Tensor) -> Tensor:
        if _shares(x, None, self.features, self.members, self):
            x = x.repeat(1, self.members, *[1] * (x.ndim - 2))
        rate = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if self.momentum is None:
                rate = 1.0 / float(self.num_batches_tracked[0])
        mean, var, weight, bias = (
            None if tensor is None else tensor.view(-1)
            for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, var, weight, bias, self.training or mean is None, rate, self.eps)


class _SharedProduct(torch.autograd.Function):
    """``weight @ x.T`` for `weight` (M H, F) and `x` (B, F), with the products that take least in its derivative."""

    @staticmethod
    def forward(weight: Tensor, x: Tensor) -> Tensor:
        return product_with_few(weight, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        towards_weight = grad @ x if ctx.needs_input_grad[0] else None
        return towards_weight, (weight.t() @ grad).t() if ctx.needs_input_grad[1] else None


Stack = Callable[[Sequence[Any]], nn.Module]

STACKS: dict[type[nn.Module], Stack] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
}
"""How the layers that have weights are stacked."""

BLIND: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid,
    nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold, nn.Identity,
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
"""Layers without weights that treat every feature or channel by itself."""

_BLIND_CALLS: tuple[Any, ...] = (
    F.relu, torch.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh,
    F.dropout, F.dropout2d, F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, operator.add,
    torch.add, operator.mul, torch.mul, "relu", "sigmoid", "tanh", "contiguous", "add", "mul",
)  # fmt: skip
_FLATTENS: tuple[Any, ...] = (torch.flatten, "flatten")
_MEANS: tuple[Any, ...] = (torch.mean, "mean")


_OWN = frozenset(vars(nn.Module()))


class NotStacked(Exception):
    """Why networks cannot be computed at once."""


def stacked_network(models: Sequence[nn.Module]) -> nn.Module:
    """One network of the one architecture of `models` and with the weights of all: (B, ...) to logits (B, M K).

    Raises
    ------
    NotStacked
        If there is a layer that cannot be stacked; it is named.
    """
    network = copy.deepcopy(models[0])
    for name in _layers(network):
        of = [model.get_submodule(name) for model in models]
        if type(of[0]) not in BLIND and not isinstance(of[0], nn.Flatten):
            stacked = STACKS[type(of[0])](of)
            if name == "":
                return stacked
            network.set_submodule(name, stacked)
    return network


def check_architecture(models: Sequence[nn.Module]) -> None:
    """ValueError unless all models are alike but for their weights, each of which has one place."""
    kinds = [_architecture(model) for model in models]
    for i, kind in enumerate(kinds):
        if kind != kinds[0]:
            pairs = zip([*kinds[0], "nothing"], [*kind, "nothing"], strict=False)
            ours, theirs = next((a, b) for a, b in pairs if a != b)
            raise ValueError(f"models must be of one architecture; model 0 has {ours} where model {i} has {theirs}")
    if len([*models[0].parameters()]) < len([*models[0].named_parameters(remove_duplicate=False)]):
        raise ValueError("models must not use a weight in two places: use sparring.Ensemble")


def _architecture(model: nn.Module) -> list[str]:
    """The modules of a network, with what they print, the shapes of their tensors, and their other attributes."""
    lines = []
    for name, module in model.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        shapes = ", ".join(f"{key} {tuple(tensor.shape)} {tensor.dtype}" for key, tensor in tensors)
        lines.append(f"{name or 'the network'}: {type(module).__name__}({module.extra_repr()}) {shapes}".rstrip())
        if not type(module).__module__.startswith("torch."):
            lines += [f"{name or 'the network'}.{key} = {_text(value)}" for key, value in vars(module).items()
                      if key not in _OWN]  # fmt: skip
    return lines


def _text(value: Any, depth: int = 4) -> str:
    """What a value is, alike for values that do the same."""
    if depth == 0 or isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__} {id(getattr(value, '__code__', value))}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{type(value).__name__} {[_text(one, depth - 1) for one in value]}"
    if isinstance(value, dict):
        return f"{type(value).__name__} { {_text(key): _text(one, depth - 1) for key, one in value.items()} }"
    if isinstance(value, Tensor):
        return f"Tensor {tuple(value.shape)} {value.flatten()[:1000].tolist()}"
    if type(value) in PLAIN or isinstance(value, type):
        return repr(value)
    return f"{type(value).__name__} {_text(vars(value), depth - 1) if hasattr(value, '__dict__') else ''}"


def stacked_parameter(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([tensor.detach() for tensor in tensors]), tensors[0].requires_grad)


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers that `forward` calls; NotStacked if what it does depends on whose feature is where."""
    if type(model) in STACKS:
        return [""]
    graph = traced(model)
    if isinstance(graph, str):
        raise NotStacked(graph)
    modules = dict(model.named_modules())
    names = []
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            known = type(module) in STACKS or type(module) in BLIND
            if not known and not (type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)):
                raise NotStacked(f"{node.target} ({module})")
            names.append(str(node.target))
        elif node.op in ("call_function", "call_method") and not _is_blind(node):
            raise NotStacked(f"{node.name} ({getattr(node.target, '__name__', node.target)})")
        elif node.op == "get_attr":
            raise NotStacked(f"{node.target}, a tensor that forward uses")
    tensors = (*model.named_parameters(), *model.named_buffers())
    places = {name.rpartition(".")[0] or name: name.rpartition(".")[0] for name, _ in tensors}
    unused = sorted(place for place, module in places.items() if module not in names)
    if unused:
        raise NotStacked(f"{', '.join(unused)}: weights of no layer that forward calls")
    return list(dict.fromkeys(names))


def _is_blind(node: fx.Node) -> bool:
    """Whether a function or method keeps the members' features apart, and in their order."""
    if node.target in _FLATTENS:
        return [*node.args[1:], *node.kwargs.values()] in ([1], [1, -1])
    if node.target in _MEANS:
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(dims, (tuple, list)) and {*dims} in ({2, 3}, {-1, -2})
    if node.target in ("view", "reshape"):  # (len(x), -1)
        return bool(len(node.args) == 3 and node.args[2] == -1 and isinstance(node.args[1], fx.Node))
    if node.target == "size":
        return [*node.args[1:]] == [0]
    return bool(node.target in _BLIND_CALLS)


def _shares(x: Tensor, ndim: int | None, features: int, members: int, layer: nn.Module) -> bool:
    """Whether all members are given the same features."""
    if (ndim is not None and x.ndim != ndim) or x.ndim < 2 or x.shape[1] not in (features, members * features):
        raise ValueError(
            f"{type(layer).__name__} of {members} members was given {tuple(x.shape)}; expected {features} features "
            f"that all share, or {members * features} side by side, in dimension 1" + (f" of {ndim}" if ndim else "")
        )
    return bool(x.shape[1] == features)
