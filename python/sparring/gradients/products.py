"""Matrix products with the weights of a layer: torch's own, or oneDNN's where they are faster."""

from __future__ import annotations

from torch import Tensor, backends, bfloat16, bmm, float32, ops
from torch.nn import functional as F

# What torch.compile puts in the place of a linear layer on the CPU; its names are not stable, so they may be absent.
_ONEDNN = bool(backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
    hasattr(ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
)

# From how many outputs and weights on it pays, measured beside MKL. Not from which batch on: an example's rounding
# should not depend on it.
_OUTPUTS, _WEIGHTS = 129, 2**16

_BATCH = 128  # that packed weights are laid out for; others are served as well


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for `x` (..., K), `weight` (N, K), which may be `packed`, and `bias` (N,); no graph."""
    if weight.is_mkldnn:
        return _onednn(x.contiguous(), weight, bias) if x.shape[0] else x.new_empty(0, weight.shape[0])
    if x.ndim == 2 and x.dtype is float32 and _pays(weight) and weight.dtype is float32 and x.shape[0]:
        return _onednn(x.contiguous(), weight, bias)
    return F.linear(x, weight, bias)


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
        return _onednn(weight.contiguous(), x.contiguous(), None)
    return weight @ x.t()


def packed(weight: Tensor) -> Tensor:
    """`weight` (N, K) laid out for many products; to be used by `linear` alone, with `x` (B, K) of its dtype."""
    if not _pays(weight) or weight.dtype not in (float32, bfloat16):
        return weight
    if weight.dtype is bfloat16 and not ops.mkldnn._is_mkldnn_bf16_supported():
        return weight
    result: Tensor = ops.mkldnn._reorder_linear_weight(weight.contiguous(), _BATCH)
    return result


def _pays(weight: Tensor) -> bool:
    return _ONEDNN and weight.is_cpu and weight.shape[0] >= _OUTPUTS and weight.numel() >= _WEIGHTS


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
