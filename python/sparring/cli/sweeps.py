"""The command `sparring sweep`: how the search for fooling images depends on one of its settings."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sparring import _files
from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _options as options
from sparring.cli import _printing as printing
from sparring.cli import _weights

if TYPE_CHECKING:
    from torch import nn

    from sparring.training.evaluate import Metrics

HELP = "How the search for fooling images depends on the weight of its penalty, and on the size of its batches."

app = typer.Typer(help=HELP, no_args_is_help=True)

Table = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", help="Write the table there too; a file that is not there yet."),
]
Count = Annotated[int, typer.Option(min=1, help="Attempts with each value.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the search.")]


@app.command("lambda")
def weight(
    model: options.Model,
    arch: options.Arch,
    values: Annotated[
        str | None,
        typer.Option(metavar="L,L,...", help="Weights of the L1 penalty. [dim]default: .1 to 100[/dim]"),
    ] = None,
    shape: options.Shape = "1,28,28",
    classes: options.Classes = 10,
    outputs: options.Outputs = None,
    count: Count = 100,
    method: Annotated[str, typer.Option(metavar="adam|prox", help="The search; l1 has no such weight.")] = "adam",
    steps: Steps = 1000,
    p_min: options.PMin = 0.9,
    s_max: options.SMax = 100,
    seed: options.Seed = 0,
    table: Table = None,
) -> None:
    """What the search reaches with each weight of the L1 penalty."""
    from sparring.training import sweeps

    with ending.users_errors():
        lams = sweeps.LAMS if values is None else _values(values, float)
        network, size = _network(model, arch, shape, outputs or classes, table)
        records = sweeps.lambda_sweep(
            network, size, lams, classes=classes, images=count, method=method, steps=steps,  # type: ignore[arg-type]
            p_min=p_min, s_max=s_max, seed=seed,
        )  # fmt: skip
        columns = {"lam": "lambda", "0/yield": "qualify", "0/prob": "mean p", "0/sparsity": "mean lit",
                   "0/stop_step": "mean steps"}  # fmt: skip
        _show(records, columns, table)


@app.command("batch-size")
def batch_size(
    model: options.Model,
    arch: options.Arch,
    values: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Images at a time. [dim]default: 32 to 2048[/dim]"),
    ] = None,
    shape: options.Shape = "1,28,28",
    classes: options.Classes = 10,
    outputs: options.Outputs = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Attempts with each size. [dim]default: the largest size[/dim]")
    ] = None,
    method: Annotated[str, typer.Option(metavar="adam|prox|l1", help="The search.")] = "l1",
    steps: Steps = 100,
    p_min: options.PMin = 0.9,
    s_max: options.SMax = 100,
    seed: options.Seed = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [dim]default: its choice[/dim]")] = None,
    table: Table = None,
) -> None:
    """How long the search takes in batches of each size."""
    import torch

    from sparring.training import sweeps

    before = torch.get_num_threads()
    try:
        with ending.users_errors():
            sizes = sweeps.BATCH_SIZES if values is None else _values(values, int)
            network, size = _network(model, arch, shape, outputs or classes, table)
            torch.set_num_threads(threads or before)
            records = sweeps.timing_by_batch_size(
                network, size, sizes, classes=classes, images=count, method=method, steps=steps,  # type: ignore[arg-type]
                p_min=p_min, s_max=s_max, seed=seed,
            )  # fmt: skip
            columns = {"batch_size": "batch size", "images": "images", "seconds": "seconds",
                       "images_per_second": "images a second", "yield": "qualify"}  # fmt: skip
            _show(records, columns, table)
    finally:
        torch.set_num_threads(before)


def _network(model: Path, arch: str, shape: str, outputs: int, table: Path | None) -> tuple[nn.Module, tuple[int, ...]]:
    """The network and the shape of its images, once it is clear that the table can be written."""
    if table is not None:
        common.check_out("--csv", table)
    size = options.image_shape(shape)
    return _weights.load_network(model, arch, size, outputs), size


def _show(records: Sequence[Metrics], columns: dict[str, str], file: Path | None) -> None:
    """Print the columns of the records; all of them go into the file."""
    from sparring._text import number, percent

    lines = [[(percent if key.endswith("yield") else number)(record[key]) for key in columns] for record in records]
    printing.table(Console(), [*columns.values()], lines)
    if file is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [*records[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        _files.write(file, text.getvalue())


def _values(text: str, kind: type[float] | type[int]) -> list[float] | list[int]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--values {text}: give positive {what}, separated by commas")
    return values
