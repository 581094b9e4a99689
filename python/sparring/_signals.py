"""How a process that the user or the system interrupts ends: Ctrl-C and SIGTERM alike."""

from __future__ import annotations

import signal
from types import FrameType

_came: int | None = None


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what Ctrl-C ends."""


def install() -> None:
    """Have SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt; a second signal ends the process at once.

    Signals that whoever started this process has it ignore stay ignored.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    global _came
    _came = number
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) is _raise:
            signal.signal(each, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal came, which some libraries turn into an error of their own."""
    return _came is not None


def status(error: BaseException) -> int:
    """The exit status after an interrupt, as shells have it."""
    number = signal.SIGTERM if isinstance(error, Terminated) or _came == signal.SIGTERM else signal.SIGINT
    return 128 + number
