"""The command `sparring`, also as `python -m sparring`; without arguments that prints what `sparring info` does.

Nothing is imported before signals are handled, so that Ctrl-C is answered in a line whenever it comes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sparring import _signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process, and end the process."""
    _signals.install()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # letters that the terminal does not know are shown as escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        from sparring.cli import main as command

        command(arguments)
    except BaseException as error:
        if not _signals.interrupted() or isinstance(error, SystemExit):
            raise
        _say("Interrupted.")
        sys.exit(_signals.status(error))
    finally:
        _flush()


def _flush() -> None:
    """Write out what was printed; a full disk or a closed pipe is a line, and no traceback at the interpreter's end."""
    if sys.stdout is None:  # closed before the start
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say(f"Error: the output cannot be written: {error.strerror}")
        sys.exit(1)


def _say(text: str) -> None:
    if sys.stderr is not None:  # else `print` would take the standard output
        print(text, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:] or ["info"])
