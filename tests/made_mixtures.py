"""Small runs of mixtures, with everything in them that a report shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparring import StackedEnsemble, networks
from sparring.data import Dataset
from sparring.report.mixture.snapshots import Keeper
from sparring.runs import Run
from sparring.training import FitConfig, fit_mixture

CLASSES = 4
NOTE = "not the official files: made up for a test"


def images(shape: tuple[int, ...] = (1, 6, 6), count: int = 80) -> Dataset:
    """Random images with a bright row, by which their class is known."""
    labels = torch.arange(count) % CLASSES
    pictures = 0.5 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    pictures[torch.arange(count), :, labels] += 0.5
    return Dataset("made", "train", pictures, labels, CLASSES)


def members(network: str, shape: tuple[int, ...], count: int) -> StackedEnsemble:
    made = (networks.build(network, shape, CLASSES, generator=torch.Generator().manual_seed(i)) for i in range(count))
    return StackedEnsemble(made)


def make(
    folder: Path, *, network: str = "mlp", shape: tuple[int, ...] = (1, 6, 6), count: int = 3, **settings: Any
) -> tuple[Run, StackedEnsemble]:
    """A finished run on random images."""
    usual: dict[str, Any] = {"epochs": 3, "batch_size": 20, "eps": 0.1, "optimizer": "adam", "lr": 0.01, "reg": 0.5}
    usual |= {"test_eps": (0.1, 0.2), "eval_images": 40}
    config = FitConfig(**{**usual, **settings})
    real, mixture = images(shape), members(network, shape, count)
    about = {"members": count, "combine": "probs", "pretrain_epochs": 2, "pretrained": None}
    run = Run.create(
        folder,
        "made",
        {
            "command": "sparring mixture --data <made> & more",
            "data": {"name": "made", "classes": CLASSES, "test images": 80, "official": False, "note": NOTE},
            "network": {"name": network},
            "device": "cpu",
            "threads": 1,
            "mixture": about,
            "fit": asdict(config),
        },
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other longer than such small networks take
    try:
        with run:
            fit_mixture(mixture, real, real, config, run=Keeper(run, mixture, real, config))
    finally:
        torch.set_num_threads(threads)
    return run, mixture
