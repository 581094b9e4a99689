"""A network that computes with other tensors than its own, for one call at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Doubles:
    """Copies of one network, each lent to one call at a time, with the tensors and the modes of that call.

    `torch.func.functional_call` puts tensors into the one module that all threads use.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._idle: list[nn.Module] = []  # taken from and given back to at once, which threads do not disturb

    @contextmanager
    def lent(self, like: nn.Module) -> Iterator[Double]:
        """A copy in the modes of the modules of `like` that have the same names."""
        try:
            double = self._idle.pop()
        except IndexError:
            with torch.inference_mode(False):
                double = copy.deepcopy(self.network)
        adopt_modes(double, like)
        try:
            yield Double(double)
        finally:
            self._idle.append(double)

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self.network, "_idle": []}


class Double:
    """One copy; called with tensors by name, in the place of its own."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        for path, module in network.named_modules():
            for place in (module._parameters, module._buffers):
                for key in place:
                    self._places[f"{path}.{key}" if path else key] = place, key

    def __call__(self, tensors: Mapping[str, Tensor], x: Tensor) -> Any:
        own = {name: place[key] for name, (place, key) in self._places.items() if name in tensors}
        try:
            for name in own:
                place, key = self._places[name]
                place[key] = tensors[name]
            return self._network(x)
        finally:
            for name, tensor in own.items():
                place, key = self._places[name]
                if place[key] is not tensors[name] and isinstance(
                    place[key], Tensor
                ):  # ``self.count = self.count + 1``
                    with torch.no_grad():
                        tensors[name].copy_(place[key])
                place[key] = tensor


def adopt_modes(network: nn.Module, like: nn.Module) -> None:
    """Give the modules of a network the modes of those of the same name."""
    modes = {name: module.training for name, module in like.named_modules()}
    for name, module in network.named_modules():
        if name in modes:
            module.training = modes[name]
