"""Fooling images from nothing: sparse images that a network takes for a class with high confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._descent import Adam, Canvas, L1Ball
from sparring.attacks._model import device_and_dtype, held_still
from sparring.gradients import Lowered, input_grad, lower

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
    """

    images: Tensor
    prob: Tensor
    sparsity: Tensor
    stop_step: Tensor
    success: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]


def recover(
    model: nn.Module,
    targets: Tensor | Sequence[int],
    shape: Sequence[int],
    *,
    method: Method = "adam",
    steps: int = 1000,
    lam: float | None = None,
    lr: float = 0.5,
    p_min: float = 0.9,
    s_max: int = 300,
    floor: float = 0.1,
    mask: Tensor | None = None,
    mask_fraction: float = 0.0,
    start: Literal["noise", "black"] | Tensor = "noise",
    black: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    k: int | None = None,
    growth: float = 0.25,
    batch_size: int | None = None,
    keep_finished: bool = False,
    generator: torch.Generator | None = None,
) -> Recovery:
    """Make, for each target class, a sparse image that `model` gives that class with high probability.

    From a start image, every step moves against the gradient of the image's own loss ``-log p(target)``, clamps to the
    bounds and blackens entries within `floor` of black, until ``p(target) >= p_min`` and ``sparsity <= s_max``.
    An image that never gets there is returned at its best: the highest p(target) among its sparse enough steps, or
    among all its steps if none was.

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
        "adam": Adam on ``loss + lam |image - black|_1 / D`` (D entries in an image) with the penalty's subgradient.
        "prox": the penalty enters as a soft threshold instead, exact in Adam's metric; at the same `lam` it still finds
        images of networks trained against such images, where the subgradient fails.
        "l1": each step moves the `k` entries of steepest loss, by `lr` each or less, then projects onto an L1 ball
        around black, which grows while the image is sparse enough and else shrinks (the step and the projection are
        those of APGD-L1, Croce & Hein 2021). By far the fastest.
    steps
        Budget of each image.
    lam
        Weight of the penalty; None: .1 for "adam", 5 for "prox". "l1" has none.
    lr
        Learning rate ("adam", "prox"), or how far an entry moves in a step at most ("l1").
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
        entries); "black"; or a tensor (B, *shape) on the model's device.
    black, bounds
        The background, and the range of valid entries.
    k, growth
        For "l1": how many entries a step moves at most (None: D / 50 but at least 16, and not more than `s_max`), and
        the change of the ball's radius in a step, as a fraction of the step's L1 norm.
    batch_size
        At most so many images at a time; None: all at once.
    keep_finished
        Keep finished images in the batch, frozen, rather than take them out of it: slower, but the batch's shape, and
        with it the rounding of the model's arithmetic, stays the same.
    generator
        Draws noise and masks, image after image. A CPU generator serves models on any device. None: one with seed 0.

    Raises
    ------
    ValueError
        If an argument is out of range, or the model's output is not finite or not differentiable; names the argument.

    Notes
    -----
    The image's start is feasible like every later image: in the bounds, floored, masked.
    """
    device, dtype = device_and_dtype(model)
    targets, shape = torch.as_tensor(targets), tuple(shape)
    if lam is None:
        lam = 5.0 if method == "prox" else 0.1
    if k is None:
        k = max(1, min(s_max, max(16, math.prod(shape) // 50)))
    _check_targets_and_shape(targets, shape, dtype)
    _check_numbers(method, steps, lam, lr, p_min, s_max, floor, black, bounds, k, growth, batch_size)
    _check_images(len(targets), shape, device, start, mask, mask_fraction)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    canvas = Canvas(black, bounds, floor)
    targets = targets.to(device, torch.int64)

    def descent(rows: slice) -> Adam | L1Ball:
        """Images `rows` at their start. To be called for one batch after the other: it draws from the generator."""
        image, held = _draw(range(*rows.indices(len(targets))), shape, start, mask, mask_fraction, black, generator)
        image = image.to(device, dtype)
        held = None if held is None else held.to(device)
        if method == "l1":
            return L1Ball(image, held, canvas, lr=lr, k=k, growth=growth, project_start=not isinstance(start, Tensor))
        return Adam(image, held, canvas, lr=lr, lam=lam, penalty="prox" if method == "prox" else "subgradient")

    if len(targets) == 0:
        none = torch.empty(0, dtype=dtype, device=device)
        return Recovery(none.reshape(0, *shape), none, none.long(), none.long(), none.bool())
    size = batch_size or len(targets)
    found = []
    # Out of inference mode as well, whose tensors have no gradients.
    with held_still(model), torch.inference_mode(False):
        for first in range(0, len(targets), size):
            rows = slice(first, first + size)
            start_of_rows = descent(rows)
            if first == 0:
                _check_model(model, start_of_rows.image, targets)
            found.append(_search(lower(model), targets[rows], start_of_rows, steps, p_min, s_max, keep_finished))
    return Recovery(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _search(
    model: Lowered, targets: Tensor, descent: Adam | L1Ball, steps: int, p_min: float, s_max: int, keep_finished: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Step until every image is done or the budget spent; the fields of `Recovery`."""
    best = descent.image.clone()
    # The probability, less 1 where the image is not sparse enough: any that is comes before any that is not.
    best_score = torch.full_like(targets, -math.inf, dtype=best.dtype)
    stop_step = torch.full_like(targets, steps)
    rows = torch.arange(len(targets), device=targets.device)  # that the images in the batch belong to
    frozen = torch.zeros_like(targets, dtype=torch.bool)
    for step in range(steps + 1):
        log_prob, grad = _log_prob_and_grad(model, descent.image, targets[rows])
        prob = log_prob.exp()
        sparse = descent.canvas.sparsity(descent.image) <= s_max
        score = torch.where(sparse, prob, prob - 1)
        better = score > best_score[rows]
        best[rows[better]], best_score[rows[better]] = descent.image[better], score[better]
        done = frozen | (sparse & (prob >= p_min))
        if bool(done.any()):
            stop_step[rows[done]] = stop_step[rows[done]].clamp(max=step)
            if bool(done.all()):
                break
            if keep_finished:
                frozen = done
            else:
                going = ~done
                rows, frozen = rows[going], frozen[going]
                grad, log_prob, sparse = grad[going], log_prob[going], sparse[going]
                descent.keep(going)
        if step < steps:
            descent.step(grad, log_prob, sparse, frozen if keep_finished else None)
    with torch.no_grad():
        prob = (-losses.evaluate("ce", model(best), targets)).exp()
    sparsity = descent.canvas.sparsity(best)
    success = (prob >= p_min) & (sparsity <= s_max)
    return best, prob, sparsity, torch.where(success, stop_step, steps), success


def _log_prob_and_grad(model: Lowered, image: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each image's target, and the gradient of its negative with respect to the image."""
    found = input_grad(model, image, targets)
    if not bool(found.loss.isfinite().all()):
        raise ValueError("model must return finite logits; it gave a target a log-probability that is not finite")
    return -found.loss, found.grad


def _check_model(model: nn.Module, image: Tensor, targets: Tensor) -> None:
    """ValueError unless the model gives logits for the targets that depend on the image."""
    with torch.enable_grad():
        logits = model(image.clone().requires_grad_())
    if logits.dim() != 2 or len(logits) != len(image):
        raise ValueError(
            f"model must return logits ({len(image)}, K) for {len(image)} images, not {tuple(logits.shape)}"
        )
    if int(targets.max()) >= logits.shape[1]:
        raise ValueError(f"targets must be below {logits.shape[1]}, the model's outputs; got {int(targets.max())}")
    if not logits.requires_grad:
        raise ValueError("model must be differentiable: its output does not depend on the images through torch")


def _draw(
    rows: range, shape: tuple[int, ...], start: str | Tensor, mask: Tensor | None, mask_fraction: float, black: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Starts and masks of the images `rows`, image after image, so that none depends on how many are drawn at once."""
    images, masks = [], []
    entries = math.prod(shape)
    for row in rows:
        if isinstance(start, Tensor):
            images.append(start[row].detach())
        elif start == "black":
            images.append(torch.full(shape, black, dtype=torch.float64))
        else:
            images.append(torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64))
        if mask is not None:
            masks.append(mask if mask.dim() == len(shape) else mask[row])
        elif mask_fraction > 0:
            order = torch.randperm(entries, generator=generator, device=generator.device)
            masks.append((order >= round(mask_fraction * entries)).reshape(shape))
    return torch.stack(images), torch.stack(masks) if masks else None


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
    method: str, steps: int, lam: float, lr: float, p_min: float, s_max: int, floor: float, black: float,
    bounds: tuple[float, float], k: int, growth: float, batch_size: int | None,
) -> None:  # fmt: skip
    lo, hi = bounds
    for name, fine, accepted, value in (
        ("method", method in get_args(Method), f"one of {', '.join(get_args(Method))}", method),
        ("steps", steps >= 0, "at least 0", steps),
        ("lam", 0 <= lam < math.inf, "at least 0, and finite", lam),
        ("lr", 0 < lr < math.inf, "positive and finite", lr),
        ("p_min", 0 <= p_min <= 1, "in [0, 1]", p_min),
        ("s_max", s_max >= 0, "at least 0", s_max),
        ("bounds", lo < hi, "(lo, hi) with lo < hi", bounds),
        ("black", lo <= black <= hi, f"in the bounds {bounds}", black),
        ("floor", 0 <= floor < math.inf, "at least 0, and finite", floor),
        ("k", k >= 1, "None or at least 1", k),
        ("growth", 0 < growth < math.inf, "positive and finite", growth),
        ("batch_size", batch_size is None or batch_size >= 1, "None or at least 1", batch_size),
    ):
        if not fine:
            raise ValueError(f"{name} must be {accepted}; got {value!r}")
    if method == "l1" and lr < floor:
        raise ValueError(
            f"lr must be at least floor ({floor}) for method 'l1', or no entry could leave black; got {lr}"
        )


def _check_images(
    count: int, shape: tuple[int, ...], device: torch.device, start: str | Tensor, mask: Tensor | None,
    mask_fraction: float,
) -> None:  # fmt: skip
    if not isinstance(start, Tensor):
        if start not in ("noise", "black"):
            raise ValueError(f"start must be 'noise', 'black' or a tensor, got {start!r}")
    elif tuple(start.shape) != (count, *shape) or not start.is_floating_point() or start.device != device:
        raise ValueError(
            f"start must be floating point of shape {(count, *shape)} on {device}; "
            f"got {start.dtype} of shape {tuple(start.shape)} on {start.device}"
        )
    elif not bool(start.isfinite().all()):
        raise ValueError("start must be finite")
    if not 0 <= mask_fraction <= 1:
        raise ValueError(f"mask_fraction must be in [0, 1], got {mask_fraction}")
    if mask is None:
        return
    if mask_fraction:
        raise ValueError("mask and mask_fraction exclude each other")
    if mask.dtype != torch.bool or tuple(mask.shape) not in (shape, (count, *shape)) or mask.device != device:
        raise ValueError(
            f"mask must be bool of shape {shape} or {(count, *shape)} on {device}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}"
        )
