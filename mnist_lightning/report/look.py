"""How figures of this project look: colours, axes, and a Figure that notebooks show."""

import io
import warnings
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

INK, MUTED, GRID, PAPER = "#1b1d21", "#5a616b", "#d9dde3", "#ffffff"
SERIES = ("#1558c0", "#b3470b", "#19703c", "#8a2fa8", "#a3233f", "#0b6f80")  # 4.5:1 on white, each


class Picture(Figure):
    """A Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class's name in letters that the font lacks
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes."""
    figure = Picture(figsize=(width, height), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    plain_axis(axes)
    return figure, axes


def plain_axis(axes: Any) -> None:
    """Thin lines, dark letters."""
    axes.tick_params(colors=INK, labelsize=9, color=GRID)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=9.5)


def percent_axes(axes: Any, across: str, up: str) -> None:
    """Both axes in percent."""
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def text(words: str) -> str:
    """As it is: no formula between dollars, and no name that a legend leaves out for its underscore."""
    return words.replace("$", r"\$").replace("_", "\u200b_", 1) if words.startswith("_") else words.replace("$", r"\$")
