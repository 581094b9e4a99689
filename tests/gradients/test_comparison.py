"""When a plan counts as its model: how near numbers have to be, which rows are asked, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.gradients.comparison import TELLS_NOTHING, _close, _spread, _weights, disagreement
from sparring.gradients.lowered import Lowered
from sparring.gradients.plan import Plan
from sparring.gradients.steps import NotLowered

NEAR = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_how_near_is_a_share_of_the_row_s_largest_entry(dtype: torch.dtype, size: float, sign: float) -> None:
    near = NEAR[dtype]
    other = size * torch.tensor([[1.0, -0.5, 0.25], [0.5, 0.25, -1.0]], dtype=torch.float64)
    for share, wanted in ((0.4, True), (2.1, False)):
        one = other.clone()
        one[1, 1] += sign * share * near * size
        assert _close(one, other.to(dtype)) is wanted
        assert _close(one.neg(), other.neg().to(dtype)) is wanted
    small = other.clone()
    small[0] *= 1e-5  # a row of its own size
    one = small.clone()
    one[0, 2] += sign * 0.1 * near * size
    assert not _close(one, small.to(dtype))


def test_not_numbers_and_infinities_have_to_be_the_same() -> None:
    other = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf]]).double()
    assert _close(other.clone(), other)
    for at, value in ((1, 0.0), (2, torch.nan), (2, -torch.inf), (3, 1e300), (0, torch.nan)):
        one = other.clone()
        one[0, at] = value
        assert not _close(one, other)
    assert _close(torch.zeros(2, 3), torch.zeros(2, 3))
    assert _close(torch.zeros(0, 3), torch.zeros(0, 3))


def test_rows_are_spread_over_the_batch() -> None:
    for count, wanted in ((1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 4]), (100, [0, 33, 66, 99])):
        assert _spread(torch.arange(count)).tolist() == wanted


def test_weights_tell_the_logits_apart() -> None:
    found = _weights(torch.zeros(4, 10, dtype=torch.float64))
    assert found.shape == (4, 10)
    assert 1 <= float(found.min()) <= float(found.max()) < 2
    assert len({round(value, 6) for value in found.flatten().tolist()}) == 40


class Step:
    """Made to be a little wrong: forward by a factor and a shift, backward by a factor."""

    def __init__(self, factor: float = 1.0, back: float = 1.0, shape: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.factor, self.back, self.shape = factor, back, shape

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.shape(2 * self.factor * x), None

    def backward(self, grad: Tensor, saved: None) -> Tensor:
        return 2 * self.back * grad


def why(step: Any, model: Callable[[Tensor], Tensor] = lambda x: 2 * x, rows: int = 6) -> str | None:
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    lowered = Lowered(model, Plan([step], []))
    return disagreement(lowered, x)


def calls(answer: Callable[[int, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    count = [0]

    def model(x: Tensor) -> Tensor:
        count[0] += 1
        return answer(count[0], x)

    return model


def test_what_is_said() -> None:
    assert why(Step()) is None
    for factor in (1 - 1e-7, 1 + 1e-7):
        assert why(Step(factor=factor)) == "the plan's logits are not the model's"
        assert why(Step(back=factor)) == "the plan's gradient is not the model's"
    assert why(Step(factor=1 + 1e-9, back=1 - 1e-9)) is None
    assert why(Step(shape=lambda x: x[:, :2])) == "the plan gives logits of shape (4, 2), the model (4, 3)"
    assert why(Step(), lambda x: x.sum()) == "the model does not return logits (B, K)"
    assert why(Step(), lambda x: 2 * x.flatten()) == "the model does not return logits (B, K)"
    changing = calls(lambda count, x: 2 * x * (1 + 1e-6 * count))
    assert why(Step(), changing) == "the model's answer to the same question changes"
    growing = calls(lambda count, x: 2 * x if count == 1 else torch.cat([x, x], 1))
    assert why(Step(), growing) == "the model does not return logits (B, K)"
    assert why(Step(), lambda x: (2 * x).detach()) == "the plan's gradient is not the model's"
    assert why(Step(back=0.0), lambda x: (2 * x).detach()) == TELLS_NOTHING


def test_models_that_fail_or_want_all_their_rows() -> None:
    def picky(x: Tensor) -> Tensor:
        if len(x) != 6:
            raise RuntimeError("six rows")
        return 2 * x

    assert why(Step(), picky) == "the model cannot be asked about a few of the rows alone"
    assert why(Step(), picky, rows=3) == "the model fails on them"
    assert why(Step(), lambda x: 2 * x, rows=4) is None

    class Refuses(Step):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            raise NotLowered("not on such an input")

    assert why(Refuses()) == "not on such an input"


def test_a_gradient_that_is_wrong_everywhere_counts_and_at_a_kink_alone_not() -> None:
    class Kink(Step):
        """The derivative of ReLU at 0 taken to be 1."""

        def forward(self, x: Tensor) -> tuple[Tensor, Any]:
            return x.relu(), x

        def backward(self, grad: Tensor, saved: Any) -> Tensor:
            return grad * (saved >= 0)

    x = torch.tensor([[0.0, 1.0, -0.5], [2.0, 0.0, 0.5]], dtype=torch.float64)
    assert disagreement(Lowered(torch.relu, Plan([Kink()], [])), x) is None

    class Wrong(Kink):
        def backward(self, grad: Tensor, saved: Any) -> Tensor:
            return grad * (saved > 0.9)

    assert disagreement(Lowered(torch.relu, Plan([Wrong()], [])), x) == "the plan's gradient is not the model's"


def test_what_only_rows_in_the_middle_show_is_seen() -> None:
    """Four rows of a batch are asked, the first and the last among them."""
    asked: list[Tensor] = []

    class Seen(Step):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            asked.append(x.clone())
            return super().forward(x)

    x = torch.arange(12, dtype=torch.float64)[:, None].expand(12, 3) + 1
    assert disagreement(Lowered(lambda x: 2 * x, Plan([Seen()], [])), x) is None
    assert asked[0][:, 0].tolist() == [1, 4, 8, 12]


def test_members_are_compared_one_by_one() -> None:
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double().eval() for _ in range(2)]
    lowered = sp.lower(sp.Ensemble(nets))
    x = torch.rand(5, 3, dtype=torch.float64)
    assert disagreement(lowered, x) is None
    (step, _) = lowered.plan.steps or []

    class Wrong:
        takes_precision = hasattr(step, "takes_precision")

        def forward(self, *args: Any) -> Any:
            logits, saved = step.forward(*args)
            return logits * torch.tensor([1.0, 1 + 1e-6])[:, None, None].double(), saved

        def backward(self, grad: Tensor, saved: Any) -> Tensor:
            return step.backward(grad, saved)

    wrong = Wrong()
    if not wrong.takes_precision:
        del Wrong.takes_precision
    plan = Plan([wrong, *(lowered.plan.steps or [])[1:]], [])
    assert disagreement(Lowered(lowered.model, plan), x) == "the plan's logits are not the model's"


def test_an_ensemble_behind_other_layers_is_compared_as_a_whole() -> None:
    nets = [nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double().eval() for _ in range(3)]
    model = nn.Sequential(nn.Linear(4, 3).double(), nn.Sigmoid(), sp.Ensemble(nets)).eval()
    lowered, x = sp.lower(model), torch.rand(5, 4, dtype=torch.float64)
    assert lowered.mixture is not None
    assert len(lowered.by_autograd) > 2
    assert disagreement(lowered, x) is None
    sp.input_grad(model, x, torch.tensor([0, 1, 0, 1, 0]))
    assert sp.lower(model).is_lowered, sp.lower(model).reasons
