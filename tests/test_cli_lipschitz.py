from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparring import data
from sparring.lipschitz import layer_bounds
from sparring.networks import build
from test_cli import message, sparring

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, outputs))

class Jumping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 6), nn.Hardshrink())

def number():
    return 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's file, and its weights in three formats."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "net.py").write_text(NET)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    save_file(network.state_dict(), folder / "net.safetensors")
    torch.save(network.state_dict(), folder / "net.pt")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "checkpoint.pth")
    return folder


def loaded(folder: Path) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    network.load_state_dict(torch.load(folder / "net.pt", weights_only=True))
    return network


@pytest.mark.parametrize("file", ["net.safetensors", "net.pt", "checkpoint.pth"])
def test_table_of_a_network_of_the_users(folder: Path, file: str) -> None:
    network = f"{folder / 'net.py'}:Net"
    result = sparring("lipschitz", network, "--weights", str(folder / file), "--input-shape", "1,8,8")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == layer_bounds(loaded(folder), (1, 8, 8)).table()
    assert "LipSDP of 1 to 3" in result.stdout


@pytest.mark.parametrize("file", ["net.safetensors", "net.pt", "checkpoint.pth"])
def test_table_of_weights_alone(folder: Path, file: str) -> None:
    result = sparring("lipschitz", str(folder / file))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == layer_bounds(loaded(folder).state_dict()).table()
    assert "Of the weights alone" in result.stdout


def test_images_give_a_lower_bound_and_a_shape(folder: Path, tmp_path: Path) -> None:
    result = sparring(
        "lipschitz", f"{folder / 'net.py'}:Net", "--weights", str(folder / "net.pt"), "--data", "digits",
        "--images", "7", "--out", str(tmp_path / "bounds.json"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    images = data.load("digits", split="test").images[:7]
    expected = layer_bounds(loaded(folder), (1, 8, 8), data=images)
    assert "largest Jacobian found" in result.stdout
    written = json.loads((tmp_path / "bounds.json").read_text())
    assert written["lower"] == expected.lower
    assert written["upper"] == expected.upper
    assert [layer["name"] for layer in written["layers"]] == [layer.name for layer in expected.layers]
    assert "random" not in result.stdout


def test_a_built_in_network_has_random_weights(tmp_path: Path) -> None:
    arguments = ("lipschitz", "mlp", "--input-shape", "1,6,6", "--classes", "4", "--threads", "1")
    before = torch.get_num_threads()
    result = sparring(*arguments, "--out", str(tmp_path / "bounds.csv"))
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == before
    # What is proven of the chain depends in its last digits on the number of threads.
    table, _, _ = layer_bounds(build("mlp", (1, 6, 6), 4).eval(), (1, 6, 6)).table().partition("product of")
    assert table in result.stdout
    assert "weights are random (seed 0)" in result.stdout
    with (tmp_path / "bounds.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["name"] for row in rows if row["shape"]] == ["linear1", "linear2", "linear3"]
    assert float(rows[1]["upper"]) >= float(rows[1]["lower"]) > 0
    other = sparring(*arguments, "--seed", "1", "--estimate", "--tol", "0.01")
    assert "upper ends are estimates" in other.stdout
    assert other.stdout.split("\n")[2] != result.stdout.split("\n")[2]


def test_what_is_refused_is_said(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bounds.json"
    result = sparring("lipschitz", f"{folder / 'net.py'}:Jumping", "--input-shape", "1,8,8", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "2: Hardshrink: jumps" in result.stdout
    written = json.loads(out.read_text())
    assert written["product"] is None  # JSON has no infinity
    assert written["refused"] == [{"name": "2", "reason": "Hardshrink: jumps"}]


class Code:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    torch.save({"weight": Code(tmp_path / "made")}, tmp_path / "code.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "text.pt").write_text("no")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("nothing",), "MODEL nothing: give one of mlp"),
        ((f"{folder / 'net.py'}:number",), "made a int; wanted is a torch.nn.Module"),
        (("mlp", "--weights", str(tmp_path / "absent.pt")), "there is no file"),
        (("mlp", "--weights", str(folder / "net.pt")), "not the weights of mlp: Missing key"),
        (("mlp", "--input-shape", "28,28"), "--input-shape 28,28: give three whole numbers"),
        (("mlp", "--input-shape", "3,8,8", "--data", "digits"), "is not that of digits"),
        (("mlp", "--tol", "0"), "tol"),
        (("mlp", "--out", str(tmp_path / "bounds.txt")), "ends in .csv or .json"),
        ((str(folder / "net.pt"), "--data", "digits"), "holds weights alone: leave out --data"),
        ((str(tmp_path / "code.pt"),), "holds more than tensors"),
        ((str(tmp_path / "list.pt"),), "holds no state_dict"),
        ((str(tmp_path / "text.safetensors"),), "not a complete safetensors file"),
        ((str(tmp_path / "text.pt"),), "holds more than tensors, or is no file that torch saved"),
    ]
    for arguments, expected in cases:
        assert expected in message(sparring("lipschitz", *arguments)), arguments
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(20)
def test_files_without_usable_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"bias": torch.zeros(3)}, path)
    assert f"{path}: model is a state dict without a weight" in message(sparring("lipschitz", str(path)))
    path.unlink()
    os.mkfifo(path)
    for arguments in (("lipschitz", str(path)), ("lipschitz", "mlp", "--weights", str(path))):
        assert message(sparring(*arguments)) == f"Error: {path}: expected a file, but it is a named pipe"


def test_help_names_its_parts() -> None:
    result = sparring("lipschitz", "--help")
    assert result.exit_code == 0
    for part in ("alexnet", "--weights", "--input-shape", "--tol", "--estimate", "--out", "Examples"):
        assert part in result.stdout
