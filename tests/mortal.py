"""A network that kills its process at the n-th forward pass within a function, as a file `kill` beside it asks.

Copied beside such a file, which holds the function's name and the number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import cast

from torch import Tensor, nn


class Mortal(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, outputs)
        )
        kill = Path(__file__).with_name("kill")
        self.place, count = kill.read_text().split() if kill.exists() else ("nowhere", "0")
        self.left = int(count)

    def forward(self, images: Tensor) -> Tensor:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_name != self.place:
            frame = frame.f_back
        self.left -= frame is not None
        if frame is not None and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return cast(Tensor, self.layers(images))
