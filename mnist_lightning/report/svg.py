"""Figures and images as a page holds them: drawings that follow its colours, pictures inside the file."""

import base64
import io
import re
import warnings
from html import escape

import matplotlib
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mnist_lightning.report.look import GRID, INK, MUTED, PAPER, SERIES

COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(SERIES)
}


def inline(figure: Figure, name: str, description: str) -> str:
    """An <svg> element; colours are the page's, letters its font, names its own."""
    figure.patch.set_alpha(0)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    figure.patch.set_alpha(1)
    drawing = file.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    for colour, variable in COLOURS.items():
        drawing = re.sub(re.escape(colour), variable, drawing, flags=re.IGNORECASE)
    head, _, rest = drawing.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box, head
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label="{escape(description)}">{rest.strip()}'
    )


def image(pixels: Tensor, description: str, enlarge: int = 1) -> str:
    """An <img> element of uint8 [height, width] or [height, width, 3]."""
    height, width = pixels.shape[:2]
    source = base64.b64encode(png_of(pixels)).decode()
    size = f'width="{width * enlarge}" height="{height * enlarge}"'
    return f'<img src="data:image/png;base64,{source}" {size} alt="{escape(description)}">'


def png_of(pixels: Tensor) -> bytes:
    """uint8 [height, width] or [height, width, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def in_colours(weights: Tensor) -> Tensor:
    """Weights [n, height, width] as uint8 [n, height, width, 3]: blue below zero, red above, one scale for all."""
    peak = weights.abs().max().clamp_min(1e-12)
    shares = matplotlib.colormaps["RdBu_r"]((weights / peak / 2 + 0.5).numpy())
    return torch.from_numpy((shares[..., :3] * 255).round()).to(torch.uint8)
