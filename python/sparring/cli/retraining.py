"""The command `sparring retrain`."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sparring.cli import _common as common

if TYPE_CHECKING:
    from sparring.data import Dataset
    from sparring.runs import Run

RUN, DATA, ATTACK, TRAINING = "Run", "Data and network", "Attack", "Training"

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring retrain[/cyan]
      handwritten digits of 8 x 8 pixels, in about a minute

  [cyan]sparring retrain --data mnist --data-dir data/mnist --preset quick[/cyan]
      a sample of MNIST, in a few minutes

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


def retrain(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; by default <data>-<number>.", rich_help_panel=RUN)
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.", rich_help_panel=RUN)] = Path("runs"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run --name, by default with the last one, from its last checkpoint. Ends with the "
            "same bits as without the interruption.",
            rich_help_panel=RUN,
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="All randomness follows from it. [dim]default: 0[/dim]", rich_help_panel=RUN)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of torch. [dim]default: torch's choice with full-sparse, else 1: more would not help[/dim]",
            rich_help_panel=RUN,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to work, such as cpu or cuda; it has to be there.", rich_help_panel=RUN)
    ] = "cpu",
    data: Annotated[str, typer.Option(metavar="digits|mnist", help="Real images.", rich_help_panel=DATA)] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with MNIST's four files; by default they are downloaded.", rich_help_panel=DATA),
    ] = None,
    real_images: Annotated[
        int | None, typer.Option(help="Training images to use; 0: all.", rich_help_panel=DATA)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE:CLASS",
            help="A network of sparring.networks (mlp, cnn, lenet5, ...) or a class in a Python file, called with the "
            "number of outputs. [dim]default: mlp with the preset quick, else cnn[/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="default|quick|full-sparse",
            help="Settings to start from; the other options change them. [dim]default: default for digits, quick for "
            "mnist[/dim]",
            rich_help_panel=RUN,
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
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch.", rich_help_panel=TRAINING)] = None,
) -> None:
    """See `HELP`."""
    console = Console()
    given = common.given(context)
    try:
        if resume:
            with common.users_errors():
                run = _reopen(name, runs_dir, given)
        else:
            settings = {
                "labelling": labelling, "network": network, "generations": generations, "epochs": epochs,
                "pretrain_epochs": pretrain_epochs, "keep": keep, "images": images, "fresh": fresh, "method": method,
                "steps": steps, "lam": lam, "p_min": p_min, "s_max": _count_or_share(s_max), "seed": seed,
                "mask_fraction": mask_fraction, "optimizer": optimizer, "lr": lr, "batch_size": batch_size,
                "real_images": real_images,
            }  # fmt: skip
            with common.users_errors():
                run = _new_run(name, runs_dir, given, data, data_dir, model, preset, threads, device, settings)
    except KeyboardInterrupt:
        console.print("Interrupted before the run began.")
        raise typer.Exit(130) from None
    _work(run, console)


def _new_run(
    name: str | None,
    runs_dir: Path,
    given: dict[str, Any],
    data: str,
    data_dir: Path | None,
    model: str | None,
    preset: str | None,
    threads: int | None,
    device: str,
    settings: dict[str, Any],
) -> Run:
    import torch

    from sparring import report as reports
    from sparring.runs import Run
    from sparring.training import PRESETS
    from sparring.training.loop import new_network

    preset = preset or ("default" if data == "digits" else "quick")
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: there are {', '.join(PRESETS)}")
    model = model or ("mlp" if preset == "quick" else "cnn")
    config = PRESETS[preset].replace(**settings)
    train, test = _data(data, data_dir, device)
    try:  # what is wrong with the network is said before there is a run
        new_network(common.network(model), train, config)
    except TypeError as error:
        raise ValueError(f"--model {model} cannot be made from the number of outputs: {error}") from error
    run = Run.create(
        runs_dir,
        name or data,
        {
            "command": common.command("retrain", given),
            "data": {
                "name": data,
                "folder": None if data_dir is None else str(data_dir.resolve()),
                "shape": list(train.input_shape),
                "classes": train.classes,
                "training images": len(train),
                "test images": len(test),
            },
            "network": common.located(model),
            "device": device,
            "threads": threads or (torch.get_num_threads() if preset == "full-sparse" else 1),
            "retrain": asdict(config),
            "versions": common.versions(),
        },
        numbered=name is None,
    )
    reports.keep_reference(run, train)
    return run


def _reopen(name: str | None, runs_dir: Path, given: dict[str, Any]) -> Run:
    from sparring.runs import Run, RunError, latest

    others = [option for option in given if option not in ("--resume", "--name", "--runs-dir")]
    if others:
        raise ValueError(f"--resume goes on with the run's own settings: leave out {', '.join(others)}")
    run = latest(runs_dir, having="retrain") if name is None else Run.open(runs_dir / name)
    if "retrain" not in run.config:
        raise RunError(f"{run.path} is not a run of `sparring retrain`: there is nothing to go on with")
    return run


def _work(run: Run, console: Console) -> None:
    """Do what the run's configuration says, from its last checkpoint on, and write the report."""
    import torch

    from sparring import report as reports
    from sparring.runs import RunError
    from sparring.training import RetrainConfig, retrain

    threads = torch.get_num_threads()
    try:
        with contextlib.ExitStack() as stack:
            with common.users_errors():
                config = RetrainConfig(**run.config["retrain"])
                network = common.network(run.config["network"]["name"])
                if common.located(run.config["network"]["name"]) != run.config["network"]:
                    raise RunError(f"the file of {run.config['network']['name']} has changed since the run began")
                train, test = _data(
                    run.config["data"]["name"], run.config["data"]["folder"], run.config.get("device", "cpu")
                )
                stack.enter_context(run)
            torch.set_num_threads(run.config["threads"])
            console.print(f"Run [bold]{run.path}[/bold]: {run.config['network']['name']} on {train.name}")
            result = retrain(
                train,
                test,
                network,
                config,
                run=run,
                on_progress=stack.enter_context(common.progress_bar(console)),
                on_record=lambda record: _print(record, console),
            )
        page = reports.write(run)
    except KeyboardInterrupt:
        again = ["sparring", "retrain", "--resume", "--name", run.path.name, "--runs-dir", str(run.path.parent)]
        console.print(f"\nInterrupted; what is done is kept. Go on with:\n  {shlex.join(again)}", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        torch.set_num_threads(threads)
    colour = "green" if result.verdict.robust else "dark_orange"
    console.print(f"\n[bold {colour}]{result.verdict}[/]", highlight=False, soft_wrap=True)
    console.print(f"Report: {page}\nCurves: tensorboard --logdir {run.path / 'tensorboard'}", soft_wrap=True)


def _print(record: dict[str, Any], console: Console) -> None:
    if record["kind"] != "verdict":
        console.print(_line(record), highlight=False, soft_wrap=True)


def _line(record: dict[str, Any]) -> str:
    """A record of an attack or an epoch in a line."""
    if record["kind"] == "attack":
        return (
            f"[bold]attack {record['generation']}[/]  {record['0/yield']:.1%} of {record['0/images']:.0f} fool it"
            f"  means: p {record['0/prob']:.2f}, {record['0/sparsity']:.1f} pixels, {record['0/stop_step']:.0f} steps"
        )
    caught = {"new": "2/caught", "past": "3/caught", "fresh": "4/caught"}
    shares = [f"{name} {record[key]:.1%}" for name, key in caught.items() if key in record]
    line = f"  epoch {record['epoch']:>3}  test accuracy {record['10/accuracy']:.1%}"
    return line + (f"  caught: {', '.join(shares)}" if shares else "")


def _data(name: str, folder: str | Path | None, device: str) -> tuple[Dataset, Dataset]:
    where = common.device(device)
    return common.data_set(name, folder, "train").to(where), common.data_set(name, folder, "test").to(where)


def _count_or_share(value: float | None) -> int | float | None:
    """1 or more is a count, less a share."""
    return int(value) if value is not None and value >= 1 and value == int(value) else value
