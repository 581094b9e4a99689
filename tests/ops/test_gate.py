"""Every operation with every unusual array: the answer that an ordinary array with the same numbers gets, or a clear
error that names the argument; never another answer, never a crash."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import same_bits
from torch import Tensor
from unusual import ARRAYS, COLUMNS, NUMPY, REFUSED, ROWS, UNUSUAL, WRITTEN, good, negated, run

from sparring import ops

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype|beta state|deprecat|experimental)")


CASES = [(op, name, kind) for op, names in ARRAYS.items() for name in names for kind in UNUSUAL]


@pytest.mark.parametrize(("op", "name", "kind"), CASES, ids=map("-".join, CASES))
def test_unusual_tensors(op: str, name: str, kind: str) -> None:
    make, refused = UNUSUAL[kind]
    arguments = good(op)
    arguments[name] = make(arguments[name])
    if name in WRITTEN:
        refused = refused or kind in ("a negative bit", "a negative bit, transposed", "misaligned")
    if refused:
        with pytest.raises(REFUSED, match=rf"\b{name}\b"):
            run(op, arguments)
        return
    want, got = run(op, good(op)), run(op, arguments)
    for key, tensor in want.items():
        assert same_bits(got[key].detach().resolve_neg(), tensor)


@pytest.mark.parametrize("op", ["project_l1_box", "project_l0_box", "l1_step"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_outputs(op: str, kind: str) -> None:
    make, refused = UNUSUAL[kind]
    out = make(torch.full((ROWS, COLUMNS), 7.0))
    if refused or "negative bit" in kind or kind == "misaligned":
        with pytest.raises(REFUSED, match=r"\bout\b"):
            getattr(ops, op)(**good(op), out=out)
        return
    assert getattr(ops, op)(**good(op), out=out) is out
    assert same_bits(out.detach().as_subclass(Tensor).clone(), run(op, good(op))["out"])


PER_ROW = [
    (op, name, kind)
    for op, names in {
        "project_l1_box": ["eps"],
        "project_l0_box": ["k"],
        "l1_step": ["eps", "step_size", "k"],
        "recovery_step": ["lr", "lam"],
        "sparse_pgd_step": ["step_size", "mask_step", "k"],
    }.items()
    for name in names
    for kind in UNUSUAL
    if "sparse rows" not in kind and "nested" not in kind and "columns" not in kind and "transposed" not in kind
]  # of several dimensions


@pytest.mark.parametrize(("op", "name", "kind"), PER_ROW, ids=map("-".join, PER_ROW))
def test_unusual_numbers_a_row(op: str, name: str, kind: str) -> None:
    make, refused = UNUSUAL[kind]
    numbers = torch.tensor([0.25, 0.5, 1.0])
    unusual = good(op) | {name: make(numbers)}
    if refused:
        with pytest.raises(REFUSED, match=rf"\b{name}\b"):
            run(op, unusual)
        return
    want, got = run(op, good(op) | {name: numbers}), run(op, unusual)
    for key, tensor in want.items():
        assert same_bits(got[key], tensor)


NUMPY_CASES = [(op, name, kind) for op, names in ARRAYS.items() for name in names for kind in NUMPY]


@pytest.mark.parametrize(("op", "name", "kind"), NUMPY_CASES, ids=map("-".join, NUMPY_CASES))
def test_unusual_numpy_arrays(op: str, name: str, kind: str) -> None:
    make, refused = NUMPY[kind]
    arguments = good(op)
    arguments[name] = make(arguments[name].numpy())
    if refused or (name in WRITTEN and kind != "a matrix"):
        with pytest.raises(REFUSED, match=rf"\b{name}\b"):
            run(op, arguments)
        return
    want, got = run(op, good(op)), run(op, arguments)
    for key, tensor in want.items():
        assert same_bits(got[key], tensor)


OVERLAPS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "shifted": lambda b: (b[: ROWS * COLUMNS].view(ROWS, COLUMNS), b[4 : 4 + ROWS * COLUMNS].view(ROWS, COLUMNS)),
    "of another row stride": lambda b: (
        b[: ROWS * COLUMNS].view(ROWS, COLUMNS),
        b[: ROWS * COLUMNS * 2].view(ROWS, -1)[:, :COLUMNS],
    ),
    "in columns": lambda b: (b[:60].view(ROWS, 20)[:, :COLUMNS], b[:60].view(ROWS, 20)[:, 3 : 3 + COLUMNS]),
    "through NumPy": lambda b: (
        b[: ROWS * COLUMNS].view(ROWS, COLUMNS),
        torch.from_numpy(b.numpy()[7 : 7 + ROWS * COLUMNS].reshape(ROWS, COLUMNS)),
    ),
    "through DLPack": lambda b: (
        b[: ROWS * COLUMNS].view(ROWS, COLUMNS),
        torch.from_dlpack(b)[7 : 7 + ROWS * COLUMNS].view(ROWS, COLUMNS),
    ),
    "of broadcast rows": lambda b: (b[:COLUMNS].expand(ROWS, COLUMNS), b[: ROWS * COLUMNS].view(ROWS, COLUMNS)),
    "the last byte": lambda b: (
        b[: ROWS * COLUMNS].view(ROWS, COLUMNS),
        b[ROWS * COLUMNS - 1 : 2 * ROWS * COLUMNS - 1].view(ROWS, COLUMNS),
    ),
}
PAIRS = [
    *(("project_l1_box", read, "out") for read in ("delta", "x")),
    *(("project_l0_box", read, "out") for read in ("delta", "x")),
    *(("l1_step", read, "out") for read in ("delta", "grad", "x")),
    *(("sparse_pgd_step", read, changed) for read in ("grad", "x") for changed in ("values", "mask")),
    ("sparse_pgd_step", "values", "mask"),
    *(("recovery_step", "grad", changed) for changed in ("image", "exp_avg", "exp_avg_sq")),
    *(("recovery_step", *pair) for pair in (("image", "exp_avg"), ("image", "exp_avg_sq"), ("exp_avg", "exp_avg_sq"))),
]


@pytest.mark.parametrize("pair", PAIRS, ids=map("-".join, PAIRS))
@pytest.mark.parametrize("kind", OVERLAPS)
def test_memory_that_overlaps_in_part_is_refused(pair: tuple[str, str, str], kind: str) -> None:
    op, read, changed = pair
    buffer = torch.linspace(0.1, 0.9, 100)
    before = buffer.clone()
    arguments = good(op)
    arguments[read], arguments[changed] = OVERLAPS[kind](buffer)
    with pytest.raises(ValueError, match=rf"\b({read}|{changed})\b"):
        run(op, arguments)
    assert same_bits(buffer, before), "a refused call writes nothing"


@pytest.mark.parametrize("pair", PAIRS, ids=map("-".join, PAIRS))
def test_memory_side_by_side_is_no_overlap(pair: tuple[str, str, str]) -> None:
    op, read, changed = pair
    want = run(op, good(op))
    for apart in ("in rows", "in columns"):
        if apart == "in columns" and "exp_avg" in read + changed:
            continue  # moments are contiguous
        fresh = good(op)
        values = fresh[read], fresh.get(changed, torch.zeros(ROWS, COLUMNS))
        both = torch.cat(values) if apart == "in rows" else torch.cat(values, 1)
        arguments = fresh | dict(zip((read, changed), both.chunk(2, 0 if apart == "in rows" else 1), strict=True))
        got = run(op, arguments)
        for key, tensor in want.items():
            assert same_bits(got[key], tensor)


@pytest.mark.parametrize("name", ["eps", "step_size", "k"])
def test_numbers_in_the_memory_that_is_written_are_refused(name: str) -> None:
    out = torch.ones(ROWS, 1, dtype=torch.float64)
    numbers = out[:, 0] if name != "k" else out.view(torch.int64)[:, 0].fill_(1)
    arguments = {k: v[:, :1].double() if isinstance(v, Tensor) else v for k, v in good("l1_step").items()}
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        ops.l1_step(**arguments | {name: numbers}, out=out)


@pytest.mark.parametrize("name", ["mask", "frozen"])
def test_masks_in_the_memory_of_the_image_are_refused(name: str) -> None:
    arguments = good("recovery_step")
    flags = arguments["image"].view(torch.bool).fill_(True)
    flags = flags[0, :ROWS] if name == "frozen" else flags[:1].reshape(-1)[:COLUMNS]
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        ops.recovery_step(**arguments, **{name: flags})


def test_the_row_views_of_one_buffer() -> None:
    """`overlap` is exact: compared with NumPy's, over many pairs of strided rows."""
    from sparring import _bridge as bridge

    buffer = torch.zeros(120)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        views = []
        for least in (5, 0):  # the rows that are written do not overlap each other
            n, stride, rows = rng.integers(1, 6), rng.integers(least, 12), rng.integers(1, 6)
            views.append(buffer.as_strided((rows, n), (stride, 1), rng.integers(0, 50)))
        a, b = (bridge.Rows(v, v.data_ptr(), v.stride(0), *v.shape) for v in views)
        assert bridge.overlap(a, b) == np.shares_memory(views[0].numpy(), views[1].numpy()), views


KERNEL_KINDS = [
    kind for kind, (_, refused) in UNUSUAL.items() if refused and "columns" not in kind and "csr" not in kind
]


@pytest.mark.parametrize("kind", KERNEL_KINDS)
def test_kernels_refuse_what_has_no_memory(kind: str) -> None:
    from sparring.lipschitz import kernels

    with pytest.raises((TypeError, ValueError, NotImplementedError), match="matrix"):
        kernels.absolute_sums(UNUSUAL[kind][0](torch.rand(ROWS, COLUMNS)))


def test_gradient_kernels_refuse_or_read_a_negative_bit() -> None:
    from sparring.gradients import kernels

    z, bias = torch.rand(ROWS, 4), torch.rand(4)
    with pytest.raises(TypeError, match=r"\bz\b.*resolve_neg"):
        kernels.bias_activation_(torch._neg_view(z), None)
    with pytest.raises(TypeError, match=r"\bbias\b.*resolve_neg"):
        kernels.bias_activation_(z, negated(bias))
    images = torch.rand(2, 3, 4, 4)
    pooled = [kernels.relu_pool(t, None, (2, 2), (2, 2))[0] for t in (images, negated(images))]
    assert same_bits(*pooled)


def test_kernels_read_a_negative_bit() -> None:
    from sparring.lipschitz import kernels

    matrices = torch.eye(3)[None]
    assert kernels.positive_definite(matrices, torch.tensor([2.0])).tolist() == [True]
    assert kernels.positive_definite(negated(matrices), negated(torch.tensor([2.0]))).tolist() == [True]
    assert not bool(kernels.absolute_sums(negated(torch.zeros(2, 3))).sums.any())


@pytest.mark.parametrize("kind", ["a zero tensor", "a fake tensor", "on the meta device", "without memory"])
def test_gradient_kernels_refuse_what_they_cannot_read(kind: str) -> None:
    from sparring.gradients import kernels

    z, labels = torch.rand(ROWS, 4), torch.zeros(ROWS, dtype=torch.int64)
    make = UNUSUAL[kind][0]
    weight = kernels.DenseLayer(torch.rand(4, 4), torch.rand(4))
    for call in (
        lambda: kernels.bias_activation_(make(z), None),
        lambda: kernels.bias_activation_(z, make(torch.rand(4))),
        lambda: kernels.loss_grad(make(z), None, labels),
        lambda: kernels.loss_grad(z, None, make(labels)),
        lambda: kernels.dense_network(z, [weight._replace(weight=make(weight.weight))], labels),
        lambda: kernels.relu_pool(make(torch.rand(1, 2, 4, 4)), None, (2, 2), (2, 2)),
        lambda: kernels.pairwise_cosine(make(torch.rand(2, 3, 4))),
    ):
        with pytest.raises(REFUSED):
            call()
