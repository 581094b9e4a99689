"""A short form of the campaign over loaders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_some_damaged_files(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), "--inputs=600", "--seed=1", f"--keep={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 of 600 inputs, 0 findings" in done.stdout
