"""The command `sparring`. What a command needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparring._text import visible
from sparring.cli import audit, images, intriguing, lipschitz, mixture, retraining, sweeps
from sparring.cli._ending import Commands, drawing, users_errors
from sparring.cli._printing import notice

app = typer.Typer(
    name="sparring",
    cls=Commands,
    help="Adversarial robustness: attack a network, train it, and see what it has learnt.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    app(args=None if arguments is None else list(arguments), prog_name="sparring")


def _version(wanted: bool) -> None:
    if wanted:
        from sparring import __version__

        typer.echo(f"sparring {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def info() -> None:
    """Print versions, the instruction set in use, and whether CUDA can be used; if not, why."""
    from sparring.info import render

    typer.echo(render())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    small: Annotated[
        bool, typer.Option("--small", help="Figures with fewer pixels and colours, to send or to commit.")
    ] = False,
) -> None:
    """Write the report of a run again: RUN/report.html and RUN/figures."""
    from sparring import report as reports
    from sparring.runs import Run

    console = Console()
    with users_errors(), drawing(run, console):
        opened = Run.open(run)
        opened.tell = notice(console)
        typer.echo(visible(str(reports.write(opened, small=small))))


app.command(cls=retraining.Command, help=retraining.HELP, epilog=retraining.EXAMPLES)(retraining.retrain)
app.command(cls=retraining.Command, help=mixture.HELP, epilog=mixture.EXAMPLES)(mixture.mixture)
app.command(help=intriguing.HELP, epilog=intriguing.EXAMPLES)(intriguing.intriguing)
app.command(help=audit.HELP, epilog=audit.EXAMPLES)(audit.audit)
app.command(help=lipschitz.HELP, epilog=lipschitz.EXAMPLES)(lipschitz.lipschitz)
app.add_typer(images.app, name="images")
app.add_typer(sweeps.app, name="sweep")
