"""The figures of a report. Each function returns a figure of its own; matplotlib's global state is not touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparring._text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[Sequence[float], Sequence[float]]

WIDTH = 4.4  # inches; a column of the report, and most of a phone's width, at the font's natural size
LEFT, RIGHT, BOTTOM = 0.66, 0.14, 0.5  # margins around the axes, in inches
LEGEND_ROW, LEGEND_COLUMNS = 0.22, 3
DPI = 180
DOTTED = 40  # so many points of a curve, at most, are marked


@dataclass(frozen=True)
class Theme:
    """Colours for one background; the series can be told apart with any kind of colour vision."""

    name: str
    paper: str
    ink: str
    faint: str
    grid: str
    series: tuple[str, ...]
    ramp: tuple[str, str, str]


LIGHT = Theme(
    "light",
    paper="#ffffff",
    ink="#1d2430",
    faint="#667085",
    grid="#e4e7ec",
    series=("#1f6feb", "#d9630f", "#0b8a7d", "#8a4fc7", "#7a869a", "#b8860b", "#c2346e"),
    ramp=("#f2f5fa", "#8fb8f6", "#123f8c"),
)
DARK = Theme(
    "dark",
    paper="#171c24",
    ink="#e8ecf3",
    faint="#98a3b5",
    grid="#2b3340",
    series=("#6aa5ff", "#ff9a52", "#3ecfbd", "#c195f5", "#98a3b5", "#e0b94a", "#ff86b4"),
    ramp=("#1d2430", "#2b63b8", "#a9cbff"),
)


def curves(
    theme: Theme,
    series: Mapping[str, Series],
    *,
    x: str,
    y: str,
    shares: bool = False,
    whole: bool = True,
    marks: Sequence[float] = (),
    level: tuple[str, float] | None = None,
    at: tuple[str, float] | None = None,
) -> Figure:
    """Lines, each named at the top; `marks` are vertical lines, `at` a named one, `level` a named horizontal one.

    `shares` are shown from 0 to 100 %; with `whole` the ticks along x are whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    entries = len(series) + (level is not None) + (at is not None)
    figure, axes = _axes(theme, 2.05, top=_legend_height(entries))
    for i, ((label, (xs, ys)), colour) in enumerate(zip(series.items(), theme.series, strict=False)):
        width = min(
            3.4, 1.6 + 0.9 * (len(series) - 1 - i)
        )  # where lines coincide, the wider one shows from under the narrower
        marker = "o" if len(xs) <= DOTTED else None
        axes.plot(xs, ys, color=colour, label=label, lw=width, marker=marker, ms=width + 1.6, clip_on=False, zorder=3)
    for mark in marks:
        axes.axvline(mark, color=theme.faint, lw=0.8, ls=(0, (1, 2.5)), zorder=1)
    if level is not None:
        axes.axhline(level[1], color=theme.faint, lw=1, ls=(0, (4, 3)), label=level[0], zorder=2)
    if at is not None:
        axes.axvline(at[1], color=theme.faint, lw=1.4, label=at[0], zorder=2)
    if shares:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len({value for xs, _ in series.values() for value in xs}) == 1:
        axes.set_xticks(next(iter(series.values()))[0])  # one point has no range to choose ticks from
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
    _legend(theme, axes)
    return figure


def bundle(theme: Theme, xs: np.ndarray, ys: np.ndarray, *, x: str, y: str, level: tuple[str, float]) -> Figure:
    """Many lines of one kind, `ys` (len(xs), lines); those that end highest and lowest are named, and so is `level`."""
    ends = {}
    if ys.shape[1] > 1:
        ends = {"largest at the end": int(ys[-1].argmax()), "smallest": int(ys[-1].argmin())}
    figure, axes = _axes(theme, 2.05, top=_legend_height(1 + len(ends)))
    for i in range(ys.shape[1]):
        if i not in ends.values():
            axes.plot(xs, ys[:, i], color=theme.series[0], lw=1, alpha=max(0.3, 1 / ys.shape[1]), zorder=2)
    for (label, i), colour in zip(ends.items(), theme.series[1:], strict=False):
        axes.plot(xs, ys[:, i], color=colour, lw=2, label=label, zorder=3)
    axes.axhline(level[1], color=theme.faint, lw=1, ls=(0, (4, 3)), label=level[0], zorder=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _legend(theme, axes)
    return figure


def band(
    theme: Theme,
    xs: Sequence[float],
    below: tuple[str, Sequence[float]],
    above: tuple[str, Sequence[float]],
    *,
    x: str,
    level: tuple[str, float] | None = None,
    dots: tuple[str, Series] | None = None,
) -> Figure:
    """Two named curves of shares with what lies between them, over a logarithmic axis; `dots` are named points."""
    figure, axes = _axes(theme, 2.05, top=_legend_height(2 + (level is not None) + (dots is not None), columns=2))
    axes.fill_between(xs, below[1], above[1], color=theme.series[0], alpha=0.16, lw=0, zorder=2)
    for (label, ys), colour in zip((below, above), (theme.series[2], theme.series[0]), strict=True):
        axes.plot(xs, ys, color=colour, label=label, lw=2, zorder=3)
    if level is not None:
        axes.axhline(level[1], color=theme.faint, lw=1, ls=(0, (4, 3)), label=level[0], zorder=2)
    if dots is not None:
        axes.plot(*dots[1], color=theme.series[1], label=dots[0], ls="", marker="o", ms=6, clip_on=False, zorder=4)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xscale("log")
    axes.set_xlim(xs[0], xs[-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel(x)
    _legend(theme, axes, columns=2)
    return figure


def spans(theme: Theme, low: np.ndarray, high: np.ndarray, *, names: tuple[str, str], x: str, y: str) -> Figure:
    """From `low` to `high` (N,), a line each, in ascending order of `high`, over a logarithmic axis.

    A low end of 0 begins at the foot of the figure, a high end of inf goes to its top.
    """
    order = np.lexsort((low, high))
    low, high = low[order], high[order]
    known = np.concatenate([low[(low > 0) & np.isfinite(low)], high[(high > 0) & np.isfinite(high)]])
    foot, top = (known.min() / 2, known.max() * 2) if len(known) else (0.1, 1.0)
    places = np.arange(1, len(low) + 1)
    figure, axes = _axes(theme, 2.05, top=_legend_height(2))
    width = max(0.6, min(5.0, 180 / max(1, len(low))))
    axes.vlines(
        places, np.clip(low, foot, top), np.clip(high, foot, top), color=theme.series[0], alpha=0.3, lw=width, zorder=2
    )
    for ends, label, colour in ((low, names[0], theme.series[2]), (high, names[1], theme.series[0])):
        shown = (ends > 0) & np.isfinite(ends)
        size = max(1.5, min(4.0, 200 / max(1, len(low))))
        if shown.any():
            axes.plot(places[shown], ends[shown], color=colour, label=label, ls="", marker="o", ms=size, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(foot, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlim(0, len(low) + 1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        _legend(theme, axes)
    return figure


def signed(theme: Theme, values: np.ndarray, largest: float) -> np.ndarray:
    """Values (H, W) as an image (H, W, 3): paper where 0, the first series' colour where `largest`, the second where
    -`largest`."""
    from matplotlib.colors import to_rgb

    share = np.clip(values / (largest or 1.0), -1, 1)[..., None]
    paper, above, below = (np.array(to_rgb(colour)) for colour in (theme.paper, *theme.series[:2]))
    picture: np.ndarray = paper + np.abs(share) * (np.where(share > 0, above, below) - paper)
    return picture


def bars(
    theme: Theme, values: Mapping[str, float], *, x: str, level: tuple[str, float], strong: Sequence[str] = ()
) -> Figure:
    """Shares in [0, 1] as horizontal bars with their names above; the `strong` ones stand out, `level` is a line."""
    row = 0.42
    figure, axes = _axes(theme, row * len(values), top=_legend_height(1), left=0.25, right=0.25)
    for i, (label, value) in enumerate(values.items()):
        colour = theme.series[1] if label in strong else theme.series[0]
        axes.barh(i + 0.16, value, height=0.42, color=colour, zorder=3)
        axes.text(0, i - 0.2, f"{label}: {percent(value)}", color=theme.ink, fontsize=8.5, va="center", ha="left")
    axes.axvline(level[1], color=theme.faint, lw=1, ls=(0, (4, 3)), label=level[0], zorder=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(values) - 0.45, -0.5)
    axes.set_yticks([])
    axes.grid(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel(x)
    _legend(theme, axes)
    return figure


def share_map(
    theme: Theme,
    xs: Sequence[float] | Sequence[str],
    values: np.ndarray,
    *,
    x: str,
    rows: Sequence[str] = (),
    y: str = "class",
) -> Figure:
    """Shares (len(rows), len(xs)) in [0, 1] as a map of colours; NaN is left empty.

    By default the rows are classes, counted from 0.
    """
    from matplotlib.colors import LinearSegmentedColormap

    names = rows or [str(c) for c in range(len(values))]
    height = max(0.19 * len(values), 0.9)
    left = LEFT if not rows else 0.2 + 0.25 * bool(y) + 0.066 * max(len(name) for name in rows)
    figure, axes = _axes(theme, height, top=0.1, right=0.75, left=left)
    colours = LinearSegmentedColormap.from_list("ramp", theme.ramp)
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none")
    step = max(1, len(xs) // 8) if len(xs) > 12 else 1
    axes.set_xticks(
        range(0, len(xs), step), [value if isinstance(value, str) else f"{value:g}" for value in xs[::step]]
    )
    axes.set_yticks(range(len(values)), names)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(False)
    axes.tick_params(length=0)
    box = axes.get_position()
    bar = figure.colorbar(drawn, cax=figure.add_axes((1 - 0.65 / WIDTH, box.y0, 0.1 / WIDTH, box.height)))
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    bar.ax.tick_params(colors=theme.faint, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def histograms(
    theme: Theme,
    groups: Mapping[str, np.ndarray],
    *,
    x: str,
    bins: np.ndarray,
    level: tuple[str, float] | None = None,
    of: str = "images",
) -> Figure:
    """Shares of each group over common bins, as outlines; `level` is a named vertical line."""
    figure, axes = _axes(theme, 2.05, top=_legend_height(len(groups) + (level is not None)))
    for (label, values), colour in zip(groups.items(), theme.series, strict=False):
        shares = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / max(1, len(values))
        axes.stairs(shares, bins, color=colour, lw=1.8, label=label, zorder=3)
        axes.stairs(shares, bins, color=colour, alpha=0.12, fill=True, zorder=2)
    if level is not None:
        axes.axvline(level[1], color=theme.faint, lw=1, ls=(0, (4, 3)), label=level[0])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel(x)
    axes.set_ylabel(f"share of {of}")
    _legend(theme, axes)
    return figure


def image_grid(
    theme: Theme,
    rows: Sequence[tuple[str, Sequence[np.ndarray | None], Sequence[bool], str]],
    real: Sequence[np.ndarray],
    heads: Sequence[str] = (),
) -> Figure:
    """Rows of images: a name, images (H, W) or (H, W, 3), which of them get a coloured frame, and a remark.

    None in place of an image leaves its place empty. `real`, if not empty, is one more image for each row, shown before
    the others. `heads`, if not empty, stand above the images, each over as many columns as the others.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    columns = max((len(images) for _, images, _, _ in rows), default=0)
    first = 1.3 if len(real) else 0.0  # where the made images begin, in steps from one image to the next
    left, step = 0.3, 2.8 / (first + max(1, columns))  # inches
    right = max(0.62, 0.16 + 0.06 * max((len(remark) for _, _, _, remark in rows), default=0))
    canvas = _Canvas(len(rows), first + columns, step, to_rgb(theme.paper))
    for r, (_, images, framed, _) in enumerate(rows):
        if len(real):
            canvas.put(real[r], r, 0, to_rgb(theme.paper))
        for i, (image, frame) in enumerate(zip(images, framed, strict=True)):
            if image is not None:
                canvas.put(image, r, first + i, to_rgb(theme.series[1] if frame else theme.grid))
    top = 0.2 if heads else 0.0
    width, height = left + step * (first + columns) + right, step * len(rows)
    figure = Figure(figsize=(width, top + height), facecolor=theme.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas.pixels, extent=(left, width - right, height, 0), interpolation="none")
    for i, head in enumerate(heads):
        x = left + step * (first + columns * (i + 0.5) / len(heads))
        axes.text(x, -0.08, head, color=theme.faint, ha="center", va="center", fontsize=7)
    for r, (name, _, _, remark) in enumerate(rows):
        y = step * (r + 0.5)
        axes.text(left / 2, y, name, color=theme.ink, ha="center", va="center", fontsize=9, weight="bold")
        axes.text(width - right + 0.06, y, remark, color=theme.faint, ha="left", va="center", fontsize=7)
    axes.set_xlim(0, width)
    axes.set_ylim(height, -top)
    axes.set_axis_off()
    return figure


class _Canvas:
    """One picture (height, width, 3) with images at their places, as drawing each by itself would take far longer."""

    def __init__(self, rows: int, columns: float, step: float, paper: tuple[float, float, float]) -> None:
        self.step = round(step * DPI)
        self.frame = max(1, round(self.step / 30))
        self.pixels = np.full((rows * self.step, round(columns * self.step), 3), paper)

    def put(self, image: np.ndarray, row: int, column: float, frame: tuple[float, float, float]) -> None:
        """Draw an image, scaled by repeating its pixels, in a frame."""
        top, left = row * self.step + self.frame, round(column * self.step) + self.frame
        size = self.step - 3 * self.frame
        self.pixels[top : top + size, left : left + size] = frame
        inner = size - 2 * self.frame
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        ys, xs = (np.arange(inner) * n // inner for n in image.shape[:2])
        top, left = top + self.frame, left + self.frame
        self.pixels[top : top + inner, left : left + inner] = image[ys][:, xs]


def _axes(theme: Theme, inside: float, *, top: float, right: float = RIGHT, left: float = LEFT) -> tuple[Figure, Axes]:
    """A figure with axes `inside` inches high, and margins in inches."""
    from matplotlib.figure import Figure

    height = BOTTOM + inside + top
    figure = Figure(figsize=(WIDTH, height), facecolor=theme.paper)
    box = (left / WIDTH, BOTTOM / height, (WIDTH - left - right) / WIDTH, inside / height)
    axes = figure.add_axes(box, facecolor=theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    axes.grid(True, axis="y", color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.faint, labelsize=8.5, length=0)
    axes.xaxis.label.set(color=theme.faint, size=9)
    axes.yaxis.label.set(color=theme.faint, size=9)
    return figure, axes


def _legend_height(entries: int, columns: int = LEGEND_COLUMNS) -> float:
    return 0.12 + LEGEND_ROW * -(-entries // columns)


def _legend(theme: Theme, axes: Axes, columns: int = LEGEND_COLUMNS) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
        handlelength=1.4,
        columnspacing=1.3,
        borderaxespad=0.2,
    )
