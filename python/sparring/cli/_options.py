"""Options that commands on a network and its fooling images share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="File of the weights.", show_default=False)]
Arch = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE:CLASS",
        help="The network: one of sparring.networks (mlp, cnn, lenet5, ...), or a class in a Python file.",
        show_default=False,
    ),
]
Shape = Annotated[str, typer.Option(metavar="C,H,W", help="Shape of an image.")]
Classes = Annotated[int, typer.Option(min=1, help="Targets are so many classes, in turn.")]
Outputs = Annotated[
    int | None,
    typer.Option(min=1, help="Outputs of the network, if more than its classes.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="All randomness follows from it.")]
PMin = Annotated[float, typer.Option(help="An image qualifies from this p(target) on ...")]
SMax = Annotated[int, typer.Option(min=1, help="... with at most so many entries above black.")]


def image_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"--shape {text}: give three whole numbers C,H,W, such as 1,28,28")
    return shape
