"""Every rule of the table, called in all ways that torch allows: what is claimed is never below what is found.

Each operation is called as its functions and its method, then with each of its arguments in turn replaced by something
that depends on the input, that broadcasts, or of another dtype. Either the call is refused, or no two inputs that a
search finds are further apart in the result, relatively, than the constant allows.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from made_searches import holds
from sparring.lipschitz import layer_bounds, layers
from sparring.lipschitz.gains import rule as rules
from sparring.lipschitz.gains.arithmetic import copying
from sparring.lipschitz.gains.gain import Call, Refused
from sparring.lipschitz.gains.table import TABLE


@dataclass(frozen=True)
class Of:
    """An argument that is made of the input."""

    make: Callable[[Any], Any] = lambda x: x


X = Of()
HALVES = Of(lambda x: [x[:, :2], 3 * x[:, 2:]])


def t(*shape: int, least: float | None = None) -> Tensor:
    """Numbers for an argument; with `least`, in [least, least + 1)."""
    draws = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draws) if least is None else torch.rand(shape, generator=draws) + least


class Operation(nn.Module):
    """A call with these arguments as a network; tensors are buffers."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor):
                self.register_buffer(f"at{i}", arg.clone())

    def forward(self, x: Tensor) -> Any:
        args = [getattr(self, f"at{i}") if isinstance(a, Tensor) else self._made(a, x) for i, a in enumerate(self.args)]
        return self.function(*args, **{name: self._made(value, x) for name, value in self.kwargs.items()})

    @staticmethod
    def _made(value: Any, x: Any) -> Any:
        return value.make(x) if isinstance(value, Of) else value


@dataclass(frozen=True)
class Way:
    """Arguments of an operation, for inputs of a shape."""

    args: tuple[Any, ...] = (X,)
    shape: tuple[int, ...] = (3,)
    kwargs: dict[str, Any] = field(default_factory=dict)


IMAGE, ROWS, VOLUME = (2, 4, 4), (2, 4), (1, 3, 3, 3)
PLAIN = [Way(), Way(shape=(2, 3))]
TWO = [Way((X, t(3))), Way((t(3), X)), Way((X, t(4, 3)), (1, 3)), Way((X, 0.7)), Way((X, Of(lambda x: x[:, :1])))]
CAST = [Way((X, dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32)]
POOL = {1: ROWS, 2: IMAGE, 3: VOLUME}
REDUCED = [Way((X, 1)), Way((X, -1, True), (2, 3)), Way((X, 0)), Way((X, (1, 2)), (2, 3)), Way((X, (0, 1)), (2, 3))]
SHAPES: list[Callable[[Any], Any]] = [
    lambda x: x.view(x.shape[0], -1) + x.shape[1],
    lambda x: x.view(x.size(0), -1) + x.dim() + x.ndim + x.ndimension(),
    lambda x: x.to(x.dtype) * x.numel(),
    lambda x: x.to(x.device) + float(1),
]


def each(names: str, ways: list[Any]) -> dict[str, list[Any]]:
    return dict.fromkeys(names.split(), ways)


WAYS: dict[str, list[Way]] = {
    **each("relu relu6 hardtanh leaky_relu elu celu selu gelu silu mish sigmoid logsigmoid tanh tanhshrink", PLAIN),
    **each("softshrink softplus softsign hardsigmoid hardswish abs sin cos atan erf neg rrelu", PLAIN),
    **each("clamp clip", [Way((X, -1.0, 1.0)), Way((X, t(3), t(3) + 1)), Way((X, t(3), None))]),
    **each("clamp_min clamp_max", [Way((X, 0.1)), Way((X, t(3)))]),
    "prelu": [Way((X, t(1))), Way((X, 3 * t(3)))],
    "threshold": [Way((X, 0.1, 0.1)), Way((X, 0.0, 1.0))],
    **each("dropout dropout1d dropout2d dropout3d", [Way((X, 0.5, False), (2, 3, 3, 3)), Way((X, 0.5, True))]),
    **each("alpha_dropout feature_alpha_dropout", [Way((X, 0.5, False)), Way((X, 0.5, True))]),
    "view": [Way((X, -1, 6), (2, 3)), Way((X, torch.float64)), Way((X, torch.int32)), Way((X, 1, -1))],
    "reshape": [Way((X, (-1, 6)), (2, 3)), Way((X, (-1,))), Way((X, (3, -1)))],
    "view_as": [Way((X, Of(lambda x: 2 * x))), Way((X, t(1, 3)))],
    "reshape_as": [Way((X, Of(lambda x: 2 * x)))],
    "expand_as": [Way((Of(lambda x: x[:, :1]), X)), Way((X, t(2, 1, 3)))],
    "flatten": [Way((X, 1), (2, 3)), Way((X,), (2, 3))],
    "unflatten": [Way((X, 1, (3, 1)))],
    "permute": [Way((X, (0, 2, 1)), (2, 3)), Way((X, (1, 0)))],
    **each("transpose swapaxes movedim", [Way((X, 1, 2), (2, 3)), Way((X, 0, 1))]),
    **each("ravel", [Way((Of(lambda x: x[0]),)), Way()]),
    **each("contiguous clone detach identity t T mT", [Way(), Way(shape=(2, 3))]),
    "squeeze": [Way((X, 1), (1, 3)), Way(shape=(1, 3))],
    "unsqueeze": [Way((X, 1)), Way((X, 0))],
    "expand": [Way((X, -1, 3), (1,)), Way((X, 2, -1, -1), (3,)), Way((Of(lambda x: x[:, None]), -1, 5, -1))],
    "repeat": [Way((X, 1, 3)), Way((X, 2, 1)), Way((X, 2, 1, 1))],
    "tile": [Way((X, (1, 3))), Way((X, (2, 1)))],
    "repeat_interleave": [Way((X, 3, 1)), Way((X, 2, 0)), Way((X, torch.tensor([1, 4, 0]), 1))],
    "getitem": [Way((X, (slice(None), [0, 1, 1, 1]))), Way((X, 0)), Way((X, (slice(None), None)))],
    "narrow": [Way((X, 1, 1, 2)), Way((X, 0, 0, 1))],
    "select": [Way((X, 1, 2)), Way((X, 0, 0))],
    "index_select": [Way((X, 1, torch.tensor([2, 2, 2, 0]))), Way((X, 0, torch.tensor([0, 0])))],
    "chunk": [Way((X, 3, 1))],
    "split": [Way((X, 2, 1)), Way((X, [1, 2], 1))],
    "unbind": [Way((X, 1)), Way((X, 0))],
    "pad": [Way((X, (2, 1), "circular"), ROWS), Way((X, (2, 1), "reflect"), ROWS), Way((X, (1, 0, 2, 1))),
            Way((X, (1, 1), "constant", 2.0)), Way((X, (3, 3), "replicate"), ROWS)],
    "channel_shuffle": [Way((X, 2), (4, 2, 2))],
    "pixel_shuffle": [Way((X, 2), (4, 2, 2))],
    "pixel_unshuffle": [Way((X, 2), (1, 4, 4))],
    "interpolate": [Way((X,), ROWS, {"scale_factor": 2}), Way((X, 7), ROWS), Way((X, 7, None, "linear"), ROWS)],
    "roll": [Way((X, 1, 1)), Way((X, 1, 0)), Way((X, 6, 0)), Way((X, 1)), Way((X, (1, 1), (0, 1)), (2, 3))],
    "flip": [Way((X, [1])), Way((X, (1, 2)), (2, 3)), Way((X, [0])), Way((X, [0, 1]))],
    **each("to type", [*CAST, Way((X, "torch.HalfTensor"))]),
    "type_as": [Way((X, Of(lambda x: 2 * x))), Way((X, t(1).half())), Way((X, t(1).double()))],
    **each("float double half bfloat16", PLAIN),
    "masked_fill": [Way((X, t(3) > 0, 2.0)), Way((X, t(4, 3) > 0, torch.tensor(3.0)), (1, 3))],
    "where": [Way((t(3) > 0, X, t(3))), Way((t(4, 3) > 0, X, Of(lambda x: 2 * x)), (1, 3))],
    **each("add subtract sub", [*TWO, Way((X, t(3)), (3,), {"alpha": 2.5}), Way((X, X), (3,), {"alpha": -3})]),
    "rsub": [Way((X, t(3)), (3,), {"alpha": 2.5}), Way((X, X), (3,), {"alpha": -3}), Way((X, 1.0))],
    **each("mul multiply maximum minimum", TWO),
    **each("div truediv divide true_divide", [*TWO, Way((X, t(3)), (3,), {"rounding_mode": "floor"})]),
    **each("cat concat concatenate stack", [
        *[Way((Of(lambda x: [x, 2 * x, x]), 1)), Way((Of(lambda x: [x, x]), 0)), Way((Of(lambda x: [x, x]),))],
        *[Way((Of(lambda x: x.chunk(2, 1)), 1), (4,)), Way((HALVES, 1), (4,))],
    ]),
    "linear": [Way((X, t(4, 3), t(4))), Way((X, t(4, 3)), (2, 3)), Way((X, t(3)))],
    **each("matmul mm", [
        *[Way((X, t(3, 4))), Way((X, t(3))), Way((X, t(2, 3, 2)), (1, 3)), Way((t(4, 3), X), (3, 2))],
        *[Way((X, Of(lambda x: x.transpose(-1, -2))), (3,)), Way((X, t(3, 4)), (1, 3))],
    ]),
    **{f"conv{n}d": [
        Way((X, t(3, size[0], *[2] * n), t(3)), size), Way((X, t(3, size[0], *[3] * n), None, 2, 1), size)
    ] for n, size in POOL.items()},
    **{f"conv_transpose{n}d": [Way((X, t(size[0], 2, *[2] * n), t(2), 2), size)] for n, size in POOL.items()},
    "max_norm": [],
    "batch_norm": [Way((X, t(2), t(2, least=0.5), t(2), t(2), train), ROWS) for train in (False, True)],
    "layer_norm": [Way((X, (4,), t(4)), ROWS), Way((X, (2, 4)), ROWS), Way((X, (4,), None, None, 1e-2), ROWS)],
    "rms_norm": [Way((X, (4,), t(4), 1e-3), ROWS), Way((X, (4,)), ROWS)],
    "group_norm": [Way((X, 2, t(4), t(4)), (4, 3))],
    "instance_norm": [Way((X,), (2, 5)), Way((X, t(2), t(2, least=0.5), t(2), t(2), False), (2, 5))],
    **{f"max_pool{n}d": [Way((X, *options), size) for options in ((2,), (3, 1, 1), (3, 2, 1, 1, True))]
       for n, size in POOL.items()},
    **{f"avg_pool{n}d": [Way((X, *options), size) for options in ((2,), (3, 1, 1), (3, 2, 1, True, False))]
       for n, size in POOL.items()},
    **{f"adaptive_{kind}_pool{n}d": [Way((X, 2), size), Way((X, 3), size)]
       for kind in ("max", "avg") for n, size in POOL.items()},
    **each("sum mean", [*REDUCED, Way()]),
    **each("amax amin logsumexp", REDUCED),
    **each("softmax softmin log_softmax", [Way((X, 1)), Way((X, -1), (2, 3)), Way((X, 0)), Way(), Way(shape=(2, 3))]),
}  # fmt: skip

# What has no result of its own, or is an attribute, as it is used.
USES: dict[str, list[Callable[[Any], Any]]] = {
    **each("shape ndim dtype device is_cuda size dim ndimension numel is_floating_point get_device", SHAPES),
    **{name: [lambda x, f=name: x + getattr(torch, f)(x)] for name in ("zeros_like", "ones_like")},
    "full_like": [lambda x: x + torch.full_like(x, 5.0), lambda x: torch.full_like(x, 50 * x.sum()) + x],
    **{name: [lambda x, f=name: x + getattr(x, f)((3,))] for name in ("new_zeros", "new_ones")},
    "new_full": [lambda x: x + x.new_full((3,), 5.0), lambda x: x + x.new_full((3,), 50 * x.sum())],
    "new_tensor": [lambda x: x * x.new_tensor([1.0, 5.0, 2.0]), lambda x: x + x.new_tensor(50 * x.sum())],
}


def spellings(name: str) -> Iterator[Callable[..., Any]]:
    """Functions and methods of this name, as the walker may meet them."""
    for library in (torch, F, operator):
        function = getattr(library, name, None)
        if callable(function) and layers._FUNCTIONS.get(function) == name:
            yield function
    if name in ("T", "mT", "t"):  # there and back, so that the batch comes first
        call = (lambda x: x.t()) if name == "t" else operator.attrgetter(name)
        yield lambda x: call(call(x))
    elif name == "identity":
        yield nn.Identity()
    elif hasattr(Tensor, name) and name != "getitem":
        yield lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def hostile(way: Way) -> Iterator[Way]:
    """The same with each argument replaced by what a rule may have forgotten, and with other operands."""
    yield way
    for i, arg in enumerate(way.args):
        others: list[Any] = []
        if arg is X:
            others = [Of(lambda x: x[:, None]), Of(lambda x: x[:, :1]), Of(lambda x: x.double()),
                      Of(lambda x: x.to(torch.bfloat16)), Of(lambda x: x.expand(*(5, *[-1] * x.ndim)))]  # fmt: skip
        elif isinstance(arg, Tensor) and arg.is_floating_point():
            others = [X, Of(lambda x: 50 * x.sum()), arg.expand(5, *arg.shape), arg.double(), arg.to(torch.bfloat16),
                      Of(lambda x, arg=arg: arg * x.sum()), Of(lambda x, arg=arg: arg[:, None] * x[0, :1])]  # fmt: skip
        elif isinstance(arg, float):
            others = [Of(lambda x: x.mean()), X, torch.tensor([[arg], [2 * arg]])]
        for other in others:
            yield Way((*way.args[:i], other, *way.args[i + 1 :]), way.shape, way.kwargs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(TABLE))
def test_no_call_of_an_operation_goes_above_its_bound(name: str) -> None:
    """A rule without ways to call it has no test, so it fails here."""
    bounded = 0
    for use in USES.get(name, []):
        bounded += holds(Operation(use, (X,), {}), (3,))
    ways = [] if name in USES else WAYS[name]
    for i, function in enumerate(spellings(name)):
        for way in (other for given in ways for other in (hostile(given) if i == 0 else [given])):
            model = Operation(function, way.args, way.kwargs)
            try:
                model(torch.rand(1, *way.shape))
            except Exception:  # torch itself does not take it
                continue
            bounded += holds(model, way.shape)
    # `MaxNorm` is a module alone: see test_layers; and no way here is given numbers that these casts hold.
    assert bounded or name in ("max_norm", "half", "bfloat16")


def test_every_rule_states_what_it_admits() -> None:
    """Arguments that are named in a statement are arguments of the rule."""
    for name, rule in TABLE.items():
        if rule.work is None:
            assert (rule.moving, rule.shapes) == ((), ("input",))
            continue
        first, *others = inspect.signature(rule.work).parameters
        arguments = others if rule.joins else ["input", *others]
        assert {*rule.moving, *rule.shapes} <= {*arguments}, name
        assert rule.along is None or rule.along in arguments, name
        assert first == ("out" if rule.joins else "call"), name
        assert rule.size is not rules.REDUCED or rule.along == "dim", name
        assert rule.together or len(rule.moving) == 1 or rule.otherwise != rules.Rule(None).otherwise


ONE, ROW = torch.zeros(1, 3), torch.zeros(1, 4, 3)
STATED: list[tuple[rules.Rule, Tensor, Tensor, dict[str, Any], bool]] = [
    (rules.Rule(len), ONE, ONE, {}, True),
    (rules.Rule(len), ONE, torch.zeros(1, 4), {}, False),
    (rules.Rule(len), ONE, torch.zeros(3), {}, False),
    (rules.Rule(len), ONE, ONE.double(), {}, False),
    (rules.Rule(len, numbers=rules.HELD), ONE, ONE.double(), {}, True),
    (rules.Rule(len, numbers=rules.HELD), ONE, ONE.half(), {}, False),
    (rules.Rule(len, numbers=rules.HELD), ONE, ONE.bfloat16(), {}, False),
    (rules.Rule(len, numbers=rules.HELD), ONE.bfloat16(), ONE.half(), {}, False),
    (rules.Rule(len, numbers=rules.HELD), ONE, ONE.long(), {}, False),
    (rules.Rule(len, numbers=rules.HELD), ONE, ONE.to(torch.complex64), {}, False),
    (rules.Rule(len, size=rules.COUNTED), ONE, torch.zeros(7, 7), {}, True),
    (rules.Rule(len, size=rules.BROADCAST), ONE, torch.zeros(4, 3), {"input": ONE, "other": torch.zeros(4, 1)}, True),
    (rules.Rule(len, size=rules.BROADCAST), ONE, torch.zeros(4, 3), {"input": ONE, "other": ONE}, False),
    (rules.Rule(len, size=rules.PARTS), ONE, torch.zeros(1, 6), {"tensors": [ONE, ONE]}, True),
    (rules.Rule(len, size=rules.PARTS), ONE, torch.zeros(1, 9), {"tensors": [ONE, ONE]}, False),
    (rules.Rule(len, size=rules.REDUCED, along="dim"), ROW, torch.zeros(1, 3), {"dim": 1}, True),
    (rules.Rule(len, size=rules.REDUCED, along="dim"), ROW, torch.zeros(1, 4), {"dim": 1}, False),
    (rules.Rule(len, size=rules.REDUCED, along="dim"), ROW, torch.zeros(1, 1, 3), {"dim": -2, "keepdim": True}, True),
    (rules.Rule(len, size=rules.REDUCED, along="dim"), ROW, torch.zeros(1), {"dim": (1, 2)}, True),
    (rules.Rule(len, size=rules.REDUCED, along="dim"), ROW, torch.zeros(()), {"dim": None}, True),
    (rules.Rule(len, size=rules.last(1)), ROW, torch.zeros(1, 4, 7), {}, True),
    (rules.Rule(len, size=rules.last(1)), ROW, torch.zeros(1, 5, 7), {}, False),
    (rules.Rule(len, size=rules.last(1)), ROW, torch.zeros(1, 7), {}, False),
    (rules.Rule(len, size=rules.last(3)), ROW, ROW, {}, False),
]


@pytest.mark.parametrize("i", range(len(STATED)))
def test_results_are_checked_against_the_statement(i: int) -> None:
    rule, x, out, arguments, admitted = STATED[i]
    if admitted:
        rule.check_result([x], out, arguments)
    else:
        with pytest.raises(Refused):
            rule.check_result([x], out, arguments)


def test_operands_are_checked_against_the_statement() -> None:
    cases: list[tuple[rules.Rule, dict[str, list[int]], bool]] = [
        (rules.Rule(len), {"input": [1]}, True),
        (rules.Rule(len), {"input": [1], "weight": [1]}, False),
        (rules.Rule(len), {"input": [], "weight": [1]}, False),
        (rules.Rule(len, ("input", "other")), {"input": [], "other": [1]}, True),
        (rules.Rule(len, ("input", "other")), {"input": [1], "other": [1]}, False),
        (rules.Rule(len, ("input", "other"), True), {"input": [1], "other": [1]}, True),
        (rules.Rule(len, ("tensors",), True), {"tensors": [1, 1, 2]}, True),
        (rules.Rule(len, shapes=("options",)), {"input": [1], "options": [1, 2]}, True),
    ]
    for rule, arguments, admitted in cases:
        active: Any = lambda nodes: nodes  # noqa: E731
        if admitted:
            rule.check_operands(arguments, active)
        else:
            with pytest.raises(Refused):
                rule.check_operands(arguments, active)


def test_modules_are_operations_of_the_table() -> None:
    for name, attributes in layers._MODULES.values():
        work = TABLE[name].work
        assert work is not None
        variable = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(work).parameters.values())
        names = {layers._DERIVED.get(attribute, (attribute,))[0] for attribute in attributes}
        assert variable or names <= {*inspect.signature(work).parameters}


def documented() -> str:
    """The table as ``docs/lipschitz-networks.md`` has it: operations that state the same are a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, rule in TABLE.items():
        moving = (", or ", ", ")[rule.together].join(rule.moving) + " at once" * rule.together
        shapes = ", ".join(f"{argument} (shape alone)" for argument in rule.shapes)
        size, numbers = ("any", "any") if rule.work is None else (rule.size.text, rule.numbers)
        groups.setdefault(
            (moving + "; " * bool(moving and shapes) + shapes, size, numbers, rule.along or ""), []
        ).append(name)
    head = [
        "| operations | may depend on the input | shape of the result | dtype of the result | along |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(f"| {' '.join(names)} | {' | '.join(stated)} |" for stated, names in groups.items())])


def test_the_table_of_the_docs_is_this_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "lipschitz-networks.md"
    assert documented() in page.read_text(encoding="utf-8"), documented()


def test_copies_must_be_copies_of_the_real_numbers_too() -> None:
    """What an operation does with numbered entries in float64 is not believed of others."""
    same: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    assert copying(Call(ONE + 1, ONE + 1, same, 1e-6, True)).upper == 1
    for out, run in ((ONE + 2, same), (ONE + 1, torch.abs), (ONE + 1, lambda x: 2 * x), (ONE + 1, lambda x: x[:, :2])):
        with pytest.raises(Refused):
            copying(Call(ONE + 1, out, run, 1e-6, True))


@pytest.mark.parametrize(("function", "reason"), [
    (lambda x: torch.view_as_complex(x.view(-1, 2, 2)).abs(), "complex numbers"),
    (lambda x: (x + 0j).real, "complex numbers"), (lambda x: torch.fft.fft(x).real, ""),
    (lambda x: torch.view_as_real(torch.view_as_complex(x.view(-1, 2, 2))).flatten(1), ""),
])  # fmt: skip
def test_complex_numbers_are_refused(function: Any, reason: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    report = layer_bounds(Net(), (4,))
    assert any(reason in why for _, why in report.refused)
    assert report.upper == math.inf
