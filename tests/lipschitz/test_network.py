"""Bounds of whole networks: never below a Jacobian, and what is put together from layers as it should be."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sparring import attacks, networks
from sparring.ensembles import Ensemble
from sparring.lipschitz.dense_chains import dense_chains
from sparring.lipschitz.empirical import empirical_lower_bound
from sparring.lipschitz.graph import Graph
from sparring.lipschitz.network import layer_bounds
from sparring.lipschitz.report import LipschitzReport


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        return make()


def norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


def holds(report: LipschitzReport, model: nn.Module, shape: tuple[int, ...]) -> None:
    """No Jacobian, and no pair of inputs, goes above the bound."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(12, *shape, generator=draws, dtype=torch.float64)
    wide = copy.deepcopy(model).double()
    assert empirical_lower_bound(wide, x) <= report.upper <= report.product < math.inf
    y = x + 0.1 * torch.randn(x.shape, generator=draws, dtype=torch.float64)
    with torch.no_grad():
        moved = (wide(x) - wide(y)).flatten(1).norm(dim=1)
    assert bool((moved <= report.upper * (x - y).flatten(1).norm(dim=1)).all())


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Branching(nn.Module):
    """Two branches, one with parameters used in a function, side by side and then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 4)
        self.right = nn.Parameter(torch.randn(5, 6))
        self.scale = nn.Parameter(torch.tensor([2.0, -3.0]))

    def forward(self, x: Tensor, power: float = 1.0) -> Tensor:
        x = x.view(x.size(0), -1)
        both = torch.cat([torch.tanh(self.left(x)), F.linear(x, self.right).sigmoid()], dim=1)
        return both[:, :8].reshape(x.shape[0], 4, 2) * self.scale * power


def test_a_chain_multiplies() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 3)))
    report = layer_bounds(model, (3, 4))
    expected = norm(model[1].weight) / 4 * norm(model[3].weight)
    assert report.product == pytest.approx(expected, rel=1e-5)
    assert report.product >= expected * (1 - 1e-12)
    assert report.certified
    assert [layer.name for layer in report.layers] == ["0", "1", "2", "3"]
    assert [layer.kind for layer in report.layers] == ["Flatten", "Linear", "Sigmoid", "Linear"]
    assert [layer.shape for layer in report.layers] == ["", "12×8", "", "8×3"]
    assert report.layers[-1].bound == report.product
    assert report.head is not None
    assert torch.equal(report.head, model[3].weight.detach().double())
    assert report.features == pytest.approx(norm(model[1].weight) / 4, rel=1e-5)
    holds(report, model, (3, 4))


def test_branches_add_up_and_stand_side_by_side() -> None:
    model = seeded(lambda: nn.Sequential(Residual(nn.Linear(6, 6)), Branching(), nn.Flatten()))
    report = layer_bounds(model, (6,))
    together = math.hypot(norm(model[1].left.weight), norm(model[1].right) / 4)
    assert report.product == pytest.approx((1 + norm(model[0].inner.weight)) * together * 3, rel=1e-5)
    assert report.head is None
    names = [layer.name for layer in report.layers]
    assert names[:2] == ["0.inner", "0.add"]
    assert report.layers[1].upper is None
    assert "1.left" in names
    holds(report, model, (6,))


def test_batch_normalisation_is_folded_into_the_layer_before() -> None:
    """Folded, the norm is that of the layer as it works, less than the product of the two; not for a second reader."""
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6), nn.Flatten())
    dense = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    for model, shape in ((conv, (2, 5, 5)), (transposed, (4, 3, 3)), (dense, (5,))):
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model[1].running_var.uniform_(0.01, 4, generator=draws)
            model[1].weight.uniform_(-2, 2, generator=draws)
        report = layer_bounds(model.eval(), shape)
        wide = nn.Sequential(*[copy.deepcopy(model[i]).double() for i in (0, 1)])
        x = torch.randn(1, *shape, generator=draws, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(wide, x)
        assert report.upper == pytest.approx(norm(jacobian.reshape(-1, x.numel())), rel=1e-5)
        assert report.upper >= norm(jacobian.reshape(-1, x.numel())) * (1 - 1e-12)
        assert report.layers[0].kind.endswith("+ BatchNorm")
        assert report.layers[1].method == "in the layer before"

    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = dense

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return x + self.norm(x)

    model = TwoReaders().eval()
    scale = float((model.norm.weight.detach() / (model.norm.running_var + model.norm.eps).sqrt()).abs().max())
    assert layer_bounds(model, (5,)).upper == pytest.approx(norm(model.linear.weight) * (1 + scale), rel=1e-5)


def test_batch_normalisation_over_another_dimension_is_not_folded() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(4), nn.Flatten())).eval()
    with torch.no_grad():
        model[1].running_var.copy_(torch.tensor([1.0, 0.25, 4.0, 9.0]))
    report = layer_bounds(model, (4, 5))
    assert report.upper == pytest.approx(norm(model[0].weight) / math.sqrt(0.25 + 1e-5), rel=1e-5)
    holds(report, model, (4, 5))


SHAPES = {"cnn": (1, 10, 10), "lenet5": (1, 8, 8), "model2": (1, 6, 6), "resnet18-16": (1, 4, 4)}


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet5", "model2", "maxnorm", "resnet18-16"])
def test_networks_of_the_experiments_are_bounded(name: str) -> None:
    shape = SHAPES.get(name, (1, 5, 5))
    model = networks.build(name, shape, 4).eval()
    report = layer_bounds(model, shape, tol=0.1, chains=False)
    assert report.refused == ()
    holds(report, model, shape)


def test_preprocessing_counts() -> None:
    images = torch.zeros(1, 1, 4, 4)
    model = networks.build("mlp", (1, 4, 4), 3)
    whole = attacks._model.preprocessed(model, {"mean": 0.5, "std": 0.25}, images)
    inside = layer_bounds(model, (1, 4, 4), chains=False).upper
    report = layer_bounds(whole, (1, 4, 4), chains=False)
    assert report.upper == pytest.approx(4 * inside)
    assert [layer.upper for layer in report.layers[:2]] == [1, pytest.approx(4)]


def test_nothing_of_the_model_is_touched() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.3), nn.RReLU(), nn.Flatten(),
            parametrizations.spectral_norm(nn.Linear(8, 3)),
        )
    ).train()  # fmt: skip
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    layer_bounds(model, (1, 4, 4), data=torch.ones(3, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).requires_grad is False
    assert all(p.grad is None for p in model.parameters())


def test_training_mode() -> None:
    """What depends on it: a batch's statistics are refused, a parametrisation that moves, and a dropout counts."""
    moving = parametrizations.spectral_norm(nn.Linear(4, 4))
    report = layer_bounds(nn.Sequential(moving, nn.BatchNorm1d(4), nn.Dropout(0.5)).train(), (4,))
    assert [name for name, _ in report.refused] == ["0", "1"]
    assert report.upper == math.inf
    assert layer_bounds(moving.eval(), (4,)).upper == pytest.approx(norm(moving.weight), rel=1e-5)
    assert layer_bounds(nn.Sequential(nn.Dropout(0.5)).train(), (4,)).upper == pytest.approx(2)


class Controlled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -2 * x


class InPlace(nn.Module):
    """Reads what it has changed: forward computes 2 (x + 1) + (x + 1), a graph of values would say otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = y
        y += x
        return y + z


class ReadAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = 3 * x
        return self.relu(y.view(-1)).view_as(y) + y


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("model", "where", "reason"),
    [
        (Controlled(), "forward", "cannot be traced"),
        (InPlace(), "forward", "something else than its traced graph"),
        (ReadAgain(), "relu", "in place what is read again"),
        (Ensemble([nn.Linear(4, 2), nn.Linear(4, 2)]), "0", "members can be bounded one by one"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), "0", "attention"),
        (SelfAttention(), "attention", "dot-product attention"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_bounded_is_named(model: nn.Module, where: str, reason: str) -> None:
    report = layer_bounds(model.eval(), (4,))
    assert [(name, reason in why) for name, why in report.refused] == [(where, True)], report.refused
    assert report.upper == report.product == math.inf
    assert reason in report.table()


def test_hooks_are_an_obstacle() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, args, out: 100 * out)
    report = layer_bounds(model, (3,))
    assert report.refused[0][0] == "model"
    assert "hooks" in report.refused[0][1]
    assert report.upper == math.inf
    assert [layer.name for layer in report.layers] == ["0.weight"]


def test_layers_after_a_refusal_are_still_listed() -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(3, 3), jump=nn.Hardshrink(), last=nn.Linear(3, 2)))
    report = layer_bounds(model, (3,))
    assert [(layer.name, layer.bound == math.inf) for layer in report.layers] == [("first", False), ("last", True)]
    assert report.refused == (("jump", "Hardshrink: jumps"),)


def test_a_shared_layer_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.lipschitz.gains import weighted

    calls = []
    original = weighted.spectral_norm
    monkeypatch.setattr(weighted, "spectral_norm", lambda *a, **k: calls.append(a) or original(*a, **k))
    layer = nn.Linear(4, 4)
    report = layer_bounds(nn.Sequential(layer, nn.Tanh(), layer), (4,))
    assert len(calls) == 1
    assert report.product == pytest.approx(norm(layer.weight) ** 2, rel=1e-5)


def test_state_dict_bounds_hold_for_any_way_to_use_its_weights() -> None:
    """A convolution's bound is for every stride, padding, size and number of groups."""
    conv, grouped, back = (
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose1d(2, 3, 3),
    )
    model = nn.ModuleDict(
        {"conv": conv, "grouped": grouped, "back": back, "bn": nn.BatchNorm2d(5), "fc": nn.Linear(7, 3)}
    )
    report = layer_bounds(model.state_dict())
    found = {layer.name: layer for layer in report.layers}
    assert {*found} == {"conv.weight", "grouped.weight", "back.weight", "fc.weight"}
    for name, layer, shape in (("conv", conv, (3, 7, 6)), ("grouped", grouped, (4, 6, 6)), ("back", back, (2, 6))):
        used = layer_bounds(layer, shape).upper
        upper = found[f"{name}.weight"].upper
        assert upper is not None
        assert upper >= used * (1 - 1e-6)
    assert found["fc.weight"].upper == pytest.approx(norm(model["fc"].weight), rel=1e-5)
    assert report.product == pytest.approx(math.prod(layer.upper or 0 for layer in report.layers), rel=1e-12)
    assert "follow each other" in report.table()
    assert found["conv.weight"].shape == "3×3×3×5"


def test_weights_that_are_computed_of_others_are_refused_in_a_state_dict() -> None:
    """The norm of what is stored says nothing of the weight: here it is 1e-6 of it."""
    plain, normed = nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3))
    with torch.no_grad():
        normed.parametrizations.weight.original1.mul_(1e-6)
    for state in (normed.state_dict(), {"weight_g": torch.ones(3, 1), "weight_v": torch.ones(3, 3)}):
        report = layer_bounds({**plain.state_dict(), **state})
        assert len(report.refused) == 2
        assert report.upper == math.inf
        assert [layer.name for layer in report.layers] == ["weight"]


def test_the_last_layer_with_a_normalisation_is_no_head() -> None:
    """Its rows are known to some digits; two that are nearly the same may differ by more than it seems."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).eval()
    assert layer_bounds(model, 3).head is None
    assert layer_bounds(model[:1], 3).head is not None


def test_report_as_text_and_rows() -> None:
    model = seeded(lambda: networks.mlp((6, 5, 4, 3)))
    report = layer_bounds(model, (6,), data=torch.rand(4, 6))
    text = report.table()
    assert report.lower is not None
    assert report.gap == pytest.approx(report.upper / report.lower - 1)
    for part in ("linear1", "6×5", "Gram matrix and Cholesky", "LipSDP of linear1 to linear3", "Flatten, ReLU",
                 f"{report.product:.6g}", f"{report.upper:.6g}", f"{report.lower:.6g}"):  # fmt: skip
        assert part in text
    assert "Refused" not in text
    assert [row["name"] for row in report.rows()] == [layer.name for layer in report.layers]
    assert layer_bounds(nn.Linear(2, 2), (2,), certified=False).certified is False
    assert "not proven" in layer_bounds(nn.Linear(2, 2), (2,), certified=False).table()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_weights(dtype: torch.dtype) -> None:
    model = seeded(lambda: networks.mlp((6, 5, 3))).to(dtype)
    report = layer_bounds(model, (6,), chains=False)
    assert report.upper == pytest.approx(norm(model.linear1.weight) * norm(model.linear2.weight), rel=1e-5)


def test_bad_arguments_are_named() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or a state dict"):
        layer_bounds(lambda x: x, (3,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input_shape is needed"):
        layer_bounds(model)
    with pytest.raises(ValueError, match="positive"):
        layer_bounds(model, (0, 3))
    with pytest.raises(ValueError, match="state dict without a weight"):
        layer_bounds({"running_mean": torch.ones(3)})
    with pytest.raises(ValueError, match="data are for a network"):
        layer_bounds(model.state_dict(), data=torch.ones(2, 3))
    with pytest.raises(TypeError, match="inputs must be a floating-point tensor"):
        empirical_lower_bound(model, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one example"):
        empirical_lower_bound(model, torch.ones(0, 3))
    with pytest.raises(ValueError, match="tol must be a positive number"):
        layer_bounds(model, 3, tol=0.0)
    assert layer_bounds(model, 3).upper == layer_bounds(model, (3,)).upper
    report = layer_bounds(model, (4,))  # does not fit: the layer fails, and says so
    assert report.refused[0][0] == "0"
    assert "fails" in report.refused[0][1]


def test_empirical_bound_is_the_largest_jacobian() -> None:
    model = seeded(lambda: networks.mlp((4, 6, 3)))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    wide = copy.deepcopy(model).double()
    norms = [norm(torch.autograd.functional.jacobian(wide, one[None].double())[0, :, 0]) for one in x]
    assert empirical_lower_bound(model, x, batch_size=7) == pytest.approx(max(norms), rel=1e-8)
    assert empirical_lower_bound(model, x) <= max(norms)
    assert next(model.parameters()).dtype is torch.float32


def test_what_is_not_shown_is_counted() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Identity(), nn.ReLU(), nn.Linear(5, 3))
    assert "\nand 4 layers of constant 1: Flatten, Identity, ReLU\n" in layer_bounds(model, (2, 3)).table()
    assert "\nand 1 layer of constant 1: Flatten\n" in layer_bounds(model[:2], (2, 3)).table()
    assert "constant 1" not in layer_bounds(model[1:2], (6,)).table()


class TwoChains(nn.Module):
    """Chains of dense layers before and behind something that none goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.e = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).softmax(1)
        return self.e(self.d(self.c(y).relu()).relu())


def test_chains_come_in_the_order_of_the_network() -> None:
    graph = Graph(TwoChains().double().eval(), (4,), tol=1e-6, certified=True)
    (end,) = [node for node in graph.steps if str(node.target) == "e"]
    chains = dense_chains(graph, end)
    assert [[str(node.target) for node in chain.nodes] for chain in chains] == [["a", "b"], ["c", "d", "e"]]
