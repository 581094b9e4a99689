"""What changes during an experiment, and how it is written to a checkpoint and read back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from sparring.training.config import RetrainConfig
from sparring.training.fooling import FoolingSet

Tensors = dict[str, Tensor]
Json = dict[str, Any]


@dataclass
class State:
    """Everything that changes during an experiment, and so everything that a checkpoint holds.

    Attributes
    ----------
    epoch : epochs trained.
    generation : attacks whose images were merged.
    train_sets, fresh_sets : per generation, the images trained on and the held-out attempts.
    final : the attempts that ended the experiment, none before its end.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    generation: int = 0
    train_sets: list[FoolingSet] = field(default_factory=list)
    fresh_sets: list[FoolingSet] = field(default_factory=list)
    final: FoolingSet | None = None


def make_optimizer(config: RetrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that the configuration names."""
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, lr=config.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9)
    return torch.optim.Adam(parameters, lr=config.lr)


def pack(state: State) -> tuple[Tensors, Json]:
    """The state as named tensors, which are copies, and a JSON value."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    scalars: Json = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    final = [] if state.final is None else [state.final]
    for kind, sets in (("train", state.train_sets), ("fresh", state.fresh_sets), ("final", final)):
        for i, images in enumerate(sets):
            tensors |= {f"{kind}/{i}/{name}": tensor for name, tensor in images.tensors().items()}
    json = {
        "epoch": state.epoch,
        "generation": state.generation,
        "optimizer": {"param_groups": optimizer["param_groups"], "scalars": scalars},
    }
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}, json


def unpack(state: State, tensors: Tensors, json: Json) -> None:
    """Make `state`, whose network and optimiser are of the right kind, what was packed."""
    of = _by_prefix(tensors)
    state.model.load_state_dict(of.get("model", {}))
    values: dict[int, Json] = {}
    for name, value in {**of.get("optimizer", {}), **json["optimizer"]["scalars"]}.items():
        index, key = name.split("/", 1)
        values.setdefault(int(index), {})[key] = value
    state.optimizer.load_state_dict({"state": values, "param_groups": json["optimizer"]["param_groups"]})
    state.epoch, state.generation = json["epoch"], json["generation"]
    device = next(state.model.parameters()).device
    train, fresh, final = ([s.to(device) for s in read_sets(tensors, kind)] for kind in ("train", "fresh", "final"))
    state.train_sets, state.fresh_sets, state.final = train, fresh, final[0] if final else None


def read_sets(tensors: Tensors, kind: str) -> list[FoolingSet]:
    """The sets of a checkpoint of one kind ("train", "fresh" or "final"), in order."""
    of = _by_prefix(_by_prefix(tensors).get(kind, {}))
    return [FoolingSet(*(of[str(i)][f.name] for f in fields(FoolingSet))) for i in range(len(of))]


def _by_prefix(tensors: Tensors) -> dict[str, Tensors]:
    groups: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        prefix, rest = name.split("/", 1)
        groups.setdefault(prefix, {})[rest] = tensor
    return groups
