"""The command `sparring mixture`: its run folder, what it resumes after, and what it says of mistakes."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

import mortal
import sparring as sp
from sparring.cli import app
from sparring.networks import build
from sparring.training import FitConfig
from sparring.training.fit import loop

pytestmark = pytest.mark.usefixtures("undrawn")

# in the order of the help, which is also that of the command in the report
TINY = ("--set", "eval_images=50", "--set", "test_eps=[0.3]", "--real-images", "200", "--members", "3",
        "--pretrain-epochs", "1", "--epochs", "2")  # fmt: skip
FILES = {
    "config.json", "metrics.jsonl", "timings.jsonl", "tensorboard", "checkpoints", "figures", "report.html",
    "pretraining", "pretrained.safetensors", "mixture.safetensors", "weights.safetensors", "first.safetensors",
    "last.safetensors",
}  # fmt: skip


def sparring(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def mixture(runs: Path, name: str, *arguments: str) -> Path:
    """A run that ends well."""
    result = sparring("mixture", *arguments, "--runs-dir", str(runs), "--name", name)
    assert result.exit_code == 0, result.output
    return runs / name


def message(result: Result) -> str:
    """The error, checked to be one line with exit status 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_tensors(one: Path, two: Path) -> None:
    found, wanted = load_file(one), load_file(two)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def same_runs(one: Path, two: Path) -> None:
    """The same bits in everything but the events and times."""
    for part in ("", "pretraining"):
        assert (one / part / "metrics.jsonl").read_bytes() == (two / part / "metrics.jsonl").read_bytes()
        last = [sorted((run / part / "checkpoints").iterdir())[-1] for run in (one, two)]
        same_tensors(*last)
    for name in FILES:
        if name.endswith(".safetensors"):
            same_tensors(one / name, two / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sparring.report.page._drawn", lambda picture, folder, small: {"light": "data:,", "dark": "data:,"}
        )
        return mixture(tmp_path_factory.mktemp("runs"), "whole", *TINY)


def test_run_folder_is_complete(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} - {".lock"} == FILES
    assert not list(whole.glob("**/*.pt")) + list(whole.glob("**/*.part")) + list(whole.glob("**/*.tmp"))
    assert [record["kind"] for record in records(whole)] == ["start", "epoch", "epoch"]
    config = json.loads((whole / "config.json").read_text())
    assert config["command"] == "sparring mixture " + shlex.join(TINY)
    assert config["mixture"] == {"members": 3, "combine": "probs", "pretrain_epochs": 1, "pretrained": None}
    assert config["versions"]["torch"] == torch.__version__


def test_what_is_saved_is_the_mixture_that_was_measured(whole: Path) -> None:
    saved = sp.StackedEnsemble.load(whole / "mixture.safetensors", build("mlp", (1, 8, 8), 10)).eval()
    test = sp.data.load("digits", split="test")
    accuracy = (saved(test.images).argmax(1) == test.labels).double().mean()
    assert float(accuracy) == records(whole)[-1]["test/accuracy"]
    history = load_file(whole / "weights.safetensors")["weights"]
    assert history.shape == (1 + 2 * 2, 3)
    assert torch.equal(history[-1], saved.weights.float())
    assert torch.allclose(history.sum(1), torch.ones(5))


def test_pretraining_is_of_members_by_themselves_on_real_images(whole: Path) -> None:
    """What it logged is where the mixture began, with equal weights."""
    before = records(whole / "pretraining")
    assert [record["kind"] for record in before] == ["start", "epoch"]
    assert "train/loss_attacked" not in before[-1]
    begun = {**records(whole)[0], "train/loss": before[-1]["train/loss"]}
    assert {**begun, "kind": "epoch", "epoch": 1} == before[-1]
    assert begun["weights/effective"] == pytest.approx(3)


def test_tensorboard_has_curves_histograms_and_images(whole: Path) -> None:
    events = _events(whole)
    tags = events.Tags()
    assert {"test/accuracy", "fgs/0.3/vote", "weights/max"} <= {*tags["scalars"]}
    assert {f"{kind}/linear{i}" for kind in ("parameter", "gradient") for i in (1, 2, 3)} == {*tags["histograms"]}
    assert [event.step for event in events.Histograms("gradient/linear1")] == [0, 1, 2]
    image = events.Images("images/real_above_attacked")[-1]
    assert (image.step, image.width, image.height) == (2, 10 * 8, 2 * 8)


def test_report_is_rendered_again(whole: Path) -> None:
    (whole / "report.html").unlink()
    result = sparring("report", str(whole))
    assert result.exit_code == 0, result.output
    assert "3 networks (mlp) as one" in (whole / "report.html").read_text()


def test_resuming_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    mixture(tmp_path, "copy", "--resume")
    same_runs(copy, whole)


def test_interrupted_and_resumed_run_equals_the_whole_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in pretraining, and in the second epoch after it; the user is told how to go on."""
    epoch, calls = loop._epoch, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 4):
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(loop, "_epoch", interrupted)
    arguments, threads = [*TINY, "--runs-dir", str(tmp_path), "--name", "stopped"], torch.get_num_threads()
    for _ in range(2):
        result = sparring("mixture", *arguments)
        assert result.exit_code == 130, result.output
        assert torch.get_num_threads() == threads
        assert f"sparring mixture --resume --name stopped --runs-dir {tmp_path}" in result.output
        arguments = ["--resume", "--runs-dir", str(tmp_path)]
    assert sparring("mixture", *arguments).exit_code == 0
    same_runs(tmp_path / "stopped", whole)
    steps = [event.step for event in _events(tmp_path / "stopped").Histograms("parameter/linear1")]
    assert steps == [0, 1, 2]  # the one of the checkpoint was drawn again, in place of the one before


def _events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "histograms": 0, "images": 0}).Reload()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_and_resumed_run_equals_the_whole_one(tmp_path: Path) -> None:
    """Killed in training after pretraining, and in the snapshot between a record and its checkpoint."""
    source, kill = tmp_path / "nets.py", tmp_path / "kill"
    shutil.copy(mortal.__file__, source)
    options = [*TINY, "--model", f"{source}:Mortal"]
    whole = mixture(tmp_path, "whole", *options)
    path, arguments = tmp_path / "killed", ["mixture", *options, "--runs-dir", str(tmp_path), "--name", "killed"]
    # three members on two batches of the epoch of pretraining, and as many after it; two forwards of a snapshot's batch
    for place, forwards, logged in (("_epoch", 8, 1), ("_training_loss", 8, 2)):
        kill.write_text(f"{place} {forwards}")
        command = [sys.executable, "-m", "sparring", *arguments]
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
        assert len(records(path)) == logged
        arguments = ["mixture", "--resume", "--runs-dir", str(tmp_path), "--name", "killed"]
    kill.unlink()
    mixture(tmp_path, "killed", "--resume")
    same_runs(path, whole)


def test_pretrained_members_are_used_again(whole: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(whole / "pretrained.safetensors", tmp_path / "members.safetensors"))
    run = mixture(tmp_path, "two", "--pretrained", str(source), "--members", "2", "--epochs", "0")
    first, wanted = load_file(run / "mixture.safetensors"), load_file(source)
    assert first["weights"].tolist() == [0.5, 0.5]
    assert all(torch.equal(first[name], wanted[name][:2]) for name in wanted if name != "weights")
    run = mixture(tmp_path, "all", "--pretrained", str(whole / "mixture.safetensors"), "--epochs", "0")
    trained = load_file(whole / "mixture.safetensors")
    kept = load_file(run / "mixture.safetensors")
    assert all(torch.allclose(kept[name], trained[name], rtol=1e-12) for name in trained)
    assert kept["weights"].std() > 0
    assert "They came from mixture.safetensors, trained already." in (run / "report.html").read_text()

    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    config = json.loads((run / "config.json").read_text())
    config["mixture"]["pretrained"]["sha256"] = "of another"
    (run / "config.json").write_text(json.dumps(config))
    assert "has changed since the run began" in message(
        sparring("mixture", "--resume", "--runs-dir", str(tmp_path), "--name", "all")
    )


def test_settings_by_name_are_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the report makes the same settings again; the budget of training is tested as well."""
    monkeypatch.setattr("sparring.cli._mixture.work", lambda run, console: None)
    given = ("--eps", "0.25", "--set", "weights_lr=0.1", "--updates", "independent", "--combine", "logits")
    configs = []
    for name in ("first", "again"):
        path = mixture(tmp_path, name, *given)
        configs.append(json.loads((path / "config.json").read_text()))
        given = tuple(shlex.split(configs[-1]["command"])[2:])
    assert configs[0] == configs[1]
    assert configs[0]["mixture"]["combine"] == "logits"
    wanted = FitConfig(
        epochs=60, optimizer="adam", lr=0.003, eps=0.25, weights_lr=0.1, updates="independent",
        test_eps=(0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0),
    )  # fmt: skip
    assert FitConfig.from_json(configs[0]["fit"]) == wanted
    assert configs[0]["fit"]["test_eps"] == [*asdict(wanted)["test_eps"]]


def test_training_that_stops_is_said(tmp_path: Path) -> None:
    options = ("--optimizer", "sgd", "--lr", "1e30", "--epochs", "1", "--members", "2", "--runs-dir", str(tmp_path))
    result = sparring("mixture", *options, "--name", "main")
    assert result.exit_code == 1
    assert "Training stopped: the loss was not finite in epoch 1" in result.output
    assert (tmp_path / "main" / "report.html").exists()
    result = sparring("mixture", *options, "--name", "before", "--pretrain-epochs", "1")
    assert "pretraining stopped: the loss was not finite in epoch 1" in message(result)
    assert not (tmp_path / "before" / "pretrained.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--attack", "newton"), "attack is 'newton': accepted are 'none', 'fgsm'"),
        (("--attack", "pgd", "--set", 'attack_options={"stepz": 3}'), "unexpected keyword argument 'stepz'"),
        (("--attack", "pgd", "--set", "attack_options=3"), "--attack pgd with --set attack_options"),
        (("--combine", "sums"), "--combine sums: give one of probs, logits"),
        (("--updates", "none"), "updates is 'none'"),
        (("--alpha", "2"), "alpha is 2.0"),
        (("--data", "imagenet"), "imagenet"),
        (("--data", "mnist", "--data-dir", "/nowhere"), "/nowhere"),
        (("--device", "toaster"), "--device toaster"),
        (("--model", "transformer"), "give one of mlp"),
        (("--model", "model1"), "H and W at least 27"),
        (("--set", "speed=3"), "--set speed=3: give FIELD=VALUE, FIELD one of epochs, batch_size"),
        (("--set", "eps=.5", "--eps", "0.3"), "--set eps=.5: eps is given twice"),
        (("--set", "lr=fast"), "--set lr=fast: a value is of the wrong kind"),
        (("--pretrained", "nothing.safetensors"), "nothing.safetensors"),
        (("--pretrained", "x", "--pretrain-epochs", "2"), "leave out --pretrain-epochs"),
        (("--resume",), "there is no run in"),
        (("--resume", "--seed", "1"), "leave out --seed"),
        (("--resume", "--name", "absent"), "is not a run"),
    ],
)
def test_users_mistakes_are_said_in_a_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    result = sparring("mixture", "--runs-dir", str(tmp_path / "runs"), *arguments)
    assert expected in message(result)
    assert not (tmp_path / "runs").exists()


def test_members_that_do_not_fit_are_refused(whole: Path, tmp_path: Path) -> None:
    file = whole / "pretrained.safetensors"
    options = ("mixture", "--runs-dir", str(tmp_path / "runs"), "--pretrained")
    assert f"--members 4: {file} holds 3" in message(sparring(*options, str(file), "--members", "4"))
    assert "not an ensemble of such networks" in message(sparring(*options, str(file), "--model", "cnn"))
    assert "not an ensemble" in message(sparring(*options, str(whole / "weights.safetensors")))
    assert not (tmp_path / "runs").exists()


def test_run_of_another_command_is_not_resumed(whole: Path) -> None:
    runs = ("--runs-dir", str(whole.parent), "--name", "whole")
    assert "not a run of `sparring retrain`" in message(sparring("retrain", "--resume", *runs))


def test_help_names_every_group() -> None:
    result = sparring("mixture", "--help")
    assert result.exit_code == 0
    for part in ("Run", "Data and network", "Mixture", "Attack", "Training", "Examples", "mlp", "model1"):
        assert part in result.output
