"""Where a model is at home: its device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Home(NamedTuple):
    """Where a model's tensors are and in which dtype, or None where that is not known."""

    device: torch.device | None
    dtype: torch.dtype | None


def home_of(model: nn.Module) -> Home:
    """Device and dtype of a model's parameters, or, where none is floating-point, of its buffers.

    None where there are none, or of several kinds: then it is for the model to say what fits. What an ensemble holds
    beside its members does not count.
    """
    from sparring.ensembles.mixture import Mixture

    mine = {id(module.weights) for module in model.modules() if isinstance(module, Mixture)}
    for tensors in (model.parameters(), model.buffers()):
        known = [t for t in tensors if not is_lazy(t) and t.is_floating_point() and id(t) not in mine]
        if known:
            devices, dtypes = {t.device for t in known}, {t.dtype for t in known}
            return Home(devices.pop() if len(devices) == 1 else None, dtypes.pop() if len(dtypes) == 1 else None)
    return Home(None, None)


@contextmanager
def explained(model: object, inputs: Tensor, name: str, called: str = "the model") -> Iterator[None]:
    """Where torch fails because a model is of another dtype or device than its inputs: an error that says so.

    `name` is what the inputs are called there, `called` what the model is.
    """
    try:
        yield
    except RuntimeError as error:
        module = getattr(model, "model", model)  # of what was lowered
        home = home_of(module) if isinstance(module, nn.Module) else Home(None, None)
        if home.device not in (None, inputs.device):
            text = f"{name} is on device '{inputs.device}', but {called} on '{home.device}'; nothing is moved"
            raise ValueError(text) from error
        if home.dtype not in (None, inputs.dtype) and "type" in str(error):
            verb = "are" if name.endswith("s") else "is"
            text = f"{name} {verb} {inputs.dtype}, but {called} is {home.dtype}; both must have the same dtype"
            raise TypeError(text) from error
        raise
