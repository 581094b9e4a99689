"""A model as steps: what `lower` returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparring.gradients.mixture import Combine
from sparring.gradients.steps import Autograd, NotLowered, Step

Model = Callable[[Tensor], Tensor]
Tape = list[tuple[Step, Any]]

_CACHED = 2**23  # bytes a thread for the largest array between two steps: its memory is then used again, and stays warm


class Lowered:
    """A model as a list of steps; a model that could not be lowered is one step, of autograd.

    Called, it is the model itself. Structure, mode and hooks are those at the time of `lower`; weights are read from
    the model at each call.

    Attributes
    ----------
    model
        What was lowered.
    steps
        The layers, in order.
    reasons
        Why autograd does the work; empty where it does not.
    """

    def __init__(
        self,
        model: Model,
        steps: list[Step] | None,
        reasons: list[str],
        sizes: dict[Any, tuple[int, int]] | None = None,
    ) -> None:
        self.model = model
        self._sizes = {} if sizes is None else sizes  # of `_sizes`, by an example's shape
        self.reasons = [*reasons]
        self._autograd: list[Step] = [Autograd(model)]
        self.steps = self._autograd if steps is None else steps

    @property
    def is_lowered(self) -> bool:
        """Whether gradients are hand-derived throughout, rather than left to autograd."""
        return not self.reasons

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)

    def __repr__(self) -> str:
        names = ", ".join(type(step).__name__ for step in self.steps)
        return f"Lowered({names})" if self.is_lowered else f"Lowered(reasons={self.reasons})"

    def forward(self, x: Tensor, precision: str = "float32", unmixed: bool = False) -> tuple[Tensor, Tape]:
        """Logits, and what `backward` needs: each step with what it saved.

        With `unmixed`, those of the members, (M, B, K), if the model is an ensemble.
        """
        if type(x) not in (Tensor, nn.Parameter) or torch.is_autocast_enabled(x.device.type):
            return _run(self._autograd, x, precision)
        try:
            return _run(self.steps[:-1] if unmixed and self.mixture is not None else self.steps, x, precision)
        except NotLowered as why:  # known only now that there is an input
            self._leave_to_autograd(why)
            return _run(self.steps, x, precision)

    def examples_in(self, memory: int, x: Tensor, precision: str) -> int:
        """How many examples like those of `x` to work on at once within `memory` bytes; all, where autograd works.

        On a CPU also within what its caches hold, beyond which a network of small layers waits for memory.
        """
        if memory < 1:
            raise ValueError(f"memory must be at least 1 byte, got {memory}")
        batch = x.shape[0]
        if not self.is_lowered or batch < 2:
            return max(1, batch)
        key = (x.shape[1:], x.dtype, precision)
        known = self._sizes.get(key)
        if known is None:
            try:
                known = self._sizes[key] = _sizes(self.steps, x, precision)
            except NotLowered as why:
                self._leave_to_autograd(why)
                return batch
        taped, largest = known
        room = memory // (2 * taped)  # as much again for gradients
        if x.is_cpu:
            room = min(room, _CACHED * torch.get_num_threads() // largest)
        if batch <= room:
            return room
        parts = -(-batch // max(1, room))
        return -(-batch // parts)  # of equal size

    def _leave_to_autograd(self, why: NotLowered) -> None:
        self.reasons.append(str(why))
        self.steps = self._autograd

    @property
    def mixture(self) -> Combine | None:
        """The last step, where the model is an ensemble."""
        last = self.steps[-1]
        return last if isinstance(last, Combine) else None

    def backward(self, grad: Tensor, tape: Tape) -> Tensor:
        """From gradients at the logits, of R scalars an example, (B * R, K), to those at the input."""
        with without_grad():
            for step, saved in reversed(tape):
                grad = step.backward(grad, saved)
        return grad


def without_grad() -> AbstractContextManager[None]:
    """torch.no_grad(), which takes its time, where it is not in force already."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def _run(steps: list[Step], x: Tensor, precision: str, sizes: list[int] | None = None) -> tuple[Tensor, Tape]:
    """The steps one after the other; in bfloat16 with "bf16", where autograd works under autocast instead.

    Bytes of the steps' outputs are appended to `sizes`.
    """
    tape: Tape = []
    with without_grad():
        x = x.detach()
        if precision == "bf16" and not hasattr(steps[0], "takes_precision"):
            x = x.to(torch.bfloat16)
        for step in steps:
            x, saved = step.forward(x, precision) if hasattr(step, "takes_precision") else step.forward(x)
            tape.append((step, saved))
            if sizes is not None:
                sizes.append(_bytes(x))
    return x, tape


def _sizes(steps: list[Step], x: Tensor, precision: str) -> tuple[int, int]:
    """Bytes that an example adds to the tape, and to the largest output of a step."""
    taped, largest = [], []
    for count in (1, 2):
        outputs = [0]
        taped.append(_bytes(_run(steps, x[:count], precision, outputs)[1]))
        largest.append(max(outputs))
    return max(1, taped[1] - taped[0]), max(1, largest[1] - largest[0])


def _bytes(saved: Any) -> int:
    """What the tensors in a tape take."""
    if isinstance(saved, Tensor):
        return saved.numel() * saved.element_size()
    return sum(map(_bytes, saved)) if isinstance(saved, (tuple, list)) else 0
