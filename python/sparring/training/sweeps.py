"""How the search for fooling images depends on the weight of its penalty and on the size of its batches."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from sparring.attacks import recover
from sparring.attacks._model import device_and_dtype
from sparring.attacks.recovery import Method
from sparring.training.evaluate import Metrics, attack_metrics
from sparring.training.fooling import balanced_targets
from sparring.training.generate import attempt
from sparring.training.generators import generator_named
from sparring.training.streams import stream

LAMS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
BATCH_SIZES = (32, 64, 128, 256, 512, 1024, 2048)


def lambda_sweep(
    model: nn.Module,
    shape: tuple[int, ...],
    lams: Sequence[float] = LAMS,
    *,
    classes: int,
    images: int = 100,
    method: Method = "adam",
    steps: int = 1000,
    p_min: float = 0.9,
    s_max: int = 100,
    seed: int = 0,
) -> list[Metrics]:
    """Attack `model` with each weight of the penalty, from the same starts; a record for each.

    Parameters
    ----------
    model, shape
        As for :func:`sparring.attacks.recover`.
    lams
        The weights.
    classes
        The targets are balanced over so many.
    images
        Attempts with each weight.
    method, steps, p_min, s_max
        As for :func:`sparring.attacks.recover`. Method "l1" has no such weight, and is refused with ValueError.
    seed
        All starts follow from it.

    Returns
    -------
    list of records
        "lam", and the numbers of metric 0.
    """
    if method == "l1":
        raise ValueError("method must be 'adam' or 'prox'; 'l1' has no weight to vary")
    records = []
    for lam in lams:
        generate = generator_named(method, p_min=p_min, s_max=s_max, steps=steps, lam=lam)
        targets = _targets(model, images, classes)
        attempts = attempt(model, generate, targets, shape, stream(seed, "sweep"), p_min=p_min, s_max=s_max)
        records.append({"lam": lam, **attack_metrics("0", attempts, classes)})
    return records


def timing_by_batch_size(
    model: nn.Module,
    shape: tuple[int, ...],
    sizes: Sequence[int] = BATCH_SIZES,
    *,
    classes: int,
    images: int | None = None,
    method: Method = "l1",
    steps: int = 100,
    p_min: float = 0.9,
    s_max: int = 100,
    seed: int = 0,
) -> list[Metrics]:
    """Time the same search in batches of each size; a record for each.

    Parameters
    ----------
    sizes
        Images at a time.
    images
        Attempts with each size; None: as many as the largest size.
    model, shape, classes, method, steps, p_min, s_max, seed
        As for `lambda_sweep`; any method will do.

    Returns
    -------
    list of records
        "batch_size", "images", "seconds" (wall clock), "images_per_second" and "yield". A search before the first one
        is not timed.
    """
    count = max(sizes) if images is None else images
    targets = _targets(model, count, classes)

    def search(size: int, rows: int) -> float:
        found = recover(
            model, targets[:rows], shape, method=method, steps=steps, p_min=p_min, s_max=s_max, batch_size=size,
            generator=stream(seed, "timing"),
        )  # fmt: skip
        return float(found.success.double().mean())  # a number of Python's: the device has finished

    search(min(sizes), min(count, *sizes))
    records = []
    for size in sizes:
        begin = time.perf_counter()
        fooled = search(size, count)
        seconds = time.perf_counter() - begin
        records.append(
            {
                "batch_size": size,
                "images": count,
                "seconds": seconds,
                "images_per_second": count / seconds,
                "yield": fooled,
            }
        )
    return records


def _targets(model: nn.Module, count: int, classes: int) -> Tensor:
    return balanced_targets(count, classes).to(device_and_dtype(model)[0])
