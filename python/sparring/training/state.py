"""What changes during an experiment, and how it is written to a checkpoint and read back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from sparring.training.building import Learner
from sparring.training.fooling import FoolingSet
from sparring.training.pool import Pool
from sparring.training.selection import Best

FORMAT = "sparring retrain 2"

Tensors = dict[str, Tensor]
Json = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint of another version, or of other settings, which cannot be gone on from."""


@dataclass
class State:
    """Everything that changes during an experiment, and so everything that a checkpoint holds.

    Attributes
    ----------
    learner : the network under training.
    independent : the network of metrics 1 and 6, if there is one.
    generation : attacks whose images were merged.
    halvings : how often the weight of the attack's penalty was halved.
    over : whether the last attack between generations was the last one, so that metric 8 is due.
    train_sets, fresh_sets : per generation, the images trained on and the held-out attempts.
    other_sets : the attempts for metrics 6 and 7, by the name of the group of numbers, attack by attack.
    pool : the images of the mode "continuous", none before the first generation.
    best : the best epoch's network, none before the first fooling images.
    final : the attempts of metric 8, which end the experiment.
    """

    learner: Learner
    independent: Learner | None = None
    generation: int = 0
    halvings: int = 0
    over: bool = False
    train_sets: list[FoolingSet] = field(default_factory=list)
    fresh_sets: list[FoolingSet] = field(default_factory=list)
    other_sets: dict[str, list[FoolingSet]] = field(default_factory=dict)
    pool: Pool | None = None
    best: Best | None = None
    final: FoolingSet | None = None

    def sets(self) -> dict[str, list[FoolingSet]]:
        """All sets of fooling images by kind: "train", "fresh", "final", and those of `other_sets`."""
        final = [] if self.final is None else [self.final]
        return {"train": self.train_sets, "fresh": self.fresh_sets, "final": final, **self.other_sets}


def pack(state: State) -> tuple[Tensors, Json]:
    """The state as named tensors, which are copies, and a JSON value."""
    tensors, learner = pack_learner(state.learner, "")
    json: Json = {
        "format": FORMAT,
        "generation": state.generation,
        "halvings": state.halvings,
        "over": state.over,
        "others": [*state.other_sets],
        "learner": learner,
    }
    if state.independent is not None:
        more, json["independent"] = pack_learner(state.independent, "independent ")
        tensors |= more
    for kind, sets in state.sets().items():
        for i, images in enumerate(sets):
            tensors |= {f"{kind}/{i}/{name}": tensor for name, tensor in images.tensors().items()}
    if state.pool is not None:
        values = vars(state.pool)
        json["pool"] = {"steps": values["steps"]}
        tensors |= {f"pool/{name}": value for name, value in values.items() if name != "steps"}
    if state.best is not None:
        json["best"] = {"epoch": state.best.epoch, "h": state.best.h}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}, json


def unpack(state: State, tensors: Tensors, json: Json) -> None:
    """Make `state`, whose networks and optimisers are of the right kind, what was packed.

    CheckpointError if another version packed it, or it does not fit.
    """
    check_format(json, FORMAT)
    of = prefixed(tensors)
    device = next(state.learner.model.parameters()).device
    unpack_learner(state.learner, "", of, json["learner"])
    if state.independent is not None:
        unpack_learner(state.independent, "independent ", of, json["independent"])
    state.generation, state.halvings, state.over = json["generation"], json["halvings"], json["over"]
    kinds = ("train", "fresh", "final", *json["others"])
    sets = {kind: [images.to(device) for images in read_sets(tensors, kind)] for kind in kinds}
    state.train_sets, state.fresh_sets, final = sets.pop("train"), sets.pop("fresh"), sets.pop("final")
    state.other_sets, state.final = sets, final[0] if final else None
    if "pool" in json:
        pool = {name: tensor.to(device) for name, tensor in of["pool"].items()}
        state.pool = Pool(**pool, steps=json["pool"]["steps"])
    if "best" in json:
        weights = {name: tensor.to(device) for name, tensor in of["best"].items()}
        state.best = Best(json["best"]["epoch"], json["best"]["h"], weights)


def check_format(json: Json, wanted: str) -> None:
    """CheckpointError if a state is not of this format."""
    if json.get("format") != wanted:
        raise CheckpointError(
            f"the checkpoint is of another version of Sparring, which alone can go on with it: its format is "
            f"{json.get('format', 'an older one')!r}, not {wanted!r}"
        )


def read_sets(tensors: Tensors, kind: str) -> list[FoolingSet]:
    """The sets of a checkpoint of one kind ("train", "fresh", "final", "6", "7-de", ...), in order."""
    of = prefixed(prefixed(tensors).get(kind, {}))
    return [FoolingSet(*(of[str(i)][f.name] for f in fields(FoolingSet))) for i in range(len(of))]


def pack_learner(learner: Learner, whose: str) -> tuple[Tensors, Json]:
    tensors = {f"{whose}model/{name}": tensor for name, tensor in learner.model.state_dict().items()}
    optimizer = learner.optimizer.state_dict()
    scalars: Json = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{whose}optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    return tensors, {"epoch": learner.epoch, "param_groups": optimizer["param_groups"], "scalars": scalars}


def unpack_learner(learner: Learner, whose: str, of: dict[str, Tensors], json: Json) -> None:
    load_model(learner.model, of.get(f"{whose}model", {}))
    values: dict[int, Json] = {}
    for name, value in {**of.get(f"{whose}optimizer", {}), **json["scalars"]}.items():
        index, key = name.split("/", 1)
        values.setdefault(int(index), {})[key] = value
    learner.optimizer.load_state_dict({"state": values, "param_groups": json["param_groups"]})
    learner.epoch = json["epoch"]


def load_model(model: nn.Module, saved: Tensors) -> None:
    """Give a model its saved state; CheckpointError if it is of another one."""
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is not of this network: {' '.join(str(error).split())}") from error


def prefixed(tensors: Tensors) -> dict[str, Tensors]:
    groups: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        prefix, rest = name.split("/", 1)
        groups.setdefault(prefix, {})[rest] = tensor
    return groups
