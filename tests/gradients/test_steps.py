"""Steps of a lowered network one by one: forward against torch's function, backward against autograd, and refusals.

A lowered model is compared with its module before it is believed, which hides what a step gets wrong; so steps are
asked here without it, in every dtype that they have a way for, and with several scalars for each example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.gradients import layers
from sparring.gradients.image_steps import (
    AvgPool2d,
    Conv2d,
    GlobalAvgPool2d,
    MaxPool2d,
    channels_last,
    pair,
    unflat,
)
from sparring.gradients.layers import BATCH, FUNCTIONS, METHODS, MODULES
from sparring.gradients.lowered import run
from sparring.gradients.steps import (
    Activation,
    Affine,
    Autograd,
    BatchNorm,
    Flatten,
    Identity,
    Linear,
    NotLowered,
    Reshape,
    Softmax,
    Softplus,
    as_dtype,
    flat,
    form_of,
)

# Said once in a process, by whichever test comes first.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def named(value: object) -> str:
    """What a parameter is called, in every process the same."""
    return str(getattr(value, "__name__", value))


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}
BATCH_SIZE = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def check(step: Any, function: Callable[[Tensor], Tensor], x: Tensor, scalars: int = 1) -> None:
    """`step` is `function`; `x` is (B, ...), and each example has the gradients of so many scalars."""
    exact = x.double()
    tolerance = TOLERANCE[x.dtype]
    before = x.clone()
    y, saved = step.forward(x)
    assert y.dtype is x.dtype
    wanted, back = torch.func.vjp(function, exact)
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    seeds = normal(len(x) * scalars, *wanted.shape[1:], seed=7)
    found = step.backward(seeds.to(x.dtype, copy=True), saved)  # which may be overwritten
    assert found.shape == (len(x) * scalars, *x.shape[1:])
    for scalar in range(scalars):
        (towards,) = back(seeds[scalar::scalars].to(x.dtype).double())
        size = 1 + float(towards.abs().max()) if towards.numel() else 1
        torch.testing.assert_close(
            found[scalar::scalars].double(), towards, rtol=tolerance, atol=tolerance * size * math.sqrt(x[:1].numel())
        )
    torch.testing.assert_close(x, before, rtol=0, atol=0)


ACTIVATIONS: dict[str, tuple[Activation, Callable[[Tensor], Tensor]]] = {
    "relu": (Activation("relu"), torch.relu),
    "sigmoid": (Activation("sigmoid"), torch.sigmoid),
    "tanh": (Activation("tanh"), torch.tanh),
    "softplus": (Activation("softplus"), F.softplus),
    "leaky_relu": (Activation("leaky_relu", 0.3), lambda x: F.leaky_relu(x, 0.3)),
}
SHAPES = [(BATCH_SIZE, 7), (BATCH_SIZE, 4, 7), (BATCH_SIZE, 2, 3, 4), (BATCH_SIZE, 2, 3, 2, 2), (0, 7), (0, 2, 3, 4)]


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=named)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype, shape: tuple[int, ...], scalars: int) -> None:
    step, function = ACTIVATIONS[name]
    x = normal(*shape).to(dtype)
    check(step, function, x, scalars)
    if len(shape) == 4:
        check(step, function, x.contiguous(memory_format=torch.channels_last), scalars)
        check(step, function, x.transpose(2, 3), scalars)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=named)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_a_bias(name: str, dtype: torch.dtype) -> None:
    step, function = ACTIVATIONS[name]
    tolerance = TOLERANCE[dtype]
    for z, bias in ((normal(3, 5), None), (normal(3, 5), normal(5)), (normal(2, 3, 5), normal(2, 5))):
        z, bias = z.to(dtype), None if bias is None else bias.to(dtype)
        whole = z.double() if bias is None else z.double() + bias.double().unsqueeze(-2)
        wanted = function(whole)
        torch.testing.assert_close(step.over(z.clone(), bias).double(), wanted, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("scalars", [1, 2])
@pytest.mark.parametrize("options", [(1.0, 20.0), (2.0, 5.0), (0.5, 0.1)])
def test_softplus(options: tuple[float, float], scalars: int) -> None:
    check(Softplus(*options), lambda x: F.softplus(x, *options), 3 * normal(BATCH_SIZE, 9), scalars)


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=named)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool, activation: str | None, dtype: torch.dtype, scalars: int) -> None:
    w, b = normal(5, 7).to(dtype), normal(5).to(dtype) if bias else None
    step = Linear(lambda: w, lambda: b)
    after: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    if activation is not None:
        step.activation, after = ACTIVATIONS[activation]
    for shape in ((BATCH_SIZE, 7), (BATCH_SIZE, 4, 7)):
        x = (0.5 * normal(*shape)).to(dtype)
        exact = (w.double(), None if b is None else b.double())
        check(step, lambda x, exact=exact: after(F.linear(x, *exact)), x, scalars)
    with pytest.raises(NotLowered, match="a linear layer on an input with 1 dimensions"):
        step.forward(normal(7).to(dtype))


def test_a_layer_in_bfloat16_rounds_its_weights_and_says_so_of_other_types() -> None:
    w = normal(4, 7).float()
    y, _ = Linear(lambda: w, lambda: None).forward(normal(2, 7).bfloat16())
    torch.testing.assert_close(y, F.linear(normal(2, 7).bfloat16(), w.bfloat16()), rtol=0.02, atol=0.02)
    with pytest.raises(NotLowered, match=r"weights are torch\.float32, inputs torch\.float64"):
        Linear(lambda: w, lambda: None).forward(normal(2, 7))
    with pytest.raises(NotLowered, match=r"weights are torch\.float64, inputs torch\.bfloat16"):
        as_dtype(w.double(), normal(2).bfloat16())
    assert as_dtype(None, w) is None
    assert as_dtype(w, w) is w


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(log: bool, scalars: int) -> None:
    check(Softmax(log), lambda x: x.log_softmax(-1) if log else x.softmax(-1), normal(BATCH_SIZE, 6), scalars)


@pytest.mark.parametrize("scalars", [1, 2])
def test_shapes(scalars: int) -> None:
    x = normal(BATCH_SIZE, 2, 3, 4)
    for start in range(-3, 4):
        for end in range(-3, 4):
            if start % 4 and end % 4 and start % 4 <= end % 4:
                check(Flatten(start, end), lambda x, s=start, e=end: x.flatten(s, e), x, scalars)
    for sizes in ((24,), (4, 6), (2, 12), (-1,), (6, -1), (2, 3, 4)):
        check(Reshape(sizes), lambda x, s=sizes: x.reshape(len(x), *s), x, scalars)
    check(Reshape((4, 6), inferred=True), lambda x: x.reshape(-1, 4, 6), x, scalars)
    check(Identity(), lambda x: x, x, scalars)


def test_batches_that_would_mix_are_refused() -> None:
    x = normal(BATCH_SIZE, 2, 3, 4)
    for start in (0, -4):
        with pytest.raises(NotLowered, match="flattens the batch dimension"):
            Flatten(start, -1).forward(x)
    with pytest.raises(NotLowered, match="flattens the batch dimension"):
        Flatten(1, -1).forward(normal(5))
    for sizes in ((12,), (4, 5), (2, 6)):
        with pytest.raises(NotLowered, match="a reshape that mixes examples"):
            Reshape(sizes, inferred=True).forward(x)


CONSTANTS: list[Any] = [
    2.5, -3, torch.tensor(1.5).double(), normal(4), normal(3, 1), normal(1, 3, 4), normal(2, 1, 1),
    normal(1, 2, 3, 4), normal(1),
]  # fmt: skip


@pytest.mark.parametrize("scalars", [1, 2])
@pytest.mark.parametrize("kind", Affine.forwards)
@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda c: str(tuple(c.shape)) if isinstance(c, Tensor) else str(c))
def test_arithmetic_with_constants(constant: Any, kind: str, scalars: int) -> None:
    operation = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}[kind]
    check(Affine(kind, lambda: constant), lambda x: operation(x, constant), normal(BATCH_SIZE, 2, 3, 4), scalars)


@pytest.mark.parametrize("shape", [
    (BATCH_SIZE, 1, 1, 1), (1, 1, 2, 3, 4), (BATCH_SIZE, 2, 3, 4), (3,), (2, 4), (2, 3, 1, 1), (4, 1),
])  # fmt: skip
def test_constants_that_reach_over_the_batch_or_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotLowered, match=r"a constant of shape .* with an input \(3, 2, 3, 4\)"):
        Affine("add", lambda: torch.ones(shape).double()).forward(normal(BATCH_SIZE, 2, 3, 4))


def normalised(kind: type[nn.Module], channels: int, **options: Any) -> Any:
    module: Any = kind(channels, eps=0.03, **options).double().eval()
    module.running_mean.copy_(normal(channels))
    module.running_var.copy_(normal(channels).square() + 0.2)
    if module.weight is not None:
        with torch.no_grad():
            module.weight.copy_(normal(channels, seed=5))
            module.bias.copy_(normal(channels, seed=6))
    return module


@pytest.mark.parametrize("scalars", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("kind", "shape", "ndims"), [
    (nn.BatchNorm1d, (BATCH_SIZE, 4), (2, 3)), (nn.BatchNorm1d, (BATCH_SIZE, 4, 5), (2, 3)),
    (nn.BatchNorm2d, (BATCH_SIZE, 4, 5, 2), (4,)),
])  # fmt: skip
def test_batch_norm(kind: type[nn.Module], shape: tuple[int, ...], ndims: Any, affine: bool, scalars: int) -> None:
    module = normalised(kind, 4, affine=affine)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    check(BatchNorm(module, ndims), module, normal(*shape), scalars)
    built = MODULES[kind](module)
    check(built, module, normal(*shape), scalars)


def test_batch_norm_on_what_it_is_not_for_is_refused() -> None:
    step = BatchNorm(normalised(nn.BatchNorm2d, 4), (4,))
    with pytest.raises(NotLowered, match="batch normalisation of an input with 2 dimensions"):
        step.forward(normal(3, 4))
    with pytest.raises(NotLowered, match="batch normalisation of 4 channels on 5"):
        step.forward(normal(3, 5, 2, 2))
    for module in (nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()):
        with pytest.raises(NotLowered, match="normalises with the statistics of the batch"):
            MODULES[nn.BatchNorm1d](module)


CONVOLUTIONS: list[tuple[Any, ...]] = [  # in, out, kernel, stride, padding, dilation, groups
    (2, 3, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    (2, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    (6, 4, (2, 3), (1, 2), (0, 2), (2, 1), 1),
    (2, 3, (3, 3), (1, 1), "same", (1, 1), 1),
    (2, 3, (2, 4), (1, 1), "same", (1, 1), 1),
    (2, 3, (4, 2), (1, 1), "same", (3, 1), 1),
    (2, 2, (2, 2), (2, 2), "valid", (1, 1), 1),
    (1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("scalars", [1, 2])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=named)
def test_convolutions(options: tuple[Any, ...], activation: str | None, scalars: int) -> None:
    inputs, outputs, kernel, stride, padding, dilation, groups = options
    w, b = normal(outputs, inputs // groups, *kernel), normal(outputs)
    for bias in (b, None):
        step = Conv2d(lambda: w, lambda bias=bias: bias, stride, padding, dilation, groups)
        after: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
        if activation is not None:
            step.activation, after = ACTIVATIONS[activation]

        def function(x: Tensor, bias: Tensor | None = bias, after: Any = after) -> Tensor:
            return after(F.conv2d(x, w, bias, stride, padding, dilation, groups))

        x = normal(BATCH_SIZE, inputs, 7, 8)
        check(step, function, x, scalars)
        check(step, function, x.contiguous(memory_format=torch.channels_last), scalars)
    with pytest.raises(NotLowered, match="a convolution on an input with 3 dimensions"):
        step.forward(normal(inputs, 7, 8))
    with pytest.raises(NotLowered, match="a convolution on an input with 5 dimensions"):
        step.forward(normal(1, 1, inputs, 7, 8))


POOLS: list[tuple[Any, ...]] = [  # size, stride, padding, dilation, ceil_mode
    (2, None, 0, 1, False), (3, 2, 1, 1, False), ((2, 3), (1, 2), (1, 0), 1, True), (2, 1, 0, 2, False),
    (2, 2, 0, (1, 2), True), ((3, 2), None, (1, 1), 1, False), (2, 3, 0, 1, True),
]  # fmt: skip


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("options", POOLS, ids=named)
def test_max_pooling(options: tuple[Any, ...], relu: bool, scalars: int) -> None:
    size, stride, padding, dilation, ceil_mode = options
    step = MaxPool2d(*options)
    step.relu = relu

    def function(x: Tensor) -> Tensor:
        return F.max_pool2d(x.relu() if relu else x, size, stride, padding, dilation, ceil_mode)

    for dtype in TOLERANCE:
        x = normal(BATCH_SIZE, 3, 6, 7).to(dtype)
        check(step, function, x, scalars)
        check(step, function, x.contiguous(memory_format=torch.channels_last), scalars)
    for wrong in (normal(3, 6, 7), normal(1, 1, 3, 6, 7)):
        with pytest.raises(NotLowered, match="max-pooling on an input"):
            step.forward(wrong)


@pytest.mark.parametrize("scalars", [1, 2])
@pytest.mark.parametrize("options", [
    (2, None, 0, False, True, None), (3, 1, 1, False, False, None), (3, 2, 1, True, True, None),
    ((2, 3), (2, 1), (1, 0), False, False, 5), (2, 1, 0, False, True, 3),
])  # fmt: skip
def test_average_pooling(options: tuple[Any, ...], scalars: int) -> None:
    check(AvgPool2d(*options), lambda x: F.avg_pool2d(x, *options), normal(BATCH_SIZE, 2, 6, 7), scalars)
    check(GlobalAvgPool2d(), lambda x: F.adaptive_avg_pool2d(x, 1), normal(BATCH_SIZE, 2, 6, 7), scalars)
    for step in (AvgPool2d(*options), GlobalAvgPool2d()):
        for wrong in (normal(2, 6, 7), normal(1, 1, 2, 6, 7)):
            with pytest.raises(NotLowered, match="average-pooling on an input"):
                step.forward(wrong)


def test_forms_of_images() -> None:
    x = normal(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    one = normal(2, 1, 4, 5)
    assert form_of(x) is form_of(x[0]) is form_of(one) is torch.contiguous_format
    assert form_of(last) is torch.channels_last
    for image in (x, last, one, channels_last(one), x.transpose(2, 3)):
        rows = flat(image)
        assert rows.shape == (2, math.prod(image.shape[1:]))
        if image is not x.transpose(2, 3) and form_of(image) is not torch.contiguous_format:
            assert rows.data_ptr() == image.data_ptr()
    for image in (x, last, one):
        torch.testing.assert_close(unflat(flat(image), image), image, rtol=0, atol=0)
    assert torch.equal(flat(last)[0, :3], last[0, :, 0, 0])
    strided = channels_last(one)
    assert strided.stride() == (20, 1, 5, 1)
    assert torch.equal(strided, one)
    assert channels_last(x).stride() == (60, 1, 15, 3)
    assert torch.equal(channels_last(x), x)
    assert pair(3) == (3, 3)
    assert pair([1, 2]) == (1, 2)


# -- which step stands for what


@pytest.mark.parametrize("module", [
    nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.2), nn.Softplus(), nn.Softplus(2, 3), nn.Flatten(),
    nn.Identity(), nn.Flatten(2, 3), nn.Flatten(-2), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.MaxPool2d(2),
    nn.MaxPool2d((2, 1), 1, ceil_mode=True), nn.MaxPool2d(2, 1, dilation=2), nn.MaxPool2d(3, padding=1),
    nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, True, False), nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 4, (2, 3), dilation=2, groups=2, bias=False),
    nn.Conv2d(2, 2, 3, padding="same"), nn.Linear(6, 3), nn.Linear(6, 3, bias=False),
])  # fmt: skip
def test_modules(module: nn.Module) -> None:
    module = module.double().eval().requires_grad_(False)
    step = MODULES[type(module)](module)
    check(step, module, normal(BATCH_SIZE, 2, 5, 6), 2)


@pytest.mark.parametrize(("module", "reason"), [
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
    (nn.MaxPool2d(2, return_indices=True), "max-pooling that returns indices"),
    (nn.AdaptiveAvgPool2d(2), "adaptive pooling to 2"), (nn.AdaptiveAvgPool2d((1, None)), r"adaptive pooling to \(1"),
    (nn.Dropout().train(), "dropout in train mode"), (nn.Softmax(0), "softmax over dimension 0"),
    (nn.LogSoftmax(2), "softmax over dimension 2"), (nn.Softmax(), "softmax over dimension None"),
    (nn.LeakyReLU(0.0), r"negative_slope 0\.0"), (nn.LeakyReLU(-0.1), r"negative_slope -0\.1"),
])  # fmt: skip
def test_modules_that_are_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(NotLowered, match=reason):
        MODULES[type(module)](module)


@pytest.mark.parametrize("dim", [1, -1])
def test_softmax_over_the_classes(dim: int) -> None:
    for module in (nn.Softmax(dim), nn.LogSoftmax(dim)):
        check(MODULES[type(module)](module), module, normal(BATCH_SIZE, 5))
    for function in (F.softmax, torch.softmax, F.log_softmax, torch.log_softmax):
        check(FUNCTIONS[function](dim), lambda x, f=function: f(x, dim), normal(BATCH_SIZE, 5))
    for name in ("softmax", "log_softmax"):
        check(METHODS[name](dim), lambda x, name=name: getattr(x, name)(dim), normal(BATCH_SIZE, 5))


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (F.relu, (), {}), (F.relu, (), {"inplace": False}), (torch.relu, (), {}), (torch.sigmoid, (), {}),
    (F.sigmoid, (), {}), (torch.tanh, (), {}), (F.tanh, (), {}), (F.leaky_relu, (), {}), (F.leaky_relu, (0.3,), {}),
    (F.softplus, (), {}), (F.softplus, (2, 4), {}), (F.softplus, (), {"threshold": 0.5}),
    (F.dropout, (0.5, False), {}), (F.dropout2d, (), {"training": False}),
    (F.max_pool2d, (2,), {}), (F.max_pool2d, (3, 2, 1, 1, True), {}), (torch.max_pool2d, (2, 1), {"dilation": 2}),
    (F.avg_pool2d, (2,), {}), (F.avg_pool2d, (3, 2, 1, True, False, 7), {}), (F.adaptive_avg_pool2d, (1,), {}),
    (torch.flatten, (1,), {}), (torch.flatten, (), {"start_dim": 2, "end_dim": 3}),
    (torch.add, (2.0,), {}), (torch.sub, (2.0,), {}), (torch.mul, (2.0,), {}), (torch.div, (4.0,), {}),
    (torch.neg, (), {}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args", "options"), CALLS, ids=named)
def test_functions(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    check(
        FUNCTIONS[function](*args, **options), lambda x: function(x, *args, **options), normal(BATCH_SIZE, 2, 5, 6), 2
    )


def test_functions_with_weights() -> None:
    w, b = normal(3, 6), normal(3)
    check(FUNCTIONS[F.linear](lambda: w, lambda: b), lambda x: F.linear(x, w, b), normal(BATCH_SIZE, 6))
    check(FUNCTIONS[F.linear](lambda: w), lambda x: F.linear(x, w), normal(BATCH_SIZE, 6))
    k, c = normal(4, 1, 2, 3), normal(4)
    strided = 2, 1, (1, 2), 2
    for args, live in (
        ((k,), (lambda: k,)),
        ((k, c), (lambda: k, lambda: c)),
        ((k, c, *strided), (lambda: k, lambda: c, *strided)),
    ):
        groups = 2 if len(args) > 2 else 1
        x = normal(BATCH_SIZE, groups, 6, 7)
        for function in (F.conv2d, torch.conv2d):
            check(FUNCTIONS[function](*live), lambda x, args=args, f=function: f(x, *args), x, 2)
    check(FUNCTIONS[F.conv2d](lambda: k, padding="same"), lambda x: F.conv2d(x, k, padding="same"), normal(2, 1, 6, 7))


def test_methods() -> None:
    x = normal(BATCH_SIZE, 2, 3)
    plain = [(name, ()) for name in ("relu", "sigmoid", "tanh", "neg", "contiguous")]
    numbers = [
        ("add", (2.0,)),
        ("sub", (2.0,)),
        ("mul", (3.0,)),
        ("div", (4.0,)),
        ("flatten", (1,)),
        ("flatten", (1, 2)),
    ]
    for name, args in (*plain, *numbers):
        check(METHODS[name](*args), lambda x, name=name, args=args: getattr(x, name)(*args), x, 2)
    for name in ("view", "reshape"):
        for sizes in ((BATCH, 6), (BATCH, 3, 2), (-1, 6), (-1, 3, 2), (BATCH, -1)):
            given = tuple(len(x) if size is BATCH else size for size in sizes)
            check(METHODS[name](*sizes), lambda x, given=given: x.reshape(given), x, 1)
            check(METHODS[name](sizes), lambda x, given=given: x.reshape(given), x, 1)
    check(METHODS["reshape"](shape=(BATCH, 6)), lambda x: x.reshape(-1, 6), x)
    check(FUNCTIONS[torch.reshape]((BATCH, 6)), lambda x: x.reshape(-1, 6), x)


@pytest.mark.parametrize(("build", "reason"), [
    *((lambda sizes=sizes: METHODS["view"](*sizes), "a reshape that is not to") for sizes in (
        (3, 6), (-1, -1), (-1, 0), (), (BATCH, "6"), (6, BATCH), (-1, BATCH), (BATCH, BATCH), (0, 6),
    )),
    (lambda: FUNCTIONS[torch.add](1.0, alpha=2), "add with alpha"),
    (lambda: FUNCTIONS[torch.sub](1.0, alpha=2), "sub with alpha"),
    (lambda: FUNCTIONS[torch.div](1.0, rounding_mode="floor"), "division with rounding"),
    (lambda: FUNCTIONS[F.dropout](), "dropout in train mode"),
    (lambda: FUNCTIONS[F.max_pool2d](2, return_indices=True), "max-pooling that returns indices"),
    (lambda: FUNCTIONS[F.softmax](1, dtype=torch.float64), "softmax in another dtype"),
    (lambda: FUNCTIONS[F.softmax](0), "softmax over dimension 0"),
    (lambda: FUNCTIONS[F.leaky_relu](-1.0), "negative_slope"),
    (lambda: FUNCTIONS[F.adaptive_avg_pool2d](3), "adaptive pooling to 3"),
])  # fmt: skip
def test_calls_that_are_refused(build: Callable[[], Any], reason: str) -> None:
    with pytest.raises(NotLowered, match=reason):
        build()


def test_tensors_are_read_when_they_are_asked_for() -> None:
    module = nn.Linear(2, 2)
    read = layers.live(module, "weight")
    assert read() is module.weight
    module.weight = nn.Parameter(torch.zeros(2, 2))
    assert read() is module.weight
    module.extra = torch.ones(3)
    assert layers.live(module, "extra")() is module.extra
    assert layers.live(nn.Linear(2, 2, bias=False), "bias")() is None


# -- autograd, as a step


def asked(model: Callable[[Tensor], Any], x: Tensor, precision: str = "float32") -> tuple[Tensor, Any]:
    return Autograd(model).forward(x, precision)


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("inference", [False, True])
def test_any_model(inference: bool, scalars: int) -> None:
    w = normal(4, 6)
    seeds = normal(BATCH_SIZE * scalars, 4, seed=2)
    with torch.inference_mode(inference), torch.no_grad():
        x = normal(BATCH_SIZE, 2, 3)
        y, saved = asked(lambda x: torch.tanh(x.flatten(1)) @ w.t(), x)
        found = Autograd(len).backward(seeds, saved)
    wanted, back = torch.func.vjp(lambda x: torch.tanh(x.flatten(1)) @ w.t(), x.clone())
    torch.testing.assert_close(y.clone(), wanted)
    assert not y.requires_grad
    assert not found.requires_grad
    for scalar in range(scalars):
        torch.testing.assert_close(found[scalar::scalars].clone(), back(seeds[scalar::scalars].clone())[0])


def test_the_type_that_a_model_is_asked_in() -> None:
    for dtype, precision, wanted in (
        (torch.float64, "bf16", torch.float64), (torch.float64, "float32", torch.float64),
        (torch.bfloat16, "float32", torch.bfloat16), (torch.bfloat16, "bf16", torch.float32),
        (torch.float32, "bf16", torch.float32),
    ):  # fmt: skip
        y, (leaf, _) = asked(lambda x: 2 * x, normal(2, 3).to(dtype), precision)
        assert (y.dtype, leaf.dtype) == (wanted, wanted)
    weight = normal(3, 3).float()
    assert asked(lambda x: x @ weight, normal(2, 3).float(), "bf16")[0].dtype is torch.bfloat16, "under autocast"
    assert asked(lambda x: x @ weight, normal(2, 3).float())[0].dtype is torch.float32


def test_models_may_write_to_what_they_are_given_and_return_what_they_keep() -> None:
    x, buffer = normal(2, 3), torch.zeros(2, 3).double()

    def writes(x: Tensor) -> Tensor:
        x.mul_(3)
        buffer.copy_(x.detach())
        return x

    before = x.clone()
    y, saved = asked(writes, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, 3 * before)
    found = Autograd(writes).backward(torch.ones(2, 3).double(), saved)
    torch.testing.assert_close(found, torch.full((2, 3), 3.0).double())
    y, saved = asked(lambda x: buffer, x)
    buffer.zero_()
    assert bool((y != 0).all())
    found = Autograd(writes).backward(torch.ones(4, 3).double(), saved)
    assert torch.equal(found, torch.zeros(4, 3).double()), "no gradient where the answer does not depend on the input"


def test_an_answer_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="the model must return a tensor of logits, not tuple"):
        asked(lambda x: (x,), normal(2, 3))


def test_some_inputs_that_an_answer_does_not_use_have_no_gradient() -> None:
    parameter = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    _, saved = asked(lambda x: parameter * 2, normal(2, 3))
    assert torch.equal(Autograd(len).backward(torch.ones(2, 3).double(), saved), torch.zeros(2, 3).double())


def test_weights_are_kept_in_bfloat16_where_that_is_what_is_computed_in() -> None:
    small, large = nn.Linear(4, 3), nn.Linear(2**10, 2**9)
    for layer, keeps in ((small, True), (large, False)):
        step = Linear(layers.live(layer, "weight"), layers.live(layer, "bias"))
        assert step.take(torch.ones(1, 1), "float32") is step
        assert (step.take(torch.ones(1, 1), "bf16") is not step) == keeps
    step = Linear(layers.live(small, "weight"), layers.live(small, "bias"))
    step.keeps_bfloat16 = False
    assert step.take(torch.ones(1, 1), "bf16") is step
    assert Linear(layers.live(small.double(), "weight"), layers.live(small, "bias")).take(torch.ones(1), "bf16")


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Identity())], ids=str)
def test_what_is_returned_is_neither_the_input_nor_in_a_graph(model: nn.Module) -> None:
    x = normal(3, 4).requires_grad_()
    found = sp.input_grad(model, x, torch.tensor([0, 1, 2]))
    assert not any(tensor.requires_grad for tensor in found)
    kept = found.logits.clone()
    with torch.no_grad():
        x.zero_()
    assert torch.equal(found.logits, kept)
    assert not sp.jacobian(model, x).requires_grad
    assert not Identity().forward(run([], x, "float32")[0])[0].requires_grad


@pytest.mark.parametrize("kind", Affine.forwards)
def test_constants_take_the_type_of_what_they_meet(kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        y, saved = Affine(kind, lambda: normal(4)).forward(normal(2, 4).to(dtype))
        assert y.dtype is dtype
        assert Affine(kind, lambda: 2.0).backward(torch.ones(2, 4, dtype=dtype), saved).dtype is dtype
