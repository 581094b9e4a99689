"""What lies between the matrix products of a forward and a backward pass, as one kernel each.

Thin: tensors are float32 or float64, on a device for which `supported` holds, and an argument that is not as described
is the caller's fault; only what could touch foreign memory is checked. Nothing is recorded by autograd. The maths is in
``csrc/ops/<name>.h``.
"""

from sparring.gradients.kernels._arguments import ACTIVATIONS, COMBINES, LOSSES, supported
from sparring.gradients.kernels.dense import LossGrad, activation_backward_, bias_activation_, loss_grad
from sparring.gradients.kernels.images import conv_input_grad, relu_pool, relu_pool_backward, relu_pool_fits
from sparring.gradients.kernels.members import CosineSums, agreement_counts, packed_bits, pairwise_cosine
from sparring.gradients.kernels.network import DenseLayer, dense_network, dense_network_fits

__all__ = [
    "ACTIVATIONS",
    "COMBINES",
    "LOSSES",
    "CosineSums",
    "DenseLayer",
    "LossGrad",
    "activation_backward_",
    "agreement_counts",
    "bias_activation_",
    "conv_input_grad",
    "dense_network",
    "dense_network_fits",
    "loss_grad",
    "packed_bits",
    "pairwise_cosine",
    "relu_pool",
    "relu_pool_backward",
    "relu_pool_fits",
    "supported",
]
