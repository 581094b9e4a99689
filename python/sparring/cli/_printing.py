"""How commands print: what users named is data, never markup; tables that say the same at every width."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Sequence

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparring._text import visible


def data(value: object) -> str:
    """What somebody named, such as a path, for a line of markup."""
    return escape(visible(str(value)))


def line(console: Console, markup: str) -> None:
    """A line, however wide the terminal is; so that it can be copied, it is not broken."""
    console.print(markup, highlight=False, soft_wrap=True)


def notice(console: Console) -> Callable[[str], None]:
    """A function that says what the owner of a run should know."""
    return lambda text: line(console, f"[dark_orange]Note:[/] {data(text)}")


class Tolerant:
    """A context, to be entered again and again, in which output that cannot be written ends nothing.

    The first error is kept as `error`; from then on what is printed goes nowhere.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, SystemExit):  # rich's answer to a closed pipe
            error = error.__context__
        if not isinstance(error, OSError):
            return False
        self.error = self.error or error
        with contextlib.suppress(OSError):  # there may be no file behind it
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return True


def error(problem: object) -> None:
    """What is wrong, in a line."""
    typer.secho(f"Error: {visible(reason(problem))}", fg="red", err=True)


def reason(problem: object) -> str:
    """An error in words."""
    if isinstance(problem, OSError) and problem.strerror:
        name = problem.filename2 or problem.filename  # of what was to be renamed, the name it was to have
        return f"{problem.strerror}: {name}" if name else problem.strerror
    return str(problem)


def table(
    console: Console,
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    left: int = 0,
    strong: Collection[int] = (),
) -> None:
    """Print a table, its first `left` columns flush left, the others right, the lines `strong` (from 0) bold.

    Where the terminal is too narrow each line becomes a paragraph in which every number is named; nothing is cut off.
    """
    widths = [max(cell_len(row[i]) for row in (head, *lines)) for i in range(len(head))]
    if sum(widths) + 2 * (len(widths) - 1) > console.width:
        for i, row in enumerate(lines):
            named = [f"{name} {cell}".strip() for name, cell in zip(head[1:], row[1:], strict=True) if cell]
            first = data(f"{head[0]} {row[0]}")
            console.print(f"[bold]{first}[/]" if i in strong else first, highlight=False)
            console.print(data("; ".join(named)), highlight=False)
        return
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(head):
        shown.add_column(data(name), justify="left" if i < left else "right", no_wrap=True)
    for i, row in enumerate(lines):
        shown.add_row(*map(data, row), style="bold" if i in strong else None)
    console.print(shown)
