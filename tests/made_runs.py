"""Small runs of retraining, with everything in them that a report shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring import report
from sparring.data import Dataset
from sparring.runs import Run
from sparring.training import RetrainConfig, RetrainResult, retrain
from sparring.training.parts import Parts

CLASSES = 4
NOTE = "not the official files: made up for a test"


@dataclass(frozen=True)
class Made:
    images: Tensor
    stop_step: Tensor


def noise(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    """Random points; with p_min below chance some of them qualify."""
    images = (torch.rand(len(targets), *shape, generator=generator) < 0.2).float()
    return Made(images, torch.ones(len(targets), dtype=torch.int64))


def make(folder: Path, *, shape: tuple[int, ...] = (1, 6, 6), **settings: Any) -> tuple[Run, RetrainResult]:
    """A finished run of three generations on random images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % CLASSES
    real = Dataset("made", "train", torch.rand(80, *shape, generator=generator), labels, CLASSES)
    usual: dict[str, Any] = {
        "generations": 3, "pretrain_epochs": 1, "epochs": 1, "images": 12, "fresh": 12, "p_min": 0.05, "s_max": 0.9
    }  # fmt: skip
    config = RetrainConfig(**{**usual, **settings})
    run = Run.create(
        folder,
        "made",
        {
            "command": "sparring retrain --data <made> & more",
            "data": {"name": "made", "classes": CLASSES, "official": False, "note": NOTE},
            "retrain": asdict(config),
        },
    )
    report.keep_reference(run, real)
    with run:
        result = retrain(real, real, "mlp", config, parts=Parts(generate=noise), run=run)
    report.keep_perturbation(run, result.model, real, result.final)
    return run, result
