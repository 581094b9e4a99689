"""Halves of a data set: disjoint, whole, with every class in each; and their index files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.data import Dataset, Halves, halves, load
from sparring.halves import PARTS


def labelled(labels: list[int]) -> Dataset:
    return Dataset("made", "train", torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels), 10)


def parts_of(both: Halves) -> list[torch.Tensor]:
    return [getattr(both, name) for name in PARTS]


@given(labels=st.lists(st.integers(0, 9), min_size=12, max_size=200), seed=st.integers(0, 5))
def test_halves_are_disjoint_whole_and_share_out_each_class(labels: list[int], seed: int) -> None:
    data = labelled(labels)
    both = halves(data, seed)
    train_a, valid_a, train_b, valid_b = parts_of(both)
    assert torch.cat(parts_of(both)).sort().values.tolist() == list(range(len(labels)))
    assert len(train_a) + len(valid_a) == (len(labels) + 1) // 2
    assert len(valid_a) == round((len(labels) + 1) // 2 / 6)
    a, b = (data[torch.cat(pair)].labels.bincount(minlength=10) for pair in ((train_a, valid_a), (train_b, valid_b)))
    assert (a - b).abs().max() <= 1
    for half, valid in ((a, valid_a), (b, valid_b)):
        share = data[valid].labels.bincount(minlength=10) - half * (len(valid) / int(half.sum()))
        assert share.abs().max() < 1
    assert all((part.diff() > 0).all() for part in parts_of(both))


def test_halves_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    data = load("digits")
    before = torch.get_rng_state()
    first, again, other = halves(data), halves(data, 0), halves(data, 1)
    assert torch.equal(first.train_a, again.train_a)
    assert not torch.equal(first.train_a, other.train_a)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.train_a[:8].tolist() == [0, 2, 3, 8, 14, 18, 19, 25]  # fixed: runs made by other versions split alike


def test_a_share_to_validate_on_can_be_chosen() -> None:
    both = halves(labelled([0, 1] * 20), valid_share=0.5)
    assert [len(part) for part in parts_of(both)] == [10] * 4


def test_index_files_give_the_same_halves_back(tmp_path: Path) -> None:
    data = load("digits", split="test")
    both = halves(data, 3)
    both.save(tmp_path / "halves")
    assert sorted(path.name for path in (tmp_path / "halves").iterdir()) == sorted(f"{name}.txt" for name in PARTS)
    loaded = Halves.load(tmp_path / "halves", len(data))
    for part, other in zip(parts_of(both), parts_of(loaded), strict=True):
        assert torch.equal(part, other)
    with pytest.raises(FileExistsError):
        both.save(tmp_path / "halves")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_a", "0\n40\n", r"train_a\.txt: holds '40', expected indices from 0 to 39"),
        ("valid_a", "-1\n", r"valid_a\.txt: holds '-1'"),
        ("train_b", "1.5\n", r"train_b\.txt: holds '1\.5'"),
        ("train_a", "3\n3\n", r"train_a\.txt: holds 3 twice"),
    ],
)
def test_a_damaged_index_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    halves(labelled([0, 1] * 20)).save(tmp_path)
    (tmp_path / f"{name}.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        Halves.load(tmp_path, 40)


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    halves(labelled([0, 1] * 20)).save(tmp_path)
    (tmp_path / "valid_b.txt").write_text((tmp_path / "train_a.txt").read_text())
    with pytest.raises(ValueError, match=r"valid_b\.txt: holds \d+ twice, or a part before it does"):
        Halves.load(tmp_path, 40)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid_share must be between 0 and 1"):
        halves(labelled([0] * 20), valid_share=1.0)
    with pytest.raises(ValueError, match="dataset: half A gets 2 of its 4 images, too few"):
        halves(labelled([0] * 4))
    with pytest.raises(FileNotFoundError, match=r"train_a\.txt"):
        Halves.load(tmp_path, 4)
