"""The command `sparring images`: sets of fooling images, made, taken out of a run, or shown to another network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sparring._text import visible
from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _options as options
from sparring.cli import _printing as printing
from sparring.cli import _weights

if TYPE_CHECKING:
    from sparring.training import FoolingSet

HELP = "Sets of fooling images: make them, take them out of a run, show them to another network."

app = typer.Typer(help=HELP, no_args_is_help=True)

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="SET.safetensors",
        help="Where to write the set; beside it goes a CSV file.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the two files if they are there.")]


@app.command()
def make(
    model: options.Model,
    arch: options.Arch,
    out: Out,
    shape: options.Shape = "1,28,28",
    classes: options.Classes = 10,
    outputs: options.Outputs = None,
    count: Annotated[int, typer.Option(min=1, help="Images to attempt.")] = 500,
    method: Annotated[str, typer.Option(metavar="adam|prox|l1|evolution", help="The process that makes them.")] = "l1",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Its budget. [dim]default: its own[/dim]", show_default=False)
    ] = None,
    p_min: options.PMin = 0.9,
    s_max: options.SMax = 100,
    seed: options.Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Attack a network and save what comes of it, qualifying or not."""
    import torch

    from sparring.training import FoolingSet, balanced_targets, generator_named

    with ending.users_errors():
        _check_out(out, overwrite)
        size = options.image_shape(shape)
        network = _weights.load_network(model, arch, size, outputs or classes)
        process = generator_named(method, p_min=p_min, s_max=s_max, steps=steps)  # type: ignore[arg-type]
        targets = balanced_targets(count, classes)
        found = process(network, targets, size, generator=torch.Generator().manual_seed(seed))
        made = FoolingSet.judge(network, found.images, targets, found.stop_step, p_min=p_min, s_max=s_max)
        _print(made, p_min, s_max)
        _save(made, out, overwrite)


@app.command()
def take(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `sparring retrain`.", show_default=False)],
    out: Out,
    kind: Annotated[
        str,
        typer.Option(
            metavar="train|fresh|final|6|7-...",
            help="train: those trained on; fresh: the held-out attempts; final: the last attack; 6, 7-...: the images "
            "of those metrics.",
        ),
    ] = "fresh",
    generation: Annotated[
        int | None,
        typer.Option(min=1, help="Only those of this generation. [dim]default: all[/dim]", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Take the images out of a run's last checkpoint."""
    from sparring.runs import Run, RunError
    from sparring.training.fooling import join
    from sparring.training.state import read_sets

    with ending.users_errors():
        _check_out(out, overwrite)
        opened = Run.open(run)
        opened.tell = printing.notice(Console())
        found = opened.checkpoint()
        sets = [] if found is None or "retrain" not in opened.config else read_sets(found[0], kind)
        if not sets:
            raise RunError(f"{run} has no images of the kind {kind!r}")
        if generation is not None and generation > len(sets):
            raise ValueError(f"--generation {generation}: of the kind {kind!r} there are {len(sets)}")
        taken = join(sets) if generation is None else sets[generation - 1]
        typer.echo(f"{len(taken)} images, {int(taken.success.sum())} of which fool the network they were made for.")
        _save(taken, out, overwrite)


@app.command()
def judge(
    images: Annotated[
        Path, typer.Argument(metavar="SET.safetensors", help="Images made against some network.", show_default=False)
    ],
    model: options.Model,
    arch: options.Arch,
    outputs: Annotated[
        int, typer.Option(min=1, help="Outputs of the network; twice the classes where it has fake ones.")
    ] = 10,
    p_min: options.PMin = 0.9,
    s_max: options.SMax = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="SET.safetensors", help="Where to write the set as this network sees it.", show_default=False
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show a saved set to another network: does it fool that one too?"""
    from sparring.training import FoolingSet

    with ending.users_errors():
        if out is not None:
            _check_out(out, overwrite)
        made = FoolingSet.load(images)
        network = _weights.load_network(model, arch, tuple(made.images.shape[1:]), outputs)
        judged = made.judged_by(network, p_min=p_min, s_max=s_max)
        _print(judged, p_min, s_max)
        if out is not None:
            _save(judged, out, overwrite)


def _save(made: FoolingSet, out: Path, overwrite: bool) -> None:
    made.save(out, overwrite=overwrite)
    typer.echo(visible(f"Written: {out} and {out.with_suffix('.csv')}"))


def _print(made: FoolingSet, p_min: float, s_max: int) -> None:
    """A line for each class and one for all, and the intervals of p(target)."""
    from sparring._text import percent
    from sparring.training.fooling import BINS

    console = Console()
    printing.line(console, f"p of at least {p_min:g} with at most {s_max} entries lit:")
    head = ("target", "images", "fool it", "mean p", "lit", *BINS)
    lines = []
    for name, part in [*((str(c), made[made.targets == c]) for c in sorted({*made.targets.tolist()})), ("all", made)]:
        bins = [percent(count / max(1, len(part))) for count in part.bins().counts.tolist()]
        means = [f"{float(part.prob.double().mean()):.2f}", f"{float(part.sparsity.double().mean()):.1f}"]
        lines.append([name, str(len(part)), percent(part.fooled), *(means if len(part) else ("", "")), *bins])
    printing.table(console, head, lines, strong=[len(lines) - 1])


def _check_out(out: Path, overwrite: bool) -> None:
    """What would keep the set and its table from being written, said before the work is done."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: give a file that ends in .safetensors")
    for file in (out, out.with_suffix(".csv")):
        if not overwrite and os.path.lexists(file):
            raise ValueError(f"--out {file}: the file exists; replace it with --overwrite")
        common.check_out("--out", file, overwrite=overwrite)
