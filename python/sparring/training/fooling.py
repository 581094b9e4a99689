"""Sets of fooling images: pruned, binned, written to files and read back, and judged by other networks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparring import _files
from sparring._loading import layout, safetensors_file
from sparring.attacks._model import answered, held_still
from sparring.data import Dataset, Split

EDGES = (0.3, 0.5, 0.7, 0.9)
BINS = ("< .3", ".3 - .5", ".5 - .7", ".7 - .9", ">= .9")

_BATCH = 1024
_FORMAT = "sparring fooling set 1"


@dataclass(frozen=True)
class Bins:
    """Images by the probability of their target, in the bins `BINS`, whose lower edges belong to them.

    Attributes
    ----------
    index : int64 (B,), the bin of each image.
    counts : int64 (5,), images in each bin.
    """

    index: Tensor
    counts: Tensor


@dataclass(frozen=True)
class FoolingSet:
    """Images made by attacking one network, with what that network said to them.

    Attributes
    ----------
    images : float32 or float64 (B, C, H, W), in [0, 1].
    targets : int64 (B,), from 0, the class each image was made for.
    prob : (B,), the network's probability for that class.
    sparsity : int64 (B,), entries above black (0).
    stop_step : int64 (B,), from 0, the step at which the attack stopped.
    success : bool (B,), whether the image qualifies: probable and sparse enough.
    """

    images: Tensor
    targets: Tensor
    prob: Tensor
    sparsity: Tensor
    stop_step: Tensor
    success: Tensor

    @classmethod
    def judge(
        cls, model: nn.Module, images: Tensor, targets: Tensor, stop_step: Tensor, *, p_min: float, s_max: int
    ) -> FoolingSet:
        """What `model` says to the images; they qualify where ``prob >= p_min`` and ``sparsity <= s_max``.

        The model is in eval mode meanwhile, and left as it was.
        """
        images = images.detach()
        with held_still(model):
            logits = torch.cat([answered(model, part) for part in torch.split(images, _BATCH)])
        largest = int(targets.max()) if len(targets) else 0
        if largest >= logits.shape[1]:
            raise ValueError(f"targets must be below {logits.shape[1]}, the model's outputs; got {largest}")
        prob = logits.softmax(1).gather(1, targets[:, None])[:, 0]
        sparsity = (images > 0).flatten(1).sum(1)
        return cls(images, targets, prob, sparsity, stop_step.long(), (prob >= p_min) & (sparsity <= s_max))

    def judged_by(self, model: nn.Module, *, p_min: float = 0.9, s_max: int = 300) -> FoolingSet:
        """The same images with the probabilities, and so the successes, of another network."""
        return self.judge(model, self.images, self.targets, self.stop_step, p_min=p_min, s_max=s_max)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | slice) -> FoolingSet:
        return FoolingSet(*(tensor[index] for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, in order."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> FoolingSet:
        """The same images on `device`."""
        return FoolingSet(*(tensor.to(device) for tensor in self.tensors().values()))

    @property
    def successes(self) -> FoolingSet:
        """The images that qualify."""
        return self[self.success]

    @property
    def fooled(self) -> float:
        """Share of the images that qualify (the attack's yield)."""
        return float(self.success.double().mean())

    def prune(self, p_min: float = 0.9, s_max: int = 100) -> FoolingSet:
        """The images with ``prob >= p_min`` and ``sparsity <= s_max``, whatever was asked when they were made."""
        return self[(self.prob >= p_min) & (self.sparsity <= s_max)]

    def bins(self) -> Bins:
        """The images by the probability of their target."""
        index = torch.bucketize(
            self.prob, torch.tensor(EDGES, dtype=self.prob.dtype, device=self.prob.device), right=True
        )
        return Bins(index, torch.bincount(index, minlength=len(BINS)))

    def as_dataset(self, classes: int, *, fake: bool = False, split: Split = "train") -> Dataset:
        """The images labelled with their targets; with `fake`, among twice the classes, with ``target + classes``."""
        largest = int(self.targets.max()) if len(self) else 0
        if largest >= classes:
            raise ValueError(f"classes must be above every target; got {classes}, with a target {largest}")
        labels, total = (self.targets + classes, 2 * classes) if fake else (self.targets, classes)
        return Dataset("fooling", split, self.images, labels, total)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a safetensors file, and beside it a CSV file with a line for each image.

        The columns are target, prob, sparsity, stop_step and success (0 or 1). Each file is written under another name
        and then renamed, so neither is ever half there; the CSV comes first. Images on a device are written from it.

        Raises
        ------
        ValueError
            If `path` does not end in ``.safetensors``.
        FileExistsError
            If one of the two files is there and `overwrite` is False.
        """
        path = _safetensors(path)
        table = path.with_suffix(".csv")
        for file in (path, table):
            if file.exists() and not overwrite:
                raise FileExistsError(f"{file} exists already: choose another path, or pass overwrite=True")
        columns = ("target", "prob", "sparsity", "stop_step", "success")
        values = (self.targets, self.prob, self.sparsity, self.stop_step, self.success.int())
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in values), strict=True))
        _files.write_all({table: lines.getvalue(), path: _files.packed(self.tensors(), {"format": _FORMAT})})

    @classmethod
    def load(cls, path: str | Path) -> FoolingSet:
        """Read what `save` wrote, onto the CPU.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If the file is not a set of fooling images, or what it holds is none: shapes, dtypes and ranges as said
            above; names it.
        """
        path = _safetensors(path)
        with safetensors_file(path, "a set of fooling images") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise ValueError(f"{path}: not a set of fooling images ({_FORMAT!r}), by its header")
            _check_layout(path, layout(file))
            loaded = cls(*(file.get_tensor(name) for name in cls.__dataclass_fields__))
        loaded._check_ranges(path)
        return loaded

    def _check_ranges(self, path: Path) -> None:
        lit = (self.images > 0).flatten(1).sum(1)
        for name, wrong, expected in (
            ("images", ~((self.images >= 0) & (self.images <= 1)).flatten(1).all(1), "entries in [0, 1]"),
            ("targets", self.targets < 0, "classes from 0"),
            ("prob", ~((self.prob >= 0) & (self.prob <= 1)), "probabilities"),
            ("sparsity", self.sparsity != lit, "the number of the image's entries above 0"),
            ("stop_step", self.stop_step < 0, "steps from 0"),
        ):
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise ValueError(f"{path}: {name} of image {row} is wrong, expected {expected}")


def _check_layout(path: Path, found: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]) -> None:
    """ValueError unless the header says what the tensors of a `FoolingSet` are."""
    real = (torch.float32, torch.float64)
    dtypes = dict.fromkeys(("targets", "sparsity", "stop_step"), (torch.int64,)) | {"success": (torch.bool,)}
    for name in FoolingSet.__dataclass_fields__:
        if name not in found:
            raise ValueError(f"{path}: not a set of fooling images: lacks {name}")
    count, *size = found["images"][1] or (0,)
    for name in FoolingSet.__dataclass_fields__:
        dtype, shape = found[name]
        if dtype not in dtypes.get(name, real):
            raise ValueError(f"{path}: {name} is {dtype}, expected {' or '.join(map(str, dtypes.get(name, real)))}")
        if name == "images" and (len(size) != 3 or 0 in size):
            raise ValueError(f"{path}: images has shape {shape}, expected (B, C, H, W)")
        if name != "images" and shape != (count,):
            raise ValueError(f"{path}: {name} has shape {shape}, expected ({count},), one for each image")


def join(sets: list[FoolingSet]) -> FoolingSet:
    """All sets, one after the other, as one; at least one is needed."""
    return FoolingSet(*(torch.cat(tensors) for tensors in zip(*(s.tensors().values() for s in sets), strict=True)))


def balanced_targets(count: int, classes: int) -> Tensor:
    """Targets 0, 1, ..., classes - 1, 0, 1, ..., int64 (count,): any first part is as balanced as it can be."""
    _check_counts(count, classes)
    return torch.arange(count) % classes


def random_targets(count: int, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """Targets drawn uniformly and independently, int64 (count,); a `generator` of None is one with seed 0."""
    _check_counts(count, classes)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randint(classes, (count,), generator=generator, device=generator.device)


def _check_counts(count: int, classes: int) -> None:
    for name, value, least in (("count", count, 0), ("classes", classes, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


def _safetensors(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in '.safetensors'; got {str(path)!r}")
    return path
