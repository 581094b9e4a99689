"""Random noise of bounded size: what any attack has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks._forward import answer
from sparring.attacks._norms import Ball, Bounds, Norm
from sparring.attacks._problem import Options, Preprocessing, Problem, check_inputs
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.attacks._seeds import example_seeds
from sparring.gradients import Lowered
from sparring.losses import Loss

_Draw = Callable[[torch.Size, str, torch.Generator], Tensor]


def uniform_noise(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = math.inf,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = "ce",
    repeats: int = 1,
    early_stop: bool = False,
    preprocessing: Preprocessing | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Add noise drawn uniformly from the ball of radius `eps`, then clip to the bounds; the worst of `repeats` is kept.

    For Linf every entry is uniform in [-eps, eps]. In high dimension nearly all of an L2 or L1 ball lies close to its
    surface. The worst draw is one that fools the model if any does, and among those the one of highest `loss`; each
    input's draws depend on the input and one draw of `generator` alone.

    Parameters
    ----------
    model, inputs, labels, eps, norm, targets, bounds, loss, preprocessing, batch_size, return_result
        As in the other attacks.
    repeats
        Draws for each input, at least 1.
    early_stop
        Leave an input after its first draw that fools the model.
    generator
        Seeds each input's own draws. None: one with seed 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; names the argument.
    """
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, early_stop=early_stop, batch_size=batch_size,
        generator=generator, return_result=return_result,
    )  # fmt: skip
    return _noise(model, inputs, labels, _uniform, repeats, options)


def gaussian_noise(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = 2,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = "ce",
    repeats: int = 1,
    early_stop: bool = False,
    preprocessing: Preprocessing | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Add normal noise scaled to length `eps`, then clip to the bounds; the worst of `repeats` is kept.

    For L2 this is uniform on the sphere of radius `eps`. Parameters and errors are those of :func:`uniform_noise`.
    """
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, early_stop=early_stop, batch_size=batch_size,
        generator=generator, return_result=return_result,
    )  # fmt: skip
    return _noise(model, inputs, labels, _gaussian, repeats, options)


def _noise(
    model: nn.Module | Lowered, inputs: Tensor, labels: Tensor, draw: _Draw, repeats: int, options: Options
) -> Tensor | AttackResult:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be an integer, at least 1; got {repeats!r}")
    check_inputs(inputs)
    seeds = example_seeds(inputs, 1, options.generator)[:, 0].tolist()

    def attack(problem: Problem, rows: slice) -> Best:
        streams = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
        best = Best(problem.ball, repeats)
        everything = torch.arange(len(problem.labels), device=problem.labels.device)
        for repeat in range(repeats):
            at = everything[~best.fooled] if options.early_stop else everything
            if len(at) == 0:
                break
            part = problem.rows(at)
            delta = _clipped(part.ball, draw, [streams[row] for row in at.tolist()])
            best.update(at, delta, answer(part, delta), repeat + 1, first_only=options.early_stop)
        return best

    return run(model, inputs, labels, attack, options)


def _clipped(ball: Ball, draw: _Draw, streams: list[torch.Generator]) -> Tensor:
    """Noise of each example's own size and stream, clipped to the box (which never makes it longer)."""
    noise = [draw(ball.inputs.shape[1:], ball.name, stream) for stream in streams]
    exact = torch.stack(noise).to(ball.eps) * ball.column(ball.eps)
    delta = exact.to(ball.inputs.dtype)
    delta = torch.where(delta.double().abs() > exact.abs(), torch.nextafter(delta, torch.zeros_like(delta)), delta)
    length = ball.length(delta)
    fits = torch.where(length > ball.eps, ball.eps / length * (1 - 4 * torch.finfo(delta.dtype).eps), 1.0)
    return (delta * ball.column(fits.to(delta))).clamp(ball.low, ball.high)


def _uniform(shape: torch.Size, norm: str, generator: torch.Generator) -> Tensor:
    """Uniform in the unit ball, in float64."""
    if norm == "Linf":
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") - 1
    direction = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    if norm == "L1":  # Laplace noise, direction and all: its density is constant on the spheres
        direction = direction.sign() * torch.empty_like(direction).exponential_(generator=generator)
    radius = torch.rand((), generator=generator, dtype=torch.float64, device="cpu") ** (1 / max(1, direction.numel()))
    return radius * _unit(direction, norm)


def _gaussian(shape: torch.Size, norm: str, generator: torch.Generator) -> Tensor:
    """Normal noise scaled to the unit sphere, in float64."""
    return _unit(torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu"), norm)


def _unit(noise: Tensor, norm: str) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(noise, {"Linf": math.inf, "L2": 2, "L1": 1}[norm])
    return noise / length
