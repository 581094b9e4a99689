"""Run folders: the configuration, log, TensorBoard events and checkpoints of one experiment.

runs/<name>/config.json             what was asked for, written once
            metrics.jsonl           one JSON record a line; no clock times, so equal runs have equal files
            timings.jsonl           seconds that each record took
            tensorboard/            the same numbers as events
            checkpoints/            the last two states, each a safetensors file with JSON in its header, and beside it
                                    its SHA-256, as `sha256sum -c` reads it
            figures/  report.html   written by sparring.report
            network.safetensors     weights at the end, and in best.safetensors of the best epoch; those of a mixture
                                    in mixture.safetensors

A run folder is distrusted when it is opened again: a checkpoint also says what the log and the configuration were, and
all of it is compared before anything is changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor

from sparring import _files
from sparring._checkpoints import Damaged, RunError, Saved, checksum_of, differences, number_of
from sparring._loading import readable
from sparring.training.loop import Checkpoint

if TYPE_CHECKING:
    from sparring._events import Board

__all__ = ["Run", "RunError", "RunWarning", "check_new", "differences", "latest", "uninterrupted"]

Record = dict[str, Any]

KEPT_CHECKPOINTS = 2


class RunWarning(UserWarning):
    """Something about a run folder that its owner should know; the run goes on."""


class Run:
    """A run folder, open for one process at a time; use it as a context manager.

    Made by `create` or `open`, never directly. What its owner should know, such as a damaged checkpoint, is said by
    `tell`, which warns with `RunWarning` unless it is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _config(path / "config.json")
        self.tell: Callable[[str], None] = _warn
        self._lock: IO[str] | None = None
        self._board: Board | None = None
        self._pending: _Pending | None = None
        self._next: int | None = None
        self._last = time.perf_counter()

    @classmethod
    def create(cls, runs_dir: str | Path, name: str, config: dict[str, Any], *, numbered: bool = False) -> Run:
        """Make a new run folder; an existing one is never touched.

        With `numbered` the name gets the first free number: digits-1, digits-2, ...
        Raises `RunError` if the name is taken or not usable.
        """
        runs_dir = Path(runs_dir)
        check_new(runs_dir, name, numbered=numbered)
        runs_dir.mkdir(parents=True, exist_ok=True)
        # Filled under another name and then renamed: a run never exists without its configuration.
        _files.clear_drafts(runs_dir / name)
        draft = _files.draft_of(runs_dir / name)
        draft.mkdir()
        try:
            (draft / "checkpoints").mkdir()
            _files.write(draft / "config.json", json.dumps(config, indent=2) + "\n")
            for path in (runs_dir / f"{name}-{n}" for n in range(1, 10**6)) if numbered else (runs_dir / name,):
                if not path.exists():
                    try:
                        draft.rename(path)
                    except OSError:
                        if not path.exists():
                            raise
                        continue  # another process was quicker
                    _files.sync(runs_dir)
                    return cls(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        raise _taken(runs_dir / name)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise RunError(f"{path} is not a run: it has no config.json")
        return cls(path)

    def __enter__(self) -> Run:
        """Lock the folder against other processes."""
        path = self.path / ".lock"
        # Not blocking: a pipe would be waited for.
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666), "r")
        if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
            lock.close()
            raise RunError(f"{path}: expected a file")
        if not _lock(lock):
            lock.close()
            raise RunError(f"{self.path} is in use by another process")
        self._lock = lock
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        assert self._lock is not None
        failing = kind is not None
        with uninterrupted():
            try:
                if not failing:
                    self._go_back()
                if self._board is not None:
                    self._board.close()
            except OSError:
                if not failing:  # else the first error is the one to be told
                    raise
            finally:
                self._lock.close()
                self._lock = self._board = self._pending = self._next = None

    def log(self, record: Record) -> None:
        """Append a record to the log and to TensorBoard (numbers, at the step `record["epoch"]`)."""
        self._check_open()
        with uninterrupted():
            self._go_back()
            _append(self.path / "metrics.jsonl", record)
            now = time.perf_counter()
            place: Record = {key: record[key] for key in ("kind", "generation", "epoch") if key in record}
            _append(self.path / "timings.jsonl", {**place, "seconds": round(now - self._last, 3)})
            self._last = now
            with self._events() as board:
                _add_numbers(board, record)

    def draw(self, epoch: int, histograms: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> None:
        """Add histograms of values, and images (C, H, W) in [0, 1], to TensorBoard."""
        self._check_open()
        with uninterrupted():
            self._go_back()
            with self._events() as board:
                for name, values in histograms.items():
                    board.add_histogram(name, values[values.isfinite()], epoch)
                for name, image in images.items():
                    board.add_image(name, image, epoch)

    def records(self) -> list[Record]:
        """The log so far."""
        return _records(self.path / "metrics.jsonl", self._logged())

    def save(self, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint: complete or not at all, whenever the process ends. The last two are kept."""
        self._check_open()
        self._go_back()
        log = self._logged()
        if log:
            _files.sync(self.path / "metrics.jsonl")
        config = json.loads(json.dumps(self.config, sort_keys=True))  # in one order, whatever was added when
        about = {"config": config, "log": _files.digest(log)}
        whole = {**state, "metrics_bytes": len(log), "run": about}
        content = _files.packed(tensors, {"state": json.dumps(whole)})
        if self._next is None:
            self._next = 1 + max(map(number_of, self.checkpoints()), default=-1)
        path = self.path / "checkpoints" / f"{self._next:06d}.safetensors"
        # The checksum first: between the two there is none without its checksum, at worst one without its checkpoint.
        _files.write(checksum_of(path), f"{_files.digest(content)} *{path.name}\n")
        _files.write(path, content)
        self._next += 1
        self._drop_old()

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("*.safetensors")
        return sorted((path for path in found if path.stem.isdigit()), key=number_of)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the last checkpoint that is whole, or None before the first.

        RunError if there are some, but none is whole.
        """
        found = self._newest(lambda saved: None)
        return None if found is None else (found.tensors, found.state)

    def check_config(self) -> None:
        """RunError if the configuration is not that of the last checkpoint, as `restore` would find."""
        found = self._newest(lambda saved: None, quiet=True)
        if found is not None:
            found.check_config(self.config)

    def restore(self) -> Checkpoint | None:
        """Go back to the last checkpoint that is whole: what was logged after it is dropped and will be logged again.

        Nothing is changed before the first record, drawing or checkpoint, or the end of the `with` block: what follows
        may still refuse to go on from here.

        Raises
        ------
        RunError
            If the log or all checkpoints were damaged or are gone, or the configuration was changed; says which and
            how. Checkpoints are gone where there is none but the log goes on after its first record, since one is to
            be saved after each.
        """
        self._check_open()
        log = self._logged()
        found = self._newest(lambda saved: saved.check_log(log))
        if found is None:
            self._check_beginning(log)
            if log:
                self._pending = _Pending(0, [], 0)
            return None
        found.check_config(self.config)
        log = log[: found.state["metrics_bytes"]]
        history = _records(self.path / "metrics.jsonl", log)
        # TensorBoard is told to drop the last record's step and what follows it; the records of that step go in again.
        step = history[-1]["epoch"] if history else 0
        self._pending = _Pending(len(log), [record for record in history if record["epoch"] == step], step)
        self._next = number_of(found.path) + 1
        return Checkpoint(found.tensors, found.state, history)

    def _newest(self, check: Callable[[Saved], None], *, quiet: bool = False) -> Saved | None:
        """The last checkpoint that is whole and passes a check; those after it are named, unless `quiet`."""
        problems: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                saved = Saved.read(path)
                check(saved)
            except Damaged as error:
                problems.append(str(error))
                continue
            if problems and not quiet:
                self.tell(f"{'; '.join(problems)}. {path.name}, the checkpoint before, is used")
            if not saved.checked and not quiet:
                self.tell(f"{path} has no checksum beside it: there was nothing to check it against")
            return saved
        if problems:
            raise RunError(f"{'; '.join(problems)}. There is no other checkpoint; nothing was changed")
        return None

    def _check_beginning(self, log: bytes) -> None:
        """RunError if a run that has no checkpoint had one once."""
        folder = self.path / "checkpoints"
        # A process killed at its first checkpoint leaves one record, and at most that checkpoint's checksum.
        seals = folder.glob("*.checksum") if folder.is_dir() else ()
        later = any(file.stem.isdigit() and number_of(file) > 0 for file in seals)
        if not folder.is_dir() or later or b"\n" in log[:-1]:
            raise RunError(
                f"{folder}: the checkpoints that {self.path / 'metrics.jsonl'} was written with are gone; nothing was "
                "changed. Put them back, or begin another run"
            )

    def _check_open(self) -> None:
        assert self._lock is not None, "a run is written to inside `with run:`"

    def _logged(self) -> bytes:
        path = self.path / "metrics.jsonl"
        return content(path) if os.path.lexists(path) else b""

    def _go_back(self) -> None:
        """Drop what was logged after the checkpoint that was restored."""
        pending = self._pending
        if pending is not None and not pending.done:
            if len(self._logged()) > pending.size:
                os.truncate(self.path / "metrics.jsonl", pending.size)
            self._drop_old()
            pending.done = True

    def _drop_old(self) -> None:
        """Remove checkpoints before the last that are kept, and what a killed process left of their removal."""
        first = (self._next or 0) - KEPT_CHECKPOINTS
        for kind in ("*.safetensors", "*.checksum"):  # in this order none is ever without its checksum
            for file in (self.path / "checkpoints").glob(kind):
                if file.stem.isdigit() and number_of(file) < first:
                    file.unlink()

    @contextlib.contextmanager
    def _events(self) -> Iterator[Board]:
        """TensorBoard's events; among its texts is what the numbers mean, where the configuration has "metrics"."""
        if self._board is None:
            from sparring._events import Board

            pending = self._pending
            self._board = Board(self.path / "tensorboard", None if pending is None else pending.step)
            for number, meaning in self.config.get("metrics", {}).items():
                self._board.add_text(f"metrics/{number}", meaning)
            for record in [] if pending is None else pending.replayed:
                _add_numbers(self._board, record)
        yield self._board
        self._board.flush()


@dataclass
class _Pending:
    """What going back to a checkpoint changes: the log's size; TensorBoard's step, and the records that it gets again.

    `done` says whether the log has that size.
    """

    size: int
    replayed: list[Record]
    step: int
    done: bool = False


def check_new(runs_dir: Path, name: str, *, numbered: bool = False) -> None:
    """Check, before the work, that `Run.create` will be able to make a folder; RunError or OSError if not."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise RunError(f"{name!r} cannot be a run's name: use letters, digits, '.', '-', '_' and '+'")
    if not numbered and os.path.lexists(runs_dir / name):
        raise _taken(runs_dir / name)
    _files.takes_files(runs_dir, made=True)


def _taken(path: Path) -> RunError:
    return RunError(f"the run {path} exists already: resume it with --resume, or choose another name")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, and SIGTERM where it is handled, back until the block ends, so that no record is half written."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handled = {}  # signals do not come here
    held: list[tuple[int, Any]] = []
    for number in handled:
        signal.signal(number, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        if held:
            first, frame = held[0]
            handled[signal.Signals(first)](first, frame)


def latest(runs_dir: str | Path, having: str = "") -> Run:
    """The run in this folder that was written to last; of those whose configuration has the key `having`, if given."""
    paths = [path.parent for path in Path(runs_dir).glob("*/config.json") if not path.parent.name.startswith(".")]
    for path in sorted(paths, key=_last_written, reverse=True):
        run = Run.open(path)
        if not having or having in run.config:
            return run
    raise RunError(f"there is no run in {runs_dir}")


def _last_written(path: Path) -> float:
    return max(file.stat().st_mtime for file in (path / "config.json", path / "metrics.jsonl") if file.exists())


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no text, or nested without end
        raise RunError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is not a run's configuration: it holds a {type(found).__name__}, not an object")
    return found


def _records(path: Path, log: bytes) -> list[Record]:
    """The records in a log."""
    found = []
    for number, line in enumerate(log.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            raise RunError(f"{path} is damaged: its line {number} is no record")
        found.append(record)
    return found


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    return isinstance(value.get("epoch"), int) and not isinstance(value["epoch"], bool)


def content(path: Path) -> bytes:
    """The bytes of a run's file; RunError if it is a pipe or another thing that is no file."""
    return _checked(path).read_bytes()


def _checked(path: Path) -> Path:
    try:
        return readable(path)
    except ValueError as error:
        raise RunError(str(error)) from None


def _append(path: Path, record: Record) -> None:
    if os.path.lexists(path):
        _checked(path)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(record) + "\n")


def _add_numbers(board: Board, record: Record) -> None:
    for name, value in record.items():
        if "/" in name and isinstance(value, (int, float)):
            board.add_scalar(name, value, record["epoch"])


def _warn(text: str) -> None:
    warnings.warn(text, RunWarning, stacklevel=2)


def _lock(file: IO[str]) -> bool:
    """Lock a file until it is closed or the process ends; False if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: the runs of one folder are not guarded against each other
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
