from __future__ import annotations

import pytest
import torch
from torch import nn

from sparring.attacks import recover
from sparring.training.streams import stream
from sparring.training.sweeps import BATCH_SIZES, LAMS, lambda_sweep, timing_by_batch_size


@pytest.fixture
def model() -> nn.Module:
    """Every pixel of a class's own row speaks for the class."""
    layer = nn.Linear(16, 4)
    with torch.no_grad():
        layer.weight.copy_(3 * torch.eye(4).repeat_interleave(4, 1))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_sweeps_cover_what_was_asked() -> None:
    assert LAMS == (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    assert BATCH_SIZES == (32, 64, 128, 256, 512, 1024, 2048)


def test_larger_weights_give_sparser_images(model: nn.Module) -> None:
    options = {"classes": 4, "images": 8, "steps": 50, "s_max": 16}
    records = lambda_sweep(model, (1, 4, 4), [0.0, 2.0], method="prox", **options)  # type: ignore[arg-type]
    assert [record["lam"] for record in records] == [0.0, 2.0]
    assert [record["0/yield"] for record in records] == [1, 1]
    assert records[0]["0/sparsity"] > records[1]["0/sparsity"]
    assert {"0/yield/class_3", "0/bin_4", "0/stop_step"} <= {*records[0]}
    again = lambda_sweep(model, (1, 4, 4), [2.0], method="prox", **options)  # type: ignore[arg-type]
    assert again == records[1:2]


def test_l1_has_no_weight_to_sweep(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="'l1' has no weight"):
        lambda_sweep(model, (1, 4, 4), classes=4, method="l1")


def test_timing_makes_the_same_search_with_every_size(model: nn.Module) -> None:
    records = timing_by_batch_size(model, (1, 4, 4), [2, 8], classes=4, s_max=3, steps=10)
    assert [record["batch_size"] for record in records] == [2, 8]
    found = recover(
        model, torch.arange(8) % 4, (1, 4, 4), method="l1", steps=10, s_max=3, generator=stream(0, "timing")
    )
    for record in records:
        assert record["images"] == 8
        assert record["yield"] == float(found.success.double().mean())
        assert record["images_per_second"] == pytest.approx(8 / record["seconds"])
