"""The command `sparring images`: sets of fooling images, made, taken out of a run, or shown to another network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sparring.cli import _common as common
from sparring.cli import _options as options
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

    with common.users_errors():
        _check_out(out, overwrite)
        size = options.image_shape(shape)
        network = _weights.load_network(model, arch, size, outputs or classes)
        process = generator_named(method, p_min=p_min, s_max=s_max, steps=steps)  # type: ignore[arg-type]
        targets = balanced_targets(count, classes)
        found = process(network, targets, size, generator=torch.Generator().manual_seed(seed))
        made = FoolingSet.judge(network, found.images, targets, found.stop_step, p_min=p_min, s_max=s_max)
        made.save(out, overwrite=overwrite)
    _print(made, p_min, s_max)
    typer.echo(f"Written: {out} and {out.with_suffix('.csv')}")


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

    with common.users_errors():
        opened = Run.open(run)
        found = opened.checkpoint()
        sets = [] if found is None or "retrain" not in opened.config else read_sets(found[0], kind)
        if not sets:
            raise RunError(f"{run} has no images of the kind {kind!r}")
        if generation is not None and generation > len(sets):
            raise ValueError(f"--generation {generation}: of the kind {kind!r} there are {len(sets)}")
        taken = join(sets) if generation is None else sets[generation - 1]
        taken.save(out, overwrite=overwrite)
    typer.echo(f"{len(taken)} images, {int(taken.success.sum())} of which fool the network they were made for.")
    typer.echo(f"Written: {out} and {out.with_suffix('.csv')}")


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

    with common.users_errors():
        if out is not None:
            _check_out(out, overwrite)
        made = FoolingSet.load(images)
        network = _weights.load_network(model, arch, tuple(made.images.shape[1:]), outputs)
        judged = made.judged_by(network, p_min=p_min, s_max=s_max)
        if out is not None:
            judged.save(out, overwrite=overwrite)
    _print(judged, p_min, s_max)


def _print(made: FoolingSet, p_min: float, s_max: int) -> None:
    """A line for each class and one for all, and the intervals of p(target)."""
    from rich.table import Table

    from sparring._text import percent
    from sparring.training.fooling import BINS

    Console().print(f"p of at least {p_min:g} with at most {s_max} entries lit:", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("target", "images", "fool it", "mean p", "lit", *BINS):
        table.add_column(head, justify="right", no_wrap=True)
    classes = sorted(set(made.targets.tolist()))
    for name, part in [*((str(c), made[made.targets == c]) for c in classes), ("all", made)]:
        bins = [percent(count / max(1, len(part))) for count in part.bins().counts.tolist()]
        means = [f"{float(part.prob.double().mean()):.2f}", f"{float(part.sparsity.double().mean()):.1f}"]
        style = "bold" if name == "all" else None
        table.add_row(name, str(len(part)), percent(part.fooled), *means, *bins, style=style)
    Console().print(table)


def _check_out(out: Path, overwrite: bool) -> None:
    """What `FoolingSet.save` would refuse, said before the work is done."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: give a file that ends in .safetensors")
    if not overwrite and out.exists():
        raise ValueError(f"--out {out}: the file exists; replace it with --overwrite")
