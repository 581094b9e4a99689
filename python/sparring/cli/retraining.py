"""The command `sparring retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _options as options
from sparring.cli import _retraining
from sparring.cli._options import DATA, RUN, TRAINING

ATTACK, METRICS = "Attack", "Metrics"

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring retrain[/cyan]
      handwritten digits of 8 x 8 pixels, in about a minute

  [cyan]sparring retrain --data mnist --data-dir data/mnist --preset quick[/cyan]
      a sample of MNIST, in a few minutes

  [cyan]sparring retrain --data mnist --data-dir data/mnist --preset full-sparse[/cyan]
      the whole experiment on MNIST, with all metrics

  [cyan]sparring retrain --mode continuous --set pool_images=200 --set attack_lr=0.1[/cyan]
      a pool of images that moves with the network; any setting by its name

  [cyan]sparring retrain --model nets.py:Small --labelling uniform --name small[/cyan]
      a network of yours: Small(outputs) has to make one

  [cyan]sparring retrain --resume[/cyan]
      go on with the run that was written to last
"""


HELP = (
    "Attack a network with sparse images made from nothing, train it to recognise them, and again.\n\n"
    "Every generation makes images that the network takes for a class with high confidence, adds them to the training "
    "data, trains, and measures. It ends when the attack finds no image any more, or after the last generation. "
    "The run's folder then holds the log, TensorBoard events, checkpoints, figures and [bold]report.html[/bold]."
)


class Command(TyperCommand):
    """Its help names the presets and the networks that there are, which takes an import of torch."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from sparring.networks import NETWORKS
        from sparring.training import PRESETS

        for parameter in self.params:
            text = getattr(parameter, "help", None)  # arguments have none
            if text is not None:
                text = text.replace("{presets}", ", ".join(PRESETS)).replace("{networks}", ", ".join(NETWORKS))
                vars(parameter)["help"] = text
        super().format_help(ctx, formatter)


def retrain(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; by default <data>-<number>.", rich_help_panel=RUN)
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    resume: options.Resume = False,
    seed: options.RunSeed = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of torch. [dim]default: torch's choice with a full preset, else 1: more would not help[/dim]",
            rich_help_panel=RUN,
        ),
    ] = None,
    device: options.Device = "cpu",
    data: options.Data = "digits",
    data_dir: options.DataDir = None,
    real_images: options.RealImages = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE:CLASS",
            help="A network of sparring.networks ({networks}) or a class in a Python file, called with the "
            "number of outputs. [dim]default: mlp with the preset quick, resnet18-16 with full-cifar, else cnn[/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settings to start from: {presets}; the other options change them. [dim]default: default for digits, "
            "full-cifar for cifar10, else quick[/dim]",
            rich_help_panel=RUN,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of sparring.training.RetrainConfig, any number of times. The value is JSON, or a word.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="adam|prox|l1",
            help="adam: L1 penalty; prox: soft threshold; l1: steepest descent in a growing L1 ball.",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images attempted per generation, to train on.", rich_help_panel=ATTACK)
    ] = None,
    fresh: Annotated[
        int | None, typer.Option(help="Images attempted per generation, held out.", rich_help_panel=ATTACK)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the attack.", rich_help_panel=ATTACK)] = None,
    lam: Annotated[float | None, typer.Option(help="Weight of the L1 penalty.", rich_help_panel=ATTACK)] = None,
    start: Annotated[
        str | None, typer.Option(metavar="noise|black|sparse", help="What images begin from.", rich_help_panel=ATTACK)
    ] = None,
    anneal: Annotated[
        bool | None,
        typer.Option(
            "--anneal/--no-anneal",
            help="Attack again with half the penalty where no image qualifies.",
            rich_help_panel=ATTACK,
            show_default=False,
        ),
    ] = None,
    p_min: Annotated[
        float | None, typer.Option(help="An image qualifies from this p(target) on ...", rich_help_panel=ATTACK)
    ] = None,
    s_max: Annotated[
        float | None,
        typer.Option(help="... with at most so many pixels lit (below 1: that share).", rich_help_panel=ATTACK),
    ] = None,
    mask_fraction: Annotated[
        float | None, typer.Option(help="Share of each image held at black, at random.", rich_help_panel=ATTACK)
    ] = None,
    labelling: Annotated[
        str | None,
        typer.Option(
            metavar="fake|uniform",
            help="fake: a class of its own for the fooling images of each class; uniform: no class preferred.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="continue|fresh",
            help="Train the same network on, or a new one in every generation.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="epoch|batches|continuous",
            help="Where the images of training come from: an attack between generations; others amid training too; a "
            "pool of images that moves with the network.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    generations: Annotated[
        int | None, typer.Option(help="Generations of attack and training, at most.", rich_help_panel=TRAINING)
    ] = None,
    pretrain_epochs: Annotated[
        int | None, typer.Option(help="Epochs before the first attack.", rich_help_panel=TRAINING)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs in each generation.", rich_help_panel=TRAINING)] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of each past set that is kept.", rich_help_panel=TRAINING)
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="adam|adadelta|sgd", help="Optimiser.", rich_help_panel=TRAINING)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=TRAINING)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", rich_help_panel=TRAINING)] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="step|cosine|constant", help="Learning rate over a generation.", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch.", rich_help_panel=TRAINING)] = None,
    augment: Annotated[
        str | None,
        typer.Option(metavar="none|affine|crop-flip", help="What is done to real images.", rich_help_panel=TRAINING),
    ] = None,
    independent: Annotated[
        bool | None,
        typer.Option(
            "--independent/--no-independent",
            help="Metric 6: train on half of the images, and an independent network on the other.",
            rich_help_panel=METRICS,
            show_default=False,
        ),
    ] = None,
    other_images: Annotated[
        int | None,
        typer.Option(
            help="Metric 7: images of each different process in a generation; 0: none.", rich_help_panel=METRICS
        ),
    ] = None,
    final_factor: Annotated[
        int | None,
        typer.Option(
            help="Metric 8: so many times the steps and attempts on the final network.", rich_help_panel=METRICS
        ),
    ] = None,
) -> None:
    """See `HELP`."""
    console = Console()
    given = common.given(context)
    if resume:
        with ending.users_errors():
            run = common.reopen("retrain", name, runs_dir, given, ("network",))
    else:
        named = {
            "labelling": labelling, "network": network, "mode": mode, "generations": generations, "epochs": epochs,
            "pretrain_epochs": pretrain_epochs, "keep": keep, "images": images, "fresh": fresh, "method": method,
            "steps": steps, "lam": lam, "start": start, "anneal": anneal, "p_min": p_min,
            "s_max": _retraining.count_or_share(s_max), "mask_fraction": mask_fraction, "optimizer": optimizer,
            "lr": lr, "weight_decay": weight_decay, "schedule": schedule, "batch_size": batch_size,
            "augment": augment, "independent": independent, "other_images": other_images,
            "final_factor": final_factor, "real_images": real_images, "seed": seed,
        }  # fmt: skip
        with ending.users_errors():
            run = _retraining.new_run(
                name, runs_dir, given, data, data_dir, model, preset, threads, device, named, settings or []
            )
    _retraining.work(run, console)
