"""One member's part of stacked tensors, in the place of the module that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def container(models: Sequence[nn.Module]) -> nn.Module:
    """A module with the tensors of all `models` stacked, under the names that they have there; not to be called."""
    result = copy.deepcopy(models[0])
    for name, module in result.named_modules():
        of = [model.get_submodule(name) for model in models]
        for key, parameter in module.named_parameters(recurse=False):
            values = [one.get_parameter(key).detach() for one in of]
            setattr(module, key, nn.Parameter(torch.stack(values), parameter.requires_grad))
        for key, _ in module.named_buffers(recurse=False):
            setattr(module, key, torch.stack([one.get_buffer(key) for one in of]))
    return result


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return chain(module.named_parameters(), module.named_buffers())


class Slice:
    """The attributes of `module`, with the tensors of `stacked`: those of member `index`, or of all if it is None."""

    def __init__(self, module: nn.Module, stacked: nn.Module, index: int | None) -> None:
        self._module, self._stacked, self._index = module, stacked, index
        self._parameters = _Parameters(stacked, index)

    def __getattr__(self, name: str) -> Any:
        for tensors in (self._stacked._parameters, self._stacked._buffers):
            if name in tensors:
                return _part(tensors[name], self._index)
        return getattr(self._module, name)


class _Parameters(Mapping[str, Any]):
    def __init__(self, stacked: nn.Module, index: int | None) -> None:
        self._stacked, self._index = stacked, index

    def __getitem__(self, name: str) -> Tensor | None:
        return _part(self._stacked._parameters[name], self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stacked._parameters)

    def __len__(self) -> int:
        return len(self._stacked._parameters)


def _part(tensor: Tensor | None, index: int | None) -> Tensor | None:
    return tensor if tensor is None or index is None else tensor[index]
