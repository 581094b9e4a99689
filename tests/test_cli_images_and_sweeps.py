from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from made_runs import make
from sparring.cli import app
from sparring.networks import build
from sparring.training import FoolingSet


def sparring(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def message(result: Result) -> str:
    """The error, checked to be one line with exit status 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def perceptron(seed: int) -> nn.Module:
    """For images of 6x6 and 4 classes; its weights are large, and so are its probabilities."""
    network = build("mlp", (1, 6, 6), 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "first.safetensors"
    save_file(perceptron(0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def made(weights: Path) -> Path:
    out = weights.parent / "made.safetensors"
    result = sparring(
        "images", "make", str(weights), "--arch", "mlp", "--shape", "1,6,6", "--classes", "4", "--count", "10",
        "--steps", "200", "--p-min", "0.5", "--s-max", "20", "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(out) in result.output.replace("\n", "")
    return out


def test_made_images_are_judged_and_in_both_files(made: Path, weights: Path) -> None:
    found = FoolingSet.load(made)
    assert found.targets.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert found.fooled == 1
    judged = found.judged_by(perceptron(0), p_min=0.5, s_max=20)
    torch.testing.assert_close(judged.prob, found.prob)
    assert len(made.with_suffix(".csv").read_text().splitlines()) == 11


def test_other_network_judges_for_itself(made: Path, tmp_path: Path) -> None:
    other = perceptron(7)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    out = tmp_path / "judged.safetensors"
    arguments = ["images", "judge", str(made), str(tmp_path / "other.safetensors"), "--arch", "mlp", "--outputs", "4"]
    result = sparring(*arguments, "--p-min", "0.5", "--out", str(out))
    assert result.exit_code == 0, result.output
    wanted = FoolingSet.load(made).judged_by(other, p_min=0.5, s_max=100)
    assert torch.equal(FoolingSet.load(out).prob, wanted.prob)
    assert torch.equal(FoolingSet.load(out).success, wanted.success)
    assert wanted.fooled < 1


def test_a_set_without_images_has_no_means(weights: Path, tmp_path: Path) -> None:
    none, path = torch.zeros(0, dtype=torch.int64), tmp_path / "empty.safetensors"
    FoolingSet(torch.zeros(0, 1, 6, 6), none, torch.zeros(0), none, none, none.bool()).save(path)
    result = sparring("images", "judge", str(path), str(weights), "--arch", "mlp", "--outputs", "4")
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout


def test_images_are_taken_out_of_a_run(tmp_path: Path) -> None:
    run, result = make(tmp_path)
    for options, wanted in (
        (["--kind", "fresh", "--generation", "2"], result.fresh_sets[1]),
        (["--kind", "final"], result.final),
    ):
        out = tmp_path / f"{options[1]}.safetensors"
        taken = sparring("images", "take", str(run.path), *options, "--out", str(out))
        assert taken.exit_code == 0, taken.output
        assert torch.equal(FoolingSet.load(out).images, wanted.images)
    out = tmp_path / "all.safetensors"
    sparring("images", "take", str(run.path), "--out", str(out))
    assert len(FoolingSet.load(out)) == sum(map(len, result.fresh_sets))
    assert "no images of the kind '6'" in message(
        sparring("images", "take", str(run.path), "--kind", "6", "--out", "6.safetensors")
    )
    late = sparring("images", "take", str(run.path), "--generation", "9", "--out", "9.safetensors")
    assert "--generation 9: of the kind 'fresh' there are 3" in message(late)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--shape", "28"), "--shape 28: give three whole numbers"),
        (("--method", "newton"), "name must be one of adam, prox, l1, evolution; got 'newton'"),
        (("--out", "images.bin"), "--out images.bin: give a file that ends in .safetensors"),
        (("--shape", "1,7,7"), "not the weights of --arch mlp"),
    ],
)
def test_users_mistakes_are_said_in_a_line(options: tuple[str, ...], expected: str, weights: Path) -> None:
    usual = {"--shape": "1,6,6", "--out": str(weights.parent / "new.safetensors"), "--arch": "mlp", "--classes": "4"}
    given = usual | dict([options])
    result = sparring("images", "make", str(weights), *(part for option in given.items() for part in option))
    assert expected in message(result)
    assert not (weights.parent / "new.safetensors").exists()


def test_existing_files_are_not_overwritten(made: Path, weights: Path) -> None:
    before = made.read_bytes()
    result = sparring("images", "make", str(weights), "--arch", "mlp", "--out", str(made))
    assert "replace it with --overwrite" in message(result)
    assert made.read_bytes() == before


NETWORK = ("--arch", "mlp", "--shape", "1,6,6", "--classes", "4", "--s-max", "20")


def test_sweep_over_the_weight_of_the_penalty(weights: Path, tmp_path: Path) -> None:
    """A weight so large that it outdoes any class leaves images black."""
    file = tmp_path / "sweep.csv"
    asked = ("--p-min", "0.999", "--s-max", "1")  # out of reach, so that no image stops early
    options = ("--method", "prox", "--values", "1,10000", "--count", "4", "--steps", "20", *asked, "--csv", str(file))
    result = sparring("sweep", "lambda", str(weights), *NETWORK, *options)
    assert result.exit_code == 0, result.output
    small, large = csv.DictReader(file.read_text().splitlines())
    assert [float(small["lam"]), float(large["lam"])] == [1, 10000]
    assert float(large["0/sparsity"]) == 0 < float(small["0/sparsity"])
    assert float(small["0/prob"]) > float(large["0/prob"])
    assert "lambda" in result.output
    again = sparring("sweep", "lambda", str(weights), *NETWORK, *options)
    assert f"--csv {file}: the file exists already" in message(again)


def test_sweep_over_batch_sizes(weights: Path, tmp_path: Path) -> None:
    file, threads = tmp_path / "sizes.csv", torch.get_num_threads()
    options = ("--values", "2,8", "--p-min", "0.5", "--threads", "1", "--csv", str(file))
    result = sparring("sweep", "batch-size", str(weights), *NETWORK, *options)
    assert result.exit_code == 0, result.output
    records = list(csv.DictReader(file.read_text().splitlines()))
    assert [record["batch_size"] for record in records] == ["2", "8"]
    assert all(record["images"] == "8" and float(record["seconds"]) > 0 for record in records)
    assert records[0]["yield"] == records[1]["yield"]  # an image's path does not depend on the batch
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("lambda", "--values", "1,none"), "--values 1,none: give positive numbers"),
        (("lambda", "--method", "l1"), "method must be 'adam' or 'prox'"),
        (("lambda", "--method", "newton"), "got 'newton'"),
        (("batch-size", "--values", "2.5"), "--values 2.5: give positive whole numbers"),
        (("batch-size", "--method", "newton"), "got 'newton'"),
    ],
)
def test_mistakes_in_sweeps_are_said_in_a_line(options: tuple[str, ...], expected: str, weights: Path) -> None:
    command, *others = options
    assert expected in message(sparring("sweep", command, str(weights), *NETWORK, *others))
