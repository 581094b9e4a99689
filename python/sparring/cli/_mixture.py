"""What `sparring mixture` does: make a run, and work on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from sparring.cli import _common as common

if TYPE_CHECKING:
    from torch import nn

    from sparring import StackedEnsemble
    from sparring._progress import Progress
    from sparring.data import Dataset
    from sparring.runs import Run
    from sparring.training import FitConfig

MEMBERS = 10
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
    from sparring.runs import Run
    from sparring.training.fit.measure import MEANINGS

    if combine not in COMBINES:
        raise ValueError(f"--combine {combine}: give one of {', '.join(COMBINES)}")
    if pretrained is not None and pretrain_epochs:
        raise ValueError("--pretrained gives members that are trained already: leave out --pretrain-epochs")
    config = _config(data, {name: value for name, value in named.items() if value is not None}, settings)
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
    from sparring.runs import RunError
    from sparring.training import FitConfig, fit_mixture

    with common.interruptible("mixture", run, console), common.threads_restored():
        with contextlib.ExitStack() as stack:
            with common.users_errors():
                config = FitConfig.from_json(run.config["fit"])
                source, data = run.config["network"]["name"], run.config["data"]
                network = common.network(source)
                if common.located(source) != run.config["network"]:
                    raise RunError(f"the file of {source} has changed since the run began")
                train, test = common.data_sets(data["name"], data["folder"], run.config["device"])
                stack.enter_context(run)
                torch.set_num_threads(run.config["threads"])
                mixture = _mixture(run, network, train, config)
            members, epochs = len(mixture), run.config["mixture"]["pretrain_epochs"]
            console.print(f"Run [bold]{run.path}[/bold]: {members} x {source} on {train.name}", soft_wrap=True)
            on_progress = stack.enter_context(common.progress_bar(console))
            if epochs:
                with common.users_errors():
                    before = replace(
                        config, epochs=epochs, attack="none", updates="independent", reg=0.0, weights_lr=0.0
                    )
                    _pretrain(run, mixture, train, test, before, on_progress, console)
            result = fit_mixture(
                mixture,
                train,
                test,
                config,
                run=Keeper(run, mixture, test, config),
                on_progress=on_progress,
                on_record=lambda record: _print(record, config, console),
            )
        assert result.weights is not None
        _write_once(run.path / "mixture.safetensors", mixture.save)
        _write_once(run.path / "weights.safetensors", lambda path: _save({"weights": result.weights}, path))
        page = reports.write(run)
    summary = reports.mixture.story(run)[0]
    colour = "green" if summary.good else "dark_orange"
    headline = summary.headline.replace("\u00a0", " ")
    console.print(f"\n[bold {colour}]{headline}[/]", highlight=False, soft_wrap=True)
    console.print(f"Report: {page}\nCurves: tensorboard --logdir {run.path}", soft_wrap=True)
    if result.stopped:
        console.print(f"Training stopped: {result.stopped}", style="red", soft_wrap=True)
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
    from sparring.runs import Run, RunError
    from sparring.training import fit_mixture

    file, folder = run.path / "pretrained.safetensors", run.path / "pretraining"
    if file.exists():
        mixture.load_state_dict(StackedEnsemble.load(file, mixture.member(0).cpu()).state_dict())
        return
    if (folder / "config.json").is_file():
        stage = Run.open(folder)
    else:
        stage = Run.create(run.path, folder.name, {"fit": asdict(config), "metrics": run.config["metrics"]})
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


def _write_once(path: Path, write: Callable[[Path], None]) -> None:
    if not path.exists():  # of a finished run that was resumed: the same
        write(path)


def _save(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    draft = path.with_name(f".{path.name}.part")
    save_file(tensors, draft)
    draft.replace(path)


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
    console.print(line, highlight=False, soft_wrap=True)
