"""Numbers as text, in tables, verdicts and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(share: float) -> str:
    """Such as "16.4 %"; "0 %" and "100 %" only where it is exactly that; nothing for NaN."""
    if math.isnan(share):
        return ""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share < 0.0005:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.1f} %" if share < 0.9995 else f"{100 * share:.4g} %"


def number(value: float | None) -> str:
    """Three digits; nothing for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plural(word: str, count: int) -> str:
    """The word, with an s unless there is one."""
    return word if count == 1 else word + "s"


def visible(text: str) -> str:
    """Text in a line, whoever wrote it: control characters, and bytes of no character, are shown as escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char if char == "\u00a0" else char.encode("unicode_escape", "surrogatepass").decode("ascii")


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A table as text, ruled below its head; the first `left` columns flush left, the others right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(text(line) for line in [head, ["-" * width for width in widths], *lines])
