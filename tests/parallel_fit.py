"""Run by ``torchrun`` in several processes, and by the test in one: trains, and prints what came out as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

import sparring as sp
from sparring import networks
from sparring.data import Dataset
from sparring.runs import Run
from sparring.training import FitConfig, fit_mixture
from sparring.training.fit.parallel import MemberParallel, part_of

M, K = 5, 3  # members that two processes cannot share evenly


def images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % K
    pictures = 0.3 * torch.rand(50, 1, 4, 4, generator=generator, dtype=torch.float64)
    pictures[torch.arange(50), 0, labels] += 0.5
    return Dataset("rows", "train", pictures, labels, K)


def squares(model: nn.Module) -> Tensor:
    return 0.01 * torch.stack([(parameter**2).sum() for parameter in model.parameters()]).sum()


def train(how: str, folder: Path | None) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    models = [networks.build("mlp", (1, 4, 4), K, generator=generator).double() for _ in range(M)]
    config = FitConfig(
        epochs=2, batch_size=13, eps=0.2, optimizer="adam", lr=0.01, reg=0.1, weights_lr=0.02, test_eps=(0.2,),
        updates="independent" if how == "independent" else "joint",
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"
    if how == "members":
        own = sp.StackedEnsemble(models[part_of(M)])
        mixture: sp.StackedEnsemble | MemberParallel = MemberParallel(own)
    else:
        mixture = own = sp.StackedEnsemble(models)
    if (
        how == "resumed" and folder is not None
    ):  # every process ends after an epoch, and all go on from the one checkpoint
        for epochs in (1, 2):
            mixture = own = sp.StackedEnsemble(models)
            changed = config.replace(epochs=epochs)
            if first:
                run = Run.create(folder, "run", {}) if epochs == 1 else Run.open(folder / "run")
                with run:
                    result = fit_mixture(mixture, images(), images(), changed, regularizer=squares, run=run)
            else:
                result = fit_mixture(mixture, images(), images(), changed, regularizer=squares)
    else:
        result = fit_mixture(mixture, images(), images(), config, regularizer=squares)
    assert result.weights is not None
    weight: Tensor = own.get_parameter("net.linear1.weight").detach()
    return {"history": result.history, "weights": result.weights[-1].tolist(), "last": weight[-1].tolist()}


def main() -> None:
    distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    for how in ("joint", "independent", "members", "resumed"):
        outcome = train(how, folder)
        (folder / f"{how}-{distributed.get_rank()}.json").write_text(json.dumps(outcome))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
