"""Matrix products with the weights of a layer: torch's own, or oneDNN's where they are faster."""

from __future__ import annotations

from torch import Tensor, backends, float32, ops
from torch.nn import functional as F

# What torch.compile puts in the place of a linear layer on the CPU; without a stable name, so it may be absent.
_ONEDNN = backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise")

# From how many outputs and weights on it pays, measured beside MKL. Not from which batch on: an example's rounding
# should not depend on it.
_OUTPUTS, _WEIGHTS = 129, 2**16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for `x` (..., K), `weight` (N, K) and `bias` (N,), without a graph.

    Fastest where ``weight.T`` is contiguous.
    """
    fits = _ONEDNN and x.is_cpu and x.dtype is weight.dtype is float32 and x.ndim == 2 and x.is_contiguous()
    if fits and x.shape[0] and weight.shape[0] >= _OUTPUTS and weight.numel() >= _WEIGHTS:
        product: Tensor = ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)
