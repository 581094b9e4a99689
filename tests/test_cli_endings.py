"""How commands end: what is tried first, what is printed before it is written, what is said of what is kept."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from sparring import _files, data
from sparring.cli import _printing as printing
from sparring.networks import build
from sparring.runs import Run
from sparring.training import FoolingSet
from test_cli import command, message, sparring

pytestmark = pytest.mark.usefixtures("undrawn")

STRANGE = "a[/b]c[red]\x1b[31m\n"
SHOWN = r"a[/b]c[red]\x1b[31m\n"
RETRAIN = (
    "--threads", "1", "--real-images", "60", "--model", "mlp", "--images", "10", "--fresh", "5", "--steps", "5",
    "--p-min", "0.05", "--generations", "1", "--pretrain-epochs", "1", "--epochs", "1", "--batch-size", "16",
)  # fmt: skip
MIXTURE = (
    "--set", "eval_images=20", "--set", "test_eps=[0.3]", "--real-images", "60", "--members", "2", "--epochs", "1",
)  # fmt: skip
INTRIGUING = ("--data", "digits", "--threads", "1", "--images", "2", "--train-images", "60", "--epochs", "1", "--quick")
AUDIT = ("--arch", "mlp", "--images", "20", "--attacks", "noise,fgsm", "--norm", "Linf", "--threads", "1")
NETWORK = ("--arch", "mlp", "--shape", "1,8,8")
MAKE = (*NETWORK, "--count", "10", "--steps", "5")
SWEEP = (*NETWORK, "--values", "1,2", "--count", "2", "--steps", "5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "mlp.safetensors"
    save_file(build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).state_dict(), path)
    return str(path)


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


# -- what the user named is data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", f"{STRANGE}.safetensors", "--arch", "mlp"),
        ("audit", "x.safetensors", "--arch", f"{STRANGE}:Net"),
        ("audit", "x.safetensors", "--arch", STRANGE),
        ("report", STRANGE),
        ("retrain", "--resume", "--name", STRANGE),
        ("retrain", "--resume", "--runs-dir", STRANGE),
        ("retrain", "--data", STRANGE),
        ("retrain", "--data", "cifar10", "--data-dir", STRANGE),
        ("retrain", "--model", STRANGE),
        ("retrain", "--device", STRANGE),
        ("retrain", "--set", STRANGE),
        ("mixture", "--pretrained", STRANGE),
        ("intriguing", "--data", STRANGE),
        ("images", "judge", f"{STRANGE}.safetensors", "x.safetensors", "--arch", "mlp"),
        ("images", "make", "x.safetensors", "--arch", "mlp", "--out", f"{STRANGE}/x.safetensors"),
        ("sweep", "lambda", f"{STRANGE}.safetensors", "--arch", "mlp"),
        ("lipschitz", STRANGE),
    ],
)
def test_markup_and_control_characters_in_a_name_are_shown_as_they_are(
    arguments: tuple[str, ...], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, "x.safetensors")
    said = message(sparring(*arguments))
    assert "\x1b" not in said
    assert SHOWN.removesuffix(r"\n") in said.replace(r"\\", "\\")  # some are shown quoted


def test_a_run_in_such_a_folder_is_like_any_other(weights: str, tmp_path: Path) -> None:
    runs = tmp_path / STRANGE
    shutil.copytree(Path(weights).parent, runs / "from")
    given = str(runs / "from" / "mlp.safetensors")
    results = [
        sparring("audit", given, *AUDIT, "--runs-dir", str(runs)),
        sparring("report", str(runs / "audit-1")),
        sparring("retrain", *RETRAIN, "--runs-dir", str(runs)),
        sparring("retrain", "--resume", "--runs-dir", str(runs)),
        sparring("images", "make", given, *MAKE, "--out", str(runs / "set.safetensors")),
        sparring("sweep", "lambda", given, *SWEEP, "--csv", str(runs / "x.csv")),
    ]
    for result in results:
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
    assert f"{SHOWN}/audit-1/report.html" in results[0].output
    assert "a[/b]c[red]" in (runs / "audit-1" / "report.html").read_text()


# -- what can be known before the work ---------------------------------------------------------------------------------


def test_where_results_cannot_be_written_is_known_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the network is read, which is not there."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.csv").mkdir()
    Path("folder.safetensors").mkdir()
    sweep, make = ("sweep", "lambda", "x.safetensors", *SWEEP, "--csv"), ("images", "make", "x", *MAKE, "--out")
    take, bounds = ("images", "take", "x", "--out"), ("lipschitz", "x", "--out")
    for arguments, said in {
        (*sweep, "nodir/x.csv"): "--csv nodir/x.csv: there is no folder nodir",
        (*sweep, "file/x.csv"): "--csv file/x.csv: file is not a folder",
        (*sweep, "folder.csv"): "--csv folder.csv: the file exists already",
        (*make, "nodir/x.safetensors"): "there is no folder nodir",
        (*make, "folder.safetensors", "--overwrite"): "this is a folder",
        (*take, "nodir/x.safetensors"): "there is no folder nodir",
        ("images", "judge", "x.safetensors", "x", *NETWORK[:2], "--out", "file/x.safetensors"): "file is not a folder",
        (*bounds, "nodir/x.json"): "there is no folder nodir",
        (*bounds, "folder.csv"): "this is a folder",
        ("audit", "x.safetensors", *AUDIT, "--runs-dir", "file"): "file is not a folder",
        ("audit", "x.safetensors", *AUDIT, "--name", "a b"): "cannot be a run's name",
        ("retrain", "--runs-dir", "file/runs"): "file is not a folder",
        ("mixture", "--runs-dir", "file"): "file is not a folder",
        ("intriguing", "--data", "mnist", "--data-dir", "nowhere", "--runs-dir", "file"): "file is not a folder",
        ("retrain", "--data", "mnist", "--data-dir", "nowhere", "--name", "folder.csv", "--runs-dir", "."): "exists",
    }.items():
        assert said in message(sparring(*arguments)), arguments
    Path("set.csv").write_text("mine")
    assert "set.csv: the file exists; replace it with --overwrite" in message(sparring(*make, "set.safetensors"))
    assert {path.name for path in Path().iterdir()} == {"file", "folder.csv", "folder.safetensors", "set.csv"}


# -- results are printed before they are written -----------------------------------------------------------------------


def test_results_are_printed_where_they_cannot_be_written(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FoolingSet, "save", full)
    monkeypatch.setattr(_files, "write", full)
    for arguments, shown in {
        ("sweep", "lambda", weights, *SWEEP, "--csv", "x.csv"): "lambda",
        ("images", "make", weights, *MAKE, "--out", "set.safetensors"): "all      10",
        ("lipschitz", "mlp", "--weights", weights, "--input-shape", "1,8,8", "--out", "x.json"): "linear1",
    }.items():
        result = sparring(*arguments)
        assert shown in result.stdout, result.output
        assert message(result) == "Error: No space left on device"


def test_an_audit_prints_its_table_where_the_disk_is_full(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.report.audit._files.write_all", _full_for("results.json"))
    result = sparring("audit", weights, *AUDIT, "--runs-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "worst case" in result.stdout
    assert "robust accuracy" in result.stdout.splitlines()[-1]
    assert result.stderr == "Error: the results cannot be written: No space left on device\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("closed", "why"), [(True, "Broken pipe"), (False, "No space left on device")])
def test_an_audit_whose_output_cannot_be_written_keeps_its_results(
    weights: str, tmp_path: Path, closed: bool, why: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, Path("/dev/full").open("w") as disk:
        arguments = ("audit", weights, *AUDIT, "--runs-dir", str(tmp_path), "--name", "run")
        ended = subprocess.run(command(*arguments), stdout=pipe if closed else disk, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "run"
    said = f"Error: the output cannot be written: {why}; the results are kept in {path}\n"
    assert (ended.returncode, ended.stderr) == (1, said)
    assert {"results.json", "examples.safetensors", "report.html"} <= {file.name for file in path.iterdir()}


def test_an_error_of_an_attack_is_not_said_to_be_one_of_the_disk(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.evaluation.evaluate", full)
    result = sparring("audit", weights, *AUDIT, "--runs-dir", str(tmp_path))
    assert message(result) == "Error: No space left on device"
    assert not list(tmp_path.iterdir())


def _full_for(name: str) -> Callable[..., None]:
    written = _files.write_all

    def write_all(contents: Any) -> None:
        if any(path.name == name for path in contents):
            full()
        written(contents)

    return write_all


@pytest.mark.parametrize("ending", [full, interrupted])
@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        (("audit", "WEIGHTS", *AUDIT, "--name", "run"), "robust accuracy"),
        (("retrain", *RETRAIN, "--name", "run"), "still fooled: yield"),
        (("mixture", *MIXTURE, "--name", "run"), "under FGS at eps 0.3"),
        (("intriguing", *INTRIGUING, "--name", "run"), "findings hold"),
    ],
)
def test_a_report_that_is_not_drawn_to_its_end_costs_nothing(
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    verdict: str,
    ending: Callable[..., Any],
) -> None:
    """The verdict is there, what is kept is said, and the command that is named draws the report."""
    given = [weights if part == "WEIGHTS" else part for part in arguments]
    monkeypatch.setattr("sparring.report.page.write", ending)
    result = sparring(*given, "--runs-dir", str(tmp_path))
    monkeypatch.undo()
    path = tmp_path / "run"
    assert verdict in result.stdout, result.output
    again = f"sparring report {path}"
    if ending is full:
        assert result.exit_code == 1
        assert "the report cannot be drawn: No space left on device; the results are kept in" in result.stderr
        assert result.stderr.rstrip().endswith(f"Draw it with: {again}")
    else:
        assert result.exit_code == 130
        assert result.stdout.rstrip().endswith(f"Draw it with:\n  {again}")
        assert f"the results are kept in {path}" in result.stdout
    assert not (path / "report.html").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.report.page._drawn", lambda picture, folder, small: {"light": "", "dark": ""})
        assert sparring("report", str(path)).exit_code == 0
    assert (path / "report.html").exists()


# -- audits are not resumed --------------------------------------------------------------------------------------------


def test_an_interrupted_audit_leaves_no_folder(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.evaluation.evaluate", interrupted)
    result = sparring("audit", weights, *AUDIT, "--runs-dir", str(tmp_path), "--name", "run")
    assert result.exit_code == 130
    assert "this one leaves no folder" in result.stdout
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "rename", full)
    result = sparring("audit", weights, *AUDIT, "--runs-dir", str(tmp_path), "--name", "run")
    assert not (tmp_path / "run").exists()  # it was never given its name


def test_an_audit_interrupted_as_its_results_were_written_says_so(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _files.write_all

    def then_interrupted(contents: Any) -> None:
        written(contents)
        if any(path.name == "results.json" for path in contents):
            raise KeyboardInterrupt

    monkeypatch.setattr("sparring.report.audit._files.write_all", then_interrupted)
    result = sparring("audit", weights, *AUDIT, "--runs-dir", str(tmp_path), "--name", "run")
    assert result.exit_code == 130
    assert f"Draw it with:\n  sparring report {tmp_path / 'run'}" in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "results.json", "examples.safetensors",
    }  # fmt: skip


def test_what_a_killed_audit_left_gives_way_to_the_next(weights: str, tmp_path: Path) -> None:
    """If there is nothing else in it, and no process works on it."""
    arguments = ("audit", weights, *AUDIT, "--runs-dir", str(tmp_path), "--name", "run")
    Run.create(tmp_path, "run", {"audit": {}})
    mine = tmp_path / "run" / "notes.txt"
    mine.touch()
    assert "exists already" in message(sparring(*arguments))
    mine.unlink()
    with Run.open(tmp_path / "run"):
        assert "in use by another process" in message(sparring(*arguments))
    (tmp_path / "run" / ".results.json.999999.part").write_text("half")
    assert sparring(*arguments).exit_code == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert "exists already" in message(sparring(*arguments))
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    other = tmp_path / "other"
    Run.create(tmp_path, "other", {"retrain": {}})
    assert "exists already" in message(sparring(*arguments[:-1], "other"))
    assert other.exists()


# -- runs are resumed, or refused --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.report.page._drawn", lambda *of: {"light": "data:,", "dark": "data:,"})  # as `undrawn`
        for name, options in (("retrain", RETRAIN), ("mixture", (*MIXTURE, "--pretrain-epochs", "1"))):
            result = sparring(name, *options, "--runs-dir", str(runs), "--name", name)
            assert result.exit_code == 0, result.output
    return runs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "section", "key", "value", "said"),
    [
        ("retrain", "retrain", "seed", 7, "retrain.seed was 0 and is 7"),
        ("retrain", "retrain", "mode", "batches", 'retrain.mode was "epoch" and is "batches"'),
        ("retrain", "retrain", "epochs", 3, "retrain.epochs was 1 and is 3"),
        ("retrain", "network", "name", "cnn", 'network.name was "mlp" and is "cnn"'),
        ("retrain", "data", "name", "mnist", 'data.name was "digits" and is "mnist"'),
        ("retrain", "data", "sha256", "0" * 64, "data.sha256 was"),
        ("retrain", "data", "classes", 9, "data.classes was 10 and is 9"),
        ("mixture", "fit", "seed", 7, "fit.seed was 0 and is 7"),
        ("mixture", "mixture", "members", 3, "mixture.members was 2 and is 3"),
        ("mixture", "mixture", "combine", "logits", 'mixture.combine was "probs" and is "logits"'),
    ],
)
def test_a_changed_run_is_refused_with_the_difference_and_stays(
    finished: Path, tmp_path: Path, kind: str, section: str, key: str, value: Any, said: str
) -> None:
    path = Path(shutil.copytree(finished / kind, tmp_path / kind))
    config = json.loads((path / "config.json").read_text())
    config[section][key] = value
    (path / "config.json").write_text(json.dumps(config))
    before = contents(path)
    error = message(sparring(kind, "--resume", "--runs-dir", str(tmp_path), "--name", kind))
    assert said in error
    assert contents(path) == before


def test_changed_data_are_refused_with_the_difference(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(finished / "retrain", tmp_path / "retrain"))
    load = data.load

    def changed(*arguments: Any, **options: Any) -> data.Dataset:
        found = load(*arguments, **options)
        images = found.images.clone()
        images[3, 0, 2, 2] += 1 / 16
        return data.Dataset(found.name, found.split, images, found.labels, found.classes)

    monkeypatch.setattr(data, "load", changed)
    before = contents(path)
    error = message(sparring("retrain", "--resume", "--runs-dir", str(tmp_path)))
    assert "the data have changed since" in error
    assert "sha256 was" in error
    assert contents(path) == before


def test_pretraining_of_other_settings_is_refused(finished: Path, tmp_path: Path) -> None:
    """Before the mixture has a checkpoint of its own, with the members trained or not."""
    for section, key, said in (("fit", "seed", "fit.seed was 0"), ("mixture", "members", "mixture.members was 2")):
        path = Path(shutil.copytree(finished / "mixture", tmp_path / section))
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").mkdir()
        (path / "metrics.jsonl").unlink()
        config = json.loads((path / "config.json").read_text())
        config[section][key] = 7
        (path / "config.json").write_text(json.dumps(config))
        for _ in range(2):
            error = message(sparring("mixture", "--resume", "--runs-dir", str(tmp_path), "--name", section))
            assert f"changed since pretraining began: {said} and is 7" in error
            (path / "pretrained.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("data", "has no object 'data'"), ("network", "has no object 'network'"), ("data name", "has no text data.name")],
)
def test_a_configuration_without_what_is_needed_is_refused(
    finished: Path, tmp_path: Path, missing: str, said: str
) -> None:
    path = Path(shutil.copytree(finished / "retrain", tmp_path / "retrain"))
    config = json.loads((path / "config.json").read_text())
    section, _, key = missing.partition(" ")
    if key:
        del config[section][key]
    else:
        config[section] = []
    (path / "config.json").write_text(json.dumps(config))
    assert said in message(sparring("retrain", "--resume", "--runs-dir", str(tmp_path)))


def test_settings_beside_resume_are_refused_with_those_of_the_run(finished: Path) -> None:
    runs = ("--resume", "--runs-dir", str(finished), "--name", "retrain")
    error = message(sparring("retrain", *runs, "--seed", "3"))
    assert "leave out --seed" in error
    assert "it was made by: sparring retrain --threads 1" in error


def test_a_run_that_another_process_works_on_is_refused(finished: Path) -> None:
    pytest.importorskip("fcntl")
    with Run.open(finished / "retrain"):
        error = message(sparring("retrain", "--resume", "--runs-dir", str(finished), "--name", "retrain"))
    assert "is in use by another process" in error


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished / "retrain", tmp_path / "retrain"))
    newest = sorted(path.glob("checkpoints/*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-50])
    result = sparring("retrain", "--resume", "--runs-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert f"Note: {newest} is damaged" in result.stdout.replace("\n", "")
    newest.write_bytes(newest.read_bytes()[:-50])
    for arguments in (("report", str(path)), ("images", "take", str(path), "--out", str(tmp_path / "x.safetensors"))):
        assert f"Note: {newest} is damaged" in sparring(*arguments).stdout.replace("\n", "")
    assert sparring("retrain", "--resume", "--runs-dir", str(tmp_path)).exit_code == 0
    compared = [file for file in contents(path) if "tensorboard" not in file and "timings" not in file]
    for file in map(Path, compared):
        assert file.read_bytes() == (finished / "retrain" / file.relative_to(path)).read_bytes(), file


def test_a_disk_that_is_full_is_a_line_that_says_how_to_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "save", full)
    options = ("--runs-dir", str(tmp_path), "--name", "retrain")
    result = sparring("retrain", *RETRAIN, *options)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: No space left on device. What is done is kept; go on with: sparring retrain --resume --name retrain "
        f"--runs-dir {tmp_path}\n"
    )
    monkeypatch.undo()
    assert sparring("retrain", "--resume", *options).exit_code == 0
    one, two = ((folder / "retrain" / "metrics.jsonl").read_bytes() for folder in (tmp_path, finished))
    assert one == two


def test_permissions_in_a_run_follow_the_umask(finished: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    kept = ("pretrained.safetensors", "mixture.safetensors")  # of the ensemble's own file format
    for path in finished.rglob("*"):
        if path.is_file() and path.name not in kept:
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path


# -- interrupts --------------------------------------------------------------------------------------------------------

SLOW = """
import os, signal, time
if not hasattr(signal, "sent"):
    signal.sent = True
    os.kill(os.getpid(), signal.{name})
    time.sleep(5)
"""
TURNED = "try:\n    import slow_{name}\nexcept BaseException:\n    raise ImportError('another error')\n"


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("module", ["torch", "typer", "rich"])
@pytest.mark.parametrize("turned", [False, True])
def test_an_interrupt_as_libraries_are_imported_is_a_line(
    tmp_path: Path, name: str, status: int, module: str, turned: bool
) -> None:
    """Also where the library makes another error of it."""
    (tmp_path / f"slow_{name}.py").write_text(SLOW.format(name=name))
    (tmp_path / f"{module}.py").write_text(TURNED.format(name=name) if turned else SLOW.format(name=name))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        command("retrain"), capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "Interrupted.\n")


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_sigterm_is_like_an_interrupt(tmp_path: Path) -> None:
    arguments = ("retrain", *RETRAIN, "--generations", "50", "--runs-dir", str(tmp_path), "--name", "run")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "epoch" not in (line := process.stdout.readline()):
        assert line, "it ended before it was stopped"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == ""
    assert "Interrupted; what is done is kept. Go on with:" in output
    assert f"sparring retrain --resume --name run --runs-dir {tmp_path}" in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_a_line() -> None:
    with Path("/dev/full").open("w") as nowhere:
        ended = subprocess.run(command("info"), stdout=nowhere, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left on device" in ended.stderr


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("arguments", "closed", "status"),
    [
        ("info", ">&-", 0), ("info", "2>&-", 0), ("info", ">&- 2>&-", 0), ("report /nowhere", ">&-", 2),
        ("report /nowhere", "2>&-", 2), ("info", ">/dev/full 2>&-", 1),
    ],
)  # fmt: skip
def test_streams_that_are_closed(arguments: str, closed: str, status: int) -> None:
    line = f"{shlex.join(command(*arguments.split()))} {closed}"
    ended = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Error" not in ended.stdout


# -- terminals of every kind -------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="locales differ")
def test_a_terminal_that_knows_only_ascii(weights: str, tmp_path: Path) -> None:
    runs = tmp_path / "ç“[b]"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    env = {**os.environ, **plain, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments in (("audit", weights, *AUDIT, "--runs-dir", str(runs)), ("audit", "--help"), ("retrain", "–x")):
        ended = subprocess.run(command(*arguments), capture_output=True, env=env)
        assert b"Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == (2 if "–x" in arguments else 0), ended.stderr
        ended.stdout.decode("ascii")
    assert (runs / "audit-1" / "report.html").exists()


HEAD = ["attack", "norm", "eps", "robust accuracy"]
LINES = [["apgd-targeted", "Linf", "0.3", "10 %"], ["apgd-targeted", "Linf", "0.31", "1 %"], ["worst [b]", "", "", "0"]]


def printed(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    printing.table(console, HEAD, LINES, left=2, strong=[2])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_says_the_same_at_every_width() -> None:
    assert printed(80) == (
        "attack         norm   eps  robust accuracy\n"
        "apgd-targeted  Linf   0.3             10 %\n"
        "apgd-targeted  Linf  0.31              1 %\n"
        "worst [b]                                0\n"
    )
    assert printed(41) == (
        "attack apgd-targeted\nnorm Linf; eps 0.3; robust accuracy 10 %\n"
        "attack apgd-targeted\nnorm Linf; eps 0.31; robust accuracy 1 %\n"
        "attack worst [b]\nrobust accuracy 0\n"
    )  # fmt: skip
    for width in range(8, 100):
        said = printed(width).split()
        for line in LINES:
            assert all(word in said or f"{word};" in said for cell in line for word in cell.split() if width > 14)
            assert "…" not in said


def test_tables_of_commands_fit_forty_columns(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for arguments in (
        ("audit", weights, *AUDIT, "--runs-dir", str(tmp_path)),
        ("images", "make", weights, *MAKE, "--out", str(tmp_path / "x.safetensors")),
        ("sweep", "batch-size", weights, *NETWORK, "--values", "2,4", "--steps", "2"),
    ):
        result = sparring(*arguments)
        assert result.exit_code == 0, result.output
        assert "…" not in result.stdout
