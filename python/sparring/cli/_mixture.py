"""What `sparring mixture` does: make a run, and work on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from sparring import _files
from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _printing as printing

if TYPE_CHECKING:
    from torch import nn

    from sparring import StackedEnsemble
    from sparring._progress import Progress
    from sparring.data import Dataset
    from sparring.runs import Run
    from sparring.training import FitConfig

MEMBERS = 10
USUAL_MIXTURE: dict[str, Any] = {"members": MEMBERS, "combine": "probs", "pretrain_epochs": 0, "pretrained": None}
# The settings where nothing else is said: few small images take more epochs and larger steps.
USUAL: dict[str, dict[str, Any]] = {"digits": {"epochs": 60, "optimizer": "adam", "lr": 0.003}}
# Attacks whose eps is one of the fast gradient sign method as well, which the mixture is then tested with.
IN_LINF = ("none", "fgsm", "pgd", "apgd")


def new_run(
    name: str | None,
    runs_dir: Path,
    given: dict[str, Any],
    data: str,
    data_dir: Path | None,
    model: str,
    members: int | None,
    combine: str,
    pretrain_epochs: int,
    pretrained: Path | None,
    threads: int | None,
    device: str,
    named: dict[str, Any],
    settings: list[str],
) -> Run:
    """A new run folder, once everything that it will need has been tried out."""
    import torch

    from sparring.ensembles.mixture import COMBINES
    from sparring.runs import Run, check_new
    from sparring.training.fit.measure import MEANINGS

    if combine not in COMBINES:
        raise ValueError(f"--combine {combine}: give one of {', '.join(COMBINES)}")
    if pretrained is not None and pretrain_epochs:
        raise ValueError("--pretrained gives members that are trained already: leave out --pretrain-epochs")
    config = _config(data, {name: value for name, value in named.items() if value is not None}, settings)
    check_new(runs_dir, name or "run", numbered=name is None)
    train, test = common.data_sets(data, data_dir, device)
    network = common.network(model)
    _try_out(network, model, train, config)
    about: dict[str, Any] = {"members": members or MEMBERS, "combine": combine, "pretrain_epochs": pretrain_epochs}
    about["pretrained"] = None
    if pretrained is not None:
        try:
            found = len(_load(pretrained, network, train))
        except ValueError as error:
            raise ValueError(f"--pretrained {str(error).splitlines()[0]}") from error
        if (members or 0) > found:
            raise ValueError(f"--members {members}: {pretrained} holds {found}")
        about |= {"members": members or found}
        about["pretrained"] = {"file": str(pretrained.resolve()), "sha256": common.digest(pretrained)}
    return Run.create(
        runs_dir,
        name or f"{data}-mixture",
        {
            "command": common.command("mixture", given),
            "data": common.about_data(train, test, data_dir),
            "network": common.located(model),
            "device": device,
            "threads": threads or (1 if data.startswith("digits") else torch.get_num_threads()),
            "mixture": about,
            "fit": asdict(config),
            "metrics": MEANINGS,
            "versions": common.versions(),
        },
        numbered=name is None,
    )


def work(run: Run, console: Console) -> None:
    """Do what the run's configuration says, from its last checkpoint on, and write the report."""
    import torch

    from sparring import report as reports
    from sparring.report.mixture.snapshots import Keeper
    from sparring.training import FitConfig, fit_mixture

    with ending.resumable("mixture", run, console), common.threads_restored():
        with ending.users_errors():
            config = FitConfig.from_json(run.config["fit"])
            run.config["fit"] = asdict(config)
            run.config["mixture"] = USUAL_MIXTURE | run.config["mixture"]
            run.check_config()
            network = common.network_of(run)
            train, test = common.data_of(run)
        with run:
            run.tell = printing.notice(console)
            with ending.users_errors():
                torch.set_num_threads(run.config["threads"])
                mixture = _mixture(run, network, train, config)
            members, epochs = len(mixture), run.config["mixture"]["pretrain_epochs"]
            source = printing.data(run.config["network"]["name"])
            where = f"Run [bold]{printing.data(run.path)}[/bold]: {members} x {source} on {train.name}"
            printing.line(console, where)
            with common.progress_bar(console) as on_progress:
                if epochs:
                    before = replace(
                        config, epochs=epochs, attack="none", updates="independent", reg=0.0, weights_lr=0.0
                    )
                    _pretrain(run, mixture, train, test, before, on_progress, console)
                result = fit_mixture(
                    mixture, train, test, config, run=Keeper(run, mixture, test, config), on_progress=on_progress,
                    on_record=lambda record: _print(record, config, console),
                )  # fmt: skip
            summary = reports.mixture.story(run)[0]
            headline = summary.headline.replace("\u00a0", " ")
            printing.line(console, f"\n[bold {'green' if summary.good else 'dark_orange'}]{headline}[/]")
            if result.stopped:
                printing.line(console, f"[red]Training stopped: {result.stopped}[/]")
            assert result.weights is not None
            if not (run.path / "mixture.safetensors").exists():  # of a finished run that was resumed: the same
                mixture.save(run.path / "mixture.safetensors")
            _files.write(run.path / "weights.safetensors", _files.packed({"weights": result.weights}))
        with ending.drawing(run.path, console):
            page = reports.write(run)
    printing.line(console, f"Report: {printing.data(page)}\nCurves: tensorboard --logdir {printing.data(run.path)}")
    if result.stopped:
        raise typer.Exit(1)


def _config(data: str, named: dict[str, Any], settings: list[str]) -> FitConfig:
    """The settings of training; among the budgets that the mixture is tested with is the one of training."""
    from sparring.training import FitConfig

    others = common.settings(settings, named, FitConfig)
    try:
        config = FitConfig(**{**USUAL.get(data, {}), **named, **others})
        tested = {*config.test_eps} | ({config.eps} if config.attack in IN_LINF and config.eps else set())
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"--set {' '.join(settings)}: a value is of the wrong kind: {error}") from None
    return config if "test_eps" in others else replace(config, test_eps=tuple(sorted(tested)))


def _try_out(network: str | Callable[..., Any], model: str, train: Dataset, config: FitConfig) -> None:
    """What is wrong with the network or with the attack's options is said before there is a run."""
    from sparring.training.evaluate import logits_of
    from sparring.training.fit.loop import named_attack

    x, y = train.images[:2], train.labels[:2]
    try:
        member = _member(network, train, config, 0)
    except TypeError as error:
        raise ValueError(f"--model {model} cannot be made from the number of classes: {error}") from error
    shape = tuple(logits_of(member, x).shape)
    if shape != (len(x), train.classes):
        raise ValueError(f"--model {model} gives outputs of shape {shape}, wanted {(len(x), train.classes)}")
    try:
        attack = named_attack(config)
        if attack is not None:
            attack(member, x, y)
    except TypeError as error:
        raise ValueError(f"--attack {config.attack} with --set attack_options: {error}") from error


def _member(network: str | Callable[..., Any], train: Dataset, config: FitConfig, index: int) -> nn.Module:
    """A new network, whose weights follow from the seed and its place."""
    from sparring import networks
    from sparring.training.streams import global_stream, stream

    if isinstance(network, str):
        generator = stream(config.seed, "member", index)
        member: nn.Module = networks.build(network, train.input_shape, train.classes, generator=generator)
    else:
        with global_stream(config.seed, "member", index):
            member = network(train.classes)
    return member.to(train.images.device)


def _mixture(run: Run, network: str | Callable[..., Any], train: Dataset, config: FitConfig) -> StackedEnsemble:
    """The mixture that training begins with; its values do not count where there is a checkpoint."""
    from sparring import StackedEnsemble
    from sparring.runs import RunError

    about = run.config["mixture"]
    members, combine, source = range(about["members"]), about["combine"], about["pretrained"]
    device = train.images.device
    if source is None or run.checkpoints():
        return StackedEnsemble((_member(network, train, config, i) for i in members), combine).to(device)
    if not Path(source["file"]).is_file() or common.digest(source["file"]) != source["sha256"]:
        raise RunError(f"{source['file']} is gone or has changed since the run began")
    loaded = _load(Path(source["file"]), network, train)
    return StackedEnsemble((loaded.member(i) for i in members), combine, loaded.weights[: len(members)]).to(device)


def _load(path: Path, network: str | Callable[..., Any], train: Dataset) -> StackedEnsemble:
    from sparring import StackedEnsemble
    from sparring.training import FitConfig

    return StackedEnsemble.load(path, _member(network, train, FitConfig(), 0).cpu())


def _pretrain(
    run: Run,
    mixture: StackedEnsemble,
    train: Dataset,
    test: Dataset,
    config: FitConfig,
    on_progress: Callable[[Progress], None],
    console: Console,
) -> None:
    """Train the members, each by itself: in a run of its own inside of `run`; what comes of it is a file of that."""
    from sparring import StackedEnsemble
    from sparring.runs import Run, RunError, differences
    from sparring.training import fit_mixture
    from sparring.training.state import load_model

    file, folder = run.path / "pretrained.safetensors", run.path / "pretraining"
    asked = {"fit": asdict(config), "mixture": run.config["mixture"], "metrics": run.config.get("metrics", {})}
    if (folder / "config.json").is_file():
        stage = Run.open(folder)
        if changes := differences(stage.config, asked):
            raise RunError(f"{run.path / 'config.json'} was changed since pretraining began: {'; '.join(changes)}")
        stage.config, stage.tell = asked, run.tell
    else:
        stage = Run.create(run.path, folder.name, asked)
    if file.exists():
        try:
            load_model(mixture, StackedEnsemble.load(file, mixture.member(0).cpu()).state_dict())
        except ValueError as error:
            raise RunError(str(error)) from error
        return
    with stage:
        result = fit_mixture(
            mixture,
            train,
            test,
            config,
            run=stage,
            on_progress=lambda now: on_progress(now._replace(doing=f"pretraining, {now.doing}")),
            on_record=lambda record: _print(record, config, console, "pretraining, "),
        )
    if result.stopped:
        raise RunError(f"pretraining stopped: {result.stopped}; begin another run with a smaller --lr")
    mixture.save(file)


def _print(record: dict[str, Any], config: FitConfig, console: Console, stage: str = "") -> None:
    """An epoch in a line."""
    from sparring.report.mixture.snapshots import shown_eps

    if record["kind"] == "stopped":
        return
    eps, alone = shown_eps(config), record["weights/min"] == 1
    line = f"{stage}epoch {record['epoch']:>3}  clean {record['test/accuracy']:.1%}"
    if eps is not None:
        mixture, member, majority = (record[f"fgs/{eps:g}/{who}"] for who in ("accuracy", "members", "vote"))
        line += f"  FGS {eps:g} {mixture:.1%}"
        line += "" if alone else f" (a member {member:.1%}, majority {majority:.1%})"
    if not alone:
        line += f"  weights {record['weights/min']:.3f} to {record['weights/max']:.3f}"
    printing.line(console, line)
