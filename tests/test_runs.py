from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring import _files
from sparring.runs import Run, RunError, RunWarning, check_new, latest


def record(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    return {"kind": "epoch", "generation": 0, "epoch": epoch, "9/loss": loss}


def saved(run: Run, epoch: int) -> None:
    run.save({"x": torch.full((2,), float(epoch))}, {"epoch": epoch})


def events(run: Run) -> dict[int, float]:
    """What TensorBoard shows for 9/loss, by step, of which each has one value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    found = board.Scalars("9/loss")
    assert len({event.step for event in found}) == len(found)
    return {event.step: event.value for event in found}


def test_new_run_holds_its_configuration(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs", "a", {"seed": 3})
    assert Run.open(run.path).config == {"seed": 3}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_tensorboard_says_what_the_numbers_mean(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(tmp_path, "a", {"metrics": {"9": "Real training images."}}) as run:
        run.log({"kind": "epoch", "epoch": 1, "9/loss": 0.5})
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors("metrics/9/text_summary")
    assert event.tensor_proto.string_val == [b"Real training images."]


def test_existing_run_is_never_touched(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {"seed": 1})
    with pytest.raises(RunError, match="exists already: resume it with --resume, or choose another name"):
        Run.create(tmp_path, "a", {"seed": 2})
    assert Run.open(run.path).config == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_existing_empty_folder_or_file_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("mine")
    for name in ("a", "b"):
        with pytest.raises(RunError, match="exists already"):
            Run.create(tmp_path, name, {})
    assert (tmp_path / "b").read_text() == "mine"


def test_numbered_names_are_the_first_free_ones(tmp_path: Path) -> None:
    names = [Run.create(tmp_path, "digits", {}, numbered=True).path.name for _ in range(3)]
    assert names == ["digits-1", "digits-2", "digits-3"]


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "-x", "a b"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be a run's name"):
        Run.create(tmp_path, name, {})
    assert not list(tmp_path.iterdir())


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no config\.json"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        Run.open(tmp_path)


def test_log_is_a_record_a_line_without_times(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1))
        run.log(record(2))
    assert run.records() == [record(1), record(2)]
    timings = [json.loads(line) for line in (run.path / "timings.jsonl").read_text().splitlines()]
    assert [timing["epoch"] for timing in timings] == [1, 2]
    assert all(timing["seconds"] >= 0 for timing in timings)
    assert events(run) == {1: 0.5, 2: 0.5}


def test_restore_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        assert run.restore() is None
        run.log(record(1))
        run.log(record(2))
        saved(run, 2)
        run.log(record(3, loss=9.0))  # never saved
    with Run.open(run.path) as again:
        checkpoint = again.restore()
        assert checkpoint is not None
        assert checkpoint.history == [record(1), record(2)]
        assert checkpoint.state["epoch"] == 2
        assert checkpoint.tensors["x"].tolist() == [2.0, 2.0]
        again.log(record(3))
    assert run.records() == [record(1), record(2), record(3)]
    assert events(run) == {1: 0.5, 2: 0.5, 3: 0.5}


def test_restore_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1, loss=9.0))
    with Run.open(run.path) as again:
        assert again.restore() is None
        again.log(record(1))
    assert run.records() == [record(1)]
    assert events(run) == {1: 0.5}


def test_restore_notices_a_shortened_log(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1))
        saved(run, 1)
    (run.path / "metrics.jsonl").write_text("")
    with Run.open(run.path) as again, pytest.raises(RunError, match="shorter than at the last checkpoint"):
        again.restore()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock's, which is empty."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def two_checkpoints(folder: Path, config: dict[str, Any] | None = None) -> Run:
    """A run with records 1 and 2 and a checkpoint of each."""
    run = Run.create(folder, "a", config or {})
    with run:
        for epoch in (1, 2):
            run.log(record(epoch))
            saved(run, epoch)
    return run


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at:][1:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the last number": lambda content: flipped(content, len(content) - 1),
    "a bit of the header's length": lambda content: flipped(content, 0),
    "a bit of the state": lambda content: flipped(content, content.index(b"epoch")),
    "cut off": lambda content: content[:-3],
    "longer": lambda content: content + b"x",
    "empty": lambda content: b"",
    "of zeros, as after a power failure": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str, checksum: bool
) -> None:
    """Without a checksum, in folders of earlier versions, what is no whole file is noticed all the same."""
    run = two_checkpoints(tmp_path)
    older, newest = run.checkpoints()
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    noticed = checksum or damage not in ("a bit of the last number", "a bit of the state")
    if not checksum:
        for file in (run.path / "checkpoints").glob("*.checksum"):
            file.unlink()
    before, told = contents(run.path), list[str]()
    with Run.open(run.path) as again:
        again.tell = told.append
        found = again.restore()
        assert found is not None
        assert found.state.get("epoch", 2) == 2 - noticed
        assert len(found.history) == 2 - noticed
        assert contents(run.path) == before  # until something is to be written
        assert any(newest.name in text and older.name in text for text in told) == noticed
        assert any("no checksum beside it" in text for text in told) == (not checksum)
        if noticed:
            again.log(record(2))
            saved(again, 2)
    if noticed:
        assert run.records() == [record(1), record(2)]
        assert [path.name for path in run.checkpoints()] == [older.name, newest.name]
        with Run.open(run.path) as again:
            found = again.restore()
            assert found is not None
            assert found.state["epoch"] == 2


def test_a_checkpoint_that_cannot_be_read_is_a_damaged_one(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    newest = run.checkpoints()[-1]
    newest.unlink()
    newest.mkdir()
    with (
        Run.open(run.path) as again,
        pytest.warns(RunWarning, match=f"{newest.name}: expected a file, but it is a folder"),
    ):
        found = again.restore()
    assert found is not None
    assert found.state["epoch"] == 1


def pipe_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", ".lock"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = two_checkpoints(tmp_path)
    pipe_at(run.path / name)

    def go_on() -> None:
        with Run.open(run.path) as again:
            again.restore()
            again.log(record(3))

    with pytest.raises(RunError, match=f"{re.escape(name)}: expected a file"):
        go_on()
    if name == "metrics.jsonl":
        with pytest.raises(RunError, match="it is a named pipe"):
            run.records()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [".safetensors", ".checksum"])
def test_a_checkpoint_that_is_a_pipe_is_a_damaged_one(tmp_path: Path, kind: str) -> None:
    run = two_checkpoints(tmp_path)
    pipe_at(run.checkpoints()[-1].with_suffix(kind))
    with pytest.warns(RunWarning, match="expected a file, but it is a named pipe"):
        found = run.checkpoint()
    assert found is not None
    assert found[1]["epoch"] == 1


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "line", [NESTED, '{"a": 1}', '{"kind": 3, "epoch": 1}', '{"kind": "epoch"}', '{"kind": "epoch", "epoch": "1"}']
)
def test_a_line_of_the_log_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    run = two_checkpoints(tmp_path)
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write(f"{line}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged: its line 3 is no record"):
        run.records()


@pytest.mark.parametrize("state", [NESTED, '{"metrics_bytes": Infinity}', "{}", "[]", "3"])
def test_a_checkpoint_whose_state_is_none_is_a_damaged_one(tmp_path: Path, state: str) -> None:
    run = two_checkpoints(tmp_path)
    newest = run.checkpoints()[-1]
    newest.with_suffix(".checksum").unlink()
    newest.write_bytes(_files.packed({}, {"state": state}))
    with pytest.warns(RunWarning, match=f"{newest.name} is damaged"):
        assert run.checkpoint() is not None


def test_where_all_checkpoints_are_damaged_the_run_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    for file in run.checkpoints():
        file.write_bytes(file.read_bytes()[:-1])
    with run.path.joinpath("metrics.jsonl").open("a") as log:
        log.write('{"after": "the last"')
    before = contents(run.path)
    names = [file.name for file in run.checkpoints()]
    with Run.open(run.path) as again, pytest.raises(RunError, match=f"{names[1]} is damaged.*{names[0]} is damaged"):
        again.restore()
    assert contents(run.path) == before
    with pytest.raises(RunError, match="There is no other checkpoint; nothing was changed"):
        run.checkpoint()


@pytest.mark.parametrize(
    ("change", "epoch"),
    [
        (lambda log: log.replace(b"0.5", b"0.6"), 0),  # both records
        (lambda log: log[:10] + b"X" + log[11:], 0),
        (lambda log: log[:-1], 1),  # the second
        (lambda log: log[: log.rindex(b"0.5")] + b"0.6" + log[log.rindex(b"0.5") + 3 :], 1),
        (lambda log: log[:-20], 1),
        (lambda log: b"", 0),
        (lambda log: log + b'{"kind": "half', 2),  # what a killed process leaves
        (lambda log: log + b"\x00" * 50, 2),
    ],
)
def test_a_changed_log_is_noticed_before_it_is_cut(
    tmp_path: Path, change: Callable[[bytes], bytes], epoch: int
) -> None:
    """The log is the one of some checkpoint, or the run is refused."""
    run = two_checkpoints(tmp_path)
    log = run.path / "metrics.jsonl"
    log.write_bytes(change(log.read_bytes()))
    before, told = contents(run.path), list[str]()
    with Run.open(run.path) as again:
        again.tell = told.append
        if epoch == 0:
            with pytest.raises(RunError, match=r"metrics\.jsonl (was changed|is shorter)"):
                again.restore()
            raise_ = None
        else:
            raise_ = again.restore()
            assert raise_ is not None
            assert [one["epoch"] for one in raise_.history] == [1, 2][:epoch]
        assert contents(run.path) == before
    if epoch:
        assert bool(told) == (epoch == 1)
        assert [one["epoch"] for one in run.records()] == [1, 2][:epoch]  # the end of the block went back


def without_tensors(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def a_pipe(folder: Path) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


def a_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("lose", [without_tensors, emptied, moved, a_file, a_pipe, a_loop])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    run = two_checkpoints(tmp_path)
    lose(run.path / "checkpoints")
    before = contents(run.path)
    with Run.open(run.path) as again, pytest.raises(RunError, match=r"checkpoints: the checkpoints .* are gone"):
        again.restore()
    assert contents(run.path) == before


def test_without_log_and_checkpoints_the_checksums_tell_that_a_run_had_begun(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    without_tensors(run.path / "checkpoints")
    (run.path / "metrics.jsonl").unlink()
    with Run.open(run.path) as again, pytest.raises(RunError, match="are gone; nothing was changed"):
        again.restore()


def test_a_run_killed_at_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    """Its checksum is written first."""
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1, loss=9.0))
    (run.path / "checkpoints" / "000000.checksum").write_text("of what was about to be written")
    with Run.open(run.path) as again:
        assert again.restore() is None
        again.log(record(1))
        saved(again, 1)
    assert run.records() == [record(1)]
    assert run.checkpoint() is not None


def test_a_lost_log_is_not_begun_anew(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    (run.path / "metrics.jsonl").unlink()
    before = contents(run.path)
    with Run.open(run.path) as again, pytest.raises(RunError, match="shorter than at the last checkpoint"):
        again.restore()
    assert contents(run.path) == before


CONFIG: dict[str, Any] = {
    "command": "sparring retrain", "data": {"name": "digits", "folder": None, "sha256": "abc"}, "threads": 1,
    "network": {"name": "/home/nets.py:Net"}, "retrain": {"seed": 0, "eps": (0.1, 0.2), "mode": "epoch"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("retrain", "seed", 1, "retrain.seed was 0 and is 1"),
        ("retrain", "eps", [0.1], "retrain.eps was [0.1, 0.2] and is [0.1]"),
        ("retrain", "mode", None, 'retrain.mode was "epoch" and is null'),
        ("data", "sha256", "abd", 'data.sha256 was "abc" and is "abd"'),
        ("network", "name", "/home/nets.py:Other", "network.name was"),
        ("network", "name", "/elsewhere/nets.py:Net", ""),
        ("data", "folder", "/elsewhere", ""),
        ("retrain", "new field", 3, ""),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    tmp_path: Path, section: str, key: str, value: Any, said: str
) -> None:
    run = two_checkpoints(tmp_path, CONFIG)
    config = json.loads((run.path / "config.json").read_text())
    config[section][key] = value
    (run.path / "config.json").write_text(json.dumps(config))
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write("half")
    before = contents(run.path)
    with Run.open(run.path) as again:
        if said:
            with pytest.raises(RunError, match=re.escape(said)):
                again.restore()
            assert contents(run.path) == before
        else:
            assert again.restore() is not None


def test_a_field_that_the_configuration_lacks_is_no_difference(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path, CONFIG)
    config = json.loads((run.path / "config.json").read_text())
    del config["retrain"]["mode"], config["command"], config["threads"]
    (run.path / "config.json").write_text(json.dumps(config))
    with Run.open(run.path) as again:
        assert again.restore() is not None


@pytest.mark.parametrize("content", ["[]", "{", '"x"', "\xff", "", NESTED])
def test_a_damaged_configuration_is_said(tmp_path: Path, content: str) -> None:
    run = two_checkpoints(tmp_path)
    (run.path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(RunError, match=r"config\.json is not"):
        Run.open(run.path)


def test_what_refuses_after_the_checkpoint_was_given_leaves_the_log(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(record(3)) + "\n")
    before = contents(run.path)

    def refuse() -> None:
        with Run.open(run.path) as again:
            again.restore()
            raise ValueError("not these networks")

    with pytest.raises(ValueError, match="not these networks"):
        refuse()
    assert contents(run.path) == before


def test_a_checkpoint_is_whole_before_it_has_its_name_and_after_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk is asked to keep, in order: the log, then each file under another name, renamed, the folder."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are read from /proc")
    calls: list[str] = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def name(path: Path) -> str:
        return re.sub(r"\.\d+\.part$", ".part", path.name) + f" {path.stat().st_size}" * path.is_file()

    def record_fsync(file: int) -> None:
        calls.append(f"fsync {name(Path(os.readlink(f'/proc/self/fd/{file}')))}")
        fsync(file)

    def record_replace(source: Any, target: Any) -> None:
        calls.append(f"replace {name(Path(source))} -> {Path(target).name}")
        replace(source, target)

    def record_unlink(path: Path, missing_ok: bool = False) -> None:
        if not path.name.endswith(".part"):
            calls.append(f"unlink {path.name}")
        unlink(path, missing_ok)

    run = two_checkpoints(tmp_path)
    with run:
        run.log(record(3))
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_replace)
        monkeypatch.setattr(Path, "unlink", record_unlink)
        saved(run, 3)
        monkeypatch.undo()
    log, newest = run.path / "metrics.jsonl", run.checkpoints()[-1]
    seal, whole = newest.with_suffix(".checksum").stat().st_size, newest.stat().st_size
    assert calls == [
        f"fsync metrics.jsonl {log.stat().st_size}",
        f"fsync .000002.checksum.part {seal}",
        f"replace .000002.checksum.part {seal} -> 000002.checksum",
        "fsync checkpoints",
        f"fsync .000002.safetensors.part {whole}",
        f"replace .000002.safetensors.part {whole} -> 000002.safetensors",
        "fsync checkpoints",
        "unlink 000000.safetensors",
        "unlink 000000.checksum",
    ]


def test_a_checksum_is_one_that_other_programs_check(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    for file in run.checkpoints():
        wanted = f"{hashlib.sha256(file.read_bytes()).hexdigest()} *{file.name}\n"
        assert file.with_suffix(".checksum").read_text() == wanted
    assert len(list((run.path / "checkpoints").iterdir())) == 4


def test_a_checksum_whose_checkpoint_was_not_written_is_no_checkpoint(tmp_path: Path) -> None:
    run = two_checkpoints(tmp_path)
    (run.path / "checkpoints" / "000002.checksum").write_text("of what a killed process was about to write")
    with Run.open(run.path) as again:
        found = again.restore()
        assert found is not None
        saved(again, 3)
    assert [path.name for path in run.checkpoints()] == ["000001.safetensors", "000002.safetensors"]
    assert run.checkpoint() is not None


def test_equal_runs_have_equal_bytes_and_the_umasks_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        runs = [two_checkpoints(tmp_path / name, CONFIG) for name in ("one", "two")]
    finally:
        os.umask(before)
    for path in sorted(runs[0].path.rglob("*")):
        other = runs[1].path / path.relative_to(runs[0].path)
        if path.is_file() and path.parent.name != "tensorboard":
            assert path.stat().st_mode & 0o777 == 0o640, path
            if path.name != "timings.jsonl":
                assert path.read_bytes() == other.read_bytes(), path


class Full(OSError):
    pass


def test_where_tensorboards_file_fails_the_record_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error is raised where the record is logged, not in a thread, which would print a traceback of its own."""
    from tensorboard.summary.writer import record_writer

    write, calls = record_writer.RecordWriter.write, 0

    def full(writer: Any, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Full(errno.ENOSPC, "No space left on device")
        write(writer, data)

    run, threads = Run.create(tmp_path, "a", {}), threading.active_count()
    with run:
        run.log(record(1))
        saved(run, 1)
    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    calls = 0

    def go_on() -> None:
        with Run.open(run.path) as again:
            found = again.restore()
            assert found is not None
            for epoch in range(len(found.history) + 1, 9):
                again.log(record(epoch))
                saved(again, epoch)

    with pytest.raises(Full):
        go_on()
    monkeypatch.undo()
    assert capfd.readouterr().err == ""
    go_on()
    assert threading.active_count() == threads
    assert run.records() == [record(epoch) for epoch in range(1, 9)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want names in UTF-8")
def test_any_folder_that_the_system_knows_will_do(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and what would be markup or control elsewhere."""
    run = two_checkpoints(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff[b]\x1b\n")))
    with Run.open(run.path) as again:
        assert again.restore() is not None
        again.log(record(3))
    assert len(list((run.path / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run = two_checkpoints(tmp_path)

    def full(*arguments: Any) -> None:
        raise Full(errno.ENOSPC, "No space left on device")

    def go_on() -> None:
        with run:
            run.log(record(3))
            monkeypatch.setattr(os, call, full)
            saved(run, 3)

    with pytest.raises(Full):
        go_on()
    monkeypatch.undo()
    with Run.open(run.path) as again:  # the lock was given back
        found = again.restore()
        assert found is not None
        assert found.state["epoch"] == 2
        again.log(record(3))
        saved(again, 3)
    assert run.records() == [record(1), record(2), record(3)]
    assert not list(run.path.rglob("*.part"))


def test_a_folder_that_takes_no_run_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    check_new(tmp_path / "new" / "runs", "a")
    check_new(tmp_path, "taken", numbered=True)
    with pytest.raises(RunError, match="exists already"):
        check_new(tmp_path, "taken")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        check_new(tmp_path / "file", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_what_a_killed_process_began_to_make_is_cleared(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".a.{gone.pid}.part" / "checkpoints").mkdir(parents=True)
    Run.create(tmp_path, "a", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1))
        saved(run, 1)
        (run.path / "checkpoints" / "000001.tmp").write_bytes(b"half")
    found = run.checkpoint()
    assert found is not None
    assert found[1]["epoch"] == 1


def test_what_a_killed_process_left_of_old_checkpoints_is_removed(tmp_path: Path) -> None:
    """Killed before it removed one, or between the checkpoint and its checksum; the run is over and saves no more."""
    run = Run.create(tmp_path, "a", {})
    with run:
        for epoch in range(4):
            saved(run, epoch)
    folder = run.path / "checkpoints"
    wanted = contents(folder)
    for name in ("000001.safetensors", "000001.checksum", "000000.checksum"):
        shutil.copy(folder / f"000002{Path(name).suffix}", folder / name)
    with Run.open(run.path) as again:
        assert again.restore() is not None
        assert len(list(folder.iterdir())) == 7  # nothing is changed before the block ends
    assert contents(folder) == wanted


def test_of_damaged_checkpoints_none_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    """The one that was gone on from stays until there are later ones that are whole."""
    run = Run.create(tmp_path, "a", {})
    with run:
        for epoch in range(2):
            saved(run, epoch)
    folder = run.path / "checkpoints"
    for number in (2, 3):
        (folder / f"{number:06d}.safetensors").write_bytes(b"of zeros")
    for _ in range(2):
        with Run.open(run.path) as again:
            again.tell = lambda text: None
            found = again.restore()
        assert found is not None
        assert found.state["epoch"] == 1
    with Run.open(run.path) as again:
        again.tell = lambda text: None
        again.restore()
        for epoch in (2, 3):
            saved(again, epoch)
    assert [path.name for path in run.checkpoints()] == ["000002.safetensors", "000003.safetensors"]
    found_again = run.checkpoint()
    assert found_again is not None
    assert found_again[1]["epoch"] == 3


def test_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        for epoch in range(12):
            saved(run, epoch)
    assert [path.name for path in run.checkpoints()] == ["000010.safetensors", "000011.safetensors"]


def test_run_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    run = Run.create(tmp_path, "a", {})
    code = f"from sparring.runs import Run\nwith Run.open({str(run.path)!r}): pass"
    with run:
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "in use by another process" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_latest_is_the_run_written_to_last(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        latest(tmp_path)
    first, second = (Run.create(tmp_path, name, {}) for name in ("a", "b"))
    os.utime(second.path / "config.json", (1, 1))
    assert latest(tmp_path).path == first.path
    with second:
        second.log(record(1))
    assert latest(tmp_path).path == second.path


def test_interrupts_wait_until_a_record_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C amid TensorBoard's queue would leave its lock taken; here it comes at every number."""
    from torch.utils.tensorboard import SummaryWriter

    add_scalar = SummaryWriter.add_scalar

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        add_scalar(*arguments)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    run = Run.create(tmp_path, "a", {})
    with run, pytest.raises(KeyboardInterrupt):
        run.log({**record(1), "10/loss": 0.25})
    assert signal.getsignal(signal.SIGINT) is handler
    assert [set(line) for line in run.records()] == [{"kind", "generation", "epoch", "9/loss", "10/loss"}]
    assert events(run) == {1: 0.5}
