"""Sets of fooling images on constructed cases, and the processes that make them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from sparring.attacks import recover
from sparring.training import FoolingSet
from sparring.training.fooling import BINS, balanced_targets, random_targets
from sparring.training.generators import GeneratorName, generator_named


@pytest.fixture
def images() -> FoolingSet:
    """Seven images of 1x2x2, of 0 to 4 bright entries, at and around the edges of the bins."""
    bright = torch.tensor([0, 1, 2, 3, 4, 2, 1])
    pixels = (torch.arange(4) < bright[:, None]).float().reshape(7, 1, 2, 2) * 0.5
    prob = torch.tensor([0.1, 0.3, 0.49, 0.5, 0.7, 0.9, 0.95])
    return FoolingSet(pixels, torch.arange(7) % 3, prob, bright, torch.arange(7) * 10, prob >= 0.9)


class Constant(nn.Module):
    """Gives every image the logits log(1 + its brightest entry times (0, 1, 2)), in training and eval mode apart."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(1 + images.flatten(1).amax(1, keepdim=True) * torch.arange(3)).log()


def same(one: FoolingSet, other: FoolingSet) -> bool:
    return all(
        torch.equal(tensor, other.tensors()[name]) and tensor.dtype == other.tensors()[name].dtype
        for name, tensor in one.tensors().items()
    )


def test_pruning_keeps_what_is_probable_and_sparse_enough(images: FoolingSet) -> None:
    kept = images.prune(p_min=0.5, s_max=2)
    assert kept.stop_step.tolist() == [50, 60]
    assert images.prune(p_min=0.0, s_max=4).stop_step.tolist() == images.stop_step.tolist()
    assert len(images.prune(p_min=0.96, s_max=4)) == 0


def test_bins_hold_their_lower_edges(images: FoolingSet) -> None:
    bins = images.bins()
    assert bins.index.tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert bins.counts.tolist() == [1, 2, 1, 1, 2]
    assert len(bins.counts) == len(BINS)
    assert images[:0].bins().counts.tolist() == [0] * 5


def test_balanced_targets_of_any_size() -> None:
    for count in (0, 1, 9, 10, 37):
        counts = torch.bincount(balanced_targets(count, 10), minlength=10)
        assert counts.sum() == count
        assert counts.max() - counts.min() <= 1


def test_random_targets_are_uniform_and_repeat() -> None:
    drawn = random_targets(3000, 3, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, random_targets(3000, 3, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, random_targets(3000, 3))
    assert (torch.bincount(drawn, minlength=3) - 1000).abs().max() < 120  # 4.6 standard deviations
    state = torch.get_rng_state()
    random_targets(5, 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"count": -1, "classes": 3}, {"count": 3, "classes": 0}])
def test_bad_counts_are_named(options: dict[str, int]) -> None:
    name = "count" if options["count"] < 0 else "classes"
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        balanced_targets(**options)
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        random_targets(**options)


def test_saved_and_loaded(images: FoolingSet, tmp_path: Path) -> None:
    images.save(tmp_path / "set.safetensors")
    assert same(FoolingSet.load(tmp_path / "set.safetensors"), images)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.csv", "set.safetensors"]
    with (tmp_path / "set.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["target", "prob", "sparsity", "stop_step", "success"]
    assert [int(row["target"]) for row in rows] == images.targets.tolist()
    assert [float(row["prob"]) for row in rows] == images.prob.tolist()
    assert [int(row["sparsity"]) for row in rows] == images.sparsity.tolist()
    assert [int(row["stop_step"]) for row in rows] == images.stop_step.tolist()
    assert [row["success"] for row in rows] == ["0"] * 5 + ["1"] * 2
    images[:0].save(tmp_path / "empty.safetensors")
    assert same(FoolingSet.load(tmp_path / "empty.safetensors"), images[:0])


@pytest.mark.parametrize("there", ["set.safetensors", "set.csv"])
def test_nothing_is_overwritten_unless_told(images: FoolingSet, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{there} exists already: .* overwrite=True"):
        images.save(tmp_path / "set.safetensors")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    images.save(tmp_path / "set.safetensors", overwrite=True)
    assert same(FoolingSet.load(tmp_path / "set.safetensors"), images)


def test_a_save_that_fails_leaves_the_old_set(
    images: FoolingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.safetensors"
    images.save(path)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        images[:2].save(path, overwrite=True)
    assert same(FoolingSet.load(path), images)
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_are_no_set_are_named(images: FoolingSet, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"path must end in '.safetensors'; got 'set.pt'"):
        images.save("set.pt")
    with pytest.raises(FileNotFoundError):
        FoolingSet.load(tmp_path / "none.safetensors")
    save_file({"images": images.images}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: not a set of fooling images"):
        FoolingSet.load(tmp_path / "other.safetensors")
    images.save(tmp_path / "set.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "set.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut.safetensors: not a complete safetensors file"):
        FoolingSet.load(tmp_path / "cut.safetensors")


def test_as_a_data_set(images: FoolingSet) -> None:
    real = images.as_dataset(3)
    assert torch.equal(real.labels, images.targets)
    assert real.classes == 3
    assert real.input_shape == (1, 2, 2)
    fake = images.as_dataset(3, fake=True, split="test")
    assert torch.equal(fake.labels, images.targets + 3)
    assert (fake.classes, fake.split) == (6, "test")
    with pytest.raises(ValueError, match="classes must be above every target; got 2, with a target 2"):
        images.as_dataset(2)


def test_judged_by_another_network(images: FoolingSet) -> None:
    """Its probability of target c is (1 + c b) / (3 + 3 b), b the brightest entry: 0 or .5."""
    model = Constant().train()
    judged = images.judged_by(model, p_min=0.4, s_max=3)
    b = torch.where(images.sparsity > 0, 0.5, 0.0)
    torch.testing.assert_close(judged.prob, (1 + images.targets * b) / (3 + 3 * b))
    assert judged.success.tolist() == [False, False, True, False, False, True, False]
    assert model.drop.training
    for name in ("images", "targets", "sparsity", "stop_step"):
        assert torch.equal(judged.tensors()[name], images.tensors()[name])
    two = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="targets must be below 2, the model's outputs; got 2"):
        images.judged_by(two)


@pytest.mark.parametrize("name", get_args(GeneratorName))
def test_every_process_behind_one_interface(name: GeneratorName) -> None:
    """A linear model of 3 classes: each process makes every image, in the budget, the same for the same generator."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    model[1].weight.data = 3 * torch.randn(3, 36, generator=torch.Generator().manual_seed(0))
    generate = generator_named(name, p_min=0.8, s_max=20, steps=60)
    targets = balanced_targets(6, 3)
    found, again = (generate(model, targets, (1, 6, 6), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(found.images, again.images)
    made = FoolingSet.judge(model, found.images, targets, found.stop_step, p_min=0.8, s_max=20)
    assert made.success.all()
    assert (made.stop_step <= 60).all()
    with pytest.raises(TypeError, match=f"'{name}' takes no option 'speed'; accepted: .*batch_size"):
        generator_named(name, speed=3)


def test_a_process_is_what_it_names() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    options: dict[str, Any] = {"s_max": 20, "steps": 5, "floor": 0.2}
    named = generator_named("prox", lam=2.0, **options)
    found = named(model, balanced_targets(3, 3), (1, 6, 6), generator=torch.Generator().manual_seed(1))
    expected = recover(
        model, balanced_targets(3, 3), (1, 6, 6), method="prox", lam=2.0, generator=torch.Generator().manual_seed(1),
        **options,
    )  # fmt: skip
    assert torch.equal(found.images, expected.images)
    with pytest.raises(ValueError, match="name must be one of adam, prox, l1, evolution; got 'sgd'"):
        generator_named("sgd")  # type: ignore[arg-type]
