"""The campaigns, in short; in full they are scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="faults of calls are preloaded as Linux does")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded, such as a sanitizer's")
def test_whatever_ends_a_command_it_goes_on_to_the_same_bits() -> None:
    script = Path(__file__).parent / "campaigns" / "kill.py"
    ended = subprocess.run([sys.executable, str(script), "--trials", "8"], capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 of 8 trials end in the same bits" in ended.stdout
