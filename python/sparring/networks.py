"""Networks of the experiments: perceptrons, small convolutional networks and a ResNet, for images of any shape.

All return logits (B, outputs) for images (B, C, H, W). Layers with weights are named `conv1`, `conv2`, ..., `linear1`,
`linear2`, ..., which are the names in a file of weights; those of :class:`ResNet18` are said there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sparring._loading import read_like, safetensors_file

SMALLEST_SCALE = 1e-6  # of max-norm units


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a multilayer perceptron with `activation` between its linear layers; the input is flattened.

    `sizes` are the numbers of inputs, of each hidden layer's units, and of outputs: (784, 128, 128, 10).
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(f"sizes must be at least two positive numbers (inputs, ..., outputs), got {tuple(sizes)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"linear{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(sizes) - 1:
            layers[f"{activation.__name__.lower()}{i}"] = activation()
    return nn.Sequential(layers)


def cnn(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return Conv32 3x3, Conv64 3x3, max-pool 2, dropout .25, Dense128, dropout .5, Dense."""
    channels, height, width = _image_shape(input_shape, smallest=6)
    features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            dropout1=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            linear1=nn.Linear(features, 128),
            relu3=nn.ReLU(),
            dropout2=nn.Dropout(0.5),
            linear2=nn.Linear(128, outputs),
        )
    )


def lenet5(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return Conv32 3x3, max-pool 2, Conv64 3x3, max-pool 2, Dense200, Dense; the convolutions are padded."""
    channels, height, width = _image_shape(input_shape, smallest=4)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(64 * (height // 4) * (width // 4), 200),
            relu3=nn.ReLU(),
            linear2=nn.Linear(200, outputs),
        )
    )


def model1(
    input_shape: Sequence[int], outputs: int, *, dropout: bool = False, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return Conv64 8x8 stride 2 "same", Conv128 6x6 stride 2, Conv128 5x5, Dense; images are at least 27 x 27.

    "same" is TensorFlow's: as many entries as strides fit, ``ceil(n / 2)``, and of the padding that this takes the odd
    row and column below and to the right. With `dropout` .2 of the inputs and .5 of the last activations are dropped.
    """
    channels, height, width = _image_shape(input_shape, smallest=27)
    odd = (0, width % 2, 0, height % 2)  # left, right, above, below: 3 + 3 entries, and one more where a size is odd
    rows, columns = (((size + 1) // 2 - 4) // 2 - 4 for size in (height, width))
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        dropout1=nn.Dropout(0.2),
        pad=nn.ZeroPad2d(odd),
        conv1=nn.Conv2d(channels, 64, 8, stride=2, padding=3),
        activation1=activation(),
        conv2=nn.Conv2d(64, 128, 6, stride=2),
        activation2=activation(),
        conv3=nn.Conv2d(128, 128, 5),
        activation3=activation(),
        dropout2=nn.Dropout(0.5),
        flatten=nn.Flatten(),
        linear1=nn.Linear(128 * rows * columns, outputs),
    )
    left_out = {"dropout1", "dropout2"} if not dropout else set()
    if not any(odd):
        left_out.add("pad")
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if name not in left_out))


def model2(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return Conv32 5x5, max-pool 2, Conv64 5x5, max-pool 2, Dense1024, dropout .5, Dense, all padded as "same"."""
    channels, height, width = _image_shape(input_shape, smallest=1)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2, ceil_mode=True),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2, ceil_mode=True),
            flatten=nn.Flatten(),
            linear1=nn.Linear(64 * -(-height // 4) * -(-width // 4), 1024),
            relu3=nn.ReLU(),
            dropout=nn.Dropout(0.5),
            linear2=nn.Linear(1024, outputs),
        )
    )


def alexnet(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return five convolutions and three dense layers (Krizhevsky et al. 2012), not split in groups; at least 63 x 63.

    Conv96 11x11 stride 4, max-pool 3 stride 2, Conv256 5x5, the same pooling, Conv384 3x3, Conv384 3x3, Conv256 3x3,
    the same pooling, dropout .5, Dense4096, dropout .5, Dense4096, Dense. Convolutions are padded by 2, 2, 1, 1, 1.
    """
    channels, height, width = _image_shape(input_shape, smallest=63)

    def halved(size: int) -> int:
        return (size - 3) // 2 + 1

    rows, columns = (halved(halved(halved((size - 7) // 4 + 1))) for size in (height, width))
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 96, 11, stride=4, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(96, 256, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384, 384, 3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(384, 256, 3, padding=1),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            dropout1=nn.Dropout(0.5),
            linear1=nn.Linear(256 * rows * columns, 4096),
            relu6=nn.ReLU(),
            dropout2=nn.Dropout(0.5),
            linear2=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
            linear3=nn.Linear(4096, outputs),
        )
    )


class MaxNorm(nn.Module):
    """Units that fire near a point: ``max(0, d_u - max_i |x_i - v_ui| / |s_ui|)``, (B, inputs) to (B, units).

    Trained are the reach `d` (units,), at first uniform in [0, 10], the points `v` (units, inputs), at first standard
    normal, and the scales `s` (units, inputs), at first 1. A scale below 1e-6 in absolute value counts as 1e-6 and gets
    no gradient: the unit then fires only at its point, and nothing is divided by zero.

    Only the input that decides a unit has a gradient; of several equally far ones the first. The (B, units, inputs)
    distances never exist at once, only `budget` of them, or those of one unit if that is more.
    """

    def __init__(self, inputs: int, units: int, *, budget: int = 2**18) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("units", units), ("budget", budget)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.budget = budget
        self.d = nn.Parameter(10 * torch.rand(units))
        self.v = nn.Parameter(torch.randn(units, inputs))
        self.s = nn.Parameter(torch.ones(units, inputs))

    def forward(self, x: Tensor) -> Tensor:
        farthest = self._farthest(x.detach())
        at = (torch.arange(len(self.v), device=x.device), farthest)
        distance = (x.gather(1, farthest) - self.v[at]).abs() / self.s[at].abs().clamp(min=SMALLEST_SCALE)
        return torch.relu(self.d - distance)

    @torch.no_grad()
    def _farthest(self, x: Tensor) -> Tensor:
        """int64 (B, units): the input that decides each unit."""
        units, inputs = self.v.shape
        weight = self.s.abs().clamp(min=SMALLEST_SCALE).reciprocal()
        step = min(units, max(1, self.budget // inputs))  # units at a time, and with them so many rows:
        rows = max(1, self.budget // (step * inputs))
        parts = []
        for some in torch.split(x, rows):
            distances = [
                (some[:, None] - v).abs_().mul_(w).argmax(2)
                for v, w in zip(torch.split(self.v, step), torch.split(weight, step), strict=True)
            ]
            parts.append(torch.cat(distances, 1))
        return torch.cat(parts)


def maxnorm(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return 512 max-norm units, Dense512 with ReLU, 256 max-norm units, Dense."""
    inputs = math.prod(input_shape)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            maxnorm1=MaxNorm(inputs, 512),
            linear1=nn.Linear(512, 512),
            relu1=nn.ReLU(),
            maxnorm2=MaxNorm(512, 256),
            linear2=nn.Linear(256, outputs),
        )
    )


class RBF(nn.Module):
    """Radial basis functions, one a class: ``p_k(x) = exp(-(x - mu_k)^T beta_k (x - mu_k))``, beta_k diagonal.

    Returns ``log p``, (B, outputs). Every p_k is a probability of its own, that x is of class k; they need not sum to
    1, and away from all centres all of them vanish (Goodfellow et al. 2015, section 7; `sparring.losses.bernoulli`).

    Trained are the centres `mu` (outputs, inputs), at first uniform in [0, 1], and `log_beta` (outputs, inputs), at
    first that of 0.03. From a beta much smaller, pixels that are the same in all training images keep it, and the
    network stays as sure when they change.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("outputs", outputs)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.mu = nn.Parameter(torch.rand(outputs, inputs))
        self.log_beta = nn.Parameter(torch.full((outputs, inputs), math.log(0.03)))

    def forward(self, x: Tensor) -> Tensor:
        x, beta = x.flatten(1), self.log_beta.exp()
        pulled = beta * self.mu
        distance = x.square() @ beta.T - 2 * (x @ pulled.T) + (pulled * self.mu).sum(1)
        return -distance.clamp(min=0)  # which rounding alone may fall below


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, around which the input goes unchanged, or through a 1x1 one."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = (
            nn.Sequential()
            if stride == 1 and channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inside + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 in its form for small images (He et al. 2016, without the first stride and the max-pool).

    A 3x3 convolution, four stages of two blocks with `width`, 2, 4 and 8 times `width` channels, the later three of
    which halve the image, the mean over the image, Dense. Its layers with weights are `conv1`, `bn1`,
    `layer1.0.conv1`, ..., `layer4.1.bn2`, `linear`, and `layer2.0.shortcut.0` and `.1` where a stage begins.
    """

    def __init__(self, input_shape: Sequence[int], outputs: int, width: int = 64) -> None:
        super().__init__()
        channels, _, _ = _image_shape(input_shape, smallest=1)
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, outputs)

    @staticmethod
    def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(channels, width, stride), BasicBlock(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.linear(x.mean((2, 3))))


def _perceptron(*hidden: int, activation: type[nn.Module] = nn.ReLU) -> Callable[[Sequence[int], int], nn.Module]:
    return lambda input_shape, outputs: mlp((math.prod(input_shape), *hidden, outputs), activation)


NETWORKS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "mlp": _perceptron(128, 128),
    "mlp-256-128-128": _perceptron(256, 128, 128),
    "mlp-300-100": _perceptron(300, 100),
    "softmax": _perceptron(),
    "sigmoid-100-100": _perceptron(100, 100, activation=nn.Sigmoid),
    "sigmoid-200-200": _perceptron(200, 200, activation=nn.Sigmoid),
    "sigmoid-123-456": _perceptron(123, 456, activation=nn.Sigmoid),
    "sigmoid-400": _perceptron(400, activation=nn.Sigmoid),
    "rbf": lambda input_shape, outputs: RBF(math.prod(input_shape), outputs),
    "cnn": cnn,
    "lenet5": lenet5,
    "model1": model1,
    "model1-dropout": partial(model1, dropout=True),
    "model1-sigmoid": partial(model1, activation=nn.Sigmoid),
    "model2": model2,
    "alexnet": alexnet,
    "maxnorm": maxnorm,
    "resnet18": ResNet18,
    "resnet18-16": partial(ResNet18, width=16),
}


def build(
    name: str, input_shape: Sequence[int], outputs: int, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Return the network `name` (a key of `NETWORKS`), freshly initialised, on the CPU, in float32.

    Parameters
    ----------
    input_shape
        Shape of one image, (C, H, W).
    outputs
        Number of logits: the classes, or twice as many where each class has a fake one.
    generator
        CPU generator that one seed is drawn from; None means the seed 0. The global generator is left as it was.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}; got {name!r}")
    if outputs < 1:
        raise ValueError(f"outputs must be positive, got {outputs}")
    seed = 0 if generator is None else int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=()):  # torch initialises layers from its global CPU generator
        torch.default_generator.manual_seed(seed)
        return NETWORKS[name](input_shape, outputs)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Copy the weights in a safetensors file into `network`, which must have exactly those, and return it.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no safetensors file, or its tensors are not those of the network by name, shape and kind of number
        (narrower ones are widened), or one has NaN; names the file. The network is then as it was.
    """
    own = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    with safetensors_file(path, "weights") as file:
        tensors = read_like(file, path, "the weights of this network", own)
    network.load_state_dict(tensors)
    return network


def _image_shape(input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape must be (C, H, W) with H and W at least {smallest} for this network, got {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    return channels, height, width
