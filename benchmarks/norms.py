"""The layers that norms are measured on, and their norms by ARPACK: what enclosures have to hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from torch.nn import functional as F

# Name, weight, input size, stride, padding.
ALEXNET = [
    ("conv1", (96, 3, 11, 11), 224, 4, 2),
    ("conv2", (256, 96, 5, 5), 27, 1, 2),
    ("conv3", (384, 256, 3, 3), 13, 1, 1),
    ("conv4", (384, 384, 3, 3), 13, 1, 1),
    ("conv5", (256, 384, 3, 3), 13, 1, 1),
]
RESNET18 = [
    ("stem", (64, 3, 3, 3), 32, 1, 1),
    ("layer1", (64, 64, 3, 3), 32, 1, 1),
    ("layer2, first", (128, 64, 3, 3), 32, 2, 1),
    ("layer2", (128, 128, 3, 3), 16, 1, 1),
    ("layer3, first", (256, 128, 3, 3), 16, 2, 1),
    ("layer3", (256, 256, 3, 3), 8, 1, 1),
    ("layer4, first", (512, 256, 3, 3), 8, 2, 1),
    ("layer4", (512, 512, 3, 3), 4, 1, 1),
    ("shortcut", (512, 256, 1, 1), 8, 2, 0),
]
DENSE = [("fc6", (4096, 9216)), ("fc7", (4096, 4096)), ("fc8", (1000, 4096))]


def seeded(shape: tuple[int, ...]) -> Tensor:
    """As torch starts a layer: uniform, within one over the square root of what an output reads."""
    bound = math.prod(shape[1:]) ** -0.5
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1) * bound


def largest(apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> float:
    """Largest singular value by ARPACK in float64, converged."""

    def of_array(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        return lambda v: function(torch.from_numpy(v.ravel())).numpy()

    operator = LinearOperator(shape, matvec=of_array(apply), rmatvec=of_array(transpose), dtype=np.float64)
    return float(svds(operator, k=1, tol=1e-7, return_singular_vectors=False, random_state=0)[0])


def of_matrix(weight: Tensor) -> float:
    wide = weight.cpu().double()
    return largest(lambda v: wide @ v, lambda v: v @ wide, (wide.shape[0], wide.shape[1]))


def of_convolution(weight: Tensor, size: int, stride: int, padding: int) -> float:
    wide, image = weight.double(), (1, weight.shape[1], size, size)
    probe = torch.zeros(image, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(probe, wide, stride=stride, padding=padding)

    def transpose(v: Tensor) -> Tensor:
        return torch.autograd.grad(output, probe, v.view_as(output), retain_graph=True)[0].flatten()

    def apply(v: Tensor) -> Tensor:
        return F.conv2d(v.view(image), wide, stride=stride, padding=padding).flatten()

    return largest(apply, transpose, (output.numel(), probe.numel()))
