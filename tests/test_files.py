"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from sparring import _files
from sparring.cli._printing import reason


def test_a_file_is_written_under_another_name_synced_and_renamed(tmp_path: Path, recorded: list[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")
    recorded.clear()
    _files.write(file, "after\x1b\udcff")
    draft = f".a.txt.{os.getpid()}.part"
    assert recorded == [
        f"write {draft}", f"fsync {draft} of 12 bytes", f"replace {draft} a.txt", f"fsync {tmp_path.name}",
    ]  # fmt: skip
    assert file.read_bytes() == b"after\x1b\\udcff"


def test_several_files_are_renamed_once_all_are_whole(tmp_path: Path, recorded: list[str]) -> None:
    _files.write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [entry.split()[0] for entry in recorded] == [
        "write",
        "fsync",
        "write",
        "fsync",
        "replace",
        "replace",
        "fsync",
    ]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written, synced and replaced, in order."""
    calls: list[str] = []
    opened, fsync, replace = Path.open, os.fsync, os.replace

    def record_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "r":
            calls.append(f"write {path.name}")
        return opened(path, mode, *arguments, **options)

    def record_fsync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        calls.append(f"fsync {path.name}" + f" of {path.stat().st_size} bytes" * path.is_file())
        fsync(file)

    def record_replace(source: Any, target: Any) -> None:
        calls.append(f"replace {Path(source).name} {Path(target).name}")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr(Path, "open", record_open)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return calls


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_where_the_disk_fails_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    calls = 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == (2 if failing == "fsync" else 1):  # with the second draft, or as soon as both are whole
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        _files.write_all({one: b"new", two: b"new"})
    assert one.read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_drafts_of_killed_processes_are_cleared_and_those_of_others_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".a.{gone.pid}.part").write_bytes(b"half")
    (tmp_path / f".a.{os.getppid()}.part").write_bytes(b"being written")
    (tmp_path / f".b.{gone.pid}.part").mkdir()
    (tmp_path / ".a.mine.part").write_bytes(b"no draft")
    _files.write(tmp_path / "a", b"whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a", f".a.{os.getppid()}.part", f".b.{gone.pid}.part", ".a.mine.part"}
    _files.clear_drafts(tmp_path / "b")
    assert not (tmp_path / f".b.{gone.pid}.part").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _files.write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_equal_tensors_give_equal_bytes() -> None:
    """In other processes too, whose hashes of names differ; any order, layout and shared memory."""
    code = (
        "import torch; from sparring import _files\n"
        "whole = torch.arange(12.).view(3, 4)\n"
        "tensors = {'b': whole.t(), 'a': whole, 'c': whole[1], 'i': torch.arange(3), 'e': torch.zeros(0, 2)}\n"
        "print(_files.digest(_files.packed(tensors, {'one': '1', 'two': 'z', 'three': 'x'})))"
    )
    found = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(3)}
    assert len(found) == 1
    whole = torch.arange(12.0).view(3, 4)
    one = {"b": whole.t(), "a": whole}
    assert _files.packed(one) == _files.packed({"a": whole.clone(), "b": whole.t().contiguous()})


def test_packed_tensors_are_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"x": torch.rand(3, 2).t(), "y": torch.arange(5), "h": torch.rand(3).bfloat16()}
    for metadata in (None, {"state": "{}"}, {"b": "é", "a": "2", "c": "x" * 9}):
        _files.write(tmp_path / "x.safetensors", _files.packed(tensors, metadata))
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert (file.metadata() or {}) == (metadata or {})
            assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
        content = (tmp_path / "x.safetensors").read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0
        assert [*_files.unpacked(content)] == sorted(load(content))


def test_a_folder_is_tried_out(tmp_path: Path) -> None:
    _files.takes_files(tmp_path)
    _files.takes_files(tmp_path / "new" / "below", made=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        _files.takes_files(tmp_path / "new")
    (tmp_path / "file").touch()
    for made in (False, True):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            _files.takes_files(tmp_path / "file", made=made)
    with pytest.raises(NotADirectoryError):
        _files.takes_files(tmp_path / "file" / "below", made=True)
    if Path("/proc/self").is_dir():  # a folder that takes none even from root
        with pytest.raises(OSError):  # noqa: PT011
            _files.takes_files(Path("/proc/self"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_what_cannot_be_written_is_named_and_not_its_draft(tmp_path: Path) -> None:
    for asked in (Path("/proc/x"), Path("/proc/x/y")):
        with pytest.raises(OSError, match=f"'{asked}'$"):
            _files.takes_files(asked, made=True)
    with pytest.raises(OSError, match=r"'/proc/x'$"):
        _files.write(Path("/proc/x"), "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        _files.write(tmp_path / "folder", "")
    assert reason(caught.value).endswith(f": {tmp_path / 'folder'}")
