"""What the paper concludes from its tables of transfer, on MNIST: with fewer images, and networks trained for less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparring import data
from sparring.intriguing import RECIPES, tables, train

OTHER_KINDS = ("FC10(1e-2)", "FC100-100-10", "FC200-200-10", "AE400-10")
OTHER_IMAGES = ("FC100-100-10 (P1)", "FC123-456-10 (P1)", "FC100-100-10' (P2)")


@pytest.mark.shared
@pytest.mark.parametrize("names", [OTHER_KINDS, OTHER_IMAGES], ids=["other kinds", "other images"])
def test_images_made_for_a_network_fool_it_and_others_far_more_than_noise_does(
    names: tuple[str, ...], shared: Path
) -> None:
    images = data.load("mnist", shared / "data" / "mnist").subset(12_000, torch.Generator().manual_seed(0))
    test = data.load("mnist", shared / "data" / "mnist", split="test")[:200]
    models = {name: train(name, RECIPES[name], images, test, epochs=6) for name in names}
    clean = tables.errors(models, test.images, test.labels)
    for i, (name, model) in enumerate(models.items()):
        made = tables.distort(model, test.images, test.labels)
        shown = tables.errors(models, made.images, test.labels)
        noisy = tables.noisy(test.images, float(made.distortion.mean()))
        noise = tables.errors(models, noisy, test.labels)
        assert shown[i] == 1
        others = [j for j in range(len(names)) if j != i]
        by_images = sum(shown[j] - clean[j] for j in others) / len(others)
        by_noise = sum(noise[j] - clean[j] for j in others) / len(others)
        assert by_images > 3 * max(by_noise, 0.01), name
