"""How commands end when the user, the disk or a file ends them: in a line that says what is kept, no traceback."""

from __future__ import annotations

import contextlib
import errno
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sparring import _signals
from sparring.cli import _printing as printing

if TYPE_CHECKING:
    from sparring.runs import Run


class Commands(TyperGroup):
    """A group of commands none of which ends in a traceback for what is no mistake of the program."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(_signals.status(error)) from None
        except Exception as error:
            if not _foreseen(error):
                raise
            printing.error(error)
            raise typer.Exit(1) from None


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """What is wrong with what the user gave is said in a line, without a traceback; the exit status is 2."""
    from sparring.runs import RunError

    try:
        yield
    except (ValueError, OSError, RunError) as error:
        printing.error(error)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def resumable(command: str, run: Run, console: Console) -> Iterator[None]:
    """On Ctrl-C, and where the disk fails, the user is told how to go on."""
    from sparring.runs import RunError
    from sparring.training.state import CheckpointError

    again = shlex.join(["sparring", command, "--resume", "--name", run.path.name, "--runs-dir", str(run.path.parent)])
    try:
        with _interrupts():
            yield
    except KeyboardInterrupt as error:
        printing.line(console, f"\nInterrupted; what is done is kept. Go on with:\n  {printing.data(again)}")
        raise typer.Exit(_signals.status(error)) from None
    except (RunError, CheckpointError) as error:
        printing.error(error)
        raise typer.Exit(2) from None
    except Exception as error:
        if not _foreseen(error):
            raise
        printing.error(f"{printing.reason(error)}. What is done is kept; go on with: {again}")
        raise typer.Exit(1) from None


@contextlib.contextmanager
def drawing(run: Path, console: Console) -> Iterator[None]:
    """Where the report is not drawn to its end, the user is told what there is, and how to have it drawn."""
    from sparring.runs import RunError

    later = shlex.join(["sparring", "report", str(run)])
    kept = f"the results are kept in {run}"
    try:
        with _interrupts():
            yield
    except KeyboardInterrupt as error:
        text = f"Interrupted before the report was drawn; {kept}. Draw it with:"
        printing.line(console, f"\n{printing.data(text)}\n  {printing.data(later)}")
        raise typer.Exit(_signals.status(error)) from None
    except Exception as error:
        if isinstance(error, RunError) or not _foreseen(error):
            raise
        printing.error(f"the report cannot be drawn: {printing.reason(error)}; {kept}. Draw it with: {later}")
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """An interrupt is one also where a library has made an error of its own of it."""
    try:
        yield
    except Exception as error:
        if _signals.interrupted() and not isinstance(error, (typer.Exit, typer.Abort)):
            raise KeyboardInterrupt from error
        raise


def _foreseen(error: Exception) -> bool:
    """Whether an error is one of disks and files; a closed pipe at the end of the output is left to typer."""
    from sparring.runs import RunError

    if isinstance(error, OSError):
        return error.errno != errno.EPIPE
    safetensors = sys.modules.get("safetensors")  # whose errors on a full disk are its own
    return isinstance(error, RunError) or (safetensors is not None and isinstance(error, safetensors.SafetensorError))
