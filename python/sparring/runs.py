"""Run folders: the configuration, log, TensorBoard events and checkpoints of one experiment.

runs/<name>/config.json             what was asked for, written once
            metrics.jsonl           one JSON record a line; no clock times, so equal runs have equal files
            timings.jsonl           seconds that each record took
            tensorboard/            the same numbers as events
            checkpoints/            the last two states, each a safetensors file with JSON in its header
            figures/  report.html   written by sparring.report
            network.safetensors     weights at the end, and in best.safetensors of the best epoch; those of a mixture
                                    in mixture.safetensors
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor

from sparring.training.loop import Checkpoint

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = dict[str, Any]

KEPT_CHECKPOINTS = 2


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what can be done."""


class Run:
    """A run folder, open for one process at a time; use it as a context manager.

    Made by `create` or `open`, never directly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._board: SummaryWriter | None = None
        self._last = time.perf_counter()

    @classmethod
    def create(cls, runs_dir: str | Path, name: str, config: dict[str, Any], *, numbered: bool = False) -> Run:
        """Make a new run folder; an existing one is never touched.

        With `numbered` the name gets the first free number: digits-1, digits-2, ...
        Raises `RunError` if the name is taken or not usable.
        """
        runs_dir = Path(runs_dir)
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise RunError(f"{name!r} cannot be a run's name: use letters, digits, '.', '-', '_' and '+'")
        runs_dir.mkdir(parents=True, exist_ok=True)
        # Filled under another name and then renamed: a run never exists without its configuration.
        draft = runs_dir / f".{name}.{os.getpid()}"
        draft.mkdir()
        try:
            (draft / "checkpoints").mkdir()
            _write(draft / "config.json", json.dumps(config, indent=2) + "\n")
            for path in (runs_dir / f"{name}-{n}" for n in range(1, 10**6)) if numbered else (runs_dir / name,):
                with contextlib.suppress(OSError):  # taken: it is not an empty folder
                    if not path.exists():
                        draft.rename(path)
                        return cls(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        raise RunError(f"the run {runs_dir / name} exists already: resume it with --resume, or choose another name")

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise RunError(f"{path} is not a run: it has no config.json")
        try:
            return cls(path)
        except json.JSONDecodeError as error:
            raise RunError(f"{path / 'config.json'} is not valid JSON: {error}") from error

    def __enter__(self) -> Run:
        """Lock the folder against other processes and open the log."""
        self._lock = (self.path / ".lock").open("w")
        if not _lock(self._lock):
            self._lock.close()
            raise RunError(f"{self.path} is in use by another process")
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *exception: object) -> None:
        with uninterrupted():
            for resource in (self._board, self._metrics, self._lock):
                if resource is not None:
                    resource.close()
            self._board = self._metrics = self._lock = None

    def log(self, record: Record) -> None:
        """Append a record to the log and to TensorBoard (numbers, at the step `record["epoch"]`)."""
        assert self._metrics is not None, "a run is written to inside `with run:`"
        with uninterrupted():
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
            now = time.perf_counter()
            with (self.path / "timings.jsonl").open("a") as timings:
                place = {key: record[key] for key in ("kind", "generation", "epoch") if key in record}
                timings.write(json.dumps({**place, "seconds": round(now - self._last, 3)}) + "\n")
            self._last = now
            self._to_board(record)

    def draw(self, epoch: int, histograms: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> None:
        """Add histograms of values, and images (C, H, W) in [0, 1], to TensorBoard."""
        assert self._metrics is not None, "a run is written to inside `with run:`"
        with uninterrupted():
            self._board = self._board or self._open_board()
            for name, values in histograms.items():
                self._board.add_histogram(name, values[values.isfinite()], epoch)
            for name, image in images.items():
                self._board.add_image(name, image, epoch)

    def records(self) -> list[Record]:
        """The log so far."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint: complete or not at all, whenever the process ends. The last two are kept."""
        from safetensors.torch import save_file

        assert self._metrics is not None, "a run is written to inside `with run:`"
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        state = {**state, "metrics_bytes": self._metrics.tell()}
        number = 1 + max((_number(path) for path in self.checkpoints()), default=-1)
        path = self.path / "checkpoints" / f"{number:06d}.safetensors"
        draft = path.with_suffix(".tmp")
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, draft, metadata={"state": json.dumps(state)})
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("*.safetensors"), key=_number)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the last checkpoint, or None before the first."""
        from safetensors import safe_open

        paths = self.checkpoints()
        if not paths:
            return None
        with safe_open(paths[-1], "pt") as file:
            names = file.keys()  # it has the method, but is no dict
            return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["state"])

    def restore(self) -> Checkpoint | None:
        """Go back to the last checkpoint: what was logged after it is dropped and will be logged again."""
        assert self._metrics is not None, "a run is restored inside `with run:`"
        found = self.checkpoint()
        tensors, state = found if found is not None else ({}, {"metrics_bytes": 0})
        size = os.path.getsize(self.path / "metrics.jsonl")
        if size < state["metrics_bytes"]:
            raise RunError(f"{self.path / 'metrics.jsonl'} is shorter than at the last checkpoint: it was changed")
        os.truncate(self.path / "metrics.jsonl", state["metrics_bytes"])
        self._metrics.seek(0, os.SEEK_END)
        if size == 0 and found is None:
            return None
        history = self.records()
        # TensorBoard is told to drop the last record's step and what follows it; the records of that step go in again.
        step = history[-1]["epoch"] if history else 0
        with uninterrupted():
            self._board = self._open_board(purge_step=step)
            for record in history:
                if record["epoch"] == step:
                    self._to_board(record)
        return Checkpoint(tensors, state, history) if found is not None else None

    def _to_board(self, record: Record) -> None:
        self._board = self._board or self._open_board()
        for name, value in record.items():
            if "/" in name and isinstance(value, (int, float)):
                self._board.add_scalar(name, value, record["epoch"])

    def _open_board(self, purge_step: int | None = None) -> SummaryWriter:
        """TensorBoard's events; among its texts is what the numbers mean, where the configuration has "metrics"."""
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step, flush_secs=10)
        for number, meaning in self.config.get("metrics", {}).items():
            board.add_text(f"metrics/{number}", meaning)
        return board


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends.

    An interrupt inside TensorBoard's queue leaves its lock taken, and closing it would then wait forever.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # signals do not come here
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


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


def _number(checkpoint: Path) -> int:
    return int(checkpoint.stem)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(file: IO[str]) -> bool:
    """Lock a file until it is closed or the process ends; False if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: the runs of one folder are not guarded against each other
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
