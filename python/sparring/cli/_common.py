"""What several commands need: data and networks that the user names, places to write to, a progress bar."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch

    from sparring._progress import Progress
    from sparring.data import Dataset
    from sparring.runs import Run


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar at the foot of a terminal; elsewhere nothing, the records say enough."""
    from rich import progress

    columns = (progress.BarColumn(), progress.TaskProgressColumn(), progress.TimeElapsedColumn())
    text = progress.TextColumn("{task.description}", markup=False)
    with progress.Progress(*columns, text, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda now: bar.update(task, completed=now.done, total=now.total, description=now.doing)


def given(context: typer.Context) -> dict[str, Any]:
    """The options that the user typed, by the option's name, in order."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[parameter.name or ""]
            off = value is False and parameter.secondary_opts  # such as --no-anneal
            found[parameter.secondary_opts[0] if off else parameter.opts[0]] = True if off else value
    return found


def command(name: str, given: dict[str, Any]) -> str:
    """The command line that does the same again, in a run of its own."""
    parts = ["sparring", name]
    for option, value in given.items():
        if option not in ("--name", "--runs-dir"):
            for each in value if isinstance(value, (list, tuple)) else [value]:
                parts += [option] * option.startswith("-") + [str(each)] * (each is not True)
    return shlex.join(parts)


def data_set(name: str, folder: str | Path | None, split: Literal["train", "test"]) -> Dataset:
    from sparring.data import load

    return load(name, folder, split)


def data_sets(name: str, folder: str | Path | None, on: str) -> tuple[Dataset, Dataset]:
    """Training and test images, on the device `on`."""
    where = device(on)
    return data_set(name, folder, "train").to(where), data_set(name, folder, "test").to(where)


def about_data(train: Dataset, test: Dataset, folder: Path | None) -> dict[str, Any]:
    """What a run's configuration says of its data; the checksum is of all images and labels."""
    images = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        images.update(tensor.cpu().contiguous().numpy().data)
    return {
        "name": train.name,
        "folder": None if folder is None else str(folder.resolve()),
        "shape": list(train.input_shape),
        "classes": train.classes,
        "training images": len(train),
        "test images": len(test),
        "sha256": images.hexdigest(),
        "official": train.official and test.official,
        "note": train.note if train.note == test.note else f"{train.note}; test: {test.note}",
    }


def settings(given: list[str], named: dict[str, Any], config: type) -> dict[str, Any]:
    """The settings given as FIELD=VALUE, fields of `config` none of which may be among those already named."""
    known = [field.name for field in fields(config)]
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {text}: give FIELD=VALUE, FIELD one of {', '.join(known)}")
        if name in named or name in found:
            raise ValueError(f"--set {text}: {name} is given twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
        except RecursionError:
            raise ValueError(f"--set {name}: the value is nested too deeply") from None
    return found


def network(source: str, option: str = "--model") -> str | Callable[..., Any]:
    """A name that `sparring.networks` knows, or the class that `file.py:Class` names."""
    from sparring.networks import NETWORKS

    path, colon, attribute = source.rpartition(":")
    if not colon:
        if source not in NETWORKS:
            raise ValueError(f"{option} {source}: give one of {', '.join(NETWORKS)}, or FILE:CLASS")
        return source
    if not Path(path).is_file():
        raise ValueError(f"{option} {source}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"sparring_user_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{option} {source}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with users_file(f"{option} {source}", path):
        spec.loader.exec_module(module)
    make = getattr(module, attribute, None)
    if not callable(make):
        raise ValueError(f"{option} {source}: {path} has no class or function {attribute}")
    return cast("Callable[..., Any]", make)


@contextlib.contextmanager
def users_file(named: str, path: str) -> Iterator[None]:
    """Run code of the user's file: ValueError, with the line, where it is no Python, ends the process, or refuses.

    Other errors keep their traceback, which ends in that file.
    """
    try:
        yield
    except (SyntaxError, SystemExit, ValueError, OSError) as error:
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno))
        lines = [line for file, line in places if line and Path(file).resolve() == Path(path).resolve()]
        where = f"{path}, line {lines[-1]}" if lines else path
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{named}: {where}: {type(error).__name__}: {said}".rstrip(": ")) from None


def located(source: str) -> dict[str, str]:
    """Where the network comes from, so that it can be found again from any folder, and a change of the file noticed."""
    path, colon, attribute = source.rpartition(":")
    if not colon:
        return {"name": source}
    return {"name": f"{Path(path).resolve()}:{attribute}", "sha256": digest(path)}


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def device(name: str) -> torch.device:
    """The device of that name, tried out; ValueError if there is none, or it is "meta", which computes nothing."""
    import torch

    try:
        wanted = torch.device(name)
        if wanted.type == "meta":
            raise RuntimeError("tensors there have no values")
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return wanted


@contextlib.contextmanager
def threads_restored() -> Iterator[None]:
    """On exit torch has as many threads as before."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def versions() -> dict[str, str]:
    """What a run's configuration says of the software."""
    import platform

    import numpy as np
    import torch

    from sparring import __version__

    return {
        "python": platform.python_version(),
        "sparring": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def reopen(command: str, name: str | None, runs_dir: Path, given: dict[str, Any], sections: tuple[str, ...]) -> Run:
    """The run of `sparring <command>` to go on with, whose configuration has the command's name as a key.

    Its configuration has these sections besides, which are objects, and what an earlier version did not write.
    """
    import torch

    from sparring.runs import Run, RunError, latest

    others = {option: value for option, value in given.items() if option not in ("--resume", "--name", "--runs-dir")}
    if others:
        with contextlib.suppress(RunError, OSError):  # where there is no run the mistake is the same
            run = latest(runs_dir, having=command) if name is None else Run.open(runs_dir / name)
            made = f" (it was made by: {run.config['command']})" if "command" in run.config else ""
            raise ValueError(_own_settings(others) + made)
        raise ValueError(_own_settings(others))
    run = latest(runs_dir, having=command) if name is None else Run.open(runs_dir / name)
    if command not in run.config:
        raise RunError(f"{run.path} is not a run of `sparring {command}`: there is nothing to go on with")
    for section in (command, "data", *sections):
        if not isinstance(run.config.get(section), dict):
            raise RunError(f"{run.path / 'config.json'} has no object {section!r}, without which it cannot go on")
    for section, key in [("data", "name"), *[("network", "name")] * ("network" in sections)]:
        if not isinstance(run.config[section].get(key), str):
            raise RunError(f"{run.path / 'config.json'} has no text {section}.{key}, without which it cannot go on")
    run.config = {"device": "cpu", "threads": torch.get_num_threads(), **run.config}
    return run


def _own_settings(others: dict[str, Any]) -> str:
    return f"--resume goes on with the run's own settings: leave out {', '.join(others)}"


def data_of(run: Run) -> tuple[Dataset, Dataset]:
    """The training and test images that a run began with; RunError if they are others now, with the differences."""
    from sparring.runs import RunError, differences

    then = run.config["data"]
    train, test = data_sets(then["name"], then.get("folder"), run.config["device"])
    changes = differences(then, about_data(train, test, None))
    if changes:
        raise RunError(f"the data have changed since {run.path} began: {'; '.join(changes)}")
    return train, test


def network_of(run: Run) -> str | Callable[..., Any]:
    """The network that a run began with; RunError if the file that it is in has changed."""
    from sparring.runs import RunError

    source = run.config["network"]["name"]
    found = network(source)
    if located(source).get("sha256") != run.config["network"].get("sha256"):
        raise RunError(f"the file of {source} has changed since the run began")
    return found


def check_out(option: str, path: Path, *, overwrite: bool = False) -> None:
    """Check, before the work, that a file can be written."""
    from sparring import _files

    if os.path.lexists(path) and not overwrite:
        raise ValueError(f"{option} {path}: the file exists already")
    if path.is_dir():
        raise ValueError(f"{option} {path}: this is a folder")
    try:
        _files.takes_files(path.parent)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror or error}") from None
