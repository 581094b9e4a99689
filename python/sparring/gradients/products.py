"""Matrix products with the weights of a layer: torch's own, or oneDNN's where they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, backends, bfloat16, bmm, float32, get_num_threads, ops
from torch.nn import functional as F

from sparring._bridge import native

# What torch.compile puts in the place of a linear layer on the CPU; its names are not stable, so they may be absent.
_ONEDNN = bool(backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
    hasattr(ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
)

# From how many outputs and weights on it pays in float32, measured beside MKL. Not from which batch on: an example's
# rounding should not depend on it. On Intel's processors MKL is faster by a tenth to a fifth, whatever the shape.
_OUTPUTS, _WEIGHTS = 129, 2**16
_FASTER_THAN_MKL = _ONEDNN and not (native.is_intel() and backends.mkl.is_available())  # type: ignore[no-untyped-call]

_KEPT = 2**18  # weights of a layer

_BATCH = 128  # that packed weights are laid out for; others are served as well


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias`` for `x` (..., K), `weight` (N, K), which may be `packed`, and `bias` (N,); no graph.

    With `relu`, what is below 0 becomes 0.
    """
    if weight.is_mkldnn:
        return _onednn(x.contiguous(), weight, bias, relu) if x.shape[0] else x.new_empty(0, weight.shape[0])
    if x.ndim == 2 and x.dtype is float32 and _pays(weight) and weight.dtype is float32 and x.shape[0]:
        return _onednn(x.contiguous(), weight, bias, relu)
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def side_by_side(x: Tensor, weight: Tensor) -> Tensor:
    """Each member's own product of its features and its `weight` (M, F, H): (B, M F) to (B, M H); no graph."""
    members, features, units = weight.shape
    result = x.new_empty(x.shape[0], members * units)
    by_member = x.reshape(x.shape[0], members, features).transpose(0, 1)
    bmm(by_member, weight, out=result.view(x.shape[0], members, units).transpose(0, 1))
    return result


def product_with_few(weight: Tensor, x: Tensor) -> Tensor:
    """``weight @ x.T`` for a large `weight` (N, K) and few rows `x` (B, K); no graph."""
    if _ONEDNN and weight.is_cpu and weight.dtype is float32 and x.dtype is float32 and x.shape[0] and weight.numel():
        return _onednn(weight.contiguous(), x.contiguous(), None, relu=False)
    return weight @ x.t()


def packed(weight: Tensor) -> Tensor:
    """`weight` (N, K) laid out for many products; to be used by `linear` alone, with `x` (B, K) of its dtype."""
    if weight.dtype is bfloat16:
        return _laid_out(weight)
    if not _pays(weight) or weight.dtype is not float32:
        return weight
    return _reordered(weight)


def _pays(weight: Tensor) -> bool:
    return _FASTER_THAN_MKL and weight.is_cpu and weight.shape[0] >= _OUTPUTS and weight.numel() >= _WEIGHTS


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    product: Tensor = ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    return product


def small_enough_to_keep(weight: Tensor) -> bool:
    """Whether a float32 weight should have a `Bfloat16`: both copies of a larger one would not stay in the caches."""
    return weight.dtype is float32 and weight.numel() <= _KEPT


class Bfloat16:
    """A layer's weight and bias in bfloat16, laid out for products there and back; renewed whenever one changed."""

    def __init__(self) -> None:
        self._kept: tuple[Any, tuple[Tensor, Tensor, Tensor | None]] | None = None

    def of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weight (N, K) and its transpose, both for `linear`, and the bias."""
        contents, kept = contents_of([weight] if bias is None else [weight, bias]), self._kept
        if kept is None or contents is None or kept[0] != contents:
            small = weight.bfloat16()
            there, back = (_laid_out(w) for w in (small, small.t()))
            kept = contents, (there, back, None if bias is None else bias.bfloat16())
            self._kept = kept
        return kept[1]


def contents_of(tensors: Sequence[Tensor]) -> Any:
    """What tells whether the entries of these tensors, or their shapes, are other ones; None where it is not known.

    Torch's counts of changes do not: an optimiser with ``fused=True``, ``.data`` and NumPy leave them as they are.
    """
    if not all(tensor.is_cpu for tensor in tensors):
        return None  # to read them takes a device as long as to copy them
    dense = [tensor if tensor.is_contiguous() else tensor.detach().contiguous() for tensor in tensors]
    addresses, sizes = [tensor.data_ptr() for tensor in dense], [tensor.nbytes for tensor in dense]
    sums = native.memory_checksums(addresses, sizes, get_num_threads())
    return [(tensor.shape, tensor.dtype) for tensor in dense], sums


def _laid_out(weight: Tensor) -> Tensor:
    if not (_ONEDNN and weight.is_cpu and weight.numel() and ops.mkldnn._is_mkldnn_bf16_supported()):
        return weight
    return _reordered(weight)


def _reordered(weight: Tensor) -> Tensor:
    result: Tensor = ops.mkldnn._reorder_linear_weight(weight.contiguous(), _BATCH)
    return result
