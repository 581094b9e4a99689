"""TensorBoard events, written by whoever adds them."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard import FileWriter, SummaryWriter


class Board(SummaryWriter):
    """torch's SummaryWriter without its thread: what the disk refuses is raised where it was added.

    Any path will do, where TensorBoard's own files want names in UTF-8. Events from `purge_step` on that are in the
    folder already are replaced.
    """

    file_writer: Any
    all_writers: Any

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        super().__init__(str(folder), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            writer = FileWriter.__new__(FileWriter)
            writer.event_writer = _File(self.folder)
            self.file_writer, self.all_writers = writer, {str(self.folder): writer}
            writer.add_event(Event(file_version="brain.Event:2"))
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(session_log=start), self.purge_step)
        found: FileWriter = self.file_writer
        return found


class _File:
    """A file of events, in place of tensorboard's EventFileWriter; readers take files in the order of their names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
        self.file = (folder / name).open("xb")
        self.records = RecordWriter(self.file)

    def add_event(self, event: Any) -> None:
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()
