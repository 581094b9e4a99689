"""The threat models: perturbations bounded in a norm, or in how many entries or pixels differ, inside a box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparring import ops

Norm = float | str
Bounds = tuple[float, float]


_FAR = 1e3  # times what the box allows in any norm


class Ball:
    """Perturbations with ``|delta| <= eps`` in one norm and ``inputs + delta`` in the bounds, example by example.

    Parameters
    ----------
    inputs : (B, ...)
        Taken to the nearest point of the box.
    eps : float64 (B,), finite
    bounds
        Ends of the box.
    """

    name: str

    def __init__(self, inputs: Tensor, eps: Tensor, bounds: Bounds) -> None:
        self.bounds = inside(bounds, inputs.dtype)
        self.inputs = inputs.clamp(*self.bounds)
        self.eps = eps.clamp(max=self._most())
        self._prepare()

    def _most(self) -> float:
        """Of an eps far beyond the box no more is kept than is safe to compute with."""
        return _FAR * (self.bounds[1] - self.bounds[0]) * max(1, self.inputs[:1].numel())

    def _prepare(self) -> None:
        """What is computed once for all projections."""
        self.low, self.high = self.bounds[0] - self.inputs, self.bounds[1] - self.inputs

    def rows(self, keep: Tensor) -> Ball:
        """The same for the examples `keep` alone (bool or indices)."""
        return type(self)(self.inputs[keep], self.eps[keep], self.bounds)

    def scaled(self, factor: float) -> Ball:
        """A ball `factor` times as large."""
        return self if factor == 1 else type(self)(self.inputs, self.eps * factor, self.bounds)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest allowed perturbation, but for rounding; in L2 nearly so where the box matters too."""
        raise NotImplementedError

    def steepest(self, grad: Tensor) -> Tensor:
        """The direction of norm 1 along which a loss with this gradient rises fastest; 0 where the gradient is."""
        raise NotImplementedError

    def length(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation, computed in float64: (B,)."""
        raise NotImplementedError

    def random(self, seeds: Iterable[int]) -> Tensor:
        """A perturbation for each example, drawn from its own seed."""
        rows = [self._draw(self.inputs[0].shape, torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        noise = torch.stack(rows).to(self.inputs) if rows else torch.zeros_like(self.inputs)
        return self.project(noise * self.column(self.eps.to(noise)))

    def _draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def points(self, delta: Tensor) -> Tensor:
        """``inputs + delta``, in the box."""
        return (self.inputs + delta).clamp_(*self.bounds)

    def exact_points(self, delta: Tensor) -> Tensor:
        """``inputs + delta`` rounded towards the inputs: within eps when measured in float64, and in the box."""
        points = self.points(delta)
        outwards = (points.double() - self.inputs.double()).abs() > delta.double().abs()
        return torch.where(outwards, torch.nextafter(points, self.inputs), points)

    def column(self, per_example: Tensor) -> Tensor:
        """(B,) as (B, 1, ...), to go with the inputs."""
        return per_example.reshape(-1, *(1,) * (self.inputs.dim() - 1))


class LinfBall(Ball):
    """Every entry moves by eps at most."""

    name = "Linf"

    def _prepare(self) -> None:
        super()._prepare()
        eps = self.column(_rounded_down(self.eps, self.inputs.dtype))
        self.low, self.high = self.low.maximum(-eps), self.high.minimum(eps)

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(self.low, self.high)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def length(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1).double(), math.inf, dim=1)
        return length

    def _draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1


class L2Ball(Ball):
    """Euclidean distance at most eps."""

    name = "L2"

    def project(self, delta: Tensor) -> Tensor:
        # The nearest point is clip(t delta, low, high) with the largest t <= 1 that the ball allows: first the t that
        # ignores the box, then a larger one, as what clipping leaves over of eps goes to the entries it does not touch.
        # That clips a few more; further rounds were not found to help an attack.
        eps = self.eps.to(delta.dtype)
        t = (eps / torch.linalg.vector_norm(delta.flatten(1), dim=1)).clamp_(max=1).nan_to_num_(1.0)  # 0 / 0: at x
        scaled = delta * self.column(t)
        moved = scaled.clamp(self.low, self.high)
        free = scaled.mul_(scaled == moved).flatten(1).square().sum(1)
        clipped = moved.flatten(1).square().sum(1) - free
        more = ((eps.square() - clipped).clamp_(min=0) / free).sqrt_().nan_to_num_(1.0, posinf=1.0)
        t = (t * more.clamp_(min=1)).clamp_(max=1)
        return torch.clamp(delta * self.column(t), self.low, self.high, out=moved)

    def steepest(self, grad: Tensor) -> Tensor:
        return unit(grad)

    def length(self, delta: Tensor) -> Tensor:
        return _length(delta)

    def exact_points(self, delta: Tensor) -> Tensor:
        length = self.length(delta)
        margin = 1 - 4 * torch.finfo(delta.dtype).eps  # of the rounding of each entry
        shrink = torch.where(length > self.eps, self.eps / length * margin, 1.0)
        return super().exact_points((delta.double() * self.column(shrink)).to(delta.dtype))

    def _draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        direction = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        share = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
        radius = share ** (1 / max(1, direction.numel()))
        noise: Tensor = direction * (radius / direction.norm())
        return noise


def unit(grad: Tensor) -> Tensor:
    """Each example's gradient, (B, ...), divided by its Euclidean norm; 0 where it is 0."""
    length = _length(grad).reshape(-1, *(1,) * (grad.dim() - 1))
    direction: Tensor = grad / torch.where(length > 0, length, 1).to(grad.dtype)
    return direction


def _length(delta: Tensor) -> Tensor:
    """Euclidean norms (B,), in float64: the squares of float32 gradients underflow early."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)
    return length


class L1Ball(Ball):
    """Sum of all moves at most eps."""

    name = "L1"

    def project(self, delta: Tensor) -> Tensor:
        projected: Tensor = ops.project_l1_box(delta, self.inputs, self.eps, self.bounds, check_finite=False)
        return projected

    def ascend(self, delta: Tensor, grad: Tensor, step_size: Tensor, k: Any) -> Tensor:
        """A step of L1 norm `step_size` (B,) on the `k` steepest entries that can still move, then the projection."""
        moved: Tensor = ops.l1_step(delta, grad, self.inputs, self.eps, step_size, k, self.bounds, check_finite=False)
        return moved

    def steepest(self, grad: Tensor) -> Tensor:
        flat = grad.flatten(1)
        best = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, best, flat.gather(1, best).sign()).reshape(grad.shape)

    def length(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1).double(), 1, dim=1)
        return length

    def random(self, seeds: Iterable[int]) -> Tensor:
        """Normal noise, projected onto the ball (Croce & Hein 2021)."""
        rows = [self._draw(self.inputs[0].shape, torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return self.project(torch.stack(rows).to(self.inputs)) if rows else torch.zeros_like(self.inputs)

    def _draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


class L0Ball(Ball):
    """At most eps entries differ, eps a whole number."""

    name = "L0"

    def _most(self) -> float:
        return self.places

    @property
    def channels(self) -> int:
        """How many entries count as one."""
        return 1

    @property
    def places(self) -> int:
        """What is counted."""
        return math.prod(self.inputs.shape[1:]) // self.channels

    def project(self, delta: Tensor) -> Tensor:
        projected: Tensor = ops.project_l0_box(
            delta, self.inputs, self.eps.long(), self.bounds, channels=self.channels, check_finite=False
        )
        return projected

    def length(self, delta: Tensor) -> Tensor:
        changed = delta.reshape(len(delta), self.channels, self.places) != 0
        return changed.any(1).sum(1).double()


class PixelBall(L0Ball):
    """At most eps positions differ, all entries of a position, one in each channel, counting as one."""

    name = "pixels"

    @property
    def channels(self) -> int:
        return self.inputs.shape[1] if self.inputs.dim() > 2 else 1


BALLS: dict[str, type[Ball]] = {"Linf": LinfBall, "L2": L2Ball, "L1": L1Ball, "L0": L0Ball, "pixels": PixelBall}

NORMED = ("Linf", "L2", "L1")
"""In which every attack along gradients works."""

COUNTED = ("L0", "pixels")
"""In which distances are counts; what works there is made for it."""


def norm_name(norm: Norm) -> str:
    """The name in `BALLS` of a norm: for inf, 2, 1, 0 and all names; ValueError for any other norm."""
    names: dict[Any, str] = {
        math.inf: "Linf",
        2: "L2",
        1: "L1",
        0: "L0",
        **{name.lower(): name for name in BALLS},
        "inf": "Linf",
    }
    key = norm.lower() if isinstance(norm, str) else norm
    if not isinstance(norm, (int, float, str)) or key not in names or isinstance(norm, bool):
        raise ValueError(f"norm is {norm!r}; accepted: inf, 2, 1, 0, {', '.join(map(repr, BALLS))}")
    return names[key]


def check_works(name: str, norms: Sequence[str]) -> None:
    """ValueError unless an attack that works in these norms does in the one of this name."""
    if name not in norms:
        others = " In L0 and pixels work sparse_pgd, sparse_rs and sigma_zero." if name in COUNTED else ""
        raise ValueError(f"norm is {name!r}, but this attack works in {', '.join(norms)}.{others}")


def ball_of(norm: Norm, inputs: Tensor, eps: Tensor, bounds: Bounds) -> Ball:
    """The threat model; ValueError unless eps, float64 (B,), is whole where the norm counts."""
    name = norm_name(norm)
    if name in COUNTED and not bool((eps == eps.round()).all()):
        raise ValueError(
            f"eps is {float(eps[eps != eps.round()][0])}; accepted in {name}: whole numbers, how many differ"
        )
    return BALLS[name](inputs, eps, bounds)


def distances_of(moved: Tensor) -> dict[str, Tensor]:
    """Of perturbations (B, ...) the length in every norm, float64 (B,)."""
    flat, changed = moved.double().flatten(1), moved != 0
    by_place = changed.flatten(2).any(1) if moved.dim() > 2 else changed
    orders = {"Linf": math.inf, "L2": 2, "L1": 1}
    lengths = {name: torch.linalg.vector_norm(flat, order, dim=1) for name, order in orders.items()}
    return {**lengths, "L0": changed.flatten(1).sum(1).double(), "pixels": by_place.flatten(1).sum(1).double()}


def slack(bounds: Bounds) -> float:
    """How far outside the bounds inputs may be, for the rounding of what made them: a millionth of the larger end."""
    return 1e-6 * max(map(abs, bounds))


def inside(bounds: Bounds, dtype: torch.dtype) -> Bounds:
    """The ends as the nearest numbers of `dtype` that are in the bounds."""
    low, high = bounds
    return -float(_rounded_down(torch.tensor([-low], dtype=torch.float64, device="cpu"), dtype)), float(
        _rounded_down(torch.tensor([high], dtype=torch.float64, device="cpu"), dtype)
    )


def _rounded_down(number: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of `dtype` not above these of float64."""
    rounded = number.to(dtype)
    return torch.where(
        rounded.double() > number, torch.nextafter(rounded, torch.full_like(rounded, -math.inf)), rounded
    )
