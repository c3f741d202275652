"""Handwriting-like digits drawn by the program, for training and testing where MNIST's files are absent.

Each class has several written forms, given as pen strokes. An image takes one form, moves its control points,
bends, slants and stretches it, draws it with a pen of random width, and places it as MNIST's makers placed
theirs: fitted into 20 x 20 pixels with its aspect ratio kept, then pasted by centre of mass into 28 x 28.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# The written forms of each digit, 0 to 9. A form is strokes parted by "/"; a stroke is points "x,y" (y grows
# downwards, a digit is 100 high) that the pen passes smoothly, or with a sharp turn where a point ends in
# "!". A point that occurs twice, in one stroke or in two, is one point: closed loops stay closed, and joined
# strokes joined. A form that starts with "3*" is drawn three times as often as one without a number.
_FORMS = (
    (
        "4* 38,0 6,24 6,76 38,100 70,76 70,24 38,0",
        "38,0 17,7 2,28 0,62 12,92 38,100 66,88 76,58 72,24 58,6 38,0",
        "50,8 18,10 0,56 26,100 64,76 66,28 28,2",
        "62,0 24,10 4,60 32,100 68,70 58,18 34,14",
        "22,10 2,56 24,100 66,72 64,18 36,0 14,20",
        "28,34 4,30 6,84 44,100 78,60 64,6 28,6 10,30",
    ),
    (
        "5* 35,0 35,33 35,66 35,100",
        "2* 18,20 38,0! 38,50 38,100",
        "14,20 38,0! 38,50 38,100 / 10,100 38,100 66,100",
    ),
    (
        "2* 5,20 30,0 58,20 42,58 5,98! 35,97 72,96",
        "2* 8,18 32,0 56,16 48,48 24,84 6,96 4,84 20,78 42,92 75,92",
        "0,14 32,0 52,22 36,62 4,94! 24,84 48,96 78,86",
        "8,12 40,0 58,30 40,76 14,98 2,82 22,66 48,80 76,98",
        "8,16 30,0 50,20 40,56 16,88 4,96 0,80 14,72 40,86 90,78",
        "4,10 44,0 62,34 44,84 18,100 0,84 14,62 44,72 80,80",
    ),
    (
        "3* 8,12 35,0 58,20 28,46! 62,70 36,100 2,88",
        "5,3 55,3! 26,40! 60,64 38,100 0,92",
        "4,14 34,0 54,22 30,46 22,50 30,44 60,66 40,98 0,92",
        "10,10 40,0 60,18 44,42 26,47 50,54 60,78 32,100 0,90",
        "0,20 28,0 48,16 22,40! 46,50 40,84 4,100",
    ),
    (
        "2* 12,0 4,48! 36,52 70,46 / 60,4 55,50 50,100",
        "2* 12,4 4,34 16,52 42,50 60,34 / 62,0 60,34 56,66 52,100",
        "52,100 54,50 56,0! 0,62! 40,62 78,60",
        "18,0 2,50! 40,54 84,48 / 54,24 52,60 48,100",
        "6,6 6,60! 60,58 / 62,0 60,58 60,100",
        "8,8 8,42 28,54 52,42 62,8! 58,50 54,100",
    ),
    (
        "2* 14,2! 8,44! 42,38 60,66 38,98 0,92 / 14,2 40,2 70,0",
        "2* 68,0 40,4 16,4! 10,44! 44,40 56,68 36,98 0,92",
        "64,0 26,6 16,38 44,54 52,78 28,100 0,92",
        "90,0 50,6 30,10! 18,46! 46,50 50,80 24,100 0,94",
        "46,0 8,4! 6,44! 44,36 62,66 34,100 2,86 6,70",
        "20,18! 14,46! 46,48 50,78 24,100 0,90 / 20,18 50,10 84,0",
    ),
    (
        "2* 50,0 20,28 4,68 22,98 52,86 50,60 26,58 8,76",
        "18,0 6,44 8,86 34,100 60,84 48,62 24,66 10,86",
        "60,0 30,14 8,52 10,88 36,100 56,76 40,54 12,72",
        "36,0 14,36 4,76 22,100 46,88 40,66 18,68 6,84",
        "52,4 10,38 10,84 44,100 70,70 46,42 10,68",
        "30,0 6,36 6,84 38,100 72,78 66,46 40,46 22,66 26,92",
    ),
    (
        "3* 0,6 30,5 62,2! 42,46 28,100",
        "0,6 30,5 62,2! 42,46 28,100 / 18,52 42,48 66,46",
        "2,24 4,5! 32,7 64,4! 44,44 34,100",
        "0,12 24,2 50,6 58,20 44,56 34,100",
        "0,30 10,4 40,14 60,4! 40,50 30,100",
        "0,30 6,6 40,0 62,14 56,50 50,100",
        "4,10 30,8 56,0! 44,48 28,100 / 12,62 36,50 60,40",
    ),
    (
        "3* 58,14 34,0 10,16 32,46 60,76 32,100 4,78 30,48 56,22 58,14",
        "34,0 12,20 34,46 54,20 34,0 / 34,46 6,74 32,100 60,74 34,46",
        "66,6 36,2 14,20 34,48 50,78 26,100 6,80 28,52 58,24 60,4",
        "20,4 12,22 36,48 52,80 28,100 8,82 32,50 60,20 44,0 18,8",
        "62,10 30,0 8,20 30,44 52,58 50,90 28,98 24,70 44,42 74,10",
        "44,14 16,8 10,34 40,54 54,80 32,100 14,84 34,52 58,26 40,4",
    ),
    (
        "2* 56,14 30,0 4,26 22,48 50,32 58,8! 56,52 52,100",
        "56,14 32,0 6,24 24,46 50,30 58,10! 58,56 40,96 6,92",
        "60,8 30,2 8,26 24,42 50,24 60,8! 48,54 34,100",
        "38,6 12,14 8,40 34,46 54,26 44,4 38,6 / 54,26 56,60 50,100",
        "60,12 20,2 0,36 28,62 56,30 64,6! 66,50 66,100",
        "50,6 12,16 20,46 50,30 46,2 30,2 / 50,30 48,60 28,100",
        "66,10 40,0 8,24 26,44 62,12! 50,56 36,100",
    ),
)
_DOTS = 96  # of the pen per image: about 0.6 pixels apart in the longest form
_CHUNK = 100  # images drawn at once: 15 MB of distances from every pixel to every dot, fit for the cache
_BOX, _SIDE = 20, 28  # pixels: the box that the ink fills, and the image


def _spline(form: str) -> tuple[Tensor, Tensor]:
    """Control points [K, 2] of a form, 1 high, and weights [_DOTS, K]: weights @ points are even dots.

    Weights, not the dots themselves, because each image moves the points before its curve is drawn.
    """
    strokes = [stroke.split() for stroke in form.split("/")]
    names = list(dict.fromkeys(word.rstrip("!") for stroke in strokes for word in stroke))
    points = torch.tensor([[int(number) for number in name.split(",")] for name in names]) / 100
    unit = dict(zip(names, torch.eye(len(names)), strict=True))
    t = torch.linspace(0, 1, 33)[:, None]
    # The Catmull-Rom spline: from b to c on a cubic whose slopes there are (c - a) / 2 and (d - b) / 2.
    blend = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    cubic = torch.cat(blend, dim=1) / 2
    pieces = []
    for stroke in strokes:
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
    return points, dense[torch.searchsorted(length, torch.linspace(0, 1, _DOTS) * length[-1])]


def _compile_forms() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All forms' points [F, K, 2] and weights [F, _DOTS, K]; each digit's first form and their count [10].

    A form that is to be drawn three times as often is there three times.
    """
    splines: list[tuple[Tensor, Tensor]] = []
    counts: list[int] = []
    for forms in _FORMS:
        before = len(splines)
        for form in forms:
            times, _, strokes = form.rpartition("*")
            splines += [_spline(strokes)] * int(times or 1)
        counts.append(len(splines) - before)
    # Padding to one K: points that no dot heeds.
    points = pad_sequence([points for points, _ in splines], batch_first=True)
    weights = pad_sequence([weights.T for _, weights in splines], batch_first=True).mT
    count = torch.tensor(counts)
    return points, weights, count.cumsum(0) - count, count


def _write(points: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dots of the pen [n, 2, _DOTS] (y downwards) and their radii [n, _DOTS], both in pixels of the box.

    points: [n, K, 2] control points of each image's form; weights: [n, _DOTS, K].
    """
    n = len(points)

    def normal() -> Tensor:
        return torch.randn(n, 1, generator=generator)  # one number for each image

    moved = points + 0.025 * torch.randn(points.shape, generator=generator)
    x, y = (weights @ moved - 0.5).unbind(-1)
    # Two slow waves across the paper bend each axis: neighbouring strokes bend alike.
    for _ in range(2):
        wave = 2.2 * (normal() * x + normal() * y) + math.tau * torch.rand(n, 1, generator=generator)
        x, y = x + 0.06 * normal() * wave.sin(), y + 0.06 * normal() * wave.cos()
    shift = 1.2 * torch.rand(n, 1, generator=generator) - 0.6
    y = y + shift * (0.25 - y**2)  # a larger upper or lower half
    x = (x + 0.15) * (1 + 0.27 * normal() * y) * (0.28 * normal()).exp()  # wider at the top or foot; aspect
    x = x - (0.2 + 0.3 * normal()) * y  # slant: most writers lean to the right
    angle = 0.12 * normal()
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()

    radius = (1.3 * (0.28 * normal()).exp()).clamp(0.75, 3)
    phase = torch.linspace(0, 1, _DOTS) * 9 + math.tau * torch.rand(n, 1, generator=generator)
    radii = radius * (1 + 0.12 * phase.sin())  # the pen presses harder here and there
    dots = torch.stack([x, y], dim=1)
    low, high = dots.amin(2, keepdim=True), dots.amax(2, keepdim=True)
    scale = (_BOX - 2 * radius[:, :, None]) / (high - low).amax(1, keepdim=True)
    return (dots - (low + high) / 2) * scale + _BOX / 2, radii


def _draw(dots: Tensor, radii: Tensor, softness: Tensor) -> Tensor:
    """Grey levels [n, _BOX, _BOX] in 0 to 1; softness [n, 1]: pixels from full ink to none across an edge."""
    n = len(dots)
    centre = torch.arange(_BOX) + 0.5
    row, column = (grid.flatten() for grid in torch.meshgrid(centre, centre, indexing="ij"))
    # |p - q|^2 - r^2 = |p|^2 - 2 p.q + (|q|^2 - r^2) for all pixels p and dots q is one product of matrices.
    pixels = torch.stack([column, row, column**2 + row**2, torch.ones(_BOX * _BOX)])
    x, y = dots.unbind(1)
    terms = torch.stack([-2 * x, -2 * y, torch.ones_like(x), x**2 + y**2 - radii**2]).flatten(1)
    power = (terms.T @ pixels).view(n, _DOTS, -1).amin(1)
    radius = radii.mean(1, keepdim=True)
    distance = (power + radius**2).clamp(min=0).sqrt() - radius  # to the edge of the ink, negative inside
    return (0.5 - distance / softness).clamp(0, 1).view(n, _BOX, _BOX)


def _centre(ink: Tensor) -> Tensor:
    """Paste the boxes [n, _BOX, _BOX] into images [n, _SIDE, _SIDE], centres of mass nearest the middle."""
    n, room = len(ink), _SIDE - _BOX
    mass = ink.sum((1, 2))
    at = torch.arange(_BOX) + 0.5
    top = (_SIDE / 2 - (ink.sum(2) @ at) / mass).round().long().clamp(0, room)
    left = (_SIDE / 2 - (ink.sum(1) @ at) / mass).round().long().clamp(0, room)
    images = ink.new_zeros(n, _SIDE, _SIDE)
    within = torch.arange(_BOX)
    rows, columns = top[:, None] + within, left[:, None] + within
    images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]] = ink
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
        softness = 0.9 + 0.7 * torch.rand(_CHUNK, 1, generator=generator)
        ink = _centre(_draw(dots, radii, softness)).mul(255).round().to(torch.uint8)
        images[start : start + _CHUNK] = ink[: count - start]
        labels[start : start + _CHUNK] = digit[: count - start].to(torch.uint8)
    return images, labels
