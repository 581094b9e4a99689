"""Kernels get addresses: whatever the strides of an argument, the answer is that for contiguous ones, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sparring.gradients import kernels
from sparring.gradients.kernels import DenseLayer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def whole(count: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(count) * 7 % below).to(dtype)


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same entries in other memory: behind others, with gaps in each dimension, in any order of the dimensions."""
    yield "offset", torch.cat([tensor.new_ones(3), tensor.flatten()])[3:].view(tensor.shape)
    for dim in range(tensor.ndim):
        for gap in (2, 3):
            spread = tensor.new_ones([n * gap if d == dim else n for d, n in enumerate(tensor.shape)])
            at = tuple(slice(1, None, gap) if d == dim else slice(None) for d in range(tensor.ndim))
            spread[at] = tensor
            yield f"gaps of {gap} in {dim}", spread[at]
        order = [dim, *(d for d in range(tensor.ndim) if d != dim)]
        back = [order.index(d) for d in range(tensor.ndim)]
        yield f"{dim} outermost", tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
        order = [*order[1:], dim]
        back = [order.index(d) for d in range(tensor.ndim)]
        yield f"{dim} innermost", tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
    if tensor.ndim == 4:
        yield "channels last", tensor.clone(memory_format=torch.channels_last)


class Call(NamedTuple):
    run: Callable[..., Any]
    arguments: tuple[Tensor, ...]


def calls() -> Iterator[tuple[str, Call]]:
    for shape in ((4, 3, 5), (4, 3, 2), (1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1), (2, 0, 3)):
        m, b, k = shape
        yield f"bias_activation_ {shape}", Call(
            lambda z, bias: kernels.bias_activation_(z, bias, "tanh", out=torch.empty(z.shape, dtype=z.dtype)),
            (normal(*shape), normal(m, k)),
        )  # fmt: skip
        yield (
            f"in place {shape}",
            Call(
                lambda z, bias: kernels.bias_activation_(z, bias, "leaky_relu", slope=0.3), (normal(*shape), normal(k))
            ),
        )
        yield f"activation_backward_ {shape}", Call(
            lambda grad, out: kernels.activation_backward_(grad, out, "sigmoid"),
            (normal(*shape), normal(*shape, seed=1).sigmoid()),
        )  # fmt: skip
        yield f"activation_backward_ of several {shape}", Call(
            lambda grad, out: kernels.activation_backward_(grad, out, "sigmoid"),
            (normal(*shape), normal(m, k, seed=1).sigmoid()),
        )  # fmt: skip
        yield f"pairwise_cosine {shape}", Call(kernels.pairwise_cosine, (normal(*shape),))
        if k > 1:
            yield f"loss_grad of several {shape}", Call(
                lambda logits, weights, labels, targets: kernels.loss_grad(
                    logits, weights, labels, targets, "margin", "logits", shares=True
                ),
                (normal(*shape), normal(m).softmax(0), whole(b, k), (whole(b, k) + 1) % k),
            )  # fmt: skip
            yield f"loss_grad {shape}", Call(kernels.loss_grad, (normal(b, k), normal(1), (whole(b, k) + 1) % k))
            yield f"loss_grad of one with targets {shape}", Call(
                lambda logits, labels, targets: kernels.loss_grad(logits, None, labels, targets, "dlr"),
                (normal(b, max(k, 4)), (whole(b, k) + 1) % k, whole(b, k)),
            )  # fmt: skip
    for m, b, k in ((1, 3, 4), (3, 3, 4), (3, 1, 2), (2, 3, 2), (1, 1, 2)):
        weights = (normal(m, 6, 5), normal(m, 6), normal(m, k, 6), normal(m, k))
        weights = weights if m > 1 else tuple(w[0] for w in weights)
        yield f"dense_network {(m, b, k)}", Call(
            lambda x, a, c, e, d, labels, targets: kernels.dense_network(
                x, [DenseLayer(a, c, "tanh"), DenseLayer(e, d)], labels, targets
            ),
            (normal(b, 5), *weights, whole(b, k), (whole(b, k) + 1) % k),
        )  # fmt: skip
        yield (
            f"dense_network without targets {(m, b, k)}",
            Call(
                lambda x, a, e, labels: kernels.dense_network(x, [DenseLayer(a, None), DenseLayer(e, None)], labels),
                (normal(b, 5), weights[0], weights[2], (whole(b, k) + 1) % k),
            ),
        )
    for shape in ((2, 3, 6, 7), (2, 1, 6, 7), (1, 3, 6, 6), (1, 1, 6, 7), (3, 6, 2, 2)):
        b, c, h, w = shape
        yield (
            f"relu_pool {shape}",
            Call(lambda z, bias: kernels.relu_pool(z, bias, (2, 2), (2, 2)), (normal(*shape), normal(c))),
        )
        index = kernels.relu_pool(normal(*shape), None, (2, 2), (2, 2))[1]
        yield f"relu_pool_backward {shape}", Call(
            lambda grad, index, h=h, w=w: kernels.relu_pool_backward(grad, index, (h, w), (2, 2), (2, 2)),
            (normal(*index.shape), index.contiguous()),
        )  # fmt: skip
        yield f"conv_input_grad {shape}", Call(
            lambda grad, weight, shape=shape: kernels.conv_input_grad(grad, weight, shape),
            (normal(b, 4, h - 1, w - 1), normal(4, c, 2, 2)),
        )  # fmt: skip
        yield f"conv_input_grad of one channel {shape}", Call(
            lambda grad, weight, shape=shape: kernels.conv_input_grad(grad, weight, shape, (2, 1), (1, 0), (1, 1)),
            (normal(b, 1, (h + 2 - 2) // 2 + 1, w - 1), normal(1, c, 2, 2)),
        )  # fmt: skip
    answers = normal(3, 130) > 0
    yield "agreement_counts", Call(kernels.agreement_counts, (answers,))
    yield "packed_bits", Call(kernels.packed_bits, (answers,))
    yield "packed_bits of one", Call(kernels.packed_bits, (answers[:1, :3],))


CALLS = dict(calls())


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


@pytest.mark.parametrize("name", CALLS)
def test_strides_do_not_matter(name: str) -> None:
    call = CALLS[name]
    wanted = [tensor.clone() for tensor in tensors(call.run(*(argument.clone() for argument in call.arguments)))]
    refused: list[str] = []
    for at, argument in enumerate(call.arguments):
        for layout, other in layouts(argument):
            before, after = call.arguments[:at], call.arguments[at + 1 :]
            given = [*(each.clone() for each in before), other, *(each.clone() for each in after)]
            try:
                found = tensors(call.run(*given))
            except ValueError as error:
                refused.append(str(error))
                continue
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13, msg=f"argument {at}, {layout}")
    assert all("has no rows that are contiguous" in why for why in refused)
    assert not refused or "activation" in name or "in place" in name


@pytest.mark.parametrize("name", ["labels", "targets"])
@pytest.mark.parametrize("call", ["loss_grad", "loss_grad of several", "dense_network", "dense_network of several"])
def test_classes_are_of_the_batch_and_int64(call: str, name: str) -> None:
    """What would be read as addresses of other memory is refused."""
    several = call.endswith("several")
    x = normal(3, 4)
    layers = [DenseLayer(normal(2, 2, 4) if several else normal(2, 4), None)]

    def run(**changed: Tensor) -> Any:
        classes = {"labels": torch.tensor([0, 1, 0]), "targets": torch.tensor([1, 0, 1])} | changed
        if call.startswith("loss_grad"):
            logits = normal(2, 3, 2) if several else normal(3, 2)
            return kernels.loss_grad(logits, None, classes["labels"], classes["targets"])
        return kernels.dense_network(x, layers, classes["labels"], classes["targets"])

    assert run().loss.shape == (3,)
    for wrong, reason in (
        (torch.tensor([0, 1]), f"{name} does not fit the batch"), (torch.tensor([[0, 1, 0]]), "does not fit the batch"),
        (torch.tensor([0, 1, 0], dtype=torch.int32), rf"{name} are torch\.int32 on 'cpu', not int64"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), f"{name} is on device 'meta'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            run(**{name: wrong})


@pytest.mark.parametrize("shape", [(4, 2, 2, 2), (3, 3, 2, 2), (4, 3, 3, 2), (4, 4, 2, 2)])
def test_weights_of_another_convolution_are_refused(shape: tuple[int, ...]) -> None:
    grad = normal(2, 4, 5, 6)
    assert kernels.conv_input_grad(grad, normal(4, 3, 2, 2), (2, 3, 6, 7)).shape == (2, 3, 6, 7)
    with pytest.raises(ValueError, match=r"weight does not fit grad and input_shape|grad does not fit input_shape"):
        kernels.conv_input_grad(grad, normal(*shape), (2, 3, 6, 7))
