"""The command `sparring mixture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _mixture
from sparring.cli import _options as options
from sparring.cli._options import DATA, RUN, TRAINING

MIXTURE, ATTACK = "Mixture", "Attack"

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring mixture[/cyan]
      ten perceptrons on handwritten digits of 8 x 8 pixels, in less than a minute

  [cyan]sparring mixture --data mnist --data-dir data/mnist --members 100 --eps .5 --reg .1[/cyan]
      a hundred on MNIST, attacked with a larger budget, with weights that stay about equal

  [cyan]sparring mixture --data mnist --data-dir data/mnist --model model1 --epochs 100 --device cuda[/cyan]
      the convolutional networks of the original experiment

  [cyan]sparring mixture --pretrain-epochs 5 --name first[/cyan]
  [cyan]sparring mixture --pretrained runs/first/pretrained.safetensors --updates independent[/cyan]
      members trained by themselves first, and used again

  [cyan]sparring mixture --resume[/cyan]
      go on with the run that was written to last
"""

HELP = (
    "Train several networks as one mixture, on images and on attacks on the mixture.\n\n"
    "The mixture's probabilities are the weighted mean of its members'; members and weights are trained together. "
    "After every epoch the mixture, its members and their majority are tested on images as they are and moved by the "
    "fast gradient sign method (FGS). The run's folder then holds the log, TensorBoard events, checkpoints, figures, "
    "the mixture's weights and [bold]report.html[/bold]."
)


def mixture(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; by default <data>-mixture-<number>.", rich_help_panel=RUN)
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    resume: options.Resume = False,
    seed: options.RunSeed = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of torch. [dim]default: 1 for digits, else torch's choice[/dim]",
            rich_help_panel=RUN,
        ),
    ] = None,
    device: options.Device = "cpu",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of sparring.training.FitConfig, any number of times. The value is JSON, or a word.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    data: options.Data = "digits",
    data_dir: options.DataDir = None,
    real_images: options.RealImages = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE:CLASS",
            help="Every member: a network of sparring.networks ({networks}) or a class in a Python file, called with "
            "the number of classes.",
            rich_help_panel=DATA,
        ),
    ] = "mlp",
    members: Annotated[
        int | None,
        typer.Option(min=1, help="Networks. [dim]default: 10, or all of --pretrained[/dim]", rich_help_panel=MIXTURE),
    ] = None,
    combine: Annotated[
        str,
        typer.Option(
            metavar="probs|logits|loss|vote",
            help="What is mixed: probabilities, logits, log-probabilities, or votes (trained as probs).",
            rich_help_panel=MIXTURE,
        ),
    ] = "probs",
    updates: Annotated[
        str | None,
        typer.Option(
            metavar="joint|independent",
            help="joint: members have the loss of the mixture; independent: each its own. [dim]default: joint[/dim]",
            rich_help_panel=MIXTURE,
        ),
    ] = None,
    reg: Annotated[
        float | None,
        typer.Option(
            help="Pressure towards equal weights, reg * mean(-log w). [dim]default: 0[/dim]", rich_help_panel=MIXTURE
        ),
    ] = None,
    pretrain_epochs: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs of every member by itself, on real images alone, first.", rich_help_panel=MIXTURE
        ),
    ] = 0,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            help="Begin with the members in this file, pretrained.safetensors or mixture.safetensors of another run: "
            "the first --members of them.",
            rich_help_panel=MIXTURE,
            show_default=False,
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="none|fgsm|fgm|pgd|apgd|slide",
            help="Attack on the mixture in training. [dim]default: fgsm[/dim]",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Its budget. [dim]default: 0.3[/dim]", rich_help_panel=ATTACK)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the loss on real images. [dim]default: 0.5[/dim]", rich_help_panel=TRAINING),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs. [dim]default: 60 for digits, else 10[/dim]", rich_help_panel=TRAINING)
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="adadelta|adam|sgd",
            help="Optimiser. [dim]default: adam for digits, else adadelta[/dim]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate. [dim]default: 0.003 for digits, else 0.1[/dim]", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a batch. [dim]default: 100[/dim]", rich_help_panel=TRAINING)
    ] = None,
) -> None:
    """See `HELP`."""
    console = Console()
    given = common.given(context)
    with ending.users_errors():
        if resume:
            run = common.reopen("mixture", name, runs_dir, given, ("network", "fit"))
        else:
            named = {
                "epochs": epochs, "batch_size": batch_size, "attack": attack, "eps": eps, "alpha": alpha,
                "optimizer": optimizer, "lr": lr, "updates": updates, "reg": reg, "real_images": real_images,
                "seed": seed,
            }  # fmt: skip
            run = _mixture.new_run(
                name, runs_dir, given, data, data_dir, model, members, combine, pretrain_epochs, pretrained,
                threads, device, named, settings or [],
            )  # fmt: skip
    _mixture.work(run, console)
