"""A picture of what the terminal shows, for a README."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME as THEME
from rich.text import Text

from mnist_lightning.report.look import Picture

CELL = 0.0775, 0.165  # inches of a character
LETTERS: dict[str, Any] = {"family": "monospace", "fontsize": 9.2, "parse_math": False}
BRAILLE = 0x2800
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # column and row of each bit


def screen(ansi: str) -> Picture:
    """The lines of a terminal, with their colours, each character in its cell."""
    lines = [Text.from_ansi(line) for line in ansi.splitlines()]
    wide, high = max((line.cell_len for line in lines), default=1) + 2, len(lines) + 1
    ground = "#%02x%02x%02x" % THEME.background_color  # noqa: UP031  (three numbers at once)
    figure = Picture(figsize=(wide * CELL[0], high * CELL[1]), facecolor=ground)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.set_axis_off()
    console, points = Console(color_system="truecolor"), defaultdict[str, list[tuple[float, float]]](list)
    for row, line in enumerate(lines):
        column = 1
        for segment in line.render(console):
            style = segment.style
            colour = style.color.get_truecolor(THEME) if style and style.color else THEME.foreground_color
            hexed = "#%02x%02x%02x" % tuple(colour)  # noqa: UP031
            for sign in segment.text:
                if BRAILLE <= ord(sign) < BRAILLE + 256:
                    points[hexed].extend(_dots(ord(sign) - BRAILLE, column, row))
                elif sign.strip():
                    weight = "bold" if style and style.bold else "normal"
                    axes.text(column + 0.5, row + 0.95, sign, color=hexed, weight=weight, ha="center", **LETTERS)
                column += 1
    for hexed, places in points.items():
        across, down = zip(*places, strict=True)
        axes.scatter(across, down, s=3, color=hexed, linewidths=0)
    return figure


def _dots(bits: int, column: int, row: int) -> list[tuple[float, float]]:
    return [
        (column + 0.25 + 0.5 * across, row + 0.35 + 0.25 * down)
        for bit, (across, down) in enumerate(DOTS)
        if bits >> bit & 1
    ]
