"""Small dense networks on CUDA, in one kernel: where starting one kernel after another takes longer than their work."""

from __future__ import annotations

from torch import Tensor

from sparring import losses
from sparring.gradients import kernels
from sparring.gradients.kernels import DenseLayer, LossGrad
from sparring.gradients.lowered import Lowered
from sparring.gradients.members import StackedDense
from sparring.gradients.steps import Activation, Flatten, Linear, NotLowered, Reshape, as_dtype
from sparring.losses import Span

# Examples times members. An estimate from launch times and arithmetic, not a measurement: about where matrix products
# on all of the device make up for their launches.
_LATENCY_BOUND = 512


def input_grad(
    lowered: Lowered,
    x: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    loss: str,
    spans: tuple[Span, Span | None] | None = None,
) -> LossGrad | None:
    """`LossGrad` towards `x`; None where one kernel does not pay, or where there is none for model or device."""
    if not worthwhile(x):
        return None
    mixture = lowered.mixture
    if mixture is not None and mixture.combine != mixture.differentiated:
        return None  # the kernel returns the logits of what is differentiated
    try:
        flat, layers = _dense(lowered, x.detach())
    except NotLowered:
        return None
    if not layers or flat.ndim != 2 or layers[-1].activation != "identity":
        return None
    members = 1 if layers[0].weight.ndim == 2 else len(layers[0].weight)
    widths = [flat.shape[1], *(layer.weight.shape[-2] for layer in layers)]
    if len(x) * members > _LATENCY_BOUND or not kernels.dense_network_fits(widths, x.dtype):
        return None
    losses.check(loss, x.new_empty((len(x), widths[-1])), labels, targets, spans)
    how, weights = ("probs", None) if mixture is None else (mixture.combine, mixture.weights)
    targets = None if targets is None else targets.long()
    result = kernels.dense_network(flat, layers, labels.long(), targets, loss, how, weights)
    return result._replace(grad=result.grad.view(x.shape))


def worthwhile(x: Tensor) -> bool:
    """Whether it may pay for such an input."""
    return x.is_cuda and kernels.supported(x) and 0 < len(x) <= _LATENCY_BOUND


def _dense(lowered: Lowered, x: Tensor) -> tuple[Tensor, list[DenseLayer]]:
    """The input as the first linear layer sees it, and the layers; none if there are others than linear ones."""
    steps = lowered.steps if lowered.mixture is None else lowered.steps[:-1]
    stack = steps[0] if len(steps) == 1 and isinstance(steps[0], StackedDense) else None
    layers: list[DenseLayer] = []
    for step in steps if stack is None else stack.reshapes:
        if isinstance(step, Linear):
            layers.append(_layer(as_dtype(step.weight(), x), as_dtype(step.bias(), x), step.activation))
        elif isinstance(step, (Flatten, Reshape)) and not layers:
            x, _ = step.forward(x)
        else:
            return x, []
    if stack is None:
        return x, layers
    for (weight, bias), activation in zip(stack.weights(x).layers, stack.activations, strict=True):
        weight = weight.view(stack.members, -1, weight.shape[-1])
        layers.append(_layer(weight, None if bias is None else bias.view(weight.shape[:2]), activation))
    return x, layers


def _layer(weight: Tensor, bias: Tensor | None, activation: Activation | None) -> DenseLayer:
    if activation is None:
        return DenseLayer(weight, bias)
    return DenseLayer(weight, bias, activation.name, activation.slope)
