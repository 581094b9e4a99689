"""Files that are there as a whole or not at all, whenever the process ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8: whenever the process ends, it is there as a whole, or as it was before."""
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes | str]) -> None:
    """Write files of which none is ever half there, and of which none appears before all are whole and on the disk.

    Their permissions follow the umask. Drafts that a killed process left of the same files are removed.
    """
    drafts = {path: draft_of(path) for path in contents}
    try:
        for path, draft in drafts.items():
            clear_drafts(path)
            content = contents[path]
            with _said_of(path), draft.open("wb") as file:
                file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, draft in drafts.items():
            draft.replace(path)
        for folder in {path.parent for path in drafts}:
            sync(folder)
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Errors name the file or folder that was asked for, which a draft's name says nothing of."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it has a text of its own
            error.filename = str(path)
        raise


def draft_of(path: Path) -> Path:
    """Where this process prepares a file or folder before it is given its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def clear_drafts(path: Path) -> None:
    """Remove what processes that are no more left of `draft_of(path)`."""
    start, end = f".{path.name}.", ".part"
    for draft in path.parent.iterdir():
        process = draft.name[len(start) : -len(end)]
        if draft.name.startswith(start) and draft.name.endswith(end) and process.isdigit() and not _alive(int(process)):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name == "nt" or process == os.getpid():
        return True  # there is no harmless way to ask Windows
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def takes_files(folder: Path, *, made: bool = False) -> None:
    """Check that a folder takes new files; one that is yet to be `made`, that it can be.

    Raises
    ------
    OSError
        That says why not.
    """
    asked = folder
    while made and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    clear_drafts(folder / "trial")
    trial = draft_of(folder / "trial")
    try:
        with _said_of(asked):
            trial.touch()
    finally:
        trial.unlink(missing_ok=True)


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with these tensors, which may lie anywhere and share memory; equal ones give equal bytes."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(whole, dict(metadata or {}))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if len(header.get("__metadata__", {})) > 1:  # whose order is another one in each process
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":")).encode()
        ordered += b" " * (-len(ordered) % 8)
        content = len(ordered).to_bytes(8, "little") + ordered + content[8 + size :]
    return content


def unpacked(content: bytes) -> dict[str, Tensor]:
    """The tensors in a safetensors file by name, in the names' order; SafetensorError if it is none, or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(content).items()))  # safetensors has them in another order in each process
    except (RuntimeError, OverflowError) as error:  # of torch, for a shape without entries that it cannot make
        raise SafetensorError(str(error)) from error


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
