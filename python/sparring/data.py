"""Image data: digits (comes with scikit-learn), MNIST and CIFAR-10, read from their official files and checked."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparring._loading import readable
from sparring.halves import Halves, halves

__all__ = ["NAMES", "Dataset", "Halves", "Split", "halves", "load", "read_idx"]

Split = Literal["train", "test"]

NON_SPARSE = "-non-sparse"

NAMES = ("digits", "digits-non-sparse", "mnist", "mnist-non-sparse", "cifar10")

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


@dataclass(frozen=True)
class MnistFile:
    """An official file of MNIST: its name, and the MD5 of its content and of the compressed file that is downloaded."""

    name: str
    content_md5: str
    download_md5: str


MNIST_FILES: dict[Split, tuple[MnistFile, MnistFile]] = {
    "train": (
        MnistFile("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        MnistFile("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    ),
    "test": (
        MnistFile("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        MnistFile("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
}

CIFAR_BATCH = 10_000
"""Images in each of CIFAR-10's official files."""

CIFAR_BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]
"""The official files of training images; others, such as copies and backups of them, are not read."""

CIFAR_MOST = 60_000
"""Images that a file of CIFAR-10 holds at most: all that there are."""

CIFAR_COUNTS = {
    "data_batch_1.bin": [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981],
    "test_batch.bin": [1000] * 10,
}
"""Images of each class in official files of CIFAR-10. No checksum is published of the files themselves, only of their
archive, so these tell that a file is another one, but not that it is the official one."""


class _Origin(NamedTuple):
    official: bool | None
    note: str


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes
    ----------
    name, split
        Where the images are from.
    images
        float32 (N, C, H, W), every entry in [0, 1].
    labels
        int64 (N,), every entry in [0, classes).
    classes
        Number of classes.
    official
        Whether they are from the official files, byte for byte; None where that cannot be told.
    note
        One line on that, to be shown beside any figure measured on them.
    """

    name: str
    split: Split
    images: Tensor
    labels: Tensor
    classes: int
    official: bool | None = None
    note: str = ""

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.images.shape[1:])

    def __getitem__(self, index: Tensor | slice) -> Dataset:
        """The images that `index` (a slice, or a tensor of indices or booleans) selects."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def subset(self, n: int, generator: torch.Generator | None = None) -> Dataset:
        """Return `n` images drawn without replacement, equally many of each class.

        Where `n` is no multiple of the number of classes, the first classes get one more.
        `generator` is a CPU generator; None means one with seed 0.
        """
        if not 0 <= n <= len(self):
            raise ValueError(f"n must be between 0 and {len(self)}, the images at hand; got {n}")
        generator = generator if generator is not None else torch.Generator("cpu").manual_seed(0)
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.labels.device)
        quota = torch.tensor([len(range(c, n, self.classes)) for c in range(self.classes)], device=order.device)
        labels = self.labels[order]
        short = torch.bincount(labels, minlength=self.classes) < quota
        if bool(short.any()):
            c = int(short.nonzero()[0])
            raise ValueError(
                f"n={n} needs {int(quota[c])} images of class {c}, but there are {int((labels == c).sum())}"
            )
        return self[order[_rank_in_class(labels, self.classes) < quota[labels]]]

    def lifted(self, by: float = 0.3) -> Dataset:
        """Return the images as ``clamp(x + by, 0, 1)``: no entry is black, so none of them is sparse."""
        if not 0 < by < 1:
            raise ValueError(f"by must be between 0 and 1, both excluded; got {by}")
        note = f"{by:g} added to every entry, then clamped to [0, 1]"
        return replace(
            self,
            name=self.name + NON_SPARSE,
            images=(self.images + by).clamp(0, 1),
            note=f"{self.note}; {note}" if self.note else note,
        )

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load(name: str, data_dir: str | Path | None = None, split: Split = "train", *, verify: bool = True) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name
        "digits" (1797 images of 8x8 that come with scikit-learn; every fifth image of each class is the test split),
        "mnist", or "cifar10"; "digits-non-sparse" and "mnist-non-sparse" are these after :meth:`Dataset.lifted`.
    data_dir
        Folder with the official files, plain or gzipped: the four IDX files of MNIST, or `data_batch_1.bin` ...
        `data_batch_5.bin` and `test_batch.bin` of CIFAR-10's binary version (all the training batches that are there
        are read, and no file of another name).
        None: MNIST is downloaded once and cached; CIFAR-10 needs the folder; digits needs none.
    split
        "train" or "test".
    verify
        Refuse MNIST's files unless their content has the official MD5. False accepts other data in their format.
        CIFAR-10's files are accepted whenever the layout is right. What is known of the bytes is in
        :attr:`Dataset.official` and :attr:`Dataset.note`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is truncated, too long, empty, of the wrong kind or has the wrong checksum; the message names the
        file. No more of it is read, or unpacked, than its header declares.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    if name.endswith(NON_SPARSE):
        return load(name.removesuffix(NON_SPARSE), data_dir, split, verify=verify).lifted()
    folder = None if data_dir is None else Path(data_dir)
    if name == "digits":
        if folder is not None:
            raise ValueError("data_dir must be None for 'digits', which come with scikit-learn")
        return _digits(split)
    if name == "mnist":
        return _mnist(folder, split, verify)
    if folder is None:
        raise ValueError("data_dir must be given for 'cifar10': a folder with data_batch_*.bin and test_batch.bin")
    return _cifar10(folder, split)


def read_idx(path: str | Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes (the format of MNIST), plain or gzipped, as uint8 with `dimensions` axes."""
    return _read_idx(Path(path), dimensions)[0]


def _digits(split: Split) -> Dataset:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8).to(torch.float32) / 16
    whole = Dataset("digits", split, images, torch.from_numpy(labels).to(torch.int64), 10, True, "as in scikit-learn")
    is_test = _rank_in_class(whole.labels, whole.classes) % 5 == 4
    return whole[is_test if split == "test" else ~is_test]


def _mnist(folder: Path | None, split: Split, verify: bool) -> Dataset:
    contents, paths = [], []
    official = True
    for file, dimensions in zip(MNIST_FILES[split], (3, 1), strict=True):
        path = _download(file) if folder is None else _find(folder, file.name)
        content, digest = _read_idx(path, dimensions)
        if not content.size:
            raise ValueError(f"{path}: is empty: an array of shape {content.shape}")
        contents.append(content)
        paths.append(path)
        official &= digest == file.content_md5
        if verify and not official:
            raise ValueError(
                f"{path}: the content's MD5 is {digest}, expected {file.content_md5} of the official {file.name}; "
                "verify=False accepts other data in this format"
            )
    images, labels = contents
    if len(images) != len(labels):
        raise ValueError(
            f"{path}: holds {len(labels)} labels, expected {len(images)}, one for each image in {paths[0].name}"
        )
    origin = _Origin(official, f"{'' if official else 'not '}the official files, by their MD5")
    return _dataset("mnist", split, images[:, None], labels, path, origin)


def _cifar10(folder: Path, split: Split) -> Dataset:
    record = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes
    paths = [_find(folder, "test_batch.bin")] if split == "test" else _train_batches(folder)
    batches, differences = [], []
    for path in paths:
        with _unpacked(path) as file:
            content = _read(file, CIFAR_MOST * record + 1)
        if len(content) > CIFAR_MOST * record:
            raise ValueError(f"{path}: holds more than {CIFAR_MOST} images, all that CIFAR-10 has")
        if not content or len(content) % record:
            raise ValueError(
                f"{path}: holds {len(content)} bytes, expected a positive multiple of {record}, the bytes of one image"
            )
        batches.append(np.frombuffer(content, np.uint8).reshape(-1, record))
        if batches[-1][:, 0].max() > 9:
            raise ValueError(f"{path}: holds the label {batches[-1][:, 0].max()}, expected labels from 0 to 9")
        differences += _differences(path.name.removesuffix(".gz"), batches[-1][:, 0])
    records = np.concatenate(batches)
    origin = (
        _Origin(False, f"not the official files: {'; '.join(differences)}")
        if differences
        else _Origin(None, "not verified to be the official files, of which no checksum is published")
    )
    return _dataset("cifar10", split, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], paths[0], origin)


def _differences(name: str, labels: np.ndarray) -> list[str]:
    """What tells a file from CIFAR-10's official one of that name."""
    if len(labels) != CIFAR_BATCH:
        return [f"{name} holds {len(labels)} images in place of {CIFAR_BATCH}"]
    counts = np.bincount(labels, minlength=10).tolist()
    if counts != CIFAR_COUNTS.get(name, counts):
        return [f"{name} holds {counts} images of the classes in place of {CIFAR_COUNTS[name]}"]
    return []


def _dataset(
    name: str, split: Split, images: np.ndarray, labels: np.ndarray, label_file: Path, origin: _Origin
) -> Dataset:
    if labels.size and labels.max() > 9:
        raise ValueError(f"{label_file}: holds the label {labels.max()}, expected labels from 0 to 9")
    pixels = torch.from_numpy(images.astype(np.float32)) / 255
    return Dataset(name, split, pixels, torch.from_numpy(labels.astype(np.int64)), 10, *origin)


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """For each entry, how many earlier entries have the same label."""
    return F.one_hot(labels, classes).cumsum(0).gather(1, labels[:, None])[:, 0] - 1


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"data_dir: neither {name} nor {name}.gz is in {folder}")


def _train_batches(folder: Path) -> list[Path]:
    there = [name for name in CIFAR_BATCHES if (folder / name).is_file() or (folder / f"{name}.gz").is_file()]
    if not there:
        raise FileNotFoundError(
            f"data_dir: none of {CIFAR_BATCHES[0]} ... {CIFAR_BATCHES[-1]}, plain or with .gz, is in {folder}"
        )
    return [_find(folder, name) for name in there]


def _download(file: MnistFile) -> Path:
    import pooch  # type: ignore[import-untyped]

    return Path(
        pooch.retrieve(
            f"{MNIST_URL}{file.name}.gz",
            known_hash=f"md5:{file.download_md5}",
            fname=f"{file.name}.gz",
            path=pooch.os_cache("sparring") / "mnist",
        )
    )


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, plain or gzipped; ValueError, which names it, where it is damaged."""
    with readable(path).open("rb") as file:
        if path.suffix != ".gz":
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a complete gzip file: {error}") from error


def _read(file: BinaryIO, most: int) -> bytearray:
    """Up to `most` bytes; memory is taken as they come, whatever number is asked for."""
    content = bytearray()
    while part := file.read(min(most - len(content), _AT_ONCE)):
        content += part
    return content


_AT_ONCE = 2**20


def _read_idx(path: Path, dimensions: int) -> tuple[np.ndarray, str]:
    """The array, and the MD5 of the file's content."""
    # Magic number: two zero bytes, the type (8 is unsigned byte), the number of dimensions; then the sizes, big-endian.
    length = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    with _unpacked(path) as file:
        header = _read(file, length)
        if header[:4] != magic:
            raise ValueError(
                f"{path}: starts with 0x{header[:4].hex()}, expected 0x{magic.hex()}, "
                f"an IDX file of unsigned bytes in {dimensions} dimension(s)"
            )
        if len(header) < length:
            raise ValueError(f"{path}: truncated: holds {len(header)} bytes, expected a header of {length}")
        shape = struct.unpack(f">{dimensions}I", header[4:])
        size = math.prod(shape)
        content = _read(file, size + 1)
    if len(content) != size:
        what, holds = "truncated", f"{length + len(content)}"
        if len(content) > size:
            what, holds = "too long", f"{path.stat().st_size}" if path.suffix != ".gz" else "more"
        raise ValueError(f"{path}: {what}: holds {holds} bytes, expected {length + size} for the shape {shape}")
    digest = hashlib.md5(header + content, usedforsecurity=False).hexdigest()
    return np.frombuffer(content, np.uint8).reshape(shape), digest
