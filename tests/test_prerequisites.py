"""Tests whose needs are not met are skipped with a reason and counted, never left out in silence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prerequisites


class Item:
    """As much of `pytest.Item` as is asked for."""

    def __init__(self, *marks: str) -> None:
        self.marks, self.reasons = marks, list[str]()

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks

    def add_marker(self, mark: Any) -> None:
        assert mark.name == "skip"
        self.reasons.append(mark.kwargs["reason"])


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The reasons on a machine that has nothing."""
    monkeypatch.setattr(prerequisites, "CHROMIUM", None)
    monkeypatch.setattr(prerequisites, "SHARED", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(prerequisites.shutil, "which", lambda name, path: None)
    return prerequisites.missing.__wrapped__()


def test_every_missing_prerequisite_is_a_skip_with_its_reason(bare: dict[str, str]) -> None:
    items = [Item(mark) for mark in ("browser", "cuda", "shared", "simt")]
    prerequisites.skip_without(items, bare)  # type: ignore[arg-type]
    for item, word in zip(items, ("Chromium", "CUDA", "reference networks", ""), strict=True):
        assert len(item.reasons) == 1
        assert item.reasons[0].startswith(prerequisites.PREFIX)
        assert word in item.reasons[0]
    plain = Item("timeout")
    prerequisites.skip_without([plain], bare)  # type: ignore[list-item]
    assert plain.reasons == []


def test_what_the_emulation_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.sys, "platform", "linux")
    for have, wanted in (
        ((), "a C++ compiler"), (("g++",), "cmake"), (("c++", "cmake"), "ninja"), (("clang++", "cmake", "ninja"), None),
    ):  # fmt: skip
        monkeypatch.setattr(prerequisites.shutil, "which", lambda name, path, have=have: name if name in have else None)
        monkeypatch.setenv("CXX", "")
        assert prerequisites._for_the_emulation() == wanted
    monkeypatch.setattr(prerequisites.sys, "platform", "darwin")
    assert prerequisites._for_the_emulation() is not None


def test_they_are_counted() -> None:
    def report(reason: str) -> Any:
        return SimpleNamespace(longrepr=("test_it.py", 3, f"Skipped: {reason}"))

    reports = [report(prerequisites.PREFIX + "a CUDA device")] * 2 + [report(prerequisites.PREFIX + "a browser")]
    assert prerequisites.counted([*reports, report("signals differ on Windows"), SimpleNamespace(longrepr=None)]) == (
        "skipped: 2 for want of a CUDA device; 1 for want of a browser"
    )
    assert prerequisites.counted([]) == ""
