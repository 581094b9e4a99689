"""Bias with activation, its way back, and losses with their gradients at the logits: on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import losses
from sparring.gradients import kernels

Run = Callable[..., Any]
DTYPES = [torch.float32, torch.float64]
SLOPE = 0.1
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1, seed: int = 0) -> Tensor:
    return (scale * torch.randn(shape, generator=_generator(seed), dtype=torch.float64)).to(dtype)


def _accuracy(dtype: torch.dtype) -> dict[str, float]:
    """A few units in the last place; what would be subnormal may be 0."""
    return {"rtol": 8 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).tiny}


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 37), (2, 300), (2, 3, 33)], ids=str)
def test_bias_and_activation_and_back(run: Run, kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    spread = torch.tensor([1e-4, 1.0, 30.0]).to(dtype).repeat(shape[-1])[: shape[-1]]
    z, bias = _normal(*shape, dtype=dtype) * spread, _normal(shape[-1], dtype=dtype, scale=0.1, seed=1)
    x = (z + bias).double().requires_grad_()
    expected = TORCHS[kind](x)
    grad = _normal(*shape, dtype=dtype, seed=2)
    (expected_grad,) = torch.autograd.grad(expected, x, grad.double())

    output = run(kernels.bias_activation_, z.clone(), bias, kind, slope=SLOPE)
    torch.testing.assert_close(output.double(), expected.detach(), **_accuracy(dtype))
    back = run(kernels.activation_backward_, grad.clone(), output, kind, slope=SLOPE)
    # relative to grad: near saturation the output has no more to tell
    torch.testing.assert_close(back.double(), expected_grad, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_a_bias_for_every_network_of_a_stack(run: Run) -> None:
    z, bias = _normal(3, 4, 10), _normal(3, 10, seed=1)
    assert torch.equal(run(kernels.bias_activation_, z.clone(), bias, "relu"), F.relu(z + bias[:, None]))
    assert torch.equal(run(kernels.bias_activation_, z.clone(), None, "relu"), F.relu(z))


def test_in_place_out_and_strides() -> None:
    whole = _normal(4, 20)
    z, bias = whole[:, 3:13], _normal(10, seed=1)
    expected, before = F.relu(z + bias), whole.clone()
    out = torch.empty(4, 10)
    assert kernels.bias_activation_(z, bias, "relu", out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(whole, before)
    assert kernels.bias_activation_(z, bias, "relu") is z
    assert torch.equal(z, expected)
    z.copy_(before[:, 3:13])
    assert torch.equal(whole, before), "wrote outside of the rows"


def test_several_gradients_of_one_output(run: Run) -> None:
    output, grad = _normal(4, 40, seed=1), _normal(4, 3, 40)
    back = run(kernels.activation_backward_, grad.clone(), output, "relu")
    assert torch.equal(back, grad * (output > 0)[:, None])


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_at_the_extremes(run: Run, kind: str, dtype: torch.dtype) -> None:
    z = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, 1e30, -1e30, 20.5, 100.0, -100.0]], dtype=dtype)
    output = run(kernels.bias_activation_, z.clone(), None, kind, slope=SLOPE)
    torch.testing.assert_close(output, TORCHS[kind](z), **_accuracy(dtype) | {"atol": 1e-37}, equal_nan=True)


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_nan_goes_back_except_where_relu_was_inactive(run: Run, kind: str) -> None:
    output = torch.tensor([[0.5, 0.0]])
    back = run(kernels.activation_backward_, torch.full((1, 2), math.nan), output, kind, slope=SLOPE)
    assert back.isnan().tolist() == [[True, kind != "relu"]]


def _oracle(logits: Tensor, weights: Tensor, labels: Tensor, targets: Tensor | None, loss: str, combine: str) -> Any:
    """Losses, their gradient by autograd, and combined logits, in float64."""
    z = logits.detach().double().requires_grad_()
    w = weights.double()[:, None, None]
    if len(z) == 1:
        combined = z[0]
    elif combine == "probs":
        combined = (z.log_softmax(-1) + w.log()).logsumexp(0)
    else:
        combined = (w * (z if combine == "logits" else z.log_softmax(-1))).sum(0)
    if combine == "loss":
        value = sum(w[m, 0, 0] * losses.value(loss, z[m], labels, targets) for m in range(len(z)))
    else:
        value = losses.value(loss, combined, labels, targets)
    (grad,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), grad, combined.detach()


def _weights(members: int) -> Tensor:
    w = 0.1 + torch.rand(members, generator=_generator(5), dtype=torch.float64)
    return w / w.sum()


def _classes(batch: int, classes: int, targeted: bool) -> tuple[Tensor, Tensor | None]:
    labels = torch.randint(classes, (batch,), generator=_generator(6))
    return labels, (labels + 1) % classes if targeted else None


def _assert_loss_grad(result: kernels.LossGrad, oracle: Any, loss: str) -> None:
    value, grad, combined = oracle
    tol, least = (1e-5, 1e-9) if result.loss.dtype is torch.float32 else (1e-12, 1e-3)
    size = combined.abs().amax(1).clamp(min=1)
    scale = grad.abs().amax((0, 2))
    if loss == "dlr":  # its terms are as large as 1 / (z1 - z3), and may cancel
        top = combined.sort(dim=1, descending=True).values
        scale = scale.maximum(1 / (top[:, 0] - top[:, 2]))
        size = size * scale
    assert bool(((result.loss - value).abs() <= tol * (value.abs() + 0.1 * size)).all())
    assert bool(((result.grad - grad).abs() <= tol * scale.clamp(min=least)[:, None]).all())
    torch.testing.assert_close(result.combined.double(), combined, rtol=tol, atol=tol)


@pytest.mark.parametrize("combine", kernels.COMBINES)
@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_grad_is_autograds(run: Run, combine: str, loss: str, targeted: bool, dtype: torch.dtype) -> None:
    for members, batch, classes in ((1, 4, 10), (3, 3, 10), (1, 2, 70), (40, 2, 5), (3, 2, 16), (2, 2, 150)):
        logits = _normal(members, batch, classes, dtype=dtype, scale=5)
        weights, (labels, targets) = _weights(members), _classes(batch, classes, targeted)
        oracle = _oracle(logits, weights, labels, targets, loss, combine)
        result = run(kernels.loss_grad, logits, weights, labels, targets, loss, combine)
        _assert_loss_grad(result, oracle, loss)


@pytest.mark.parametrize("combine", kernels.COMBINES)
@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shares_train_the_weights(run: Run, combine: str, loss: str, dtype: torch.dtype) -> None:
    """Through w = softmax(a), where the direction in which all weights grow is of no account."""
    for members, batch, classes in ((3, 3, 10), (40, 2, 5), (2, 2, 150)):
        logits = _normal(members, batch, classes, dtype=dtype, scale=3)
        a = _normal(members, dtype=torch.float64, seed=7).requires_grad_()
        labels, targets = _classes(batch, classes, True)
        result = run(kernels.loss_grad, logits, a.detach().softmax(0), labels, targets, loss, combine, shares=True)
        plain = run(kernels.loss_grad, logits, a.detach().softmax(0), labels, targets, loss, combine)
        assert plain.shares is None
        assert all(torch.equal(mine, other) for mine, other in zip(result[:3], plain[:3], strict=True))
        w = a.softmax(0)[:, None, None]
        z = logits.double()
        mixed = (w * z).sum(0) if combine == "logits" else (z.log_softmax(2) + w.log()).logsumexp(0)
        if combine == "loss":
            value = sum(w[m, 0, 0] * losses.value(loss, z[m], labels, targets) for m in range(members))
        else:
            value = losses.value(loss, mixed, labels, targets)
        for i in range(batch):
            (right,) = torch.autograd.grad(torch.as_tensor(value)[i], a, retain_graph=True)
            share = result.shares[i].double()
            ours = share - a.detach().softmax(0) * share.sum()
            tol = 1e-10 if dtype is torch.float64 else 2e-5
            torch.testing.assert_close(ours, right, rtol=tol, atol=tol * float(share.abs().max()))
    assert run(kernels.loss_grad, logits[:1], None, labels, shares=True).shares is None
    wrong = run(kernels.loss_grad, logits, None, torch.full((batch,), -1), shares=True)
    assert bool(wrong.shares.isnan().all())


def test_layouts_of_the_logits_agree(run: Run) -> None:
    logits, weights = _normal(3, 4, 10), _weights(3)
    labels, _ = _classes(4, 10, False)
    plain = run(kernels.loss_grad, logits, weights, labels)
    stacked = logits.transpose(0, 1).reshape(4, 30).view(4, 3, 10).transpose(0, 1)
    wide = torch.zeros(3, 4, 12)[:, :, :10].copy_(logits)
    for other in (stacked, wide, logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        result = run(kernels.loss_grad, other, weights, labels)
        assert all(torch.equal(a, b) for a, b in zip(plain[:3], result[:3], strict=True))
    assert kernels.loss_grad(stacked, weights, labels).grad.stride() == stacked.stride()
    one = run(kernels.loss_grad, logits[1], None, labels)
    same = run(kernels.loss_grad, logits[1:2], None, labels)
    assert one.grad.shape == (4, 10)
    assert torch.equal(one.grad, same.grad[0])
    assert torch.equal(one.combined, logits[1])


def test_certain_networks_keep_their_gradient(run: Run) -> None:
    """Two classes 30 apart: p of the label is 1 in float32, and 1 - p is e^-30."""
    logits, labels = torch.tensor([[30.0, 0.0]]), torch.tensor([0])
    rest = math.exp(-30)
    ce = run(kernels.loss_grad, logits, None, labels, None, "ce")
    torch.testing.assert_close(ce.loss, torch.tensor([rest]), rtol=1e-5, atol=0)
    torch.testing.assert_close(ce.grad, torch.tensor([[-rest, rest]]), rtol=1e-5, atol=0)
    prob = run(kernels.loss_grad, logits, None, labels, None, "prob")
    torch.testing.assert_close(prob.grad, torch.tensor([[-rest, rest]]), rtol=1e-5, atol=0)
    both = run(kernels.loss_grad, logits.expand(2, 1, 2).contiguous(), None, labels, None, "ce", "probs")
    torch.testing.assert_close(both.loss, torch.tensor([rest]), rtol=1e-5, atol=0)
    torch.testing.assert_close(both.grad, torch.tensor([[-rest, rest]]).expand(2, 1, 2) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("combine", kernels.COMBINES)
def test_probabilities_that_underflow_keep_their_gradient(run: Run, combine: str) -> None:
    logits = torch.tensor([[[0.0, 200.0, 3.0]], [[0.0, 170.0, 250.0]], [[0.0, 150.0, -40.0]]])
    labels, weights = torch.tensor([0]), _weights(3)
    result = run(kernels.loss_grad, logits, weights, labels, None, "ce", combine)
    _assert_loss_grad(result, _oracle(logits, weights, labels, None, "ce", combine), "ce")
    assert float(result.loss) > 100


def test_members_of_weight_zero_do_not_count(run: Run) -> None:
    logits, labels = _normal(3, 2, 10), torch.tensor([1, 2])
    logits[1] = 300 * logits[1]
    for combine in kernels.COMBINES:
        weights = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64)
        result = run(kernels.loss_grad, logits, weights, labels, None, "ce", combine)
        two = run(kernels.loss_grad, logits[::2].contiguous(), weights[::2].contiguous(), labels, None, "ce", combine)
        torch.testing.assert_close(result.loss, two.loss)
        torch.testing.assert_close(result.grad[::2], two.grad)
        assert bool((result.grad[1] == 0).all())


def test_among_equal_logits_the_lowest_index_has_the_gradient(run: Run) -> None:
    logits, labels = torch.tensor([[1.0, 3.0, 3.0, 3.0]]), torch.tensor([2])
    assert run(kernels.loss_grad, logits, None, labels, None, "margin").grad.tolist() == [[0, 1, -1, 0]]
    assert run(kernels.loss_grad, torch.zeros(1, 3), None, torch.tensor([0]), None, "margin").grad.tolist() == [
        [-1, 1, 0]
    ]


@pytest.mark.parametrize("loss", ["ce", "prob"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("classes", [10, 40])
def test_bad_logits_spoil_their_row_alone(run: Run, loss: str, bad: float, classes: int) -> None:
    logits, labels = _normal(2, 3, classes), torch.tensor([0, 1, 2])
    logits[1, 1, 7] = bad
    for z in (logits, logits[1]):
        result = run(kernels.loss_grad, z, None, labels, None, loss)
        assert result.loss.isnan().tolist() == [False, True, False]
        assert bool(result.grad[..., 1, :].isnan().any())
        assert not bool(result.grad[..., [0, 2], :].isnan().any())


def test_a_class_at_minus_infinity_has_no_part(run: Run) -> None:
    logits, labels = _normal(1, 10), torch.tensor([0])
    logits[0, 4] = -math.inf
    result = run(kernels.loss_grad, logits, None, labels)
    without = run(kernels.loss_grad, logits[:, [0, 1, 2, 3, 5, 6, 7, 8, 9]], None, labels)
    torch.testing.assert_close(result.loss, without.loss)
    assert result.grad[0, 4] == 0


def test_labels_that_are_no_class_give_nan(run: Run) -> None:
    logits = _normal(2, 4, 10)
    result = run(kernels.loss_grad, logits, None, torch.tensor([1, 10, -1, 3]), torch.tensor([2, 0, 0, 99]))
    for part in (result.loss, result.grad.sum((0, 2)), result.combined.sum(1)):
        assert part.isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("combine", kernels.COMBINES)
def test_rows_do_not_depend_on_each_other(run: Run, loss: str, combine: str) -> None:
    logits, weights = _normal(4, 6, 10, scale=3), _weights(4)
    labels, targets = _classes(6, 10, True)
    all_rows = run(kernels.loss_grad, logits, weights, labels, targets, loss, combine)
    one_row = run(kernels.loss_grad, logits[:, 3:4].contiguous(), weights, labels[3:4], targets[3:4], loss, combine)
    assert torch.equal(all_rows.loss[3:4], one_row.loss)
    assert torch.equal(all_rows.grad[:, 3:4], one_row.grad)
    assert torch.equal(all_rows.combined[3:4], one_row.combined)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    logits, (labels, _) = _normal(20, 400, 10), _classes(400, 10, False)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.loss_grad(logits, None, labels))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0][:3], other[:3], strict=True))


def test_empty_batch(run: Run) -> None:
    result = run(kernels.loss_grad, torch.empty(2, 0, 10), None, torch.empty(0, dtype=torch.int64))
    assert result.loss.shape == (0,)
    assert result.combined.shape == (0, 10)


def test_arguments_that_do_not_fit() -> None:
    z, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="bias does not fit z"):
        kernels.bias_activation_(z, torch.zeros(4))
    with pytest.raises(ValueError, match=r"bias is torch\.float64"):
        kernels.bias_activation_(z, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="out does not fit z"):
        kernels.bias_activation_(z, None, out=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="has no rows"):
        kernels.bias_activation_(torch.zeros(3, 2).T, None)
    with pytest.raises(ValueError, match="has no rows"):
        kernels.activation_backward_(torch.zeros(1, 3).expand(2, 3), z, "relu")
    with pytest.raises(ValueError, match="grad does not fit output"):
        kernels.activation_backward_(torch.zeros(4, 3), z, "relu")
    with pytest.raises(ValueError, match="labels does not fit"):
        kernels.loss_grad(z, None, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels are torch\.int32"):
        kernels.loss_grad(z, None, labels.int())
    with pytest.raises(ValueError, match="weights does not fit logits"):
        kernels.loss_grad(torch.zeros(2, 2, 3), torch.ones(3), labels)


def test_supported() -> None:
    assert kernels.supported(torch.zeros(1))
    assert kernels.supported(torch.zeros(1, dtype=torch.float64))
    assert not kernels.supported(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.supported(torch.zeros(1, device="meta"))
