"""What some tests need that a machine may not have: such tests are skipped, with the reason, and counted at the end."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from browser import CHROMIUM

# Reference networks and data sets that are too large to commit, beside the checkout or where SPARRING_SHARED says.
SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).resolve().parents[2] / "shared"))

PREFIX = "missing here: "


@cache
def missing() -> dict[str, str]:
    """By mark, what is not here; marks whose needs are met are left out."""
    reasons = {
        "browser": None if CHROMIUM is not None else "Chromium or Chrome on the PATH",
        "cuda": None if torch.cuda.is_available() else "a CUDA device",
        "shared": None if (SHARED / "models").is_dir() else "the folder of reference networks and data",
        "simt": _for_the_emulation(),
    }
    return {mark: PREFIX + reason for mark, reason in reasons.items() if reason is not None}


def _for_the_emulation() -> str | None:
    """What it takes to build `simt`, and is not here."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))

    def found(*names: str) -> bool:
        return any(shutil.which(name, path=path) for name in names)

    if sys.platform in ("win32", "darwin"):
        return "a system on which the CUDA kernels can be emulated (Linux)"
    if not found(*filter(None, [os.environ.get("CXX", "").split(" ")[0]]), "c++", "g++", "clang++"):
        return "a C++ compiler"
    for tool in ("cmake", "ninja"):
        if not found(tool):
            return tool
    return None


def skip_without(items: Iterable[pytest.Item], reasons: Mapping[str, str]) -> None:
    """Mark the tests to be skipped whose marks are among `reasons`."""
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def counted(skipped: Iterable[Any]) -> str:
    """A line that says of how many tests what was missing, from the reports of skipped ones; empty without any."""
    reasons = (report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    counts = Counter(reason.split(PREFIX, 1)[1] for reason in reasons if PREFIX in reason)
    parts = [f"{count} for want of {reason}" for reason, count in sorted(counts.items())]
    return "skipped: " + "; ".join(parts) if parts else ""
