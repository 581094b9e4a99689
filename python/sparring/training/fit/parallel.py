"""Training over several processes that ``torchrun`` started: by examples, or by the members of a mixture.

By examples: every process has the whole model and a part of each batch; gradients are summed over the processes, so
that all take the same step. By members: every process has some of the members and all examples; the members' logits are
gathered, and gradients towards the images summed, so that the loss and the attack are those of the whole mixture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from sparring.ensembles.mixture import Mixture
from sparring.ensembles.stacked import StackedEnsemble


def world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) where torch.distributed was not set up."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def part_of(count: int) -> slice:
    """The examples, or members, of so many that are this process's; the parts differ by one at most."""
    rank, processes = world()
    return slice(rank * count // processes, (rank + 1) * count // processes)


def sum_gradients(parameters: list[nn.Parameter] | list[Tensor]) -> None:
    """Make the gradients of all processes their sum, in one message; a parameter without one counts as 0."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    by_type: dict[torch.dtype, list[int]] = {}
    for i, grad in enumerate(grads):
        by_type.setdefault(grad.dtype, []).append(i)
    for indices in by_type.values():
        flat = torch.cat([grads[i].flatten() for i in indices])
        distributed.all_reduce(flat)
        for i, part in zip(indices, flat.split([grads[i].numel() for i in indices]), strict=True):  # type: ignore[no-untyped-call]
            wanted[i].grad = part.view_as(wanted[i])


def from_first(value: Any) -> Any:
    """What the process of rank 0 has, in all processes."""
    if world()[1] == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


class MemberParallel(Mixture):
    """A mixture whose members are spread over the processes; a model like any other, called by all of them together.

    Parameters
    ----------
    own
        The members of this process, `part_of` all of them, in order.
    """

    def __init__(self, own: StackedEnsemble) -> None:
        counts: list[Any] = [None] * world()[1]
        distributed.all_gather_object(counts, len(own))
        super().__init__(sum(counts), own.combine, None)
        self.counts, self.own = counts, own
        self.weights = self.weights.to(own.weights.device)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of all members, (M, B, K), in every process."""
        mine = self.own.member_logits(_ToAll.apply(x))  # type: ignore[no-untyped-call]
        logits: Tensor = _FromAll.apply(mine, self.counts)  # type: ignore[no-untyped-call]
        return logits

    def member(self, index: int) -> nn.Module:
        """A member of this process, by its place among all."""
        mine = part_of(len(self))
        if not mine.start <= index < mine.stop:
            raise IndexError(f"index is {index}; this process has the members {mine.start} to {mine.stop - 1}")
        return self.own.member(index - mine.start)


class _ToAll(torch.autograd.Function):
    """The same on the way forward; on the way back the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad


class _FromAll(torch.autograd.Function):
    """The members' logits of all processes, (M, B, K); on the way back those of this one."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, counts: list[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: world()[0]]), len(mine)
        most = max(counts)
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.start : ctx.start + ctx.count], None
