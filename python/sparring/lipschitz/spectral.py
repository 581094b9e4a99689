"""The spectral norm of a layer's weights, enclosed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparring.lipschitz import convolution, dense, given
from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.enclosure import Enclosure
from sparring.lipschitz.geometry import Geometry, sides

KINDS = ("dense", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
METHODS = ("auto", "dense", "frequencies", "banded")
PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


@plain_arithmetic()
def spectral_norm(
    weight: Tensor,
    kind: str = "dense",
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    output_padding: int | Sequence[int] = 0,
    method: str = "auto",
    certified: bool = True,
    tol: float = 1e-6,
) -> Enclosure:
    """Two numbers between which a layer's largest singular value lies: the operator's own, not its reshaped kernel's.

    Parameters
    ----------
    weight : Tensor
        As the layer of that kind holds it: dense (out, in); conv (out, in / groups, *kernel); conv_transpose
        (in, out / groups, *kernel). Any float type; taken as the exact numbers that it stores, worked on in float64.
    kind : str
        "dense", "conv1d" to "conv3d", "conv_transpose1d" to "conv_transpose3d".
    input_shape : ints, optional
        Of a convolution's input, the spatial sizes alone. None: the supremum over all sizes at stride 1, which bounds
        the norm at every stride, size and padding with zeros (so these options must be left as they are).
    stride, padding, padding_mode, dilation, groups, output_padding
        As in ``torch.nn``; padding also "same" and "valid".
    method : str
        "dense": the operator as a matrix. "frequencies": one small matrix per frequency, exact for circular padding,
        an upper bound for others. "banded": banded Cholesky of the operator's Gram matrix, for padding with zeros.
        "auto": dense where the operator is small, frequencies otherwise, then banded where those leave a gap of more
        than ``tol`` and it takes seconds.
    certified : bool
        False leaves the proof out where that saves time, for operators worked on as matrices: the upper end is then
        an estimate. `Enclosure.certified` says which it is.
    tol : float
        How close the ends should come, as a share, where the method allows it.

    Returns
    -------
    Enclosure

    Raises
    ------
    ValueError
        If a weight is NaN or infinite, shapes do not fit, or a method cannot serve the layer.

    Notes
    -----
    ``docs/lipschitz.md`` proves the upper ends, rounding included.
    """
    check_weight(weight, kind)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    given.positive(tol, "tol")
    if kind == "dense":
        if method not in ("auto", "dense"):
            raise ValueError(f"method {method!r} is for convolutions; a dense layer takes 'auto' or 'dense'")
        if input_shape is not None:
            raise ValueError("input_shape is for convolutions; a dense layer's is in its weight")
        return dense.enclose(weight, tol=tol, certified=certified)
    dims = int(kind[-2])
    (groups,) = _sizes(groups, 1, "groups", 1)
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide the first dimension of weight, {weight.shape[0]}; got {groups}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}; got {padding_mode!r}")
    kernel = tuple(weight.shape[2:])
    strides, dilations = _sizes(stride, dims, "stride", 1), _sizes(dilation, dims, "dilation", 1)
    if input_shape is None:
        if (stride, padding, padding_mode, output_padding) != (1, 0, "zeros", 0):
            raise ValueError(
                "stride, padding, padding_mode and output_padding need an input_shape; the bound is for all"
            )
        if method not in ("auto", "frequencies"):
            raise ValueError(f"method {method!r} needs an input_shape")
        return convolution.enclose_any_size(weight, groups, tol=tol)
    size = _sizes(input_shape, dims, "input_shape", 1)
    outputs = None
    if not isinstance(padding, str):
        padding = _sizes(padding, dims, "padding", 0)
    elif padding == "same" and any(s != 1 for s in strides):
        raise ValueError("padding 'same' needs stride 1")
    before, after = sides(padding, kernel, dilations)
    if kind.startswith("conv_transpose"):
        # The transpose of the convolution with the same weight that maps its output back to its input.
        if padding_mode != "zeros":
            raise ValueError("a transposed convolution has padding_mode 'zeros' alone")
        if isinstance(padding, str):
            raise ValueError("a transposed convolution takes its padding as numbers")
        extra = _sizes(output_padding, dims, "output_padding", 0)
        if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
            raise ValueError(f"output_padding must be less than stride or dilation; got {extra}")
        outputs = size
        size = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, s, p, d, k, e in zip(size, strides, before, dilations, kernel, extra, strict=True)
        )
    elif any(_sizes(output_padding, dims, "output_padding", 0)):
        raise ValueError("output_padding is for transposed convolutions")
    shape = Geometry(size, kernel, strides, before, after, dilations, padding_mode, outputs)
    if min(size) < 1 or min(shape.out) < 1:
        raise ValueError(f"an input of {size} gives this layer no output: {shape.out}")
    if padding_mode == "circular" and any(max(b, a) > n for b, a, n in zip(before, after, size, strict=True)):
        raise ValueError(f"circular padding must not exceed the input's size {size}; got {before}")
    if padding_mode == "reflect" and any(max(b, a) >= n for b, a, n in zip(before, after, size, strict=True)):
        raise ValueError(f"reflect padding must be less than the input's size {size}; got {before}")
    return convolution.enclose(weight, shape, groups, method=method, tol=tol, certified=certified)


def check_weight(weight: Tensor, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    given.numbers(weight, "weight")
    dims = 2 if kind == "dense" else 2 + int(kind[-2])
    if weight.ndim != dims:
        raise ValueError(f"weight of kind {kind!r} must have {dims} dimensions; got shape {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"weight must not be empty; got shape {tuple(weight.shape)}")
    if not given.finite(weight):
        raise ValueError("weight has NaN or inf")


def _sizes(value: int | Sequence[int], dims: int, name: str, least: int) -> tuple[int, ...]:
    sizes = given.integers(value, name, f"{dims} integers of at least {least}, or one")
    if not isinstance(value, Sequence) and len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or min(sizes) < least:
        raise ValueError(f"{name} must be {dims} integers of at least {least}, or one; got {value!r}")
    return sizes
