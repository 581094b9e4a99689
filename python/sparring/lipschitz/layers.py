"""Which operation a module, a function or a method is, and what is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sparring.ensembles import Ensemble, StackedEnsemble
from sparring.lipschitz.gains.gain import Refused
from sparring.lipschitz.gains.table import TABLE
from sparring.networks import MaxNorm

_ATTENTION = "dot-product attention has no Lipschitz constant (Kim, Papamakarios & Mnih 2021)"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), _ATTENTION),
    **dict.fromkeys(("bmm", "einsum", "baddbmm"), "may be a product of two activations"),
    **dict.fromkeys(("exp", "pow", "square", "log", "sqrt", "rsqrt", "reciprocal"), "its slope has no limit"),
    **dict.fromkeys(
        ("round", "floor", "ceil", "trunc", "frac", "sign", "hardshrink", "argmax", "heaviside", "int", "long", "short",
         "byte", "char", "bool"),
        "jumps",
    ),
    "glu": "a product of two activations has no Lipschitz constant",
}  # fmt: skip
"""Functions that are refused, and why; those in no table are refused as unknown."""

_MODULES_REFUSED: dict[type[nn.Module], str] = {
    **dict.fromkeys(
        (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder,
         nn.TransformerDecoder, nn.Transformer),
        _ATTENTION,
    ),
    nn.Hardshrink: "jumps",
    nn.GLU: REFUSED["glu"],
    nn.Bilinear: REFUSED["glu"],
    Ensemble: "a mixture: its members can be bounded one by one",
    StackedEnsemble: "a mixture: its members can be bounded one by one",
}  # fmt: skip

_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
_TRANSPOSED = ("weight", "stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_MAX_POOL = (*_POOL, "dilation", "return_indices")

# The operation that a module is, and which attributes are its arguments. "training" is the mode of the module.
_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Linear: ("linear", ("weight", "bias")),
    nn.Conv1d: ("conv1d", _CONVOLUTION),
    nn.Conv2d: ("conv2d", _CONVOLUTION),
    nn.Conv3d: ("conv3d", _CONVOLUTION),
    nn.ConvTranspose1d: ("conv_transpose1d", _TRANSPOSED),
    nn.ConvTranspose2d: ("conv_transpose2d", _TRANSPOSED),
    nn.ConvTranspose3d: ("conv_transpose3d", _TRANSPOSED),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        ("batch_norm", ("running_mean", "running_var", "weight", "training", "eps")),
    ),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ("instance_norm", ("running_mean", "running_var", "weight", "eps", "use_input_stats")),
    ),
    nn.LayerNorm: ("layer_norm", ("normalized_shape", "weight", "eps")),
    nn.RMSNorm: ("rms_norm", ("normalized_shape", "weight", "eps")),
    nn.GroupNorm: ("group_norm", ("num_groups", "weight", "eps")),
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.Hardtanh: ("hardtanh", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.PReLU: ("prelu", ("weight",)),
    nn.RReLU: ("rrelu", ("lower", "upper", "training")),
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.LogSigmoid: ("logsigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Tanhshrink: ("tanhshrink", ()),
    nn.Softshrink: ("softshrink", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softsign: ("softsign", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Threshold: ("threshold", ("threshold", "value")),
    nn.Softmax: ("softmax", ("dim",)),
    nn.Softmax2d: ("softmax", ("channels",)),
    nn.Softmin: ("softmin", ("dim",)),
    nn.LogSoftmax: ("log_softmax", ("dim",)),
    nn.MaxPool1d: ("max_pool1d", _MAX_POOL),
    nn.MaxPool2d: ("max_pool2d", _MAX_POOL),
    nn.MaxPool3d: ("max_pool3d", _MAX_POOL),
    nn.AvgPool1d: ("avg_pool1d", (*_POOL, "count_include_pad")),
    nn.AvgPool2d: ("avg_pool2d", (*_POOL, "count_include_pad", "divisor_override")),
    nn.AvgPool3d: ("avg_pool3d", (*_POOL, "count_include_pad", "divisor_override")),
    nn.AdaptiveMaxPool1d: ("adaptive_max_pool1d", ("output_size", "return_indices")),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size", "return_indices")),
    nn.AdaptiveMaxPool3d: ("adaptive_max_pool3d", ("output_size", "return_indices")),
    nn.AdaptiveAvgPool1d: ("adaptive_avg_pool1d", ("output_size",)),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveAvgPool3d: ("adaptive_avg_pool3d", ("output_size",)),
    nn.Upsample: ("interpolate", ("size", "scale_factor", "mode")),
    nn.UpsamplingNearest2d: ("interpolate", ("size", "scale_factor", "mode")),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), ("view", ())),
    **dict.fromkeys(
        (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
         nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
         nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ("pad", ()),
    ),
    nn.Identity: ("identity", ()),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), ("dropout", ("p", "training"))),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), ("alpha_dropout", ("p", "training"))),
    MaxNorm: ("max_norm", ("s",)),
}  # fmt: skip

# Arguments that are no attribute of their name: the argument, and what it is.
_DERIVED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "use_input_stats": ("use_input_stats", lambda module: module.training or not module.track_running_stats),
    "channels": ("dim", lambda module: -3),
}

# Of Python's operators those that mean for tensors what the function of that name does (`concat` would be `+`).
_OPERATORS = ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "matmul", "imatmul", "neg", "abs",
              "getitem", "pow")  # fmt: skip

_ALIASES = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "imatmul": "matmul", "negative": "neg",
            "absolute": "abs", "arctan": "atan"}  # fmt: skip


def is_known(module: nn.Module) -> bool:
    """Whether a module is looked at as a whole, rather than at what its forward does."""
    kind = parametrize.type_before_parametrizations(module)
    return kind in _MODULES or kind in _MODULES_REFUSED


def module_operation(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name in `TABLE` of what a module does, and its arguments.

    Raises
    ------
    Refused
        If there is none.
    """
    kind = parametrize.type_before_parametrizations(module)
    if kind in _MODULES_REFUSED:
        raise Refused(_MODULES_REFUSED[kind])
    if kind not in _MODULES:
        raise Refused(f"no bound is known of {kind.__name__}")
    if module.training and parametrize.is_parametrized(module):
        lists = module.parametrizations.values()  # type: ignore[operator]
        if any(True for one in lists for _ in one.buffers()):
            raise Refused("its parametrisation changes with each call in training mode: use eval()")
    name, attributes = _MODULES[kind]
    arguments = (_DERIVED.get(attribute, (attribute, operator.attrgetter(attribute))) for attribute in attributes)
    return name, {argument: value(module) for argument, value in arguments}


def _functions() -> dict[Any, str]:
    found: dict[Any, str] = {}
    for name in (*TABLE, *REFUSED, *_ALIASES):
        # torch's own two take their arguments in another order than those of torch.nn.functional.
        for library in (F,) if name in ("batch_norm", "instance_norm") else (torch, F):
            for function in (getattr(library, name, None), getattr(library, f"{name}_", None)):
                if callable(function) and not isinstance(function, type):  # torch.device and torch.dtype are classes
                    found[function] = _ALIASES.get(name, name)
    return {**found, **{getattr(operator, name): _ALIASES.get(name, name) for name in _OPERATORS}}


_FUNCTIONS = _functions()


def function_operation(target: Any) -> str:
    """The name in `TABLE` of a function, or of a method's or an attribute's name."""
    if isinstance(target, str):
        name = _ALIASES.get(target.rstrip("_"), target.rstrip("_"))
        known = name in TABLE or name in REFUSED
        written = target
    else:
        name = _FUNCTIONS.get(target, "")
        known = name != ""
        written = getattr(target, "__name__", str(target))
    if name in REFUSED:
        raise Refused(REFUSED[name])
    if not known:
        raise Refused(f"no bound is known of {written}")
    return name


def has_channels(module: nn.Module, out: Tensor) -> bool:
    """Whether dimension 1 of the result are a linear layer's or a convolution's own outputs."""
    kind = parametrize.type_before_parametrizations(module)
    name = _MODULES.get(kind, ("", ()))[0]
    return (name == "linear" and out.ndim == 2) or (name.startswith("conv") and out.ndim == 2 + int(name[-2]))
