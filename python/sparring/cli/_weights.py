"""A network of the user's, with the weights in a safetensors file."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.cli import _common as common

if TYPE_CHECKING:
    from torch import nn

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def load_network(weights: Path, arch: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network that `arch` names, with the weights in the file."""
    from sparring.networks import load_weights

    _check_weights(weights)
    have = _shapes_in(weights)
    network = make_network(arch, input_shape, classes)
    want = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if have != want:
        raise ValueError(f"{weights}: not the weights of --arch {arch}: {_mismatch(have, want, input_shape, classes)}")
    return load_weights(network, weights)


def make_network(
    arch: str, input_shape: tuple[int, ...], classes: int, option: str = "--arch", seed: int = 0
) -> nn.Module:
    """The network that `arch` names, given by this option, freshly initialised from the seed."""
    import torch
    from torch import nn

    from sparring.networks import build

    source = common.network(arch, option)
    if isinstance(source, str):
        return build(source, input_shape, classes, generator=torch.Generator().manual_seed(seed) if seed else None)
    with torch.random.fork_rng(devices=()), common.users_file(f"{option} {arch}", arch.rpartition(":")[0]):
        torch.default_generator.manual_seed(seed)
        made = _made(source, f"{option} {arch}", classes)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{option} {arch} made a {type(made).__name__}; wanted is a torch.nn.Module")
    return made


def _made(make: Callable[..., Any], named: str, classes: int) -> Any:
    """What the class or function makes: with no argument, or with the number of classes if it needs one."""
    empty = inspect.Parameter.empty
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(make).parameters.values()
    needed = [p for p in parameters if p.default is empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or any(p.kind not in positional for p in needed):
        names = ", ".join(p.name for p in needed)
        raise ValueError(
            f"{named} needs {names}, but is called with the number of classes at most: write a function that "
            "makes the network, and name that"
        )
    return make(*[classes] * len(needed))


def _check_weights(weights: Path) -> None:
    """A safetensors file; for others a line on how to convert them."""
    if not os.path.lexists(weights):
        raise ValueError(f"there is no file {weights}")
    if weights.suffix in PICKLES:
        convert = (
            "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous().clone() for k, v in "
            f"torch.load('{weights}', weights_only=True).items()}}, '{weights.with_suffix('.safetensors')}')"
        )
        raise ValueError(
            f"{weights} is a pickle, which can run any code when it is read: only safetensors files are read. Convert "
            f'the state_dict in it once: python -c "{convert}"'
        )


def _shapes_in(weights: Path) -> dict[str, tuple[int, ...]]:
    from sparring._loading import layout, safetensors_file

    with safetensors_file(weights, "weights") as file:
        return {name: shape for name, (_, shape) in layout(file).items()}


def _mismatch(
    have: dict[str, tuple[int, ...]], want: dict[str, tuple[int, ...]], input_shape: tuple[int, ...], classes: int
) -> str:
    """What differs between a file of weights and a network, and which built-in network would fit."""
    from sparring.networks import NETWORKS, build

    differing = [f"{n} (file {have[n]}, network {want[n]})" for n in want if n in have and have[n] != want[n]]
    differences = {
        "the file lacks": [name for name in want if name not in have],
        "the network lacks": [name for name in have if name not in want],
        "of other shape:": differing,
    }
    parts = [
        f"{what} {', '.join(names[:4])}{' ...' * (len(names) > 4)}" for what, names in differences.items() if names
    ]
    fitting = []
    for name in NETWORKS:
        with contextlib.suppress(ValueError):  # the images are too small for this one
            shapes = {key: tuple(value.shape) for key, value in build(name, input_shape, classes).state_dict().items()}
            fitting += [name] * (shapes == have)
    hint = f"; they fit --arch {' or '.join(fitting)}" if fitting else ""
    return f"{'; '.join(parts)}{hint}"
