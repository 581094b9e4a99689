"""A model as steps: what `lower` returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sparring.gradients.mixture import Combine
from sparring.gradients.plan import Plan, undisturbed
from sparring.gradients.steps import Autograd, Step

Model = Callable[[Tensor], Tensor]
Tape = list[tuple[Step, Any]]
Kind = tuple[tuple[torch.Size, torch.dtype, torch.device], str]  # of inputs, and the precision

_CACHED = 2**23  # bytes a thread for the largest array between two steps: its memory is then used again, and stays warm


class Lowered:
    """A model as a list of steps; a model that could not be lowered is one step, of autograd.

    Called, it is the model itself. Whoever is given one asks again how the model is to be taken apart: the steps shown
    here are those at the time of `lower`.

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
        self, model: Model, plan: Plan | None, taken: list[Step] | None = None, kind: Kind | None = None
    ) -> None:
        self.model, self._plan = model, plan
        self._taken, self._kind = taken, kind  # steps that were compared with the model, with their weights

    @property
    def plan(self) -> Plan:
        if self._plan is None:  # a copy, whose model was not whole when it was made
            from sparring.gradients.lowering import lower

            self._plan = lower(self.model).plan
        return self._plan

    @property
    def steps(self) -> list[Step]:
        if self._taken is not None:
            return self._taken
        return (
            self.plan.steps
            if self.plan.steps is not None and not any(self.plan.verdicts.values())
            else self.by_autograd
        )

    @property
    def by_autograd(self) -> list[Step]:
        """Steps of autograd alone; of an ensemble each member's, and then the mixture."""
        return self.plan.by_autograd or [Autograd(self.model)]

    @property
    def reasons(self) -> list[str]:
        return [*self.plan.reasons, *dict.fromkeys(why for why in self.plan.verdicts.values() if why)]

    @property
    def is_lowered(self) -> bool:
        """Whether gradients are hand-derived throughout, rather than left to autograd."""
        return not self.reasons

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)

    def __repr__(self) -> str:
        names = ", ".join(type(step).__name__ for step in self.steps)
        return f"Lowered({names})" if self.is_lowered else f"Lowered(reasons={self.reasons})"

    def __reduce__(self) -> tuple[Callable[[Model], Lowered], tuple[Model]]:
        return _of_copy, (self.model,)  # copies and pickles are plans of the copied model

    def renewed(self, lower: Callable[[Model], Lowered]) -> Lowered:
        """What the model is taken apart into now; itself, within the one call that it was taken for."""
        return self if self._taken is not None else lower(self.model)

    def take(self, x: Tensor, precision: str = "float32") -> Lowered:
        """For calls on inputs like `x` (B, ...), of any batch size: compared with the model, with the weights of now.

        Every call does so by itself; attacks once. A loop of one's own saves what it takes to look at the model and at
        the memory of its weights: ``step = sp.lower(model).take(x)``, then ``sp.input_grad(step, x, labels)``. Later
        changes of the model may or may not be seen until it is taken again.
        """
        kind = (x.shape[1:], x.dtype, x.device)
        if self._taken is not None:
            if self._kind in (None, (kind, precision)):
                return self
            from sparring.gradients.lowering import lower

            return lower(self.model).take(x, precision)
        plan = self.plan
        if plan.steps is None or not undisturbed(x):
            return self.left_to_autograd(x, precision)
        why = plan.verdicts.get(kind)
        if len(x) and kind not in plan.verdicts:
            from sparring.gradients.comparison import TELLS_NOTHING, disagreement

            why = disagreement(self, x)
            if why is not TELLS_NOTHING:  # other rows may
                plan.verdicts[kind] = why
        return (
            Lowered(self.model, plan, taken(plan.steps, x, precision), (kind, precision))
            if why is None
            else self.left_to_autograd(x, precision)
        )

    def left_to_autograd(self, x: Tensor, precision: str) -> Lowered:
        """The same for a call that the plan does not serve."""
        kind = (x.shape[1:], x.dtype, x.device)
        return Lowered(self.model, self.plan, taken(self.by_autograd, x, precision), (kind, precision))

    def forward(self, x: Tensor, precision: str = "float32", unmixed: bool = False) -> tuple[Tensor, Tape]:
        """Logits, and what `backward` needs: each step with what it saved; after `take`.

        With `unmixed`, those of the members, (M, B, K), if the model is an ensemble.
        """
        return run(self.steps[:-1] if unmixed and self.mixture is not None else self.steps, x, precision)

    def examples_in(self, memory: int, x: Tensor, precision: str) -> int:
        """How many examples like those of `x` to work on at once within `memory` bytes; all, where autograd works.

        On a CPU also within what its caches hold, beyond which a network of small layers waits for memory.
        """
        if memory < 1:
            raise ValueError(f"memory must be at least 1 byte, got {memory}")
        batch = x.shape[0]
        if batch < 2 or self.plan.reasons or any(isinstance(step, Autograd) for step in self.steps):
            return max(1, batch)
        key = (x.shape[1:], x.dtype, precision)
        known = self.plan.sizes.get(key)
        if known is None:
            known = self.plan.sizes[key] = _sizes(self.steps, x, precision)
        taped, largest = known
        room = memory // (2 * taped)  # as much again for gradients
        if x.is_cpu:
            room = min(room, _CACHED * torch.get_num_threads() // largest)
        if batch <= room:
            return room
        parts = -(-batch // max(1, room))
        return -(-batch // parts)  # of equal size

    @property
    def mixture(self) -> Combine | None:
        """The last step, where the model is an ensemble."""
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, Combine) else None

    def backward(self, grad: Tensor, tape: Tape) -> Tensor:
        """From gradients at the logits, of R scalars an example, (B * R, K), to those at the input."""
        with without_grad():
            for step, saved in reversed(tape):
                grad = step.backward(grad, saved)
        return grad


def _of_copy(model: Model) -> Lowered:
    return Lowered(model, None)


def taken(steps: list[Step], x: Tensor, precision: str) -> list[Step]:
    """The steps for one call: those that keep copies of weights with copies of the weights of now."""
    return [step.take(x, precision) if hasattr(step, "take") else step for step in steps]


def without_grad() -> AbstractContextManager[None]:
    """torch.no_grad(), which takes its time, where it is not in force already."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def run(steps: list[Step], x: Tensor, precision: str, sizes: list[int] | None = None) -> tuple[Tensor, Tape]:
    """The steps one after the other; in bfloat16 with "bf16", where autograd works under autocast instead.

    Bytes of the steps' outputs are appended to `sizes`.
    """
    tape: Tape = []
    given = x
    with without_grad():
        x = x.detach()
        if precision == "bf16" and not (steps and hasattr(steps[0], "takes_precision")):
            x = x.to(torch.bfloat16)
        for step in steps:
            x, saved = step.forward(x, precision) if hasattr(step, "takes_precision") else step.forward(x)
            tape.append((step, saved))
            if sizes is not None:
                sizes.append(_bytes(x))
        if x.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            x = x.clone()  # logits are not the caller's images
    return x, tape


def _sizes(steps: list[Step], x: Tensor, precision: str) -> tuple[int, int]:
    """Bytes that an example adds to the tape, and to the largest output of a step."""
    taped, largest = [], []
    for count in (1, 2):
        outputs = [0]
        taped.append(_bytes(run(steps, x[:count], precision, outputs)[1]))
        largest.append(max(outputs))
    return max(1, taped[1] - taped[0]), max(1, largest[1] - largest[0])


def _bytes(saved: Any) -> int:
    """What the tensors in a tape take."""
    if isinstance(saved, Tensor):
        return saved.numel() * saved.element_size()
    return sum(map(_bytes, saved)) if isinstance(saved, (tuple, list)) else 0
