"""What every attack needs of a model: to hold it still, to know where and how it works, and what stands before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode with no parameter requiring a gradient; on exit every flag is as it was."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the first floating-point parameter or buffer; without any, the CPU and torch's default."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


class Normalize(nn.Module):
    """``(x - mean) / std``, channel by channel (the first dimension after the batch) or with one number for all."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def preprocessed(model: nn.Module, preprocessing: Mapping[str, Any] | nn.Module, inputs: Tensor) -> nn.Module:
    """`model` behind its preprocessing, in eval mode: a module, or ``{"mean": ..., "std": ...}`` of the channels.

    Inputs and perturbations stay in the units of the bounds, in front of the preprocessing.
    """
    if isinstance(preprocessing, nn.Module):
        first = preprocessing
    else:
        if not isinstance(preprocessing, Mapping) or not {*preprocessing} <= {"mean", "std"}:
            raise ValueError(f"preprocessing must be a module or a dict of 'mean' and 'std'; got {preprocessing!r}")
        mean, std = (
            _per_channel(preprocessing.get(name, fill), name, inputs) for name, fill in (("mean", 0), ("std", 1))
        )
        if not bool((std > 0).all()):
            raise ValueError(f"preprocessing's std must be positive; got {preprocessing['std']!r}")
        first = Normalize(mean, std)
    return nn.Sequential(first, model).eval()


def _per_channel(value: Any, name: str, inputs: Tensor) -> Tensor:
    numbers = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    if numbers.dim() > 1 or (numbers.dim() == 1 and len(numbers) not in (1, inputs.shape[1])):
        raise ValueError(
            f"preprocessing's {name} must be a number or one per channel ({inputs.shape[1]}); "
            f"got shape {tuple(numbers.shape)}"
        )
    return numbers.reshape(-1, *(1,) * (inputs.dim() - 2))
