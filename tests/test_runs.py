from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.runs import Run, RunError, latest


def record(epoch: int, loss: float = 0.5) -> dict[str, Any]:
    return {"kind": "epoch", "generation": 0, "epoch": epoch, "9/loss": loss}


def saved(run: Run, epoch: int) -> None:
    run.save({"x": torch.full((2,), float(epoch))}, {"epoch": epoch})


@pytest.fixture(autouse=True)
def first_event_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second by name, which ends in the process's count of them: 10 before 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def events(run: Run) -> dict[int, float]:
    """What TensorBoard shows for 9/loss, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    return {event.step: event.value for event in board.Scalars("9/loss")}


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


def test_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", {})
    with run:
        run.log(record(1))
        saved(run, 1)
        (run.path / "checkpoints" / "000001.tmp").write_bytes(b"half")
    found = run.checkpoint()
    assert found is not None
    assert found[1]["epoch"] == 1


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
    import os

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
