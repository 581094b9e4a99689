"""The linear maps that the layers of a network are, of one network or of M at once, and their adjoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.ensembles import Ensemble, StackedEnsemble
from sparring.ensembles.layers import StackedConv2d, StackedLinear
from sparring.ensembles.mixture import Mixture
from sparring.lipschitz import given
from sparring.lipschitz.ambient import generators_kept
from sparring.lipschitz.geometry import sides

GRID = 16
"""Entries along each side of a convolution's image where no input shape was given; as its kernel, if that is larger."""

DENSE = (nn.Linear, StackedLinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, StackedConv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KNOWN = (*DENSE, *CONVOLUTIONS, *TRANSPOSED)

_CONVOLVE: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONVOLVE_BACK: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True, eq=False)
class LayerMap:
    """What a layer does to an image, without its bias, with M weights at once: M is 1 unless the weights are stacked.

    Attributes
    ----------
    name : of the layer in the network.
    module : whose weight it is.
    stacked : whether the weight has the members along its first dimension.
    shape : of what the layer is given, without the members: (1, features), one row, or (channels, *image).
    """

    name: str
    module: nn.Module
    stacked: bool
    shape: tuple[int, ...]

    @property
    def dense(self) -> bool:
        return isinstance(self.module, DENSE)

    @property
    def kind(self) -> str:
        """The name of `sparring.lipschitz.spectral_norm` for it: "dense", "conv2d", "conv_transpose2d", ..."""
        return "dense" if self.dense else f"conv{'_transpose' if self._transposed else ''}{len(self.shape) - 1}d"

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module has it; of a parametrised layer, what the parametrisation gives."""
        return cast(nn.Parameter, self.module.weight)

    def wide(self) -> Tensor:
        """The weight in float32 at least; differentiable."""
        weight = self.parameter
        return weight if weight.dtype is torch.float64 else weight.float()

    def weights(self) -> Tensor:
        """The weights, (M, ...), in float32 at least; differentiable."""
        return self.wide() if self.stacked else self.wide()[None]

    def apply(self, weights: Tensor, x: Tensor) -> Tensor:
        """The maps with `weights` (M, ...) of `x` (M, *shape), each of its own; images may have any size."""
        if self.dense:
            return torch.bmm(x, weights.mT)  # a column in place of the row takes ten times as long
        around, mode, padding = self._padding(weights)
        x = x.flatten(0, 1)[None]
        if around:
            x = F.pad(x, around, mode)
        options = {**self._options(weights), "padding": padding}
        if self._transposed:
            options["output_padding"] = self.module.output_padding
        convolve = (_CONVOLVE_BACK if self._transposed else _CONVOLVE)[x.ndim - 3]
        return cast(Tensor, convolve(x, weights.flatten(0, 1), **options)[0].unflatten(0, (len(weights), -1)))

    def adjoint(self, weights: Tensor, y: Tensor) -> Tensor:
        """The adjoints of the maps on `shape`, of `y` (M, *what they give); has no derivative."""
        if self.dense:
            return torch.bmm(y, weights)
        size, (around, mode, padding) = self.shape[1:], self._padding(weights)
        y = y.flatten(0, 1)[None]
        options = {**self._options(weights), "padding": padding}
        if self._transposed:
            # Where the dilation is above the stride, output_padding may add entries that no input entry reaches.
            inside = (..., *map(slice, size))
            x = _CONVOLVE[y.ndim - 3](y, weights.flatten(0, 1), **options)[inside]
        else:
            before, after = around[-2::-2], around[::-2]
            padded = [sum(lengths) for lengths in zip_longest(size, before, after, fillvalue=0)]
            of_each = zip(padded, y.shape[2:], weights.shape[3:], self._stride, padding, self._dilation, strict=True)
            options["output_padding"] = [
                n - ((m - 1) * stride - 2 * pad + dilation * (k - 1) + 1) for n, m, k, stride, pad, dilation in of_each
            ]
            x = _CONVOLVE_BACK[y.ndim - 3](y, weights.flatten(0, 1), **options)
            if around:
                with torch.enable_grad():
                    image = x.new_zeros(1, x.shape[1], *size, requires_grad=True)
                    (x,) = torch.autograd.grad(F.pad(image, around, mode), image, x)
        return cast(Tensor, x[0].unflatten(0, (len(weights), -1)))

    @property
    def _transposed(self) -> bool:
        return isinstance(self.module, TRANSPOSED)

    @property
    def _stride(self) -> tuple[int, ...]:
        return cast(tuple[int, ...], self.module.stride)

    @property
    def _dilation(self) -> tuple[int, ...]:
        return cast(tuple[int, ...], self.module.dilation)

    def _options(self, weights: Tensor) -> dict[str, Any]:
        groups = len(weights) * cast(int, self.module.groups)
        return {"stride": self._stride, "dilation": self._dilation, "groups": groups}

    def _padding(self, weights: Tensor) -> tuple[list[int], str, tuple[int, ...]]:
        """Entries to pad with first, as `F.pad` has them, and how; then what the convolution itself pads with zeros."""
        mode = getattr(self.module, "padding_mode", "zeros")
        before, after = sides(self.module.padding, weights.shape[3:], self._dilation)  # type: ignore[arg-type]
        if mode == "zeros" and before == after:
            return [], "constant", before
        around = [*chain(*reversed([*zip(before, after, strict=True)]))]
        return around if any(around) else [], "constant" if mode == "zeros" else mode, (0,) * len(before)


def layer_maps(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, purpose: str
) -> tuple[list[list[LayerMap]], list[str]]:
    """The linear layers and convolutions of a network, and the modules with other parameters, by name.

    Layers are in groups, of which each is a network by itself: the members of an `Ensemble`, or all of a
    `StackedEnsemble`, whose weights are stacked; any other model is one group.

    Parameters
    ----------
    input_shape
        Shape of one input. One is sent through the model, in eval mode, to see what each layer is given; layers that
        are not called are left out, and one that is called with several sizes counts with the largest. None: every
        layer counts, and convolutions as if their image had `GRID` entries along each side.
    purpose
        What to say in errors that the layers are wanted for.

    Raises
    ------
    ValueError
        If there are no such layers, or an ensemble is part of another module.
    """
    given.network(model)
    for name, module in model.named_modules():
        if _is_known(module):
            _check_weight(f"{name}.weight".strip("."), module)
    found: list[list[LayerMap]] = []
    others: list[str] = []
    for prefix, network, template, stacked in networks(model):
        shapes = None if input_shape is None else _shapes(template, input_shape)
        group = []
        for name, module in network.named_modules():
            if isinstance(module, Mixture):
                raise ValueError(f"model has an ensemble within, {prefix}{name}: {purpose} takes the ensemble itself")
            known = _is_known(module)
            if known and (shapes is None or name in shapes):
                of_members = stacked or isinstance(module, (StackedLinear, StackedConv2d))
                weight = cast(Tensor, module.weight)
                shape = _shape(module, weight.shape[of_members:], None if shapes is None else shapes[name])
                group.append(LayerMap(prefix + name, module, of_members, shape))
            elif "parametrizations" not in name and next(module.parameters(recurse=False), None) is not None:
                others.append(prefix + name)
        found.append(group)
    if not any(found):
        raise ValueError(f"model has no linear layer and no convolution that {purpose} could act on")
    return found, others


def _check_weight(name: str, module: nn.Module) -> None:
    weight = cast(Tensor, module.weight)
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"model's {name} has no shape yet: call the model first")
    given.numbers(weight, f"model's {name}")


def networks(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module, bool]]:
    """Prefix of names, the network, a module to call in its place, and whether its tensors are stacked unchanged."""
    if isinstance(model, StackedEnsemble):
        yield "net.", model.net, model._one.network, bool(model.reasons)
    elif isinstance(model, Ensemble):
        for i, member in enumerate(model.models):
            yield f"models.{i}.", member, member, False
    else:
        yield "", model, model, False


def _shape(module: nn.Module, weight: Sequence[int], given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Shape of what a layer is given."""
    if isinstance(module, DENSE):
        return (1, weight[1])
    channels = weight[0] if isinstance(module, TRANSPOSED) else weight[1] * cast(int, module.groups)
    if given is not None:
        return (channels, *given)
    dilation = cast(tuple[int, ...], module.dilation)
    return (channels, *(max(GRID, d * (k - 1) + 1) for k, d in zip(weight[2:], dilation, strict=True)))


def _is_known(module: nn.Module) -> bool:
    """Whether a module is one of `KNOWN` and computes what they do: a subclass may have a forward of its own."""
    kinds = [kind for kind in KNOWN if isinstance(module, kind)]
    parts = ("forward", "_conv_forward")
    return any(all(getattr(type(module), p, None) is getattr(kind, p, None) for p in parts) for kind in kinds)


def _shapes(model: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Of the layers that are called: the size of the image that each is given, the largest if several; () if linear."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        size = () if isinstance(module, nn.Linear) else tuple(args[0].shape[-len(cast(Sized, module.stride)) :])
        shapes[name] = tuple(map(max, size, shapes.get(name, size)))

    copied = copy.deepcopy(model).eval()
    for name, module in copied.named_modules():
        if _is_known(module):
            module.register_forward_pre_hook(partial(note, name))
    like = next(copied.parameters())
    try:
        with torch.no_grad(), generators_kept():
            copied(like.new_zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"input_shape is {tuple(input_shape)}, which the model does not take: {error}") from error
    return shapes
