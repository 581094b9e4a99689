"""What `sparring retrain` does: make or open a run, and work on it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sparring.cli import _common as common

if TYPE_CHECKING:
    from torch import nn

    from sparring.runs import Run

# Where nothing else is said: the preset for each data set, and the network for each preset.
USUAL_PRESETS = {"digits": "default", "cifar10": "full-cifar"}
USUAL_NETWORKS = {"quick": "mlp", "full-cifar": "resnet18-16"}


def new_run(
    name: str | None,
    runs_dir: Path,
    given: dict[str, Any],
    data: str,
    data_dir: Path | None,
    model: str | None,
    preset: str | None,
    threads: int | None,
    device: str,
    named: dict[str, Any],
    settings: list[str],
) -> Run:
    import torch

    from sparring import report as reports
    from sparring.runs import Run
    from sparring.training import PRESETS, RetrainConfig
    from sparring.training.building import new_network
    from sparring.training.metrics import METRICS

    preset = preset or USUAL_PRESETS.get(data, "quick")
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: there are {', '.join(PRESETS)}")
    model = model or USUAL_NETWORKS.get(preset, "cnn")
    named = {name: value for name, value in named.items() if value is not None}
    try:
        config = replace(PRESETS[preset], **named, **common.settings(settings, named, RetrainConfig))
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"--set {' '.join(settings)}: a value is of the wrong kind: {error}") from None
    train, test = common.data_sets(data, data_dir, device)
    try:  # what is wrong with the network is said before there is a run
        new_network(common.network(model), train, config)
    except TypeError as error:
        raise ValueError(f"--model {model} cannot be made from the number of outputs: {error}") from error
    run = Run.create(
        runs_dir,
        name or data,
        {
            "command": common.command("retrain", given),
            "data": common.about_data(train, test, data_dir),
            "network": common.located(model),
            "device": device,
            "threads": threads or (torch.get_num_threads() if preset.startswith("full") else 1),
            "retrain": asdict(config),
            "metrics": {metric.number: f"{metric.title}. {metric.meaning}" for metric in METRICS.values()},
            "versions": common.versions(),
        },
        numbered=name is None,
    )
    reports.keep_reference(run, train)
    return run


def work(run: Run, console: Console) -> None:
    """Do what the run's configuration says, from its last checkpoint on, and write the report."""
    import torch

    from sparring import report as reports
    from sparring.runs import RunError
    from sparring.training import RetrainConfig, retrain

    with common.interruptible("retrain", run, console), common.threads_restored():
        with contextlib.ExitStack() as stack:
            with common.users_errors():
                config = RetrainConfig.from_json(run.config["retrain"])
                network = common.network(run.config["network"]["name"])
                if common.located(run.config["network"]["name"]) != run.config["network"]:
                    raise RunError(f"the file of {run.config['network']['name']} has changed since the run began")
                train, test = common.data_sets(
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
        _save_weights(result.model, run.path / "network.safetensors")
        _save_weights(result.best_model, run.path / "best.safetensors")
        reports.keep_perturbation(run, result.model, test, result.final)
        page = reports.write(run)
    colour = "green" if result.verdict.robust else "dark_orange"
    console.print(f"\n[bold {colour}]{result.verdict}[/]", highlight=False, soft_wrap=True)
    console.print(f"Report: {page}\nCurves: tensorboard --logdir {run.path / 'tensorboard'}", soft_wrap=True)


def _save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights, as `sparring audit` and `sparring images` read them."""
    from safetensors.torch import save_file

    draft = path.with_suffix(".tmp")
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in model.state_dict().items()}, draft)
    draft.replace(path)


def _print(record: dict[str, Any], console: Console) -> None:
    if record["kind"] != "verdict":
        console.print(_line(record), highlight=False, soft_wrap=True)


def _line(record: dict[str, Any]) -> str:
    """A record of an attack or an epoch in a line."""
    if record["kind"] == "independent":
        done, accuracy = record["independent/epoch"], record["independent/accuracy"]
        return f"  independent network, epoch {done:>3.0f}  accuracy {accuracy:.1%}"
    if record["kind"] in ("attack", "independent attack"):
        name, metric = (f"attack {record['generation']}", 0) if record["kind"] == "attack" else (record["kind"], 6)
        return (
            f"[bold]{name}[/]  {record[f'{metric}/yield']:.1%} of {record[f'{metric}/images']:.0f} fool it  means: "
            f"p {record[f'{metric}/prob']:.2f}, {record[f'{metric}/sparsity']:.1f} pixels, "
            f"{record[f'{metric}/stop_step']:.0f} steps"
        )
    caught = {"new": "2/caught", "past": "3/caught", "fresh": "4/caught"}
    shares = [f"{name} {record[key]:.1%}" for name, key in caught.items() if key in record]
    line = f"  epoch {record['epoch']:>3}  test accuracy {record['10/accuracy']:.1%}"
    return line + (f"  caught: {', '.join(shares)}" if shares else "")


def count_or_share(value: float | None) -> int | float | None:
    """1 or more is a count, less a share."""
    return int(value) if value is not None and value >= 1 and value == int(value) else value
