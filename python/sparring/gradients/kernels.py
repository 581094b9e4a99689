"""What lies between the matrix products of a forward and a backward pass, as one kernel each.

Thin: tensors are float32 or float64, on a device for which `supported` holds, and an argument that is not as described
is the caller's fault; only what could touch foreign memory is checked. Nothing is recorded by autograd. The maths is in
``csrc/ops/<name>.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, float32, float64, int64

from sparring import _bridge as bridge
from sparring import _core

LOSSES = ("ce", "margin", "dlr", "prob")
COMBINES = ("probs", "logits", "loss")
ACTIVATIONS = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "softplus")
"""softplus is torch's with its default beta (1) and threshold (20); leaky_relu wants a slope above 0."""

_NUMBER = {name: number for names in (LOSSES, COMBINES, ACTIVATIONS) for number, name in enumerate(names)}


class LossGrad(NamedTuple):
    """Losses, (B,); their gradient, like the logits; the logits of the ensemble, (B, K)."""

    loss: Tensor
    grad: Tensor
    combined: Tensor


def supported(tensor: Tensor) -> bool:
    """Whether there are kernels for the device and type of `tensor`; for others, torch's own operations have to do."""
    device = tensor.device.type
    return tensor.dtype in (float32, float64) and (
        device == "cpu" or (device == "cuda" and bool(_core.build_info()["cuda"]))
    )


def bias_activation_(
    z: Tensor, bias: Tensor | None, kind: str = "identity", *, slope: float = 0.01, out: Tensor | None = None
) -> Tensor:
    """``activation(z + bias)``, in place or into `out`.

    Parameters
    ----------
    z : (..., H)
        Rows contiguous.
    bias : (H,) or (M, H), optional
        One a network of a stack, for `z` of shape (M, ..., H).
    kind : one of `ACTIVATIONS`
    slope : float
        Of leaky_relu.
    out : like `z`, optional
        Where to write instead.
    """
    target = z if out is None else out
    rows, n, stride = _rows(z, "z")
    out_rows, out_n, out_stride = _rows(target, "out", written=True)
    _agree((out_rows, out_n), (rows, n), "out", "z")
    groups = 1
    if bias is not None:
        groups = 1 if bias.ndim == 1 else len(bias)
        _agree(tuple(bias.shape), (n,) if bias.ndim == 1 else (z.shape[0], n), "bias", "z")
        _same_kind(bias, z, "bias")
        bias = bias.contiguous()
    _same_kind(target, z, "out")
    bridge.native.bias_activation(
        z.dtype is float64,
        *bridge.place_of(z, "z"),
        rows,
        n,
        z.data_ptr(),
        stride,
        0 if bias is None else bias.data_ptr(),
        n,
        max(1, rows // max(1, groups)),
        _NUMBER[kind],
        slope,
        target.data_ptr(),
        out_stride,
    )
    return target


def activation_backward_(grad: Tensor, output: Tensor, kind: str, *, slope: float = 0.01) -> Tensor:
    """Multiply `grad` in place by the activation's derivative, which follows from the activation's output alone.

    Parameters
    ----------
    grad : (..., H) or (..., K, H)
        Rows contiguous; K gradients of every row of `output`.
    output : (..., H)
        What `bias_activation_` gave.
    kind, slope
        As in `bias_activation_`.
    """
    rows, n, stride = _rows(grad, "grad", written=True)
    output_rows, output_n, output_stride = _rows(output, "output")
    lead = grad.shape[:-1] if grad.ndim == output.ndim else grad.shape[:-2]
    _agree(tuple(lead), tuple(output.shape[:-1]), "grad", "output")
    _agree((output_n,), (n,), "output", "grad")
    _same_kind(output, grad, "output")
    bridge.native.activation_backward(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        rows,
        n,
        grad.data_ptr(),
        stride,
        output.data_ptr(),
        output_stride,
        max(1, rows // max(1, output_rows)),
        _NUMBER[kind],
        slope,
    )
    return grad


def loss_grad(
    logits: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    targets: Tensor | None = None,
    loss: str = "ce",
    combine: str = "probs",
) -> LossGrad:
    """Loss of each example and its gradient towards the logits of one network, or of all of an ensemble.

    Parameters
    ----------
    logits : (B, K) or (M, B, K)
        K contiguous, else any strides: (B, M K) from stacked networks is ``.view(B, M, K).transpose(0, 1)``.
    weights : (M,), optional
        Of the members; >= 0, sum 1. None: equal ones.
    labels, targets : (B,) int64
        The loss is of the target where there are targets; see :mod:`sparring.losses`. A row with a class outside
        0 ... K - 1 becomes NaN.
    loss, combine : one of `LOSSES`, one of `COMBINES`
        "probs" and "logits": the loss of the mixed probabilities, or of the mean logits; "loss": the mean of losses.

    Returns
    -------
    LossGrad
        ``combined``: log of the mixed probabilities; the mean logits; for "loss" the mean of the members' log softmax;
        for one network the `logits` themselves.
    """
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        logits = logits.contiguous()
    single = logits.ndim == 2 or len(logits) == 1
    members, (batch, classes) = 1 if single else len(logits), logits.shape[-2:]
    _check_indices(labels, "labels", batch, logits)
    _check_indices(targets, "targets", batch, logits)
    labels = labels.contiguous()
    targets = None if targets is None else targets.contiguous()
    if not single:
        if weights is None:
            weights = logits.new_full((members,), 1 / members, dtype=float64)
        weights = weights.to(logits.device, float64).contiguous()
        _agree(tuple(weights.shape), (members,), "weights", "logits")
    else:
        weights = None
    value, grad = logits.new_empty(batch), torch.empty_like(logits)
    combined = logits.view(batch, classes) if single else logits.new_empty(batch, classes)
    bridge.native.loss_grad(
        logits.dtype is float64,
        *bridge.place_of(logits, "logits"),
        batch,
        members,
        classes,
        logits.data_ptr(),
        logits.stride(0),
        logits.stride(-2),
        0 if weights is None else weights.data_ptr(),
        labels.data_ptr(),
        0 if targets is None else targets.data_ptr(),
        _NUMBER[loss],
        _NUMBER[combine],
        value.data_ptr(),
        grad.data_ptr(),
        grad.stride(0),
        grad.stride(-2),
        0 if single else combined.data_ptr(),
    )
    return LossGrad(value, grad, combined)


def _rows(tensor: Tensor, name: str, written: bool = False) -> tuple[int, int, int]:
    """Number of rows (all dimensions but the last), their length, and the stride from one to the next."""
    n = tensor.shape[-1]
    if tensor.is_contiguous():
        return tensor.numel() // n if n else 0, n, n
    try:
        rows = tensor.view(-1, n)
    except RuntimeError:
        rows = None
    if rows is None or (n > 1 and rows.stride(1) != 1) or (written and len(rows) > 1 and rows.stride(0) < n):
        raise ValueError(f"{name}, of strides {tensor.stride()}, has no rows that are contiguous and equally far apart")
    return rows.shape[0], n, rows.stride(0)


def _agree(shape: tuple[int, ...], wanted: tuple[int, ...], name: str, other: str) -> None:
    if shape != wanted:
        raise ValueError(f"{name} does not fit {other}: {shape}, not {wanted}")


def _check_indices(indices: Tensor | None, name: str, batch: int, like: Tensor) -> None:
    if indices is None:
        return
    _agree(tuple(indices.shape), (batch,), name, "the batch")
    if indices.dtype is not int64 or indices.device != like.device:
        raise ValueError(f"{name} are {indices.dtype} on '{indices.device}', not int64 on '{like.device}'")


def _same_kind(tensor: Tensor, other: Tensor, name: str) -> None:
    if tensor.dtype is not other.dtype or tensor.device != other.device:
        raise ValueError(f"{name} is {tensor.dtype} on '{tensor.device}', not {other.dtype} on '{other.device}'")


# --- images -----------------------------------------------------------------------------------------------------------

_FEW_CHANNELS = 4  # up to here the matrix product with the columns takes less time than torch's convolution backward

Pair: TypeAlias = "tuple[int, int]"
"""Vertical, horizontal."""


def relu_pool_fits(kernel: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> bool:
    """Whether `relu_pool` has such windows: undilated, of at most 255 entries, none wholly outside the image."""
    few = 0 < kernel[0] * kernel[1] <= 255
    return few and tuple(dilation) == (1, 1) and all(0 <= 2 * p <= k for p, k in zip(padding, kernel, strict=True))


def relu_pool(
    z: Tensor,
    bias: Tensor | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    activation: str = "relu",
    *,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """``max_pool2d(activation(z + bias))``, to the bit what torch gives, and what its backward pass needs.

    Parameters
    ----------
    z : (B, C, H, W)
        In channels-last form, for which it is fastest, or contiguous; any other is copied.
    bias : (C,), optional
    kernel, stride, padding
        For which `relu_pool_fits`.
    activation : "relu" or "identity"
        Other activations that never fall may as well come after the pooling.
    ceil_mode : bool
        As in `torch.nn.MaxPool2d`.

    Returns
    -------
    out : (B, C, OH, OW)
        In the form of `z`.
    index : like `out`, uint8
        Which entry of its window an output is, line by line; 255 where ReLU let nothing through.
    """
    if activation not in ("relu", "identity"):
        raise ValueError(f"activation must be 'relu' or 'identity', not {activation!r}")
    if not relu_pool_fits(kernel, padding):
        raise ValueError(f"there is no kernel for windows {tuple(kernel)} with padding {tuple(padding)}")
    z, form, lanes = _image(z)
    batch, channels, *size = z.shape
    if bias is not None:
        _agree(tuple(bias.shape), (channels,), "bias", "z")
        _same_kind(bias, z, "bias")
        bias = bias.contiguous()
    out_size = [_windows(size[i], kernel[i], stride[i], padding[i], ceil_mode=ceil_mode) for i in (0, 1)]
    out = torch.empty((batch, channels, *out_size), dtype=z.dtype, device=z.device, memory_format=form)
    index = torch.empty_like(out, dtype=torch.uint8)
    bridge.native.relu_pool(
        z.dtype is float64,
        *bridge.place_of(z, "z"),
        [batch * channels // lanes, channels, lanes, *size, *out_size, *kernel, *stride, *padding],
        activation == "relu",
        z.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        index.data_ptr(),
    )
    return out, index


def relu_pool_backward(
    grad: Tensor, index: Tensor, size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Tensor:
    """The gradient at the `z` of `relu_pool`, (B, C, *`size`), from `grad` at its output; in the form of `index`."""
    index, form, lanes = _image(index)
    batch, channels, *out_size = index.shape
    _agree(tuple(grad.shape), tuple(index.shape), "grad", "index")
    if index.dtype is not torch.uint8 or index.device != grad.device:
        raise ValueError(f"index is {index.dtype} on '{index.device}', not torch.uint8 on '{grad.device}'")
    for i in (0, 1):
        if abs(_windows(size[i], kernel[i], stride[i], padding[i]) - out_size[i]) > 1:  # ceil_mode makes one more
            raise ValueError(f"an image of size {tuple(size)} does not have {tuple(out_size)} windows")
    grad = grad.contiguous(memory_format=form)
    grad_z = torch.empty((batch, channels, *size), dtype=grad.dtype, device=grad.device, memory_format=form)
    bridge.native.relu_pool_backward(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        [batch * channels // lanes, channels, lanes, *size, *out_size, *kernel, *stride, *padding],
        grad.data_ptr(),
        index.data_ptr(),
        grad_z.data_ptr(),
    )
    return grad_z


def conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient at a convolution's input, of shape `input_shape`, from `grad` at its output.

    With few input channels, a matrix product and a sum over the windows that an entry lies under; else torch's own.

    Parameters
    ----------
    grad : (B, C_out, OH, OW)
        In channels-last form or contiguous; any other is copied.
    weight : (C_out, C_in / groups, KH, KW)
    input_shape : (B, C_in, H, W)
    """
    batch, channels, *size = input_shape
    if groups > 1 or channels > _FEW_CHANNELS or not supported(grad):
        # of the input, only the shape and the memory format count
        form = torch.channels_last if grad.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        like = torch.empty(tuple(input_shape), dtype=grad.dtype, device=grad.device, memory_format=form)
        given: Tensor = torch.ops.aten.convolution_backward(
            grad, like, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[0]
        return given
    grad, _, lanes = _image(grad)
    out_channels, *out_size = grad.shape[1:]
    taps = weight.shape[2:]
    _agree(tuple(weight.shape), (out_channels, channels, *taps), "weight", "grad and input_shape")
    _same_kind(weight, grad, "weight")
    windows = tuple(_windows(size[i], dilation[i] * (taps[i] - 1) + 1, stride[i], padding[i]) for i in (0, 1))
    _agree((grad.shape[0], *out_size), (batch, *windows), "grad", "input_shape")
    positions = out_size[0] * out_size[1]
    of_taps = weight.permute(2, 3, 1, 0).reshape(-1, out_channels)
    if lanes == out_channels:
        columns = of_taps @ grad.permute(0, 2, 3, 1).reshape(batch * positions, out_channels).t()
        image_stride, tap_stride = positions, batch * positions
    else:
        columns = of_taps @ grad.view(batch, out_channels, positions)
        image_stride, tap_stride = of_taps.shape[0] * positions, positions
    out = torch.empty(tuple(input_shape), dtype=grad.dtype, device=grad.device)
    bridge.native.col2im(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        *input_shape,
        *out_size,
        *taps,
        *stride,
        *padding,
        *dilation,
        columns.data_ptr(),
        image_stride,
        tap_stride,
        out.data_ptr(),
    )
    return out


def _image(tensor: Tensor) -> tuple[Tensor, torch.memory_format, int]:
    """`tensor`, (B, C, H, W), in channels-last or contiguous form; which of them; how many channels lie innermost."""
    if tensor.is_contiguous() and tensor.shape[1] > 1 and not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor, torch.contiguous_format, 1
    return tensor.contiguous(memory_format=torch.channels_last), torch.channels_last, tensor.shape[1]


def _windows(size: int, kernel: int, stride: int, padding: int, *, ceil_mode: bool = False) -> int:
    """How many windows lie along an axis; with `ceil_mode` also one that begins inside but does not end there."""
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"a window of {kernel} does not fit into {size} with padding {padding}")
    count = room // stride + 1
    return count + 1 if ceil_mode and room % stride > 0 and count * stride < size + padding else count


# --- whole networks ---------------------------------------------------------------------------------------------------

_MOST_LAYERS = 8
_TILE_BYTES = 48 * 1024
_TILES = (8, 4, 1)  # examples; kernels are compiled for these
_GROUPS = 8  # of members, one fixed number: sums do not depend on the batch


class DenseLayer(NamedTuple):
    """A linear layer and what follows it, of one network or of M stacked ones."""

    weight: Tensor
    """(H, D) or (M, H, D)."""
    bias: Tensor | None
    """(H,) or (M, H)."""
    activation: str = "identity"
    slope: float = 0.01


def dense_network_fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a network of these widths (inputs, of each layer) finds room in a thread block: see `dense_network`."""
    return 1 < len(widths) <= _MOST_LAYERS + 1 and _tile_bytes(widths, dtype) <= _TILE_BYTES


def _tile_bytes(widths: Sequence[int], dtype: torch.dtype) -> int:
    """What an example takes: everything's output, and the gradient at the logits."""
    return (sum(widths) + widths[-1]) * dtype.itemsize


def dense_network(
    x: Tensor,
    layers: Sequence[DenseLayer],
    labels: Tensor,
    targets: Tensor | None = None,
    loss: str = "ce",
    combine: str = "probs",
    weights: Tensor | None = None,
    *,
    tile: int | None = None,
) -> LossGrad:
    """A dense network, or an ensemble of them, forward and backward in one kernel: for small ones and small batches.

    One network takes one launch. An ensemble takes a launch for the logits, `loss_grad`, a launch that computes the
    activations once more and goes back, and a sum: no array of members and examples but the logits.

    Parameters
    ----------
    x : (B, D)
    layers : for which `dense_network_fits`
        The last one's activation is "identity".
    labels, targets, loss, combine, weights
        As in `loss_grad`.
    tile : 1, 4 or 8, optional
        How many examples a block works on; results do not depend on it.

    Returns
    -------
    LossGrad
        ``grad``: the loss's gradient towards `x`.
    """
    members = [1 if layer.weight.ndim == 2 else len(layer.weight) for layer in layers]
    widths = [x.shape[1], *(layer.weight.shape[-2] for layer in layers)]
    if not dense_network_fits(widths, x.dtype):
        raise ValueError(f"a network of widths {widths} in {x.dtype} does not fit")
    if layers[-1].activation != "identity":
        raise ValueError(f"the last layer's activation must be 'identity', not {layers[-1].activation!r}")
    for i, layer in enumerate(layers):
        name = f"layers[{i}]"
        _agree((members[i], *layer.weight.shape[-2:]), (members[0], widths[i + 1], widths[i]), f"{name}.weight", "x")
        _same_kind(layer.weight, x, f"{name}.weight")
        if layer.bias is not None:
            _agree(tuple(layer.bias.shape), tuple(layer.weight.shape[:-1]), f"{name}.bias", "weight")
            _same_kind(layer.bias, x, f"{name}.bias")
    net = _Network(x.contiguous(), [_contiguous(layer) for layer in layers], widths, members[0], tile)
    if members[0] > 1:
        logits = net.forward()
        value, given, combined = loss_grad(logits, weights, labels, targets, loss, combine)
        return LossGrad(value, net.backward(given), combined)
    _check_indices(labels, "labels", len(x), x)
    _check_indices(targets, "targets", len(x), x)
    return net.forward_and_backward(labels, targets, loss)


class _Network(NamedTuple):
    """The arguments of one call."""

    x: Tensor
    layers: list[DenseLayer]
    widths: list[int]
    members: int
    tile: int | None

    def forward(self) -> Tensor:
        logits = self.x.new_empty((self.members, len(self.x), self.widths[-1]))
        self._run(self.members, logits=logits)
        return logits

    def backward(self, given: Tensor) -> Tensor:
        """From the gradients at the logits, (M, B, K)."""
        groups = min(self.members, _GROUPS)
        grads = self.x.new_empty((groups, *self.x.shape))
        self._run(groups, given=given.contiguous(), grad=grads)
        return grads.sum(0) if groups > 1 else grads[0]

    def forward_and_backward(self, labels: Tensor, targets: Tensor | None, loss: str) -> LossGrad:
        value, grad = self.x.new_empty(len(self.x)), torch.empty_like(self.x)
        logits = self.x.new_empty((len(self.x), self.widths[-1]))
        targets = None if targets is None else targets.contiguous()
        self._run(1, loss, labels=labels.contiguous(), targets=targets, value=value, logits=logits, grad=grad)
        return LossGrad(value, grad, logits)

    def _run(self, groups: int, loss: str = "ce", **arrays: Tensor | None) -> None:
        place = bridge.place_of(self.x, "x")
        batch = len(self.x)
        address = {name: array.data_ptr() for name, array in arrays.items() if array is not None}
        bridge.native.dense_network(
            self.x.dtype is float64,
            *place,
            batch,
            self._tile(groups, 2 * place.threads if place.device < 0 else 128),
            self.members,
            groups,
            self.widths[0],
            [
                (
                    w,
                    layer.weight.data_ptr(),
                    0 if layer.bias is None else layer.bias.data_ptr(),
                    _NUMBER[layer.activation],
                )
                for w, layer in zip(self.widths[1:], self.layers, strict=True)
            ],
            [layer.slope for layer in self.layers],
            self.x.data_ptr(),
            address.get("given", 0),
            _NUMBER[loss],
            *(address.get(name, 0) for name in ("labels", "targets", "value", "logits", "grad")),
        )

    def _tile(self, groups: int, wanted: int) -> int:
        """As many examples as fit, but work for so many blocks where there is as much."""
        fitting = [t for t in _TILES if t * _tile_bytes(self.widths, self.x.dtype) <= _TILE_BYTES]
        if self.tile is None:
            return next((t for t in fitting if -(-len(self.x) // t) * groups >= wanted), 1)
        if self.tile not in fitting:
            raise ValueError(f"tile is {self.tile}; for this network accepted: {', '.join(map(str, fitting))}")
        return self.tile


def _contiguous(layer: DenseLayer) -> DenseLayer:
    bias = None if layer.bias is None else layer.bias.contiguous()
    return layer._replace(weight=layer.weight.contiguous(), bias=bias)
