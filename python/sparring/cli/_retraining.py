"""What `sparring retrain` does: make or open a run, and work on it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _printing as printing

if TYPE_CHECKING:
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

    from sparring.runs import Run, check_new
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
    check_new(runs_dir, name or "run", numbered=name is None)
    train, test = common.data_sets(data, data_dir, device)
    try:  # what is wrong with the network is said before there is a run
        new_network(common.network(model), train, config)
    except TypeError as error:
        raise ValueError(f"--model {model} cannot be made from the number of outputs: {error}") from error
    return Run.create(
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


def work(run: Run, console: Console) -> None:
    """Do what the run's configuration says, from its last checkpoint on, and write the report."""
    import torch

    from sparring import _files
    from sparring import report as reports
    from sparring.training import RetrainConfig, retrain

    with ending.resumable("retrain", run, console), common.threads_restored():
        with ending.users_errors():
            config = RetrainConfig.from_json(run.config["retrain"])
            run.config["retrain"] = asdict(config)
            run.check_config()
            network = common.network_of(run)
            train, test = common.data_of(run)
        with run:
            torch.set_num_threads(run.config["threads"])
            source = printing.data(run.config["network"]["name"])
            printing.line(console, f"Run [bold]{printing.data(run.path)}[/bold]: {source} on {train.name}")
            run.tell = printing.notice(console)
            reports.keep_reference(run, train)
            with common.progress_bar(console) as on_progress:
                result = retrain(
                    train, test, network, config, run=run, on_progress=on_progress,
                    on_record=lambda record: _print(record, console),
                )  # fmt: skip
            colour = "green" if result.verdict.robust else "dark_orange"
            printing.line(console, f"\n[bold {colour}]{result.verdict}[/]")
            for name, model in (("network", result.model), ("best", result.best_model)):
                _files.write(run.path / f"{name}.safetensors", _files.packed(model.state_dict()))
            reports.keep_perturbation(run, result.model, test, result.final)
        with ending.drawing(run.path, console):
            page = reports.write(run)
    board = printing.data(run.path / "tensorboard")
    printing.line(console, f"Report: {printing.data(page)}\nCurves: tensorboard --logdir {board}")


def _print(record: dict[str, Any], console: Console) -> None:
    if record["kind"] != "verdict":
        printing.line(console, _line(record))


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
