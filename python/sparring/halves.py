"""Two halves of a data set, for networks that must share no image. Reached as `sparring.data.halves`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparring._loading import readable

if TYPE_CHECKING:
    from sparring.data import Dataset

PARTS = ("train_a", "valid_a", "train_b", "valid_b")


@dataclass(frozen=True)
class Halves:
    """Where the images of two halves A and B are in a data set, each half cut into images to train and to validate on.

    Attributes
    ----------
    train_a, valid_a, train_b, valid_b
        int64, ascending, on the CPU; no index is in two of them. ``dataset[halves.train_a]`` are the images.
    """

    train_a: Tensor
    valid_a: Tensor
    train_b: Tensor
    valid_b: Tensor

    def save(self, folder: str | Path) -> None:
        """Write the index files ``train_a.txt``, ``valid_a.txt``, ``train_b.txt``, ``valid_b.txt``: one index a line.

        `folder` is made if it is not there. FileExistsError if one of the files is.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in PARTS:
            with (folder / f"{name}.txt").open("x", encoding="ascii") as file:
                file.writelines(f"{index}\n" for index in getattr(self, name).tolist())

    @classmethod
    def load(cls, folder: str | Path, size: int) -> Halves:
        """Read the index files in `folder`, made for a data set of `size` images.

        Raises
        ------
        FileNotFoundError
            If one of them is missing.
        ValueError
            If an entry is no index below `size`, or is there twice, or they do not ascend; the message names the file.
        """
        if size < 0:
            raise ValueError(f"size must be at least 0, the images of a data set; got {size}")
        uses = torch.zeros(size, dtype=torch.int64, device="cpu")
        parts = []
        for name in PARTS:
            path = Path(folder) / f"{name}.txt"
            parts.append(_indices(path, size))
            uses += torch.bincount(parts[-1], minlength=size)
            if bool((uses > 1).any()):
                raise ValueError(f"{path}: holds {int(uses.argmax())} twice, or a part before it does")
            if bool((parts[-1].diff() < 0).any()):
                raise ValueError(f"{path}: expected indices that ascend")
        return cls(*parts)


def halves(dataset: Dataset, seed: int = 0, *, valid_share: float = 1 / 6) -> Halves:
    """Cut a data set in two at random, and each half into images to train and to validate on.

    Of MNIST's 60 000 images each half gets 25 000 and 5 000. The same data and seed always give the same halves. Every
    class is shared out evenly (to one image between the halves, and nearly so within one), so what differs between
    networks trained on them is not how often they saw a class. Of an odd number of images A gets one more.

    Parameters
    ----------
    valid_share
        Share of each half to validate on, in (0, 1); each half needs at least one image of either kind.
    """
    if not 0 < valid_share < 1:
        raise ValueError(f"valid_share must be between 0 and 1, both excluded; got {valid_share}")
    order = torch.randperm(len(dataset), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    by_class = order[dataset.labels.cpu()[order].argsort(stable=True)]
    parts = []
    for name, half in (("A", by_class[0::2]), ("B", by_class[1::2])):
        count = round(len(half) * valid_share)
        if not 0 < count < len(half):
            raise ValueError(
                f"dataset: half {name} gets {len(half)} of its {len(dataset)} images, too few for a share of "
                f"{valid_share:g} to validate on"
            )
        chosen = torch.zeros(len(half), dtype=torch.bool, device="cpu")
        spaced = (2 * torch.arange(count, device="cpu") + 1) * len(half) // (2 * count)
        chosen[spaced] = True  # evenly, so from every class
        parts += [half[~chosen].sort().values, half[chosen].sort().values]
    return Halves(*parts)


def _indices(path: Path, size: int) -> Tensor:
    longest = len(str(size)) + 2  # of a line
    with readable(path).open("rb") as file:
        content = file.read(longest * size + 1)
    if len(content) > longest * size:
        raise ValueError(f"{path}: longer than a line for each of {size} indices")
    lines = content.split()
    for line in lines:
        if not (line.isdigit() and len(line) <= len(str(size)) and int(line) < size):
            text = line[:20].decode(errors="replace")
            raise ValueError(f"{path}: holds {text!r}, expected indices from 0 to {size - 1}, one a line")
    return torch.tensor([int(line) for line in lines], dtype=torch.int64, device="cpu")
