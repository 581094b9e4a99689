"""Fooling images from nothing: sparse images that a network takes for a class with high confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparring.attacks._descent import Adam, Canvas, L1Ball, Schedule
from sparring.attacks._model import device_and_dtype, held_still
from sparring.attacks._objective import Loss, Objective, Penalty, weights
from sparring.attacks._pursuit import Aims, pursue
from sparring.attacks._seeds import seeds_by_place
from sparring.attacks._start import Start, Starts, check_images

Method = Literal["adam", "prox", "l1"]


@dataclass(frozen=True)
class Recovery:
    """What `recover` found, one entry per target, on the model's device.

    Attributes
    ----------
    images
        (B, *shape), in the model's dtype and in the bounds.
    prob
        (B,), the probability that the model gives the target on exactly these images.
    sparsity
        int64 (B,), the number of entries that are not black.
    stop_step
        int64 (B,), the steps taken until success; the whole budget where there was none.
    success
        bool (B,), whether ``prob >= p_min`` and ``sparsity <= s_max``.
    restarts
        int64 (B,), how often the image began again.
    """

    images: Tensor
    prob: Tensor
    sparsity: Tensor
    stop_step: Tensor
    success: Tensor
    restarts: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]


def recover(
    model: nn.Module,
    targets: Tensor | Sequence[int],
    shape: Sequence[int],
    *,
    method: Method = "l1",
    steps: int = 1000,
    loss: Loss = "ce",
    penalty: Penalty | Mapping[str, float] = "input",
    lam: float | None = None,
    lam_final: float | None = None,
    lam_step: int | None = None,
    lr: float = 0.5,
    lr_step: int | None = None,
    p_min: float = 0.9,
    s_max: int = 300,
    floor: float = 0.1,
    mask: Tensor | None = None,
    mask_fraction: float = 0.0,
    start: Start | Tensor = "noise",
    black: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    k: int | None = None,
    growth: float = 0.5,
    restarts: int = 3,
    batch_size: int | None = None,
    keep_finished: bool = False,
    generator: torch.Generator | None = None,
) -> Recovery:
    """Make, for each target class, a sparse image that `model` gives that class with high probability.

    From a start image, every step moves against the gradient of the image's own loss ``-log p(target)``, clamps to the
    bounds and blackens entries within `floor` of black, until ``p(target) >= p_min`` and ``sparsity <= s_max``.
    An image that never gets there is returned at its best: the highest p(target) among its sparse enough steps, or
    among all its steps if none was. An image that is stuck begins again elsewhere (`restarts`).

    Each image has its own path: neither the other images nor `batch_size` changes it, except through the rounding of
    the model's own arithmetic. The model is in eval mode meanwhile, and left exactly as it was.

    Parameters
    ----------
    model
        Maps images (B, *shape) to logits (B, K); in float32 or float64.
    targets
        Class indices in [0, K), (B,).
    shape
        Shape of one image, such as (1, 28, 28).
    method
        "l1", the default, finds the most and is by far the fastest, on naturally trained networks and on ones trained
        to withstand attacks: each step moves the `k` entries of steepest loss, by `lr` each or less, then projects onto
        an L1 ball around black, which grows while the image is sparse enough and else shrinks (the step and the
        projection are those of APGD-L1, Croce & Hein 2021). An image that no longer gains so begins again, as one that
        is stuck does (see `restarts`), from dense noise and the other way round: in a large ball, which shrinks while
        ``p(target) >= p_min`` and else grows, until the image is sparse enough.
        "adam": Adam on ``loss + lam |image - black|_1 / D`` (D entries in an image) with the penalty's subgradient. It
        is the process as first published, kept for what has to be compared with that, and for sweeps of `lam`; it finds
        few images or none where `s_max` is small or the network was trained against such images.
        "prox": the penalty enters as a soft threshold instead, exact in Adam's metric; at the same `lam` it still finds
        images of networks trained against such images, where the subgradient fails.
    steps
        Budget of each image.
    loss
        "ce": ``-log p(target)``. "margin": the largest other logit minus the target's.
    penalty
        What an L1 penalty is laid on: "input", the image, as above; "hidden", every hidden layer; "all", both; "none";
        or a mapping from names to weights, each a key of ``dict(model.named_modules())``, or "input" for the image. A
        module adds ``lam weight |activation|_1 / numel`` to an image's loss (numel entries in the activation of one
        image), "input" changes the weight of the image's own penalty; weights are 1 where none are given. Hidden layers
        are the modules that are activation functions (as in `torch.nn`); in a model without any, the modules with
        parameters of their own and without submodules, but the last that is called. For "l1" the ball takes the place
        of the image's penalty.
    lam
        Weight of all penalties; None: .1, but 5 for "prox". Of no moment to "l1" unless hidden layers are penalised.
    lam_final, lam_step
        Weight from step `lam_step` on, that is after so many steps; together or not at all.
    lr
        Learning rate ("adam", "prox"), or how far an entry moves in a step at most ("l1").
    lr_step
        `lr` is halved after so many steps. None: never.
    p_min, s_max
        When an image is done.
    floor
        Entries closer to black than this become black.
    mask
        bool, (*shape) or (B, *shape), on the model's device: where False the entry stays black, without a gradient.
    mask_fraction
        In place of `mask`: this fraction of each image's entries, drawn at random, stays black.
    start
        "noise": N(0, 1) for each entry, brought into the bounds (or, for "l1", into the first ball, which leaves few
        entries); "black"; "sparse": black but for ``s_max / 2`` entries at random places, uniform in the bounds; or a
        tensor (B, *shape) on the model's device.
    black, bounds
        The background, and the range of valid entries.
    k, growth
        For "l1", while the ball grows: how many entries a step moves at most (None: the smaller of D / 25 and
        `s_max` / 3 but at least 16, and not more than `s_max`), and the change of the ball's radius in a step, as a
        fraction of the step's L1 norm.
    restarts
        How often an image may begin again that is stuck: one whose gradient is zero, or not finite, at every entry and
        that a step did not move, or one that is where it was ten steps before. It begins from sparse noise, twice as
        many entries each time, and from the second time on with the loss "margin". For "l1" also one that has not
        gained in 20 steps, or in 150 since it began again: from dense noise, with a ball that shrinks. The steps count
        on. 0: none begins again, and for "l1" the ball is a growing one throughout.
    batch_size
        At most so many images at a time; None: all at once.
    keep_finished
        Keep finished images in the batch, frozen, rather than take them out of it: slower, but the batch's shape, and
        with it the rounding of the model's arithmetic, stays the same.
    generator
        Draws a seed for each image, from which its noise and mask follow, on any device the same. None: one with seed
        0.

    Raises
    ------
    ValueError
        If an argument is out of range, or the model's output is not finite or not differentiable, or its gradient has
        entries that are not finite among others that are; names the argument.

    Notes
    -----
    The image's start is feasible like every later image: in the bounds, floored, masked.
    """
    device, dtype = device_and_dtype(model)
    targets = targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device="cpu")
    shape = tuple(shape)
    if lam is None:
        lam = 5.0 if method == "prox" else 0.1
    if k is None:
        k = max(1, min(s_max, max(16, min(math.prod(shape) // 25, s_max // 3))))
    _check_targets_and_shape(targets, shape, dtype)
    _check_numbers(method, steps, loss, lam, lr, p_min, s_max, floor, black, bounds, k, growth, restarts, batch_size)
    _check_schedule(method, lr, floor, lam_final, lam_step, lr_step)
    check_images(len(targets), shape, device, start, mask, mask_fraction)
    seeds = seeds_by_place(len(targets), generator)
    starts = Starts(shape, start, mask, mask_fraction, black, bounds, max(1, s_max // 2), seeds)
    canvas = Canvas(black, bounds, floor)
    schedule = Schedule(lr, lam, lam_final, lam_step, lr_step)
    aims = Aims(steps, p_min, s_max, loss == "margin", restarts, keep_finished)
    targets = targets.to(device, torch.int64)

    def descent(rows: range, weight: float) -> Adam | L1Ball:
        images, masks = zip(*map(starts.first, rows), strict=True)
        image = torch.stack(images).to(device, dtype)
        held = None if masks[0] is None else torch.stack(masks).to(device)
        if method == "l1":
            drawn = not isinstance(start, Tensor) and start != "sparse"
            return L1Ball(image, held, canvas, schedule, k=k, growth=growth, project_start=drawn)
        way: Literal["prox", "subgradient"] = "prox" if method == "prox" else "subgradient"
        return Adam(image, held, canvas, schedule, weight=weight, penalty=way)

    if len(targets) == 0:
        none = torch.empty(0, dtype=dtype, device=device)
        return Recovery(none.reshape(0, *shape), none, none.long(), none.long(), none.bool(), none.long())
    size = batch_size or len(targets)
    found = []
    # Out of inference mode as well, whose tensors have no gradients.
    with held_still(model), torch.inference_mode(False):
        trial = torch.full((min(2, len(targets)), *shape), black, device=device, dtype=dtype)
        _check_model(model, trial, targets)
        weight, hidden = weights(penalty, model, trial)
        objective = Objective(model, hidden, targets)
        for first in range(0, len(targets), size):
            rows = range(len(targets))[first : first + size]
            begun = descent(rows, weight)
            found.append(pursue(objective, targets[first : first + size], first, begun, starts, aims))
    return Recovery(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _check_model(model: nn.Module, image: Tensor, targets: Tensor) -> None:
    """ValueError unless the model gives logits for the targets that depend on the image."""
    with torch.enable_grad():
        logits = model(image.clone().requires_grad_().clone())
    if logits.dim() != 2 or len(logits) != len(image):
        raise ValueError(
            f"model must return logits ({len(image)}, K) for {len(image)} images, not {tuple(logits.shape)}"
        )
    if int(targets.max()) >= logits.shape[1]:
        raise ValueError(f"targets must be below {logits.shape[1]}, the model's outputs; got {int(targets.max())}")
    if not logits.requires_grad:
        raise ValueError("model must be differentiable: its output does not depend on the images through torch")


def _check_targets_and_shape(targets: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.dim() != 1 or not (whole or len(targets) == 0):
        raise ValueError(f"targets must be class indices (B,), got {targets.dtype} of shape {tuple(targets.shape)}")
    if len(targets) and int(targets.min()) < 0:
        raise ValueError(f"targets must not be negative, got {int(targets.min())}")
    if not shape or any(size < 1 for size in shape):
        raise ValueError(f"shape must be one image's, such as (1, 28, 28), got {shape}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"model must be in float32 or float64, not {dtype}")


def _check_numbers(
    method: str, steps: int, loss: str, lam: float, lr: float, p_min: float, s_max: int, floor: float, black: float,
    bounds: tuple[float, float], k: int, growth: float, restarts: int, batch_size: int | None,
) -> None:  # fmt: skip
    lo, hi = bounds
    for name, fine, accepted, value in (
        ("method", method in get_args(Method), f"one of {', '.join(get_args(Method))}", method),
        ("steps", steps >= 0, "at least 0", steps),
        ("loss", loss in get_args(Loss), f"one of {', '.join(get_args(Loss))}", loss),
        ("lam", 0 <= lam < math.inf, "at least 0, and finite", lam),
        ("lr", 0 < lr < math.inf, "positive and finite", lr),
        ("p_min", 0 <= p_min <= 1, "in [0, 1]", p_min),
        ("s_max", s_max >= 0, "at least 0", s_max),
        ("bounds", lo < hi, "(lo, hi) with lo < hi", bounds),
        ("black", lo <= black <= hi, f"in the bounds {bounds}", black),
        ("floor", 0 <= floor < math.inf, "at least 0, and finite", floor),
        ("k", k >= 1, "None or at least 1", k),
        ("growth", 0 < growth < math.inf, "positive and finite", growth),
        ("restarts", restarts >= 0, "at least 0", restarts),
        ("batch_size", batch_size is None or batch_size >= 1, "None or at least 1", batch_size),
    ):
        if not fine:
            raise ValueError(f"{name} must be {accepted}; got {value!r}")


def _check_schedule(
    method: str, lr: float, floor: float, lam_final: float | None, lam_step: int | None, lr_step: int | None
) -> None:
    if (lam_final is None) != (lam_step is None):
        raise ValueError("lam_final and lam_step go together: pass both, or neither")
    if lam_final is not None and not 0 <= lam_final < math.inf:
        raise ValueError(f"lam_final must be at least 0, and finite; got {lam_final!r}")
    for name, step in (("lam_step", lam_step), ("lr_step", lr_step)):
        if step is not None and step < 0:
            raise ValueError(f"{name} must be None or at least 0; got {step!r}")
    if method == "l1" and lr < floor * (1 if lr_step is None else 2):
        least = f"floor ({floor})" if lr_step is None else f"twice floor ({2 * floor}), being halved,"
        raise ValueError(f"lr must be at least {least} for method 'l1', or no entry could leave black; got {lr}")
