"""The command `sparring intriguing`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _options as options
from sparring.cli import _printing as printing
from sparring.cli._options import DATA, RUN

if TYPE_CHECKING:
    from sparring.runs import Record, Run

SIZE = "Size"

HELP = (
    "Repeat the experiments of the papers that found adversarial examples, and show each table beside theirs.\n\n"
    'Trains the networks of "Intriguing properties of neural networks" (Szegedy et al. 2013) and of "Explaining and '
    'harnessing adversarial examples" (Goodfellow et al. 2015), moves test images by as little as fools each, and asks '
    "all others about them. The run's folder then holds the log, the networks, figures and [bold]report.html[/bold]."
)

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring intriguing --data mnist --quick[/cyan]
      all tables, from smaller networks' training and fewer images, in a minute or two

  [cyan]sparring intriguing --data mnist --data-dir data/mnist[/cyan]
      in full

  [cyan]sparring intriguing --resume[/cyan]
      go on with the run that was written to last
"""


def intriguing(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; by default <data>-intriguing-<number>.", rich_help_panel=RUN)
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    resume: options.Resume = False,
    seed: options.RunSeed = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch. [dim]default: torch's choice[/dim]", rich_help_panel=RUN),
    ] = None,
    device: options.Device = "cpu",
    data: Annotated[
        str, typer.Option(metavar="digits|mnist", help="Images; the papers' are MNIST.", rich_help_panel=DATA)
    ] = "mnist",
    data_dir: options.DataDir = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller in every respect.", rich_help_panel=SIZE)] = False,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Test images to distort. [dim]default: 1000, quick 200[/dim]", rich_help_panel=SIZE),
    ] = None,
    train_images: Annotated[
        int | None,
        typer.Option(
            min=0, help="Images to train on; 0: all. [dim]default: all, quick 20000[/dim]", rich_help_panel=SIZE
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help="At most so many for each network. [dim]default: its own, quick 6[/dim]", rich_help_panel=SIZE
        ),
    ] = None,
) -> None:
    """See `HELP`."""
    console = Console()
    given = common.given(context)
    with ending.users_errors():
        if resume:
            run = common.reopen("intriguing", name, runs_dir, given, ())
        else:
            sizes = {"images": images, "train_images": train_images, "epochs": epochs, "seed": seed}
            run = _new_run(name, runs_dir, given, data, data_dir, device, threads, quick, sizes)
    _work(run, console)


def _new_run(
    name: str | None, runs_dir: Path, given: dict[str, Any], data: str, data_dir: Path | None, device: str,
    threads: int | None, quick: bool, sizes: dict[str, int | None],
) -> Run:  # fmt: skip
    import torch

    from sparring.intriguing import Plan
    from sparring.runs import Run, check_new

    check_new(runs_dir, name or "run", numbered=name is None)
    plan = Plan.quick() if quick else Plan()
    plan = plan.replace(**sizes)
    train, test = common.data_sets(data, data_dir, device)
    if sizes["images"] is None:
        plan = plan.replace(images=min(plan.images, len(test)))
    if plan.images > len(test):
        raise ValueError(f"--images {plan.images}: {data} has {len(test)} test images")
    return Run.create(
        runs_dir,
        name or f"{data}-intriguing",
        {
            "command": common.command("intriguing", given),
            "data": common.about_data(train, test, data_dir),
            "device": device,
            "threads": threads or torch.get_num_threads(),
            "intriguing": asdict(plan),
            "versions": common.versions(),
        },
        numbered=name is None,
    )


def _work(run: Run, console: Console) -> None:
    """Do what the run's configuration says, from its last checkpoint on, and write the report."""
    import torch

    from sparring import report as reports
    from sparring.intriguing import Plan, conduct
    from sparring.report import intriguing as pages

    with ending.resumable("intriguing", run, console), common.threads_restored():
        with ending.users_errors():
            plan = Plan.from_json(run.config["intriguing"])
            run.config["intriguing"] = asdict(plan)
            run.check_config()
            train, test = common.data_of(run)
        with run:
            torch.set_num_threads(run.config["threads"])
            run.tell = printing.notice(console)
            printing.line(console, f"Run [bold]{printing.data(run.path)}[/bold]: {train.name}")
            with common.progress_bar(console) as on_progress:
                conduct(
                    train,
                    test,
                    plan,
                    run=run,
                    on_progress=on_progress,
                    on_record=lambda record: _print(record, console),
                )
        summary = pages.story(run)[0]
        colour = "green" if summary.good else "dark_orange"
        printing.line(console, f"\n[bold {colour}]{printing.data(summary.headline)}[/]")
        with ending.drawing(run.path, console):
            page = reports.write(run)
    printing.line(console, f"Report: {printing.data(page)}")


def _print(record: Record, console: Console) -> None:
    shown = [f"{key.replace('_', ' ')} {100 * value:.2f} %" for key, value in record.items() if key.endswith("_error")]
    if "left_out" in record:
        shown = [f"left out: {record['left_out']}"]
    printing.line(console, printing.data(f"  {record['stage']}  {'  '.join(shown)}".rstrip()))
