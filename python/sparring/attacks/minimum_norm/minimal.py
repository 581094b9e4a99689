"""The smallest perturbation, by the best that there is for the norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.alma import one_round as lagrangian
from sparring.attacks.minimum_norm.ddn import Pace, refine
from sparring.attacks.minimum_norm.ddn import one_round as inward
from sparring.attacks.minimum_norm.fab import sharpen
from sparring.attacks.minimum_norm.hunt import Hunt, counted, hunted, likeliest_others, only
from sparring.attacks.minimum_norm.sigma_zero import prune, smooth_count
from sparring.gradients import Lowered

Round = Callable[[Hunt, int, "Tensor | None", int], None]
"""So many steps, towards the classes (B,) or any; the number of the round says which of its variants it takes."""


def in_l2(hunt: Hunt, steps: int, aims: Tensor | None, number: int) -> None:
    last = steps // 7
    lagrangian(hunt, steps - last, aims, (0.25, 0.25, 0.5, 0.25, 0.8)[number % 5])
    sharpen(hunt, last)


def in_l1(hunt: Hunt, steps: int, aims: Tensor | None, number: int) -> None:
    last, middle = steps // 8, steps // 4
    pace = (Pace(), Pace(), Pace(), Pace(shrink=0.93))[number % 4]
    inward(hunt, steps - last - middle, aims, (12.0, 12.0, 12.0, 24.0)[number % 4], pace)
    refine(hunt, middle)
    sharpen(hunt, last)


def in_linf(hunt: Hunt, steps: int, aims: Tensor | None, number: int) -> None:
    last, middle = steps // 8, steps // 4
    inward(hunt, steps - last - middle, aims, 3.0, Pace())
    refine(hunt, middle)
    sharpen(hunt, last)


def in_l0(hunt: Hunt, steps: int, aims: Tensor | None, number: int) -> None:
    smooth_count(hunt, steps, aims, first_step=(1.0, 0.5)[number % 2], sigma=1e-3)
    prune(hunt, steps)


# What a round does, how many steps it has, and how many of them `minimal` takes by default.
ROUNDS: dict[str, tuple[Round, int, int]] = {
    "L2": (in_l2, 100, 3), "L1": (in_l1, 160, 3), "Linf": (in_linf, 100, 3), "L0": (in_l0, 250, 2),
    "pixels": (in_l0, 250, 2),
}  # fmt: skip
AIMS = {
    "L2": (0, 2, 0, 3, 0, 4), "L1": (0, 0, 2, 0, 3, 0, 4), "Linf": (0, 2, 3, 0, 4), "L0": (0, 0, 2),
    "pixels": (0, 0, 2),
}  # fmt: skip
"""The rank of the class that each round aims at, 1 being the likeliest besides the label; 0: any class."""


def minimal(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 2,
    steps: int | None = None,
    eps: float | Tensor | None = None,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """The nearest points that the model takes for another class, in L2, L1, Linf or L0.

    In rounds, of which each begins anew, some of them aimed at one of the likeliest other classes: of ALMA in L2, of
    DDN from outside in (L1 and Linf), then of steps along the boundary; of sigma-zero in L0.
    ``AttackResult.accuracy_at`` turns the result into a curve of robust accuracy over eps.

    Parameters
    ----------
    norm
        2, 1, inf, or 0 (entries that differ), or "pixels".
    steps
        Gradients for each example in all; None: 300 in L2 and Linf, 480 in L1, 500 in L0. Below 100 to 250 there is
        one round. `AttackResult.steps_used` counts them.
    eps
        A number or one an example (B,): where a point so near is found, no further round follows. None: all rounds.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    name = only(norm, *ROUNDS)
    one, length, count = ROUNDS[name]
    budget = length * count if steps is None else counted(steps)
    count = max(1, round(budget / length))

    def approach(hunt: Hunt) -> None:
        others = likeliest_others(hunt, max(AIMS[name]))
        spent = 0
        for number in range(count):
            share = (budget - spent) // (count - number)
            left = hunt.unfinished()
            if len(left) == 0:
                return
            rank = AIMS[name][number % len(AIMS[name])]
            aims = others[left, min(rank, others.shape[1]) - 1] if rank else None
            one(hunt.part(left), share, aims, number)
            spent += share

    return hunted(
        model, inputs, labels, approach, norm=name, targets=targets, bounds=bounds, preprocessing=preprocessing,
        eot=eot, backward=backward, batch_size=batch_size, return_result=return_result, enough=eps,
    )  # fmt: skip
