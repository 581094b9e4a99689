"""The command `sparring lipschitz`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparring import _files
from sparring._text import visible
from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _options as options
from sparring.cli import _weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparring.lipschitz import LipschitzReport

DATA, BOUNDS = "Data and network", "Bounds"

HELP = (
    "Bound how far a network's output can move for a move of its input: each layer's norm, enclosed and proven, and "
    "what follows for the whole."
)

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring lipschitz alexnet[/cyan]
      AlexNet with random weights, for images of 224 x 224

  [cyan]sparring lipschitz mlp-300-100 --weights weights.safetensors --data mnist --images 200[/cyan]
      a built-in network with your weights, and the largest Jacobian over 200 images to compare with

  [cyan]sparring lipschitz net.py:Net --weights weights.safetensors --input-shape 3,32,32 --out bounds.json[/cyan]
      a network of yours: Net() or Net(outputs) has to make it

  [cyan]sparring lipschitz resnet50.pth --out bounds.csv[/cyan]
      weights alone, whatever network they are of: each layer's bound holds for every stride and size of image
"""


def lipschitz(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE:CLASS|WEIGHTS",
            help="The network: one of sparring.networks (mlp, cnn, alexnet, ...), or a class in a Python file; or a "
            "file of weights alone.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The network's weights: safetensors, or a state_dict that torch saved. [dim]default: random[/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W",
            help="Shape of an image. [dim]default: that of the data, or 3,224,224 for alexnet, or 1,28,28[/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Outputs of the network. [dim]default: classes of the data, or 1000 for alexnet, or 10[/dim]",
            rich_help_panel=DATA,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="digits|mnist|mnist-non-sparse|cifar10",
            help="Test images, for the largest Jacobian found: what the constant is at least.",
            rich_help_panel=DATA,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    images: Annotated[int, typer.Option(min=1, help="So many of them, from the first.", rich_help_panel=DATA)] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.", rich_help_panel=DATA)] = 0,
    tol: Annotated[
        float, typer.Option(help="How close the ends of an enclosure should come.", rich_help_panel=BOUNDS)
    ] = 1e-6,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Leave out the proofs: faster.", rich_help_panel=BOUNDS)
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. [dim]default: torch's choice[/dim]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv|FILE.json", help="Write the table there as well.")
    ] = None,
) -> None:
    """See `HELP`."""
    import torch

    from sparring.lipschitz import layer_bounds
    from sparring.networks import NETWORKS

    with ending.users_errors(), common.threads_restored():
        if out is not None and out.suffix not in (".csv", ".json"):
            raise ValueError(f"--out {out}: give a file that ends in .csv or .json")
        if out is not None:
            common.check_out("--out", out, overwrite=True)
        torch.set_num_threads(threads or torch.get_num_threads())
        if Path(model).is_file() or (model not in NETWORKS and os.path.lexists(model)):
            if given := [name for name, value in (("--weights", weights), ("--data", data)) if value is not None]:
                raise ValueError(f"{model} holds weights alone: leave out {', '.join(given)}, or name a network")
            tensors = _state_dict(Path(model))
            try:
                report = layer_bounds(tensors, tol=tol, certified=not estimate)
            except ValueError as error:
                raise ValueError(f"{model}: {error}") from None
        else:
            shape = None if input_shape is None else options.image_shape(input_shape, "--input-shape")
            inputs, shape, classes = _inputs(model, data, data_dir, images, shape, classes)
            network = _network(model, weights, shape, classes, seed)
            report = layer_bounds(network, shape, tol=tol, certified=not estimate, data=inputs)
        typer.echo("\n".join(map(visible, report.table().split("\n"))))  # a file may name layers as it likes
        if weights is None and not Path(model).is_file():
            typer.echo(f"\nThe weights are random (seed {seed}): give --weights for a trained network.")
        if out is not None:
            _write(report, out)


def _inputs(
    model: str,
    data: str | None,
    data_dir: Path | None,
    images: int,
    shape: tuple[int, ...] | None,
    classes: int | None,
) -> tuple[Tensor | None, tuple[int, ...], int]:
    """Images if there are data, the shape of one, and the number of classes."""
    usual: tuple[tuple[int, ...], int] = ((3, 224, 224), 1000) if model == "alexnet" else ((1, 28, 28), 10)
    if data is None:
        return None, shape or usual[0], classes or usual[1]
    test = common.data_set(data, data_dir, "test")
    if shape not in (None, test.input_shape):
        raise ValueError(f"--input-shape {shape} is not that of {data}: {test.input_shape}")
    return test.images[:images], test.input_shape, classes or test.classes


def _network(model: str, weights: Path | None, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    network = _weights.make_network(model, shape, classes, "MODEL", seed).eval()
    if weights is not None:
        try:
            network.load_state_dict(_state_dict(weights))
        except RuntimeError as error:
            differences = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise ValueError(f"{weights}: not the weights of {model}: {differences}") from None
    return network


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; of one that torch saved, which is a pickle, nothing else is read."""
    import pickle

    import torch

    from sparring._loading import layout, readable, safetensors_file

    if not os.path.lexists(path):
        raise ValueError(f"there is no file {path}")
    readable(path)
    try:
        if path.suffix not in _weights.PICKLES:
            with safetensors_file(path, "weights") as file:
                return {name: file.get_tensor(name) for name in layout(file)}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise ValueError(f"{path} holds more than tensors, or is no file that torch saved") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state_dict")
    return found


def _write(report: LipschitzReport, out: Path) -> None:
    from sparring.lipschitz.report import COLUMNS

    rows = report.rows()
    if out.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        _files.write(out, text.getvalue())
        return
    found: dict[str, Any] = {
        "product": report.product, "upper": report.upper, "method": report.method, "certified": report.certified,
        "lower": report.lower, "refused": [{"name": name, "reason": reason} for name, reason in report.refused],
        "note": report.note, "layers": rows,
    }  # fmt: skip
    _files.write(out, json.dumps(_finite(found), indent=2) + "\n")


def _finite(value: Any) -> Any:
    """What JSON has no number for is null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
