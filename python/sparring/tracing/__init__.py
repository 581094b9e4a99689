"""The forward of a module as a `torch.fx` graph, recorded where nothing and nobody else can see it.

`torch.fx.Tracer.trace` puts its own functions into `torch.nn.Module` while it works, which every thread then calls, and
it runs forward on the live module. Here forward runs on a copy whose modules have classes of their own, and only where
its code reads nothing that could change unseen.
"""

from __future__ import annotations

from sparring.tracing.reading import PLAIN, Reads, look_up
from sparring.tracing.recorder import Untraceable, is_standard, record, trace

__all__ = ["PLAIN", "Reads", "Untraceable", "is_standard", "look_up", "record", "trace"]
