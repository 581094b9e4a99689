from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import mortal
from sparring.cli import app
from sparring.networks import NETWORKS, build, load_weights
from sparring.training import PRESETS

# in the order of the help, which is also that of the command in the report
TINY = ("--threads", "1", "--real-images", "200", "--model", "mlp", "--images", "20", "--fresh", "10", "--steps", "20",
        "--p-min", "0.3", "--generations", "2", "--pretrain-epochs", "2", "--epochs", "2", "--lr", "0.01",
        "--batch-size", "16")  # fmt: skip


def sparring(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparring", *arguments]


def message(result: Result) -> str:
    """The error, checked to be one line with exit status 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, never interrupted."""
    runs = tmp_path_factory.mktemp("runs")
    result = sparring("retrain", *TINY, "--runs-dir", str(runs), "--name", "whole")
    assert result.exit_code == 0, result.output
    return runs / "whole"


def test_run_folder_is_complete(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "timings.jsonl",
        "tensorboard",
        "checkpoints",
        "figures",
        "report.html",
    } <= names
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records][-2:] == ["attack", "verdict"]
    assert len(records) == 10
    assert not list(whole.glob("**/*.pt")) + list(whole.glob("**/*.pkl"))
    config = json.loads((whole / "config.json").read_text())
    assert config["command"] == "sparring retrain " + " ".join(TINY)
    assert config["versions"]["torch"] == torch.__version__


def test_verdict_is_printed_and_threads_are_restored(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = sparring("retrain", *TINY, "--runs-dir", str(tmp_path), "--method", "prox", "--labelling", "uniform")
    assert result.exit_code == 0, result.output
    assert (
        "robust to this process within 30 images x 20 steps" in result.output or "still fooled: yield" in result.output
    )
    assert (tmp_path / "digits-1" / "report.html").exists()
    assert torch.get_num_threads() == threads


def test_settings_by_name_and_switches_are_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the report makes the same settings again."""
    monkeypatch.setattr("sparring.cli._retraining.work", lambda run, console: None)
    given = ("--preset", "quick", "--set", "halvings=2", "--set", "schedule=cosine", "--no-independent")
    configs = []
    for name in ("first", "again"):
        result = sparring("retrain", *given, "--runs-dir", str(tmp_path), "--name", name)
        assert result.exit_code == 0, result.output
        configs.append(json.loads((tmp_path / name / "config.json").read_text()))
        given = tuple(shlex.split(configs[-1]["command"])[2:])
    assert configs[0] == configs[1]
    wanted = {"halvings": 2, "schedule": "cosine", "independent": False}
    assert configs[0]["retrain"] == {**asdict(PRESETS["quick"]), **wanted}


def test_weights_are_files_of_their_own(whole: Path) -> None:
    for name in ("network", "best"):
        load_weights(build("mlp", (1, 8, 8), 20), whole / f"{name}.safetensors")


def test_existing_name_is_refused(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    result = sparring("retrain", *TINY, "--runs-dir", str(whole.parent), "--name", "whole")
    assert "--resume" in message(result)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_resuming_a_finished_run_only_writes_the_report(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    (whole / "report.html").unlink()
    result = sparring("retrain", "--resume", "--runs-dir", str(whole.parent), "--name", "whole")
    assert result.exit_code == 0, result.output
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert (whole / "report.html").exists()


def test_run_of_an_earlier_version_goes_on_and_one_of_a_later_is_refused(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    resume = ("retrain", "--resume", "--runs-dir", str(tmp_path), "--name", "copy")
    config = json.loads((whole / "config.json").read_text())
    for key in ("device", "threads", "metrics", "versions", "command"):
        del config[key]
    for key in ("mode", "augment"):
        del config["retrain"][key]
    (copy / "config.json").write_text(json.dumps(config))
    assert sparring(*resume).exit_code == 0
    config["retrain"]["colour"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    assert "the run's settings have unknown colour: it is of another version" in message(sparring(*resume))


def test_report_is_rendered_again(whole: Path) -> None:
    before = (whole / "report.html").read_text()
    (whole / "report.html").unlink()
    result = sparring("report", str(whole))
    assert result.exit_code == 0, result.output
    assert (whole / "report.html").read_text() == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_and_resumed_run_equals_the_whole_one(tmp_path: Path) -> None:
    """Killed in training, in generation and in evaluation, and each time resumed."""
    source, kill = tmp_path / "nets.py", tmp_path / "kill"
    shutil.copy(mortal.__file__, source)
    options = [*TINY, "--model", f"{source}:Mortal", "--runs-dir", str(tmp_path)]
    assert sparring("retrain", *options, "--name", "whole").exit_code == 0
    path, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ["retrain", *options, "--name", "killed"]
    # amid the second epoch, the first attack, and the evaluation after it
    for place, forwards, records in (("train_epoch", 20, 1), ("attempt", 5, 2), ("epoch_metrics", 6, 3)):
        kill.write_text(f"{place} {forwards}")
        assert subprocess.run(command(*arguments), stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
        assert (path / "metrics.jsonl").read_bytes().count(b"\n") == records
        arguments = ["retrain", "--resume", "--runs-dir", str(tmp_path), "--name", "killed"]
    kill.unlink()
    subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL)
    assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    last, wanted = (sorted((run / "checkpoints").iterdir())[-1] for run in (path, whole))
    one, two = load_file(last), load_file(wanted)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["retrain", *TINY, "--generations", "50", "--runs-dir", str(tmp_path), "--name", "stopped"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
    _wait_for_records(tmp_path / "stopped", 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"sparring retrain --resume --name stopped --runs-dir {tmp_path}" in output
    assert "Traceback" not in output


def _wait_for_records(path: Path, count: int, process: subprocess.Popen[Any]) -> None:
    log = path / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended before it was stopped"
        time.sleep(0.002)


def test_users_network(tmp_path: Path) -> None:
    source = tmp_path / "nets.py"
    source.write_text(
        "from torch import nn\n"
        "class Small(nn.Sequential):\n"
        "    def __init__(self, outputs):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, outputs))\n"
        "class NoOutputs(nn.Module):\n"
        "    pass\n"
        "class Wrong(nn.Sequential):\n"
        "    def __init__(self, outputs):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    runs = tmp_path / "runs"
    options = ("--runs-dir", str(runs), "--model")
    result = sparring("retrain", *TINY, *options, f"{source}:Small", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "has no class or function Other" in message(sparring("retrain", *options, f"{source}:Other"))
    assert "cannot be made from the number of outputs" in message(sparring("retrain", *options, f"{source}:NoOutputs"))
    assert "outputs of shape (1, 7)" in message(sparring("retrain", *options, f"{source}:Wrong"))
    source.write_text(source.read_text() + "# changed\n")
    assert "has changed since the run began" in message(
        sparring("retrain", "--resume", "--runs-dir", str(runs), "--name", "mine")
    )
    assert [path.name for path in runs.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--preset", "huge"), "there are default, quick, full-sparse"),
        (("--method", "newton"), "method is 'newton': accepted are 'adam', 'prox', 'l1'"),
        (("--labelling", "real"), "labelling is 'real'"),
        (("--p-min", "2"), "p_min is 2.0"),
        (("--s-max", "1.5"), "s_max is 1.5"),
        (("--data", "imagenet"), "imagenet"),
        (("--data", "mnist", "--data-dir", "/nowhere"), "/nowhere"),
        (("--device", "toaster"), "--device toaster"),
        (("--model", "transformer"), "give one of mlp"),
        (("--model", "nothing.py:Net"), "there is no file nothing.py"),
        (("--set", "speed=3"), "--set speed=3: give FIELD=VALUE, FIELD one of labelling, network"),
        (("--set", "images=5", "--images", "6"), "--set images=5: images is given twice"),
        (("--set", "lr=fast"), "--set lr=fast: a value is of the wrong kind"),
        (("--set", f"lam={'[' * 100_000}"), "--set lam: the value is nested too deeply"),
        (("--set", "pool_images=0"), "pool_images is 0"),
        (("--data", "cifar10"), "data_dir must be given for 'cifar10'"),
        (("--resume",), "there is no run in"),
        (("--resume", "--seed", "1"), "leave out --seed"),
        (("--resume", "--name", "absent"), "is not a run"),
    ],
)
def test_users_mistakes_are_said_in_a_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    result = sparring("retrain", "--runs-dir", str(tmp_path / "runs"), *arguments)
    assert expected in message(result)
    assert not (tmp_path / "runs").exists()


def test_report_of_no_run(tmp_path: Path) -> None:
    assert "is not a run" in message(sparring("report", str(tmp_path)))


def test_help_names_every_group_and_imports_nothing_heavy() -> None:
    result = sparring("retrain", "--help")
    assert result.exit_code == 0
    for part in ("Run", "Data and network", "Attack", "Training", "Metrics", "Examples", *PRESETS, *NETWORKS):
        assert part in result.output
    heavy = "('matplotlib', 'sklearn', 'tensorboard', 'jinja2')"
    code = f"import sys, sparring.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_arguments_the_module_prints_the_information() -> None:
    bare = subprocess.run(command(), capture_output=True, text=True, check=True).stdout
    assert bare == subprocess.run(command("info"), capture_output=True, text=True, check=True).stdout
    assert torch.__version__ in bare


def test_version() -> None:
    from sparring import __version__

    assert sparring("--version").output == f"sparring {__version__}\n"
