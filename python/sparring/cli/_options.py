"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN, DATA, TRAINING = "Run", "Data and network", "Training"  # panels of the help of commands that make runs

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

RunsDir = Annotated[Path, typer.Option(help="Folder that holds the runs.", rich_help_panel=RUN)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run --name, by default with the last one, from its last checkpoint. Ends with the "
        "same bits as without the interruption.",
        rich_help_panel=RUN,
    ),
]
RunSeed = Annotated[
    int | None, typer.Option(help="All randomness follows from it. [dim]default: 0[/dim]", rich_help_panel=RUN)
]
Device = Annotated[
    str, typer.Option(help="Where to work, such as cpu or cuda; it has to be there.", rich_help_panel=RUN)
]
Data = Annotated[
    str,
    typer.Option(metavar="digits|mnist|mnist-non-sparse|cifar10", help="Real images.", rich_help_panel=DATA),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data's files, which CIFAR-10 needs; by default MNIST is downloaded.",
        rich_help_panel=DATA,
    ),
]
RealImages = Annotated[int | None, typer.Option(help="Training images to use; 0: all.", rich_help_panel=DATA)]


def image_shape(text: str, option: str = "--shape") -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{option} {text}: give three whole numbers C,H,W, such as 1,28,28")
    return shape
