"""Whatever a caller has switched on: arithmetic here is as it is written, and the caller's network runs as it would."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import numpy as np
import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # with autocast of their own
_default: ContextVar[torch.device | None] = ContextVar("default device", default=None)


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No autocast, no inference mode, and tensors on the CPU where no device is named; a decorator as well.

    Nothing that other threads see is changed.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        default = torch.get_default_device()
        if default.type != "cpu":
            token = _default.set(default)
            stack.callback(_default.reset, token)
            stack.enter_context(torch.device("cpu"))
        yield


def callers_device() -> AbstractContextManager[object]:
    """Within `plain_arithmetic`, for calls of the caller's network: the default device as it was."""
    default = _default.get()
    return nullcontext() if default is None else default


@contextmanager
def generators_kept() -> Iterator[None]:
    """On exit the global generators, torch's on every device in use, Python's and NumPy's, are as they were."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def states() -> list[object]:
    """Of the global generators, torch's on every device in use, Python's and NumPy's: equal until somebody draws."""
    found: list[object] = [random.getstate(), torch.default_generator.get_state().tolist()]
    found += [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]  # noqa: NPY002
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return found


def seed(number: int) -> None:
    """Of torch's global generators, on every device in use; a hundred times as quick as `torch.manual_seed`."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of the caller's network, which is only tried out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
