from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparring import data
from sparring.networks import build
from test_cli import command, message, sparring

SOURCE = Path(os.environ.get("SPARRING_SOURCE", Path(__file__).parents[1]))

NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

class Sized(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))

class Wide(nn.Sequential):
    def __init__(self, classes, width):
        super().__init__()

class Normalised(Net):
    def forward(self, x):
        return super().forward(x * 0.5 + 0.25)

def number():
    return 3
"""

# in the order of the help, which is also that of the command in the report
TINY = ("--images", "40", "--attacks", "noise,fgsm,pgd", "--norm", "Linf,L2", "--eps", "0.1,0.5", "--threads", "1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of the digits by their class means, and beside it the file that says how it is built."""
    folder = tmp_path_factory.mktemp("model")
    train = data.load("digits", split="train")
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(10)])
    save_file({"1.weight": means, "1.bias": -means.square().sum(1) / 2}, folder / "net.safetensors")
    (folder / "net.py").write_text(NET)
    return folder / "net.safetensors"


def net(weights: Path, name: str = "Net") -> tuple[str, ...]:
    return str(weights), "--arch", f"{weights.parent / 'net.py'}:{name}"


@pytest.fixture(scope="module")
def done(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished audit: its folder and what was printed."""
    runs = tmp_path_factory.mktemp("runs")
    result = sparring("audit", *net(weights), *TINY, "--runs-dir", str(runs))
    assert result.exit_code == 0, result.output
    return runs / "audit-1", result.output


def test_run_folder_is_complete(done: tuple[Path, str], weights: Path) -> None:
    path, _ = done
    assert {file.name for file in path.iterdir()} == {
        "config.json", "results.json", "examples.safetensors", "figures", "report.html",
    }  # fmt: skip
    results = json.loads((path / "results.json").read_text())
    names = [(attack["name"], attack["norm"], attack["eps"]) for attack in results["attacks"]]
    assert names == [(n, norm, eps) for norm, eps in (("Linf", 0.1), ("L2", 0.5)) for n in ("noise", "fgsm", "pgd")]
    assert results["images"] == 40
    assert 0.8 < results["clean"]["accuracy"] <= 1
    assert results["worst_case"][0]["accuracy"] < results["clean"]["accuracy"]
    config = json.loads((path / "config.json").read_text())
    assert config["command"] == shlex.join(["sparring", "audit", *net(weights), *TINY])
    assert config["weights"]["file"] == str(weights)
    tensors = load_file(path / "examples.safetensors")
    fooled = results["attacks"][1]["fooled_examples"]
    assert tensors["1/fooled"].nonzero()[:, 0].tolist() == fooled == results["attacks"][1]["fooled_examples"]
    assert tensors["robust"].shape == (40,)
    images = tensors["1/examples/images"]
    assert len(images) > 0
    assert (images - data.load("digits", split="test").images[tensors["1/examples/index"]]).abs().max() <= 0.5


def test_table_and_verdict_are_printed(done: tuple[Path, str]) -> None:
    path, output = done
    results = json.loads((path / "results.json").read_text())
    lines = output.strip().splitlines()
    assert lines[-2] == results["verdict"]
    assert results["verdict"].endswith("40 images, 6 attacks")
    assert lines[-1] == f"Report: {path / 'report.html'}"
    assert sum(line.startswith("worst case") for line in lines) == 2


def test_report_can_be_read_everywhere(done: tuple[Path, str]) -> None:
    from test_report import Page

    path, _ = done
    page = Page((path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    texts = [image["alt"] or "" for image in page.images]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts) == len(list((path / "figures").glob("*.png"))) == 8
    titles = ("Robust accuracy", "Attack by attack", "Class by class", "The images", "Would more steps", "How it was")
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    worst = json.loads((path / "results.json").read_text())["worst_case"][0]["accuracy"]
    assert f"{100 * worst:.1f} % (Linf, eps 0.1)" in page.text


@pytest.fixture(scope="module")
def from_both_sides(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An audit with brackets."""
    runs = tmp_path_factory.mktemp("brackets")
    options = ("--images", "12", "--attacks", "fgsm", "--norm", "L2,L1", "--eps", "0.5,3", "--bracket")
    result = sparring("audit", *net(weights), *options, "--threads", "1", "--runs-dir", str(runs))
    assert result.exit_code == 0, result.output
    return runs / "audit-1", result.output


def test_an_audit_from_both_sides(from_both_sides: tuple[Path, str]) -> None:
    path, output = from_both_sides
    results = json.loads((path / "results.json").read_text())
    assert [one["norm"] for one in results["brackets"]] == ["L2", "L1"]
    tensors = load_file(path / "examples.safetensors")
    right = tensors["predictions"] == tensors["labels"]
    for norm in ("L2", "L1"):
        lower, upper = tensors[f"bracket/{norm}/lower"], tensors[f"bracket/{norm}/upper"]
        assert lower.dtype is upper.dtype is torch.float64
        assert bool((lower[right] < upper[right]).all())
        assert upper[~right].tolist() == [0.0] * int((~right).sum())
        fooled = tensors["0/fooled"] if norm == "L2" else tensors["1/fooled"]
        assert bool((upper[fooled] <= (0.5 if norm == "L2" else 3.0) * (1 + 1e-5)).all())
        assert f"{norm}: median between" in output
    assert json.loads((path / "config.json").read_text())["audit"]["bracket"] == ["L2", "L1"]
    assert "--bracket" in json.loads((path / "config.json").read_text())["command"]


def test_the_report_of_both_sides(from_both_sides: tuple[Path, str]) -> None:
    from test_report import Page

    path, _ = from_both_sides
    page = Page((path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.text.index("Attack by attack") < page.text.index("From both sides") < page.text.index("Class by class")
    assert {"bracket_L2.png", "bracket_images_L1.png"} <= {file.name for file in (path / "figures").iterdir()}


def test_brackets_are_of_norms_with_certified_radii() -> None:
    from sparring.cli.audit import _sides

    assert _sides("L0,L2", {"L0": [3.0], "L2": [1.0]}) == ["L2"]
    with pytest.raises(ValueError, match=r"--bracket: there are brackets in L2, L1, Linf, but --norm is L0"):
        _sides("L0", {"L0": [3.0]})


def test_report_is_rendered_again(done: tuple[Path, str]) -> None:
    path, _ = done
    before = (path / "report.html").read_text()
    (path / "report.html").unlink()
    assert sparring("report", str(path)).exit_code == 0
    assert (path / "report.html").read_text() == before


def test_same_command_same_numbers(done: tuple[Path, str], weights: Path) -> None:
    path, _ = done
    assert sparring("audit", *net(weights), *TINY, "--runs-dir", str(path.parent)).exit_code == 0

    def numbers(path: Path) -> dict[str, Any]:
        results = json.loads((path / "results.json").read_text())
        return {**results, "attacks": [{**attack, "seconds": 0} for attack in results["attacks"]]}

    assert numbers(path.parent / "audit-2") == numbers(path)


def test_existing_run_is_never_touched(done: tuple[Path, str], weights: Path) -> None:
    path, _ = done
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    result = sparring("audit", *net(weights), *TINY, "--runs-dir", str(path.parent), "--name", path.name)
    assert "exists already" in message(result)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_an_audit_is_not_resumed_as_retraining(done: tuple[Path, str]) -> None:
    path, _ = done
    runs = ("--runs-dir", str(path.parent))
    assert "there is no run in" in message(sparring("retrain", "--resume", *runs))
    assert "not a run of `sparring retrain`" in message(sparring("retrain", "--resume", *runs, "--name", path.name))


def test_class_that_needs_the_number_of_classes(weights: Path, tmp_path: Path) -> None:
    only = ("--images", "10", "--attacks", "fgsm", "--norm", "Linf", "--worst-case", "--runs-dir", str(tmp_path))
    result = sparring("audit", *net(weights, "Sized"), *only, "--name", "sized")
    assert result.exit_code == 0, result.output
    assert "(Linf, eps 0.3, 10 images, 1 attack)" in result.output
    assert " --worst-case" in json.loads((tmp_path / "sized" / "config.json").read_text())["command"]


def test_preprocessing_stands_before_the_network(weights: Path, tmp_path: Path) -> None:
    only = ("--images", "40", "--attacks", "fgsm", "--norm", "Linf", "--eps", "1/10", "--runs-dir", str(tmp_path))
    sparring("audit", *net(weights), *only, "--name", "plain")
    sparring("audit", *net(weights, "Normalised"), *only, "--preprocessing", "0.5,2", "--name", "wrong")
    sparring("audit", *net(weights, "Normalised"), *only, "--preprocessing", "0.5, 0.5", "--name", "half")
    results = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "wrong", "half")}
    # x -> (x - .5) / .5 -> 2 x - 1 -> x - .25: not the plain network's input, nor that of another deviation
    assert results["half"]["worst_case"] != results["wrong"]["worst_case"]
    assert results["plain"]["clean"]["accuracy"] > results["wrong"]["clean"]["accuracy"]


def test_built_in_network(tmp_path: Path) -> None:
    save_file(build("mlp", (1, 8, 8), 10).state_dict(), tmp_path / "mlp.safetensors")
    only = ("--images", "20", "--attacks", "pgd", "--norm", "2", "--runs-dir", str(tmp_path / "runs"))
    result = sparring("audit", str(tmp_path / "mlp.safetensors"), "--arch", "mlp", *only)
    assert result.exit_code == 0, result.output
    assert "(L2, eps 2, 20 images, 1 attack)" in result.output


def test_several_eps(weights: Path, tmp_path: Path) -> None:
    only = (
        "--images",
        "30",
        "--attacks",
        "fgsm",
        "--norm",
        "Linf",
        "--eps",
        "0.02,.1,.05",
        "--runs-dir",
        str(tmp_path),
    )
    result = sparring("audit", *net(weights), *only)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "audit-1" / "results.json").read_text())
    small, large, middle = (case["accuracy"] for case in results["worst_case"])
    assert small > middle > large
    page = (tmp_path / "audit-1" / "report.html").read_text()
    assert f"{100 * large:.1f} % at 0.1." in page
    assert "at most 0.02, 0.1 or 0.05 (Linf)" in page
    assert (tmp_path / "audit-1" / "figures" / "eps_Linf.png").exists()


def test_masked_gradients_are_named(tmp_path: Path) -> None:
    network = build("mlp", (1, 8, 8), 10)
    saturated = {name: value * 1e6 for name, value in network.state_dict().items()}
    save_file(saturated, tmp_path / "hot.safetensors")
    options = ("--attacks", "pgd", "--norm", "Linf", "--eps", "0.001", "--runs-dir", str(tmp_path / "runs"))
    result = sparring("audit", str(tmp_path / "hot.safetensors"), "--arch", "mlp", *options)
    assert result.exit_code == 0, result.output
    assert "Warning: gradients are likely masked" in result.output
    assert "Gradients are likely masked" in (tmp_path / "runs" / "audit-1" / "report.html").read_text()


@pytest.mark.parametrize(("options", "expected"), [
    (("--attacks", "fgms"), "there is no 'fgms'"),
    (("--attacks", "slide", "--norm", "L2"), "works in L1: give eps"),
    (("--norm", "L3"), "--norm L3: norm is 'L3'"),
    (("--norm", "L1,1"), "each pair once"),
    (("--norm", "L1", "--eps", "2,2.0"), "each pair once"),
    (("--norm", "L1,L2", "--eps", "1,2,3"), "--eps 1,2,3: 3 numbers for 2 norms (L1, L2)"),
    (("--eps", "0.3"), "--eps 0.3: 1 numbers for 3 norms"),
    (("--norm", "L1", "--eps", "much"), "'much' is no number"),
    (("--norm", "L1", "--eps", "-1"), "eps is -1"),
    (("--preprocessing", "0.5"), "--preprocessing 0.5: 1 numbers"),
    (("--preprocessing", "0.5,0"), "std must be positive"),
    (("--data", "imagenet"), "imagenet"),
    (("--data", "mnist", "--data-dir", "/nowhere"), "/nowhere"),
    (("--device", "toaster"), "--device toaster"),
        (("--device", "meta"), "--device meta: tensors there have no values"),
    (("--name", "../up"), "cannot be a run's name"),
])  # fmt: skip
def test_mistakes_are_said_in_a_line(weights: Path, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    runs = tmp_path / "runs"
    assert expected in message(sparring("audit", *net(weights), "--images", "20", "--runs-dir", str(runs), *options))
    assert not runs.exists() or not list(runs.iterdir())


def test_unfitting_networks_and_weights(weights: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        return message(sparring("audit", *arguments, "--runs-dir", str(tmp_path / "runs")))

    arch = f"{weights.parent / 'net.py'}"
    file = str(weights)
    assert "there is no file" in refused(str(tmp_path / "none.safetensors"), "--arch", f"{arch}:Net")
    assert "there is no file" in refused(file, "--arch", "none.py:Net")
    assert "has no class or function Missing" in refused(file, "--arch", f"{arch}:Missing")
    assert "--arch transformer: give one of mlp" in refused(file, "--arch", "transformer")
    assert "needs classes, width" in refused(file, "--arch", f"{arch}:Wide")
    assert "made a int; wanted is a torch.nn.Module" in refused(file, "--arch", f"{arch}:number")
    text = refused(file, "--arch", "mlp")
    assert "the file lacks linear1.weight, linear1.bias" in text
    assert "the network lacks 1.bias, 1.weight" in text
    save_file(build("mlp-300-100", (1, 8, 8), 10).state_dict(), tmp_path / "other.safetensors")
    text = refused(str(tmp_path / "other.safetensors"), "--arch", "mlp")
    assert "linear1.weight (file (300, 64), network (128, 64))" in text
    assert "they fit --arch mlp-300-100" in text
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert "not a complete safetensors file with weights" in refused(
        str(tmp_path / "broken.safetensors"), "--arch", "mlp"
    )


def test_pickles_are_refused_and_the_way_out_works(weights: Path, tmp_path: Path) -> None:
    torch.save(load_file(weights), tmp_path / "net.pt")
    text = message(sparring("audit", str(tmp_path / "net.pt"), *net(weights)[1:], "--runs-dir", str(tmp_path)))
    assert "only safetensors files are read" in text
    convert = shlex.split(text.split("once: ")[1])
    assert convert[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *convert[1:]], check=True)
    converted = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(value, converted[name]) for name, value in load_file(weights).items())


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_interrupted_audit_leaves_no_folder(weights: Path, tmp_path: Path) -> None:
    slow = ("--attacks", "apgd-dlr", "--images", "0", "--norm", "Linf", "--eps", "0.0001", "--batch-size", "1")
    arguments = command("audit", *net(weights), *slow, "--runs-dir", str(tmp_path / "runs"))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/audit-1/config.json")):
        assert process.poll() is None, "it ended before it was stopped"
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert not list((tmp_path / "runs").iterdir())


def test_example_and_the_command_that_it_names(tmp_path: Path) -> None:
    example = SOURCE / "examples" / "audit_your_model.py"
    printed = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    assert "robust accuracy" in printed
    assert "(Linf, eps 0.1, 100 images, 5 attacks)" in printed
    only = ("--images", "20", "--attacks", "fgsm", "--norm", "Linf", "--runs-dir", str(tmp_path / "runs"))
    result = sparring("audit", str(tmp_path / "digits_net.safetensors"), "--arch", f"{example}:DigitsNet", *only)
    assert result.exit_code == 0, result.output


def test_help_has_every_group_and_examples() -> None:
    result = sparring("audit", "--help")
    assert result.exit_code == 0
    for part in ("Run", "Data and network", "Attacks", "Examples"):
        assert part in result.output


def test_audit_without_results_has_no_report(done: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((done[0] / "config.json").read_text())
    assert "did not come to its end" in message(sparring("report", str(tmp_path)))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"x = 1\ndef (:\n", "net.py, line 2: SyntaxError: invalid syntax"),
        (b"x = '\xff'\n", "net.py"),
        (b"import sys\n\nsys.exit(0)\n", "net.py, line 3: SystemExit: 0"),
        (b"class Net:\n    def __init__(self):\n        raise SystemExit\n", "net.py, line 3: SystemExit"),
        (b"def no():\n    raise ValueError('no')\nno()\n", "net.py, line 2: ValueError: no"),
        (b"open('/nowhere')\n", "net.py, line 1: FileNotFoundError"),
    ],
)
def test_a_users_file_that_refuses_is_named_with_its_line(code: bytes, said: str, tmp_path: Path) -> None:
    weights, net = tmp_path / "x.safetensors", tmp_path / "net.py"
    save_file({}, weights)
    net.write_bytes(code)
    error = message(sparring("audit", str(weights), "--arch", f"{net}:Net", "--runs-dir", str(tmp_path / "runs")))
    assert error.startswith(f"Error: --arch {net}:Net: {tmp_path}/{said}")


def test_other_errors_of_a_users_file_keep_their_traceback(tmp_path: Path) -> None:
    weights, net = tmp_path / "x.safetensors", tmp_path / "net.py"
    save_file({}, weights)
    net.write_text("1 / 0\n")
    result = sparring("audit", str(weights), "--arch", f"{net}:Net", "--runs-dir", str(tmp_path / "runs"))
    assert isinstance(result.exception, ZeroDivisionError)
