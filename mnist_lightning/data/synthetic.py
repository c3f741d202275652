"""Handwriting-like digits drawn by the program, for training and testing where MNIST's files are absent.

Each class has many written forms, given as pen strokes in forms.txt. An image takes one form, moves its control
points, bends, slants and stretches it, draws it with an unsteady pen of random width, and places it as MNIST's makers
placed theirs: fitted into 20 x 20 pixels with its aspect ratio kept, then pasted by centre of mass into 28 x 28.
Widths of digits and pens, slants and the softness of edges are spread about as in MNIST's training images.
"""

import math
from functools import cache, partial
from importlib.resources import files
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_DOTS = 96  # of the pen per image: about 0.6 pixels apart in the longest form
_CHUNK = 100  # images drawn at once: 15 MB of distances from every pixel to every dot, fit for the cache
_BOX, _SIDE = 20, 28  # pixels: the box that the ink fills, and the image


def _spline(form: str) -> tuple[Tensor, Tensor]:
    """Control points [K, 2] of a form, 1 high, and weights [K, _DOTS]: points.T @ weights are even dots.

    Weights, not the dots themselves, because each image moves the points before its curve is drawn.
    """
    names = list(dict.fromkeys(form.replace("/", "").replace("!", "").split()))
    points = torch.tensor([[int(number) for number in name.split(",")] for name in names]) / 100
    unit = dict(zip(names, torch.eye(len(names)), strict=True))
    t = torch.linspace(0, 1, 33)[:, None]
    # The Catmull-Rom spline: from b to c on a cubic whose slopes there are (c - a) / 2 and (d - b) / 2.
    blend = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    cubic = torch.cat(blend, dim=1) / 2
    pieces = []
    for stroke in map(str.split, form.split("/")):
        turns = [i for i in range(1, len(stroke) - 1) if stroke[i].endswith("!")]
        for first, last in pairwise([0, *turns, len(stroke) - 1]):
            rows = [unit[word.rstrip("!")] for word in stroke[first : last + 1]]
            closed = stroke[first] == stroke[last]
            before = rows[-2] if closed else 2 * rows[0] - rows[1]
            after = rows[1] if closed else 2 * rows[-1] - rows[-2]
            around = torch.stack([before, *rows, after])
            pieces += [cubic @ around[i : i + 4] for i in range(len(rows) - 1)]
    dense = torch.cat(pieces)
    step = (dense @ points).diff(dim=0).norm(dim=1)
    step[len(t) - 1 :: len(t)] = 0  # from one piece to the next the pen is lifted, or stands still
    length = torch.cat([torch.zeros(1), step.cumsum(0)])
    return points, dense[torch.searchsorted(length, torch.linspace(0, 1, _DOTS) * length[-1])].T


@cache
def _compile_forms() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All forms' points [F, K, 2] and weights [F, _DOTS, K]; each digit's first form and their count [10].

    A form that is to be drawn three times as often is there three times.
    """
    splines, count = [], torch.zeros(10, dtype=torch.int64)
    lines = files(__package__).joinpath("forms.txt").read_text(encoding="utf-8").splitlines()
    for line in sorted((line for line in lines if not line.startswith("#")), key=lambda line: line[0]):
        digit, form = line.split(": ")
        times, _, strokes = form.rpartition("*")
        splines += [_spline(strokes)] * int(times or 1)
        count[int(digit)] += int(times or 1)
    # Padded to one K by points that no dot heeds.
    points, weights = (pad_sequence(list(all_of), batch_first=True) for all_of in zip(*splines, strict=True))
    return points, weights.mT, count.cumsum(0) - count, count


def _write(points: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dots of the pen [n, 2, _DOTS] (y downwards) and their radii [n, _DOTS], both in pixels of the box.

    points: [n, K, 2] control points of each image's form; weights: [n, _DOTS, K].
    """
    normal = partial(torch.randn, len(points), 1, generator=generator)  # one number for each image
    uniform = partial(torch.rand, len(points), 1, generator=generator)
    moved = points + 0.06 * torch.randn(points.shape, generator=generator)
    # The pen comes down late and leaves early, mostly by little: so rings stay open, and tails short.
    late, early = (0.08 * uniform() ** 2 for _ in range(2))
    at = torch.lerp(late, 1 - early, torch.linspace(0, 1, _DOTS)) * (_DOTS - 1)
    written = (weights @ moved).gather(1, at.round().long()[:, :, None].expand(-1, -1, 2))
    x, y = (written - 0.5).unbind(-1)
    # Two slow waves across the paper bend each axis: neighbouring strokes bend alike.
    for _ in range(2):
        wave = 2.2 * (normal() * x + normal() * y) + math.tau * uniform()
        x, y = x + 0.08 * normal() * wave.sin(), y + 0.08 * normal() * wave.cos()
    y = y + (1.2 * uniform() - 0.6) * (0.25 - y**2)  # a larger upper or lower half
    x = (x + 0.15) * (1 + 0.27 * normal() * y) * 1.12 * (0.22 * normal()).exp()  # wider at the top or foot; aspect
    x = x - (0.12 + 0.23 * normal()) * y  # slant: most writers lean to the right
    angle = 0.12 * normal()
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()

    radius = (1.12 * (0.3 * normal()).exp()).clamp(0.65, 3)
    phase = torch.linspace(0, 1, _DOTS) * 9 + math.tau * uniform()
    radii = radius * (1 + 0.12 * phase.sin())  # the pen presses harder here and there, and its edge is rough
    radii = radii + 0.15 * radius * torch.randn(radii.shape, generator=generator)
    dots = torch.stack([x, y], dim=1)
    low, high = dots.amin(2, keepdim=True), dots.amax(2, keepdim=True)
    scale = (_BOX - 2 * radius[:, :, None]) / (high - low).amax(1, keepdim=True)
    dots = (dots - (low + high) / 2) * scale + _BOX / 2
    return dots + 0.15 * torch.randn(dots.shape, generator=generator), radii


def _draw(dots: Tensor, radii: Tensor, softness: Tensor) -> Tensor:
    """Grey levels [n, _BOX, _BOX] in 0 to 1; softness [n, 1]: pixels from full ink to none across an edge."""
    centre = torch.arange(_BOX) + 0.5
    column, row = centre.repeat(_BOX), centre.repeat_interleave(_BOX)
    # |p - q|^2 - r^2 = |p|^2 - 2 p.q + (|q|^2 - r^2) for all pixels p and dots q is one product of matrices.
    pixels = torch.stack([column, row, column**2 + row**2, torch.ones(_BOX * _BOX)])
    x, y = dots.unbind(1)
    terms = torch.stack([-2 * x, -2 * y, torch.ones_like(x), x**2 + y**2 - radii**2]).flatten(1)
    power = (terms.T @ pixels).view(len(dots), _DOTS, -1).amin(1)
    radius = radii.mean(1, keepdim=True)
    distance = (power + radius**2).clamp(min=0).sqrt() - radius  # to the edge of the ink, negative inside
    return (0.5 - distance / softness).clamp(0, 1).view(-1, _BOX, _BOX)


def _centre(ink: Tensor) -> Tensor:
    """Paste the boxes [n, _BOX, _BOX] into images [n, _SIDE, _SIDE], centres of mass where MNIST's are.

    That is nearest the middle of the pixel right of and below the middle: as its makers took (14, 14) for the centre.
    """
    within = torch.arange(_BOX)

    def lines(mass: Tensor) -> Tensor:
        """Where in the images the rows or columns [n, _BOX] with so much ink go."""
        middle = mass @ (within + 0.5) / mass.sum(1)
        return (_SIDE / 2 + 0.5 - middle).round().long().clamp(0, _SIDE - _BOX)[:, None] + within

    images = ink.new_zeros(len(ink), _SIDE, _SIDE)
    rows, columns = lines(ink.sum(2))[:, :, None], lines(ink.sum(1))[:, None, :]
    images[torch.arange(len(ink))[:, None, None], rows, columns] = ink
    return images


def synthetic_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 28, 28] of drawn digits, 0 the paper and 255 full ink, and labels uint8 [count].

    Classes are drawn at random with equal chances. The same seed gives the same images at every call, and a
    larger count only appends to them; torch's global random state is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    points, weights, first_form, form_count = _compile_forms()
    images = torch.empty(count, _SIDE, _SIDE, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.uint8)
    for start in range(0, count, _CHUNK):
        # A whole chunk is drawn even where part of it is wanted, so that count does not change the images.
        digit = torch.randint(10, (_CHUNK,), generator=generator)
        form = first_form[digit] + torch.randint(2**30, (_CHUNK,), generator=generator) % form_count[digit]
        dots, radii = _write(points[form], weights[form], generator)
        softness = 0.9 + 0.3 * torch.rand(_CHUNK, 1, generator=generator)
        ink = _centre(_draw(dots, radii, softness)).mul(255).round().to(torch.uint8)
        images[start : start + _CHUNK] = ink[: count - start]
        labels[start : start + _CHUNK] = digit[: count - start].to(torch.uint8)
    return images, labels
