"""A report: one HTML file with everything inside it, and its figures as PNG files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparring import _files, figures
from sparring.figures import DARK, LIGHT, Theme
from sparring.runs import RunError, content

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Theme], "Figure"]

SMALL_DPI, SMALL_COLOURS = 110, 64


@dataclass(frozen=True)
class Picture:
    """A figure in the report: a file name, a title, a line of text, what it shows in words, and how it is drawn.

    One that is `wide` has a row of the page to itself.
    """

    file: str
    title: str
    text: str
    alt: str
    draw: Draw
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table in the report: its head, its lines, and which of them (counted from 0) stand out.

    The first column names the line; the columns `words` (counted from 0) are flush left, the others right.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    words: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A headed part of the report."""

    number: str
    title: str
    text: str
    pictures: Sequence[Picture]
    table: Table | None = None


@dataclass(frozen=True)
class Tile:
    """A number at the top of the report; `small` stands below it."""

    label: str
    value: str
    small: str = ""


@dataclass(frozen=True)
class Summary:
    """The top of the report, which says the verdict first, and its foot: the command, and tables of settings."""

    what: str
    headline: str
    good: bool
    lead: str
    caveat: str
    tiles: Sequence[Tile]
    command: str
    tables: Sequence[dict[str, Any]]
    warnings: Sequence[str] = ()


def write(run: Path, summary: Summary, sections: Sequence[Section], *, small: bool = False) -> Path:
    """Write report.html into the folder of a run, and its figures; return the path of report.html.

    With `small` the figures have fewer pixels and colours.
    """
    from jinja2 import Environment, StrictUndefined

    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    parts = [(section, [(p, _drawn(p, folder, small)) for p in section.pictures]) for section in sections]
    source = files("sparring").joinpath("templates").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    page = template.render(name=run.resolve().name, parts=parts, summary=summary)
    _files.write(run / "report.html", page)
    return run / "report.html"


def _drawn(picture: Picture, folder: Path, small: bool) -> dict[str, str]:
    """The figure as a data URL for each theme; the light one is saved in the folder too."""
    images = {}
    for theme in (LIGHT, DARK):
        content = _png(picture.draw(theme), small)
        images[theme.name] = "data:image/png;base64," + base64.b64encode(content).decode()
        if theme is LIGHT:
            _files.write(folder / f"{picture.file}.png", content)
    return images


def _png(figure: Figure, small: bool) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=SMALL_DPI if small else figures.DPI, metadata={"Software": None})
    if small:
        drawn = Image.open(buffer).convert("RGB").quantize(SMALL_COLOURS, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        drawn.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def as_picture(image: torch.Tensor) -> np.ndarray:
    """An image (C, H, W) as (H, W), or (H, W, 3) if it has colours."""
    picture: np.ndarray = image.float().clamp(0, 1).movedim(0, -1).numpy()
    return picture if picture.shape[-1] == 3 else picture.mean(-1)


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of a run, none if it is not there; RunError if it is damaged."""
    from safetensors import SafetensorError

    try:
        return _files.unpacked(content(path)) if path.exists() else {}
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}") from error
