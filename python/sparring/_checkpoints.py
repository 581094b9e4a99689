"""The checkpoints of a run, read with distrust: what they are compared with, and what is said where they differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparring import _files
from sparring._loading import readable

UNBOUND = ("command", "folder", "metrics", "note", "versions")
"""Keys of a configuration that no number of a run depends on: they may differ when it goes on."""


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what can be done."""


class Damaged(Exception):
    """A checkpoint that cannot be gone on from; the message names the file."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint, read, and whether there was a checksum to compare with.

    `about` is what it says of the log and the configuration, which those of earlier versions do not.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    about: dict[str, Any] | None
    checked: bool

    @classmethod
    def read(cls, path: Path) -> Saved:
        """Read and check a file; `Damaged` if it is not what was written."""
        from safetensors import SafetensorError

        try:
            content, checksum = readable(path).read_bytes(), checksum_of(path)
            wanted = readable(checksum).read_text(encoding="utf-8", errors="replace") if checksum.exists() else None
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise Damaged(str(error)) from error
        if wanted is not None and wanted.split()[:1] != [_files.digest(content)]:
            raise Damaged(f"{path} is damaged: its checksum is not that in {checksum.name}")
        try:
            tensors = _files.unpacked(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            state = json.loads(header["__metadata__"]["state"])
            about = state.pop("run", None)
            state["metrics_bytes"] = int(state["metrics_bytes"])
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise Damaged(f"{path} is damaged: {error}") from error
        return cls(path, tensors, state, about, wanted is not None)

    def check_log(self, log: bytes) -> None:
        """`Damaged` if the log does not begin with what it was when this was written."""
        file, size = self.path.parent.parent / "metrics.jsonl", self.state["metrics_bytes"]
        if len(log) < size:
            raise Damaged(f"{file} is shorter than at the last checkpoint: it was changed")
        if self.about is not None and self.about["log"] != _files.digest(log[:size]):
            raise Damaged(f"{file} was changed: it is not the log that {self.path.name} was written with")

    def check_config(self, config: Mapping[str, Any]) -> None:
        """RunError if the configuration is not the one that this was written with, with the differences."""
        changes = [] if self.about is None else differences(self.about["config"], config)
        if changes:
            raise RunError(
                f"{self.path.parent.parent / 'config.json'} was changed since {self.path.name} was written: "
                f"{'; '.join(changes)}. Change it back, or begin another run"
            )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """What differs between two configurations, in words; keys that one of them lacks, and `UNBOUND` ones, do not count.

    A path counts by its last part: files may have moved.
    """
    found = []
    for key in [key for key in then if key in now and key not in UNBOUND]:
        old, new = json.loads(json.dumps([then[key], now[key]]))  # tuples are lists
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{within}{key}.")
        elif _place_free(old) != _place_free(new):
            found.append(f"{within}{key} was {json.dumps(old)} and is {json.dumps(new)}")
    return found


def _place_free(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and os.sep in value else value


def number_of(checkpoint: Path) -> int:
    return int(checkpoint.stem)


def checksum_of(checkpoint: Path) -> Path:
    """The file with a checkpoint's checksum."""
    return checkpoint.with_suffix(".checksum")
