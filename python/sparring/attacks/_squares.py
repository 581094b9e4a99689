"""What the Square attack tries next: windows of an image, in each norm."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sparring.attacks._norms import Ball

Size = tuple[int, int]

TINY = 1e-12


class Grid:
    """Inputs (B, C, *grid) as C channels of positions in rows and columns; (B, D) is one channel of one row."""

    def __init__(self, inputs: Tensor) -> None:
        shape = inputs.shape[1:]
        self.channels = shape[0] if len(shape) > 1 else 1
        self.columns = shape[-1]
        self.rows = math.prod(shape[1:-1]) if len(shape) > 1 else 1

    def window(self, share: float, least: int = 1, odd: bool = False) -> Size:
        """Rows and columns of a window of that share of all positions: a square, where there is room for one."""
        area = share * self.rows * self.columns
        side = max(least, round(math.sqrt(area)))
        side += odd and side % 2 == 0
        rows, columns = min(side, self.rows), min(side, self.columns)
        if rows < side:
            columns = max(columns, round(area / rows))
        elif columns < side:
            rows = max(rows, round(area / columns))
        return min(rows, self.rows), min(columns, self.columns)

    def places(self, draws: Tensor, size: Size) -> Tensor:
        """Positions of each example's window, placed by two numbers in [0, 1): int64 (B, C, rows * columns)."""
        room = torch.tensor([self.rows - size[0] + 1, self.columns - size[1] + 1], device=draws.device)
        top, left = (draws * room).long().unbind(1)
        return (top * self.columns + left)[:, None, None].expand(-1, self.channels, -1) + self._inside(
            size, draws.device
        )

    def tiled(self, tile: Size, device: torch.device) -> Tensor:
        """Positions of all tiles that fit side by side into the middle, one tile after the other."""
        across = [[(count - count // side * side) // 2 + side * i for i in range(count // side)]
                  for count, side in zip((self.rows, self.columns), tile, strict=True)]  # fmt: skip
        corners = torch.tensor([top * self.columns + left for top in across[0] for left in across[1]], device=device)
        return (corners[:, None] + self._inside(tile, device)).reshape(-1)

    def _inside(self, size: Size, device: torch.device) -> Tensor:
        rows, columns = (torch.arange(count, device=device) for count in size)
        return (rows[:, None] * self.columns + columns).reshape(-1)


class Squares:
    """Proposals in one norm. Perturbations are (B, C, positions), random numbers (B, count), uniform in [0, 1).

    `draws` are how many numbers `start` and `propose` take.
    """

    least: ClassVar[int] = 1
    odd: ClassVar[bool] = False
    draws: tuple[int, int]

    def __init__(self, ball: Ball, grid: Grid) -> None:
        self.ball, self.grid = ball, grid
        self.low, self.high = self.flat(ball.low), self.flat(ball.high)

    def flat(self, delta: Tensor) -> Tensor:
        return delta.reshape(len(delta), self.grid.channels, -1)

    def size(self, share: float) -> Size:
        """Of a window of that share of the image."""
        return self.grid.window(share, self.least, self.odd)

    def start(self, random: Tensor) -> Tensor:
        """The first perturbation."""
        raise NotImplementedError

    def propose(self, delta: Tensor, size: Size, random: Tensor) -> Tensor:
        """The perturbation with one window anew."""
        raise NotImplementedError


class Corners(Squares):
    """In Linf: a window goes up or down as far as it can, each channel as a whole; at the start all columns do."""

    def __init__(self, ball: Ball, grid: Grid) -> None:
        super().__init__(ball, grid)
        self.draws = grid.channels * grid.columns, 2 + grid.channels

    def start(self, random: Tensor) -> Tensor:
        up = random.reshape(len(random), self.grid.channels, 1, self.grid.columns) < 0.5
        up = up.expand(-1, -1, self.grid.rows, -1).reshape(self.low.shape)
        return torch.where(up, self.high, self.low)

    def propose(self, delta: Tensor, size: Size, random: Tensor) -> Tensor:
        at = self.grid.places(random[:, :2], size)
        low, high, old = (side.gather(2, at) for side in (self.low, self.high, delta))
        up = random[:, 2:, None] < 0.5
        new, other = torch.where(up, high, low), torch.where(up, low, high)
        same = (new == old).flatten(1).all(1)[:, None, None]  # nothing would be asked
        return delta.scatter(2, at, torch.where(same, other, new))


class Bumps(Squares):
    """In L2 and L1: what one window has of the perturbation moves to another, onto a bump with its negative beside it.

    What the ball has left over goes there too, in L1 `gain` times as much as there is. All of the perturbation is made
    longer by `fill` before it is projected: in L2 to make up for what the box cuts off, in L1 to lose small entries.
    """

    least, odd = 3, True

    def __init__(self, ball: Ball, grid: Grid) -> None:
        super().__init__(ball, grid)
        self.order = 2 if ball.name == "L2" else 1
        self.gain, self.fill = (1.0, 4.0) if self.order == 2 else (2.0 * grid.channels, 1.2)
        self.eps = ball.eps.to(ball.inputs.dtype)[:, None, None]
        self.tile = max(1, grid.rows // 5), max(1, grid.columns // 5)
        self.tiles = (grid.rows // self.tile[0]) * (grid.columns // self.tile[1])
        self.draws = self.tiles * (1 + grid.channels), 5 + grid.channels

    def start(self, random: Tensor) -> Tensor:
        """Bumps side by side."""
        turned, signs = random[:, : self.tiles], random[:, self.tiles :]
        turned = turned[:, None, :, None] < 0.5
        signs = _sign(signs.reshape(len(random), self.grid.channels, -1, 1))
        delta = torch.zeros_like(self.low)
        bumps = signs * torch.where(turned, *self._bumps(self.tile))
        delta[:, :, self.grid.tiled(self.tile, delta.device)] = bumps.flatten(2).to(delta)
        return self._inside(delta * (self.eps / self._size(delta.flatten(1))[:, None]))

    def propose(self, delta: Tensor, size: Size, random: Tensor) -> Tensor:
        to, source = self.grid.places(random[:, :2], size), self.grid.places(random[:, 2:4], size)
        old, trial = delta.gather(2, to), delta.scatter(2, to, 0)
        freed = self._power(old) + self._power(trial.gather(2, source))
        trial.scatter_(2, source, 0)
        spare = (self.eps**self.order - self._power(delta.flatten(1))[:, None]).clamp_(min=0) / self.grid.channels
        bump = torch.where(random[:, 4, None, None] < 0.5, *self._bumps(size)) * _sign(random[:, 5:, None])
        new = bump.to(delta) + old / (TINY + self._size(old))
        trial.scatter_(2, to, new * (self.gain * self._root(spare + freed) / (TINY + self._size(new))))
        return self._inside(trial)

    def _inside(self, delta: Tensor) -> Tensor:
        return self.flat(self.ball.project((self.fill * delta).reshape(self.ball.inputs.shape)))

    def _bumps(self, size: Size) -> tuple[Tensor, Tensor]:
        power = 2 * (3 - self.order)
        first, second = (_pair(size, along, power, self.order) for along in (0, 1))
        return first.to(self.low), second.to(self.low)

    def _power(self, delta: Tensor) -> Tensor:
        """Sum over positions of ``|delta|^order``, kept as a dimension of one."""
        return (delta.square() if self.order == 2 else delta.abs()).sum(-1, keepdim=True)

    def _root(self, total: Tensor) -> Tensor:
        return total.sqrt() if self.order == 2 else total

    def _size(self, delta: Tensor) -> Tensor:
        return self._root(self._power(delta))


PROPOSALS: dict[str, type[Squares]] = {"Linf": Corners, "L2": Bumps, "L1": Bumps}


def _sign(random: Tensor) -> Tensor:
    return torch.where(random < 0.5, 1.0, -1.0)


@lru_cache(maxsize=256)
def _pair(size: Size, along: int, power: int, order: int) -> Tensor:
    """A bump in one half of a window, its negative in the other, of norm 1: (rows * columns,)."""
    if size[along] < 2:
        along = 1 - along
    half = size[along] // 2
    parts = [_bump((count, size[1]) if along == 0 else (size[0], count), power) for count in (half, size[along] - half)]
    window = torch.cat([parts[0] / parts[0].norm(order).clamp(min=TINY), -parts[1] / parts[1].norm(order)], along)
    pair: Tensor = (window / window.norm(order)).reshape(-1)
    return pair


def _bump(size: Size, power: int) -> Tensor:
    """The sum of ``(k + 1)^-power`` over growing rectangles k around the middle (Andriushchenko et al. 2020)."""
    rows, columns = (torch.arange(count, dtype=torch.float64, device="cpu") for count in size)
    around = torch.maximum((rows - size[0] // 2).abs()[:, None], (columns - size[1] // 2).abs())
    k = torch.arange(max(size) // 2 + 1, dtype=torch.float64, device="cpu")
    bump: Tensor = ((k + 1).pow(-power) * (k >= around[..., None])).sum(-1)
    return bump
