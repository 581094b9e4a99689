"""Files that others made: refused by name where they are no files, or not what they should be."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def readable(path: str | Path) -> Path:
    """`path`, if it is a file that can be opened.

    Raises
    ------
    OSError
        FileNotFoundError, PermissionError and their like, with the name of the file.
    ValueError
        For a folder, a pipe, a device, or what is no file name.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte, or a character that the file system has not
        raise ValueError(f"{str(path)!r} is no name of a file: {error}") from None
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{path}: expected a file, but it is {kind}")
    with open(path, "rb"):
        return Path(path)


@contextmanager
def safetensors_file(path: str | Path, what: str) -> Iterator[Any]:
    """A file open as `safetensors.safe_open` does. ValueError, with the name, if it is none; it should hold `what`."""
    from safetensors import SafetensorError, safe_open

    path = readable(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{path}: not a complete safetensors file with {what}: {error}") from error


def layout(file: Any) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Dtype and shape of each tensor of an open safetensors file, by its header alone; None for other dtypes.

    OverflowError for a shape that torch cannot make; only one without entries can be, as the rest are in the file.
    """
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    found = {name: (_DTYPES.get(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    for name, (_, shape) in found.items():
        if math.prod(size or 1 for size in shape) >= 2**63:
            raise OverflowError(f"{name} has shape {shape}, which is too large")
    return found


def read_like(
    file: Any, path: str | Path, what: str, wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """All tensors of an open safetensors file with `what`.

    Raises
    ------
    ValueError
        Unless they are the `wanted` ones by name and shape, of their dtype or a narrower one of its kind, without NaN;
        names the file and the tensor.
    """
    found = layout(file)
    for name in (*wanted, *found):
        if name not in found or name not in wanted:
            raise ValueError(f"{path}: not {what}: {f'lacks {name}' if name in wanted else f'holds {name} besides'}")
        (dtype, shape), (to, size) = found[name], wanted[name]
        if shape != size:
            raise ValueError(f"{path}: not {what}: {name} has shape {shape}, expected {size}")
        if dtype is None or dtype.is_floating_point != to.is_floating_point or torch.promote_types(dtype, to) != to:
            raise ValueError(
                f"{path}: not {what}: {name} is {dtype or 'of another dtype'}, expected {to} or a narrower"
            )
    tensors = {name: file.get_tensor(name) for name in found}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(f"{path}: {name} has NaN")
    return tensors
