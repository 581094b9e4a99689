"""Networks that nobody here wrote: each is bounded from above, or refused; nothing in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from made_searches import holds
from sparring.lipschitz import layer_bounds, penalty, project_


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.has_parts = bool(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x) if self.has_parts else self.function(x)


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


class Steep(torch.autograd.Function):
    """A forward of slope 1 and a backward of slope 7."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 7 * grad


class Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(10 * x) / 10

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.fc(x))) + x


class Grows(nn.Module):
    """Each call is of another function."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.scale *= 2
        return x * self.scale


class Counts(nn.Module):
    """Scales its weights in place between two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        first = F.linear(x, self.w)
        self.w.mul_(5)
        return F.linear(first, self.w)


class Overwrites(nn.Module):
    """Its first call is of another function than all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", 5 * torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        first = F.linear(x, self.w)
        self.w.fill_(0.5)
        return first


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze().sum(0, keepdim=True)


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x, torch.eye(3))


def assigned(x: Tensor) -> Tensor:
    y = torch.zeros(1, 3)
    y[:, 0] = 5 * x[:, 0]
    return y


def shared_memory(x: Tensor) -> Tensor:
    y = x * 1
    y.view(-1).mul_(3)
    return y


W = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -3.0], [2.0, 0.0, 1.0]])
STRANGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a layer used twice, and a residual": (Twice, (3,)),
    "a subclass that scales": (lambda: nn.Sequential(ScaledLinear(3, 3)), (3,)),
    "a subclass that pads": (lambda: type("P", (nn.ReLU,), {"forward": lambda s, x: 3 * x})(), (3,)),
    "square": (lambda: Calls(lambda x: x * x), (3,)),
    "square of a copy": (lambda: Calls(lambda x: x * x.clone()), (3,)),
    "square in place": (lambda: Calls(lambda x: x.mul_(x)), (3,)),
    "division by itself": (lambda: Calls(lambda x: x / x.norm(dim=1, keepdim=True)), (3,)),
    "normalize": (lambda: Calls(lambda x: F.normalize(x, dim=1)), (3,)),
    "attention": (lambda: Calls(lambda x: (x @ x.transpose(1, 2)).softmax(2) @ x), (2, 3)),
    "einsum": (lambda: Calls(lambda x: torch.einsum("bi,bj->bij", x, x)), (3,)),
    "outer": (lambda: Calls(lambda x: x[:, :, None] * x[:, None]), (3,)),
    "weights of the input": (lambda: Calls(lambda x: F.linear(x, 3 * x.expand(3, 3))), (3,)),
    "conv of the input": (lambda: Calls(lambda x: F.conv1d(x[:, None], x[:, None])), (3,)),
    "bias of the input": (lambda: Calls(lambda x: F.linear(x, W, 9 * x[0])), (3,)),
    "layer norm by the input": (lambda: Calls(lambda x: F.layer_norm(x, (3,), x[0])), (3,)),
    "batch norm by the input": (lambda: Calls(lambda x: F.batch_norm(x, x[0], x[0] ** 2)), (3,)),
    "prelu by the input": (lambda: Calls(lambda x: F.prelu(x, x[0])), (3,)),
    "leaky by the input": (lambda: Calls(lambda x: F.leaky_relu(x, x.mean())), (3,)),
    "clamp by the input": (lambda: Calls(lambda x: x.clamp(max=5 * x[:, :1])), (3,)),
    "clamp in place": (lambda: Calls(lambda x: (2 * x).clamp_(-1, 1)), (3,)),
    "where by the input": (lambda: Calls(lambda x: torch.where(x > 0, x + 1, x)), (3,)),
    "mask by the input": (lambda: Calls(lambda x: x.masked_fill(x > 0, 5.0)), (3,)),
    "fill by the input": (lambda: Calls(lambda x: x.masked_fill(W[:1] > 0, 50 * x.sum())), (3,)),
    "filled in place": (lambda: Calls(lambda x: torch.zeros_like(x).fill_(50 * x.sum())), (3,)),
    "copied in place": (lambda: Calls(lambda x: torch.zeros_like(x).copy_(50 * x)), (3,)),
    "added in place to a constant": (lambda: Calls(lambda x: torch.zeros_like(x).add_(x, alpha=50)), (3,)),
    "out is a buffer": (lambda: Calls(lambda s, x: torch.add(x, 5 * x, out=s.y) + s.y, y=torch.zeros(1, 3)), (3,)),
    "scatter": (lambda: Calls(lambda x: torch.zeros_like(x).scatter_add(1, torch.zeros(1, 3).long(), x)), (3,)),
    "assigned": (lambda: Calls(assigned), (3,)),
    "a view in place": (lambda: Calls(shared_memory), (3,)),
    "data in place": (lambda: Calls(lambda x: x.data.mul_(4) + x), (3,)),
    "detached in place": (lambda: Calls(lambda x: x.detach().mul_(4) + x), (3,)),
    "reinterpreted": (lambda: Calls(lambda x: x.view(torch.int32).view(torch.float32)), (4,)),
    "reinterpreted as wider": (lambda: Calls(lambda x: x.view(torch.float64)), (4,)),
    "real part": (lambda: Calls(lambda x: torch.view_as_real(torch.complex(x, 5 * x)).flatten(1)), (3,)),
    "complex": (lambda: Calls(lambda x: x * 5j), (3,)),
    "index by the input": (lambda: Calls(lambda x: x[:, x.argmax(1)]), (3,)),
    "sort": (lambda: Calls(lambda x: x.sort(1).values), (3,)),
    "topk": (lambda: Calls(lambda x: x.topk(2, 1)[0]), (3,)),
    "cumsum": (lambda: Calls(lambda x: x.cumsum(1)), (3,)),
    "as_strided": (lambda: Calls(lambda x: x.as_strided((1, 3, 3), (3, 0, 1))), (3,)),
    "unfold": (lambda: Calls(lambda x: x.unfold(1, 2, 1)), (4,)),
    "F.unfold": (lambda: Calls(lambda x: F.unfold(x, 2)), (1, 3, 3)),
    "grid_sample": (
        lambda: Calls(lambda x: F.grid_sample(x, torch.zeros(1, 5, 5, 2), align_corners=False)),
        (1, 3, 3),
    ),
    "meshed": (lambda: Calls(lambda x: torch.cat([x.expand(1, 3), x.repeat(1, 2)], 1)), (3,)),
    "lp pool": (lambda: nn.LPPool1d(2, 2), (1, 4)),
    "fractional pool": (lambda: nn.FractionalMaxPool2d(2, 2), (1, 4, 4)),
    "unpool": (lambda: Calls(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)), (1, 4)),
    "embedding bag": (lambda: Calls(lambda x: F.embedding(x.long(), W)), (3,)),
    "threshold": (lambda: nn.Threshold(0.0, 1.0), (3,)),
    "odd hardtanh": (lambda: nn.Hardtanh(2.0, 5.0), (3,)),
    "a steep prelu": (lambda: nn.PReLU(3, init=-4.0), (3,)),
    "a steep leaky": (lambda: nn.LeakyReLU(-3.0), (3,)),
    "an ELU that falls": (lambda: nn.ELU(-2.0), (3,)),
    "rrelu in training": (lambda: nn.RReLU(1.0, 3.0), (3,)),
    "softplus that jumps": (lambda: nn.Softplus(1.0, 1.0), (3,)),
    "sigmoid linear": (lambda: Calls(lambda x: x * torch.sigmoid(x)), (3,)),
    "local response": (lambda: nn.LocalResponseNorm(2), (4, 2, 2)),
    "cosine similarity": (lambda: nn.CosineSimilarity(1), (3,)),
    "gumbel": (lambda: Calls(lambda x: F.gumbel_softmax(x, dim=1)), (3,)),
    "noise": (lambda: Calls(lambda x: x * torch.randn(3)), (3,)),
    "noise of its shape": (lambda: Calls(lambda x: x * torch.randn_like(x)), (3,)),
    "a function of its own": (lambda: Calls(Steep.apply), (3,)),
    "straight through": (lambda: Calls(Rounds.apply), (3,)),
    "another function each time": (Grows, (3,)),
    "weights that change between uses": (Counts, (3,)),
    "a first call unlike others": (Overwrites, (3,)),
    "autocast": (lambda: Calls(autocast), (3,)),
    "a cast of weights": (lambda: Calls(lambda s, x: F.linear(x, s.w.half().float()), w=W / 3), (3,)),
    "a cast to and fro": (lambda: Calls(lambda x: x.double().float()), (3,)),
    "a cast to what it is": (lambda: nn.Sequential(Calls(lambda x: x.float()), nn.Linear(3, 2)), (3,)),
    "eps of its dtype": (lambda: Calls(lambda x: x / (torch.finfo(x.dtype).eps)), (3,)),
    "a branch on its dtype": (lambda: Calls(lambda x: x * (1 if x.dtype == torch.float64 else 9)), (3,)),
    "a constant of its dtype": (lambda: Calls(lambda x: x * torch.tensor(0.7, dtype=x.dtype)), (3,)),
    "a constant in float64": (lambda: Calls(lambda x: (x.double() * torch.tensor(0.7).double()).mean(1)), (3,)),
    "softmax in float64": (lambda: Calls(lambda x: x.softmax(1, dtype=torch.float64)), (3,)),
    "two results": (lambda: Calls(lambda x: (x, x)), (3,)),
    "results by name": (lambda: Calls(lambda x: {"a": x, "b": 2 * x}), (3,)),
    "a sum of a list": (lambda: Calls(lambda x: sum([x, x, x])), (3,)),
    "padding by the input": (lambda: Calls(lambda x: F.pad(x, (1, 1), value=x.sum())), (3,)),
    "alpha of the input": (lambda: Calls(lambda x: torch.add(x, x, alpha=x.sum())), (3,)),
    "lerp": (lambda: Calls(lambda x: torch.lerp(x, 3 * x, 2.0)), (3,)),
    "addmm": (lambda: Calls(lambda x: torch.addmm(x, x, W)), (3,)),
    "addcmul": (lambda: Calls(lambda x: torch.addcmul(x, x, x)), (3,)),
    "matmul with several": (lambda: Calls(lambda x: x @ torch.stack([W, 5 * W])), (1, 3)),
    "a convolution that repeats": (lambda: nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"), (1, 3, 3)),
    "a convolution changed": (lambda: changed(nn.Conv1d(1, 1, 3, padding=2, padding_mode="circular")), (1, 6)),
    "an unbatched convolution": (lambda: nn.Conv1d(1, 2, 2), (5,)),
    "an unbatched pool": (lambda: nn.AvgPool1d(2), (4,)),
    "ceil mode": (lambda: nn.MaxPool2d(2, 1, ceil_mode=True), (1, 3, 3)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), (3,)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), (3,)),
    "weight norm by hand": (lambda: Calls(lambda s, x: F.linear(x, s.w / s.w.norm()), w=W), (3,)),
    "a parametrisation that scales": (lambda: scaled(nn.Linear(3, 3)), (3,)),
    "an unknown number": (lambda: Calls(lambda x: x * float("nan")), (3,)),
    "an infinite bias": (lambda: Calls(lambda x: x + float("inf")), (3,)),
    "NaN in a bias": (lambda: filled(nn.Linear(3, 3)), (3,)),
    "a softmax without dim": (lambda: nn.Softmax(), (3, 2)),
    "softmax over channels": (lambda: nn.Softmax2d(), (3, 2, 2)),
    "the batch squeezed": (Squeezed, (3,)),
    "a GRU": (lambda: Calls(lambda s, x: s.f(x)[0], f=nn.GRU(3, 3, batch_first=True)), (2, 3)),
    "checkpointed": (lambda: Calls(lambda x: checkpoint(torch.exp, x, use_reentrant=False)), (3,)),
    "interpolated": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 3)),
    "a clamp of lists": (lambda: Calls(lambda x: torch.clamp(x[:, None], min=-1e3 * torch.ones(25, 3))), (3,)),
}  # fmt: skip


def changed(conv: nn.Conv1d) -> nn.Module:
    conv.padding = (0,)
    return conv


def scaled(layer: nn.Module) -> nn.Module:
    class Ten(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 10 * weight

    parametrize.register_parametrization(layer, "weight", Ten())
    return layer


def filled(layer: nn.Linear) -> nn.Module:
    with torch.no_grad():
        layer.bias[1] = math.nan
    return layer


# What a search does not show, since results are no numbers, or are others at the next call.
NEVER = {
    "an unknown number": "NaN or inf",
    "an infinite bias": "NaN or inf",
    "NaN in a bias": "NaN or inf",
    "a first call unlike others": "in place",
    "another function each time": "something else than its traced graph",
    "weights that change between uses": "in place",
    "noise": "draws random numbers",
    "autocast": "something else than its traced graph",
    "a convolution changed": "something else than its attributes say",
    "straight through": "jumps",
    "an unbatched convolution": "the batch",
    "out is a buffer": "not known",
}


@pytest.mark.parametrize("name", NEVER)
def test_refused_for_what_it_is(name: str) -> None:
    make, shape = STRANGE[name]
    report = layer_bounds(make().eval(), shape)
    assert any(NEVER[name] in reason for _, reason in report.refused), report.refused


def test_subclasses_are_not_taken_for_their_base() -> None:
    """In a penalty and a projection a layer with a forward of its own does not count."""
    model = nn.Sequential(ScaledLinear(3, 3), nn.Linear(3, 3))
    assert penalty(model).left_out == ["0"]
    assert [*project_(model, 0.5)] == ["1"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("train", [False, True])
def test_bounded_from_above_or_refused(name: str, train: bool) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        make, shape = STRANGE[name]
        holds(make().train(train), shape)
