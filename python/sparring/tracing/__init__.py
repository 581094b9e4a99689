"""The forward of a module as a `torch.fx` graph, recorded where nothing and nobody else can see it.

`torch.fx.Tracer.trace` puts its own functions into `torch.nn.Module` while it works, which every thread then calls, and
it runs forward on the live module. Here forward runs on a copy whose modules have classes of their own.
"""

from __future__ import annotations

from sparring.tracing.foreign import Reads, forward_of, reads
from sparring.tracing.recorder import Untraceable, is_standard, record, trace
from sparring.tracing.state import TooMuch, fingerprint

__all__ = ["Reads", "TooMuch", "Untraceable", "fingerprint", "forward_of", "is_standard", "reads", "record", "trace"]
