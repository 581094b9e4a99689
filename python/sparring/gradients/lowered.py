"""A model as steps: what `lower` returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparring.gradients.mixture import Combine
from sparring.gradients.steps import Autograd, NotLowered, Step

Model = Callable[[Tensor], Tensor]
Tape = list[tuple[Step, Any]]


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
        self, model: Model, steps: list[Step] | None, reasons: list[str], sizes: dict[Any, int] | None = None
    ) -> None:
        self.model = model
        self._sizes = {} if sizes is None else sizes  # bytes an example takes, by its shape
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
        """How many examples like those of `x` can be worked on within `memory` bytes; all, where autograd works."""
        if memory < 1:
            raise ValueError(f"memory must be at least 1 byte, got {memory}")
        if not self.is_lowered or len(x) < 2:
            return max(1, len(x))
        key = (x.shape[1:], x.dtype, precision)
        if key not in self._sizes:
            try:
                one, two = (_bytes(_run(self.steps, x[:count], precision)[1]) for count in (1, 2))
            except NotLowered as why:
                self._leave_to_autograd(why)
                return len(x)
            self._sizes[key] = 2 * max(1, two - one)  # as much again for gradients
        return max(1, memory // self._sizes[key])

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
        with torch.no_grad():
            for step, saved in reversed(tape):
                grad = step.backward(grad, saved)
        return grad


def _run(steps: list[Step], x: Tensor, precision: str) -> tuple[Tensor, Tape]:
    """The steps one after the other; in bfloat16 with "bf16", where autograd works under autocast instead."""
    tape: Tape = []
    with torch.no_grad():
        x = x.detach()
        if precision == "bf16" and not hasattr(steps[0], "takes_precision"):
            x = x.to(torch.bfloat16)
        for step in steps:
            x, saved = step.forward(x, precision) if hasattr(step, "takes_precision") else step.forward(x)
            tape.append((step, saved))
    return x, tape


def _bytes(saved: Any) -> int:
    """What the tensors in a tape take."""
    if isinstance(saved, Tensor):
        return saved.numel() * saved.element_size()
    return sum(map(_bytes, saved)) if isinstance(saved, (tuple, list)) else 0
