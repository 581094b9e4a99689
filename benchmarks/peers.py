"""What the field uses today, as functions of the same arguments as ours.

Foolbox and ART are imported (``pip install "sparring[bench]"``). AutoAttack is not on PyPI and adv-lib does not install
beside a CPU build of torch, so the two are written out here from their paper (Croce & Hein 2021, appendix A), each with
the tensor operations that the package spends its time on. The rest is what one would write in plain torch.

Every function takes and returns perturbations of shape (B, D) in the box [0, 1], whatever the package itself works on.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# --- AutoAttack and adv-lib: sort the kinks -----------------------------------------------------------------------
#
# Seen from the point to be projected, coordinate i has to travel towards x by `least` (out of the box) and can travel
# `most` = |delta_i|. At threshold t it travels clip(t, least, most), so the distance travelled by a row grows piecewise
# linearly in t with slope +1 at each `least` and -1 at each `most`. All 2 D kinks of all rows are sorted, the distance
# at each is a cumulative sum, and the segment that holds sum |delta| - eps is found by bisection over the kinks.


def project_autoattack(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """AutoAttack's projection: float32, and every intermediate a new tensor."""
    point, y = x.clone().float(), delta.clone().float()
    sign = y.clone().sign()
    inside = torch.min(1 - point - y, point + y)
    least = torch.min(torch.zeros_like(y), inside)  # both kinds of kink are kept negated
    most = -torch.clone(y).abs()
    travel = least.clone()
    kinks, order = torch.sort(-torch.cat((least, most), 1), dim=1)
    following = torch.cat((kinks[:, 1:], torch.zeros(len(kinks), 1).to(kinks.device)), 1)
    slope = (2 * (order < y.shape[1]).float() - 1).cumsum(dim=1)
    spare = eps - y.clone().abs().sum(dim=1)
    forced = -least.sum(dim=1)
    rows = (forced + spare < 0).nonzero().squeeze(1)
    travelled = forced.unsqueeze(-1) + torch.cumsum((following - kinks) * slope, dim=1)

    low = torch.zeros_like(rows).float()
    high = torch.ones_like(low) * (kinks.shape[1] - 1)
    for _ in range(math.ceil(math.log2(kinks.shape[1]))):
        middle = torch.floor((low + high) / 2.0)
        at = middle.cpu().long()  # on the host, as the package has it: a transfer and a wait per halving on a GPU
        short = travelled[rows, at] + spare[rows] < 0
        under, over = short.nonzero().squeeze(1), (~short).nonzero().squeeze(1)
        low[under] = middle[under]
        high[over] = middle[over]
    at = low.long()
    t = (-travelled[rows, at] - spare[rows]) / slope[rows, at + 1] + following[rows, at]
    travel[rows] = -torch.min(torch.max(-least[rows], t.unsqueeze(-1)), -most[rows])
    return delta + sign * travel


def project_advlib(delta: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """adv-lib's projection: the same with fewer temporaries. `eps`: shape (B,)."""
    least = torch.min(1 - x - delta, x + delta).clamp_(max=0)
    most = delta.abs().neg_()
    travel = least.clone()
    kinks, order = torch.sort(torch.cat((least, most), dim=1).neg_(), dim=1)
    following = torch.nn.functional.pad(kinks[:, 1:], (0, 1))
    slope = (order < delta.shape[1]).float().mul_(2).sub_(1).cumsum_(dim=1)
    forced = least.sum(dim=1)
    spare = most.sum(dim=1).add_(eps)
    outside = spare < forced
    travelled = (following - kinks).mul_(slope).cumsum_(dim=1).sub_(forced.unsqueeze(-1))
    if outside.any():
        low = torch.zeros(int(outside.sum()), device=x.device)
        high = torch.full_like(low, kinks.shape[1] - 1)
        for _ in range(math.ceil(math.log2(kinks.shape[1]))):
            middle = low.lerp(high, weight=0.5).floor()
            short = travelled[outside, middle.long()] + spare[outside] < 0
            low[short] = middle[short]
            high[~short] = middle[~short]
        at = low.long()
        level = travelled[outside, at] + spare[outside]
        t = following[outside, at].addcdiv(level, slope[outside, at + 1], value=-1)
        travel[outside] = -torch.min(torch.max(-least[outside], t.unsqueeze(-1)), -most[outside])
    return delta + travel.mul_(delta.sign())


def step_autoattack(delta: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: Tensor, kept: Tensor) -> Tensor:
    """The step of APGD-L1 in AutoAttack: `kept` (B,) is the fraction of coordinates, found by sorting |grad|."""
    size = grad.shape[1]
    point = x + delta
    ordered = grad.abs().view(len(x), -1).sort(-1)[0]
    at = torch.clamp((1.0 - kept) * size, min=0, max=size - 1).long()
    least = ordered[torch.arange(len(x), device=x.device), at].view(-1, 1)
    sparse = grad * (grad.abs() >= least).float()
    count = sparse.sign().abs().view(len(x), -1).sum(-1).view(-1, 1)
    moved = point + step_size * sparse.sign() / (count + 1e-10)
    return project_autoattack(moved - x, x, eps)


def step_advlib(delta: Tensor, grad: Tensor, x: Tensor, eps: Tensor, step_size: Tensor, kept: Tensor) -> Tensor:
    """The step of APGD-L1 in adv-lib. `eps`, `step_size`, `kept`: shape (B,)."""
    size = grad.shape[1]
    magnitude = grad.abs()
    ordered = magnitude.sort(dim=1).values
    at = (1 - kept).mul_(size).clamp_(min=0, max=size - 1).long()
    sign = (grad * (magnitude >= ordered.gather(1, at.unsqueeze(1)))).sign()
    rate = (step_size / sign.norm(p=1, dim=1).add_(1e-10)).unsqueeze(1)
    return project_advlib((x + delta).addcmul_(sign, rate).sub_(x), x, eps)


# --- Foolbox and ART, through their own classes -------------------------------------------------------------------


@functools.cache
def _slide(quantile: float) -> Any:
    from foolbox.attacks.sparse_l1_descent_attack import SparseL1DescentAttack

    return SparseL1DescentAttack(quantile=quantile)


def project_foolbox(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """Foolbox's projection onto the L1 ball (Duchi et al. 2008); the box is ignored."""
    import eagerpy

    point, centre = eagerpy.astensors(x + delta, x)
    moved: Tensor = _slide(0.99).project(point, centre, eps).raw
    return moved - x


def step_foolbox(delta: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float, kept: float) -> Tensor:
    """One step of Foolbox's SLIDE: its sparse sign step, projection onto the ball, then clipping to the box."""
    import eagerpy
    from foolbox.types import Bounds

    attack = _slide(1 - kept)
    point, centre, slope = eagerpy.astensors(x + delta, x, grad)
    point = point + step_size * attack.normalize(slope, x=point, bounds=Bounds(0, 1))
    moved: Tensor = attack.project(point, centre, eps).clip(0, 1).raw
    return moved - x


def step_art(delta: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float) -> Tensor:
    """One step of ART's PGD with norm 1: a step on one coordinate, clipping, then radial rescaling."""
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
        ProjectedGradientDescentPyTorch as PGD,
    )

    estimator = SimpleNamespace(loss_gradient=lambda x, y: grad, clip_values=(0.0, 1.0), device=x.device)
    attack = SimpleNamespace(estimator=estimator, targeted=False, summary_writer=None, decay=None, norm=1)
    point = x + delta
    direction = PGD._compute_perturbation_pytorch(attack, point, None, None, None)
    point = PGD._apply_perturbation_pytorch(attack, point, direction, step_size)
    moved: Tensor = PGD._projection(point - x, eps, 1)
    return moved


# --- What one would write in torch --------------------------------------------------------------------------------

HALVINGS = 24  # of [0, max |delta|]: to float32's own resolution
BLOCK = 2**18  # numbers that a core's second-level cache holds next to their counterparts


@functools.cache
def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """`function` under torch.compile, specialised to each shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the compiler warns of torch's own deprecations
        return torch.compile(function, dynamic=False, mode=mode)


def bisect(delta: Tensor, x: Tensor, eps: float, cuts: int = 1) -> Tensor:
    """The projection by bisection on the threshold, `cuts` (1, 3 or 7) thresholds a pass."""
    magnitude = delta.abs()
    room = torch.where(delta > 0, 1 - x, x)
    low = torch.zeros_like(delta[:, 0])
    width = magnitude.amax(1)
    for _ in range(HALVINGS // (cuts.bit_length())):
        width = width / (cuts + 1)
        thresholds = [(low + cut * width)[:, None] for cut in range(1, cuts + 1)]
        for t in thresholds:
            low = low + width * ((magnitude - t).clamp(min=0).minimum(room).sum(1) > eps)
    t = torch.where(magnitude.minimum(room).sum(1) > eps, low + width, 0.0)[:, None]
    return delta.sign() * (magnitude - t).clamp(min=0).minimum(room)


def halve(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The same as one naturally writes it; to be compiled."""
    magnitude = delta.abs()
    room = torch.where(delta > 0, 1 - x, x)
    low = torch.zeros_like(magnitude[:, :1])
    high = magnitude.amax(1, keepdim=True)
    for _ in range(HALVINGS):
        t = (low + high) / 2
        over = (magnitude - t).clamp(min=0).minimum(room).sum(1, keepdim=True) > eps
        low, high = torch.where(over, t, low), torch.where(over, high, t)
    t = torch.where(magnitude.minimum(room).sum(1, keepdim=True) > eps, high, 0.0)
    return delta.sign() * (magnitude - t).clamp(min=0).minimum(room)


def bisect_compiled(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """Compiled, three thresholds a pass win: half the passes over memory for little more arithmetic."""
    projected: Tensor = compiled(bisect)(delta, x, eps, 3)
    return projected


def bisect_in_blocks(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The same on a few rows at a time, so that the passes after the first one read from the cache."""
    rows = 2 ** int(math.log2(max(1, BLOCK // delta.shape[1])))
    out = torch.empty_like(delta)
    for part in (slice(i, i + rows) for i in range(0, len(delta), rows)):
        out[part] = bisect_compiled(delta[part], x[part], eps)
    return out


def topk_step(delta: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float, k: int) -> Tensor:
    """The L1 step by `torch.topk` among the coordinates that can move, then bisection; to be compiled."""
    point = x + delta
    stuck = (grad == 0) | ((grad > 0) & (point >= 1)) | ((grad < 0) & (point <= 0))
    best = torch.where(stuck, -1.0, grad.abs()).topk(k, dim=1, sorted=False).indices
    return bisect(delta.scatter_add(1, best, grad.gather(1, best).sign() * (step_size / k)), x, eps, 3)


def topk_project(delta: Tensor, x: Tensor, k: int, channels: int = 1) -> Tensor:
    """The sparse projection by `torch.topk`."""
    inside = (x + delta).clamp(0, 1) - x
    gain = (delta.square() - (delta - inside).square()).unflatten(1, (channels, -1)).sum(1)  # type: ignore[no-untyped-call]
    best = torch.zeros_like(gain).scatter_(1, gain.topk(k, dim=1, sorted=False).indices, 1.0)
    return inside * best.repeat(1, channels)


def sparse_pgd(
    values: Tensor, mask: Tensor, grad: Tensor, x: Tensor, k: int, step_size: float, mask_step: float
) -> Tensor:
    """The step of sparse PGD with the unprojected gradient, from its paper; new values and mask are lost."""
    share = mask.sigmoid()
    pull = share * (1 - share) * grad * values
    mask = mask + mask_step * pull / (pull.norm(dim=1, keepdim=True) + 1e-10)
    values = (values + step_size * grad.sign()).maximum(-x).minimum(1 - x)
    best = torch.zeros_like(mask).scatter_(1, mask.topk(k, dim=1, sorted=False).indices, 1.0)
    return values * best


def sparse_pgd_sorted(
    values: Tensor, mask: Tensor, grad: Tensor, x: Tensor, k: int, step_size: float, mask_step: float
) -> Tensor:
    """The same as its authors choose the places, by a sort."""
    share = mask.sigmoid()
    pull = share * (1 - share) * grad * values
    mask = mask + mask_step * pull / (pull.norm(dim=1, keepdim=True) + 1e-10)
    values = (values + step_size * grad.sign()).clamp(-1, 1).maximum(-x).minimum(1 - x)
    order = torch.sort(mask, dim=1, descending=True).indices
    return values * torch.zeros_like(mask).scatter_(1, order[:, :k], 1.0)


def settle(y: Tensor, threshold: float | Tensor, floor: float) -> Tensor:
    """Soft threshold, clamp to [0, 1], floor."""
    y = (y.sign() * (y.abs() - threshold).clamp(min=0)).clamp(0, 1)
    return torch.where(y.abs() < floor, 0.0, y)


def ista(image: Tensor, grad: Tensor, lr: float, weight: float, floor: float) -> Tensor:
    """A proximal gradient step into a new tensor."""
    return settle(image - lr * grad, lr * weight, floor)


def finite_rows(image: Tensor, grad: Tensor) -> Tensor:
    """(B, 1): rows without NaN and inf. Ours leaves the others as they are."""
    return (image.isfinite() & grad.isfinite()).all(1, keepdim=True)


def ista_checked(image: Tensor, grad: Tensor, lr: float, weight: float, floor: float) -> Tensor:
    """The same with our contract: rows that are not finite stay; to be compiled."""
    return torch.where(finite_rows(image, grad), ista(image, grad, lr, weight, floor), image)


def ista_(image: Tensor, grad: Tensor, lr: float, weight: float, floor: float) -> Tensor:
    """Into `image`, unchecked; to be compiled."""
    return image.copy_(ista(image, grad, lr, weight, floor))


def ista_by_hand_(image: Tensor, grad: Tensor, lr: float, weight: float, floor: float) -> Tensor:
    """The same with torch's in-place and fused operations."""
    y = torch.nn.functional.softshrink(image.sub_(grad, alpha=lr), lr * weight).clamp_(0, 1)
    return image.copy_(y.masked_fill_(y.abs() < floor, 0))


BETAS, ADAM_EPS = (0.9, 0.999), 1e-4


def adam_ista(
    image: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, weight: float, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam, then the soft threshold in Adam's metric, into new tensors."""
    m = BETAS[0] * m + (1 - BETAS[0]) * grad
    v = BETAS[1] * v + (1 - BETAS[1]) * grad * grad
    rate = lr / (v.sqrt() / math.sqrt(1 - BETAS[1] ** step) + ADAM_EPS)
    return settle(image - rate * m / (1 - BETAS[0] ** step), rate * weight, floor), m, v


def adam_ista_checked(
    image: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, weight: float, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with our contract: rows that are not finite stay; to be compiled."""
    finite = finite_rows(image, grad)
    new = adam_ista(image, grad, m, v, step, lr, weight, floor)
    return torch.where(finite, new[0], image), torch.where(finite, new[1], m), torch.where(finite, new[2], v)


def adam_ista_(
    image: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, weight: float, floor: float
) -> Tensor:
    """In place, unchecked; to be compiled."""
    new = adam_ista(image, grad, m, v, step, lr, weight, floor)
    m.copy_(new[1])
    v.copy_(new[2])
    return image.copy_(new[0])


class FusedAdam:
    """torch's fused Adam on `image`, then the soft threshold in its metric, written as its formula."""

    def __init__(self, image: Tensor, grad: Tensor, lr: float, weight: float, floor: float) -> None:
        self.image = torch.nn.Parameter(image)
        self.image.grad = grad
        self.adam = torch.optim.Adam([self.image], lr=lr, betas=BETAS, eps=ADAM_EPS, fused=True)
        self.scale, self.floor = lr * weight, floor
        self.steps = 0

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.adam.step()
        self.steps += 1
        return self.image.copy_(self.shrunk(self.adam.state[self.image]["exp_avg_sq"])).detach()

    def shrunk(self, v: Tensor) -> Tensor:
        threshold = self.scale / (v.sqrt() / math.sqrt(1 - BETAS[1] ** self.steps) + ADAM_EPS)
        return settle(self.image, threshold, self.floor)


class FusedAdamByHand(FusedAdam):
    """The same with in-place operations wherever torch has them."""

    def shrunk(self, v: Tensor) -> Tensor:
        root = v.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.steps)).add_(ADAM_EPS)
        threshold = root.reciprocal_().mul_(self.scale)
        y = self.image.abs().sub_(threshold).clamp_(min=0).mul_(self.image.sign()).clamp_(0, 1)
        return y.masked_fill_(y.abs() < self.floor, 0)
