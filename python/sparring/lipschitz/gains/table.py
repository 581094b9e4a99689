"""Every operation that has a constant, and what a call of it must be for that: nothing else is bounded.

Each line names operations as torch does, whether called as functions, methods or, where they have modules, modules.
"""

from __future__ import annotations

from sparring.lipschitz.gains import activations, arithmetic, normalisation, pooling, weighted
from sparring.lipschitz.gains.rule import BROADCAST, COUNTED, HELD, PARTS, REDUCED, Rule, last


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_COPYING = Rule(arithmetic.copying, size=COUNTED)
_LIKE = Rule(arithmetic.copying, shapes=("options",), size=COUNTED)
_CAST = Rule(arithmetic.cast, shapes=("options",), numbers=HELD)
_SHAPE = Rule(None, moving=(), shapes=("input",))
_BOTH = ("input", "other")
_PRODUCT = "a product of two activations has no Lipschitz constant"
_QUOTIENT = "divides by an activation, so it has no Lipschitz constant"

TABLE: dict[str, Rule] = {
    # Of the shape alone: no distance in the result, whatever that in the input.
    **_all("shape ndim dtype device is_cuda size dim ndimension numel is_floating_point get_device", _SHAPE),
    **_all("zeros_like ones_like full_like new_zeros new_ones new_full new_tensor", _SHAPE),
    # Entry by entry.
    **{name: Rule(activations.slopes_of(name)) for name in activations.SLOPES},
    **_all("neg", Rule(arithmetic.negated)),
    **_all("dropout dropout1d dropout2d dropout3d", Rule(arithmetic.dropout)),
    **_all("alpha_dropout feature_alpha_dropout", Rule(arithmetic.alpha_dropout)),
    # Copies.
    **_all("view reshape flatten unflatten ravel permute transpose swapaxes movedim t T mT squeeze", _COPYING),
    **_all("unsqueeze contiguous clone detach identity expand repeat tile repeat_interleave getitem narrow", _COPYING),
    **_all("select index_select chunk split unbind pad channel_shuffle pixel_shuffle pixel_unshuffle", _COPYING),
    **_all("view_as reshape_as expand_as", _LIKE),
    **_all("interpolate", Rule(arithmetic.interpolate, size=COUNTED)),
    **_all("roll", Rule(arithmetic.roll, size=COUNTED, along="dims")),
    **_all("flip", Rule(arithmetic.flip, size=COUNTED, along="dims")),
    **_all("to type type_as float double half bfloat16", _CAST),
    **_all("masked_fill", Rule(arithmetic.masked_fill, size=BROADCAST)),
    # Branches.
    **_all("add sub subtract", Rule(arithmetic.added, _BOTH, True, size=BROADCAST, numbers=HELD, joins=True)),
    **_all("rsub", Rule(arithmetic.subtracted_from, _BOTH, True, size=BROADCAST, numbers=HELD, joins=True)),
    **_all("mul multiply", Rule(arithmetic.multiplied, _BOTH, size=BROADCAST, numbers=HELD, joins=True,
                                otherwise=_PRODUCT)),
    **_all("div truediv divide true_divide", Rule(arithmetic.divided, size=BROADCAST, numbers=HELD, joins=True,
                                                  otherwise=_QUOTIENT)),
    **_all("maximum minimum", Rule(arithmetic.larger, _BOTH, True, size=BROADCAST, numbers=HELD, joins=True)),
    **_all("where", Rule(arithmetic.selected, _BOTH, True, size=BROADCAST, numbers=HELD, joins=True)),
    **_all("cat concat concatenate", Rule(arithmetic.side_by_side, ("tensors",), True, size=PARTS, numbers=HELD,
                                          along="dim", joins=True)),
    **_all("stack", Rule(arithmetic.side_by_side, ("tensors",), True, size=PARTS, numbers=HELD, joins=True)),
    # With a weight.
    "linear": Rule(weighted.linear, size=last(1)),
    **_all("matmul mm", Rule(weighted.matmul, size=last(1))),
    **{f"conv{n}d": Rule(weighted.convolution(n), size=last(n + 1)) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": Rule(weighted.transposed(n), size=last(n + 1)) for n in (1, 2, 3)},
    "max_norm": Rule(weighted.max_norm, size=last(1)),
    # Normalisations.
    "batch_norm": Rule(normalisation.batch_norm),
    "layer_norm": Rule(normalisation.layer_norm),
    "rms_norm": Rule(normalisation.rms_norm),
    "group_norm": Rule(normalisation.group_norm),
    "instance_norm": Rule(normalisation.instance_norm),
    # Pooling and reductions.
    **{f"max_pool{n}d": Rule(pooling.max_pool(n), size=last(n)) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": Rule(pooling.avg_pool(n), size=last(n)) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": Rule(pooling.adaptive_max_pool(n), size=last(n)) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": Rule(pooling.adaptive_avg_pool(n), size=last(n)) for n in (1, 2, 3)},
    "sum": Rule(pooling.sum_, size=REDUCED, numbers=HELD, along="dim"),
    "mean": Rule(pooling.mean, size=REDUCED, numbers=HELD, along="dim"),
    **_all("amax amin", Rule(pooling.extreme, size=REDUCED, along="dim")),
    "logsumexp": Rule(pooling.logsumexp, size=REDUCED, along="dim"),
    **_all("softmax softmin", Rule(pooling.softmax, numbers=HELD, along="dim")),
    "log_softmax": Rule(pooling.log_softmax, numbers=HELD, along="dim"),
}  # fmt: skip
"""The constants themselves, and why, are in the rules' modules; ``docs/lipschitz-networks.md`` lists them."""
