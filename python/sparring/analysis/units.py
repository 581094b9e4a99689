"""Units of a layer against random directions in it: what activates them most, and how much that is one thing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.attacks._box_lbfgs import REJECTED, BoxLbfgs
from sparring.attacks._model import held_still


@dataclass(frozen=True)
class Directions:
    """What some directions in a layer respond to.

    Attributes
    ----------
    vectors : (U, F), of length 1, in the layer's flattened output.
    top : int64 (U, k), the images that each is activated most by, most first.
    purity : float64 (U,), the share of the top images that are of their most frequent class.
    optimised : (U, *image), for each an input, in the bounds, that activates it more.
    activation : (U,), there.
    """

    vectors: Tensor
    top: Tensor
    purity: Tensor
    optimised: Tensor
    activation: Tensor

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the mean purity, by the normal distribution."""
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64, device="cpu")))
        mean, half = float(self.purity.mean()), 0.0
        if len(self.purity) > 1:
            half = z * float(self.purity.std()) / math.sqrt(len(self.purity))
        return mean - half, mean + half


@dataclass(frozen=True)
class Units:
    """Units of a layer and random directions in it (SPEC C11): the layer's name, its size, and which units they are."""

    layer: str
    features: int
    units: Directions
    random: Directions
    chosen: Tensor


def units(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor,
    *,
    count: int = 100,
    top: int = 8,
    steps: int = 100,
    weight: float = 1e-3,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Units:
    """Compare units of a layer with random directions in it, by the images and the inputs that activate them most.

    If units meant something that other directions do not, their top images would agree in more than those of a random
    direction do (Szegedy et al. 2013, section 3, who found no difference by eye).

    Parameters
    ----------
    model
        In eval mode meanwhile, and left as it was.
    layer
        A key of ``dict(model.named_modules())`` that is called once for a batch and gives a tensor (B, ...).
    images, labels
        Held-out images (N, ...) in the bounds, and their classes, integer (N,).
    count
        Of units, drawn without replacement (all where there are fewer), and of directions, uniform on the sphere.
    top
        Images to look at for each.
    steps
        Of the search for an input that activates each most: L-BFGS in the box, from the mean image.
    weight
        Of a penalty on the squared distance from that mean, relative to the activation's gradient there; it leaves
        entries that hardly matter as they are.
    generator
        Draws units and directions; None: one with seed 0.
    """
    if layer not in dict(model.named_modules()):
        names = ", ".join(name for name, _ in model.named_modules() if name)
        raise ValueError(f"layer must be one of {names}; got {layer!r}")
    if not 1 <= top <= len(images) or count < 1 or steps < 0:
        accepted = f"top in 1 ... {len(images)}, count at least 1, steps at least 0"
        raise ValueError(f"accepted: {accepted}; got top {top}, count {count}, steps {steps}")
    if len(labels) != len(images):
        raise ValueError(f"labels must be one for each of the {len(images)} images; got {len(labels)}")
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    with held_still(model), torch.inference_mode(False):
        part = _UpTo(model, layer)
        activations = torch.cat([part(some) for some in torch.split(images, 1000)]).detach()
        features = activations.shape[1]
        chosen = torch.randperm(features, generator=generator, device=generator.device).cpu()[:count]
        own = torch.eye(features, dtype=activations.dtype, device="cpu")[chosen].to(activations)
        drawn = torch.randn(count, features, generator=generator, dtype=torch.float64, device=generator.device)
        drawn = (drawn / drawn.norm(dim=1, keepdim=True)).to(activations)
        natural, random = (
            _directions(part, vectors, activations, images, labels, top, steps, weight, bounds)
            for vectors in (own, drawn)
        )
    return Units(layer, features, natural, random, chosen)


class _UpTo(nn.Module):
    """The flattened output of one layer of a model."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: Tensor) -> Tensor:
        with _captured(self.model.get_submodule(self.layer)) as outputs:
            self.model(x)
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or len(outputs[0]) != len(x):
            raise ValueError(f"layer {self.layer!r} must be called once and give a tensor ({len(x)}, ...)")
        return outputs[0].flatten(1)


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _directions(
    part: nn.Module, vectors: Tensor, activations: Tensor, images: Tensor, labels: Tensor, top: int, steps: int,
    weight: float, bounds: tuple[float, float],
) -> Directions:  # fmt: skip
    best = (vectors @ activations.T).topk(top, dim=1).indices
    of = labels[best]
    commonest = of.mode(dim=1).values
    purity = (of == commonest[:, None]).double().mean(1)
    optimised, activation = _optimised(part, vectors, images.mean(0), steps, weight, bounds)
    return Directions(vectors, best, purity, optimised, activation)


def _optimised(
    part: nn.Module, vectors: Tensor, start: Tensor, steps: int, weight: float, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """For every direction an input that activates it most, less the penalty on its distance from the start."""

    def ask(x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and activations along each row's own direction."""
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            along = (part(x) * vectors).sum(1)
            (grad,) = torch.autograd.grad(along.sum(), x)
        return grad, along.detach()

    starts = start.expand(len(vectors), *start.shape).contiguous()
    descent = BoxLbfgs(starts, "squared L2", bounds, history=8, tolerance=1e-6)
    frozen = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    weights = torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
    for step in range(steps + 1):
        grad, activation = ask(descent.trial)
        if step == 0:
            weights = weight * torch.linalg.vector_norm(grad.flatten(1).double(), dim=1)
        verdict = descent.accept(weights, grad, activation, activation.new_full((len(vectors),), -1.0), frozen)
        if step < steps:
            descent.advance(weights, verdict != REJECTED)
    return descent.point, ask(descent.point)[1]
