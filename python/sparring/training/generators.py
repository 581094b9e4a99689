"""The processes that make fooling images, by name and behind one interface."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from sparring.attacks import evolve_images, recover

if TYPE_CHECKING:
    from sparring.training.generate import Generate

GeneratorName = Literal["adam", "prox", "l1", "evolution"]


def generator_named(
    name: GeneratorName, *, p_min: float = 0.9, s_max: int = 100, steps: int | None = None, **options: Any
) -> Generate:
    """The process of that name: called with a model, targets, a shape and a generator, it returns a `Recovery`.

    Parameters
    ----------
    name
        "adam", "prox" or "l1": :func:`sparring.attacks.recover` by that method. "evolution":
        :func:`sparring.attacks.evolve_images`, which needs no gradients, with `s_max` as its number of pixels.
    p_min, s_max, steps
        When an image qualifies, and the budget (generations, for "evolution"); None: the process's own.
    options
        What else the process takes.

    Raises
    ------
    ValueError
        For a name that is not known.
    TypeError
        For an option that the process does not take; lists those it does.
    """
    if name not in get_args(GeneratorName):
        raise ValueError(f"name must be one of {', '.join(get_args(GeneratorName))}; got {name!r}")
    evolution = name == "evolution"
    process = evolve_images if evolution else recover
    fixed: dict[str, Any] = {"p_min": p_min, **({"pixels": s_max} if evolution else {"method": name, "s_max": s_max})}
    if steps is not None:
        fixed["steps"] = steps
    taken = {*fixed, "steps", "model", "targets", "shape", "generator"}
    accepted = [option for option in inspect.signature(process).parameters if option not in taken]
    for option in options:
        if option not in accepted:
            raise TypeError(f"{name!r} takes no option {option!r}; accepted: {', '.join(accepted)}")
    return partial(process, **fixed, **options)
