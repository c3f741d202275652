"""Pictures become what MNIST's makers would have made of them, or are told to be none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mnist_lightning.data import ink as inks
from mnist_lightning.data.photo import prepare
from mnist_lightning.data.synthetic import synthetic_digits


def drawing(size: tuple[int, int], *strokes: list[tuple[float, float]], pen: int = 12) -> Image.Image:
    """Black strokes on white."""
    picture = Image.new("L", size, 255)
    for stroke in strokes:
        ImageDraw.Draw(picture).line(stroke, fill=0, width=pen, joint="curve")
    return picture


SEVEN = [(60.0, 60.0), (200.0, 60.0), (120.0, 240.0)]


def extents(image: torch.Tensor) -> tuple[int, int]:
    ink = image > 100
    return int(ink.any(1).sum()), int(ink.any(0).sum())


def test_mnists_own_images_pass_unchanged() -> None:
    images, _ = synthetic_digits(50, seed=3)
    for image in images:
        seen = prepare(Image.fromarray(image.numpy()))
        assert seen.status == "ok"
        assert torch.equal(seen.image, image)


def test_dark_ink_on_a_28x28_picture_is_turned_light() -> None:
    images, _ = synthetic_digits(5, seed=3)
    for image in images:
        seen = prepare(Image.fromarray(255 - image.numpy()))
        assert torch.equal(seen.image, image)


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("side", [12, 45, 200])
@pytest.mark.parametrize("margin", [0, 0.1])
def test_a_digit_that_is_cut_out_closely(dark: bool, side: int, margin: float) -> None:
    images, labels = synthetic_digits(60, seed=3)
    found = []
    for image in images[labels != 1].numpy():  # a 1 may be all ink
        rows, columns = (np.flatnonzero((image > 40).any(axis)) for axis in (1, 0))
        cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size = [round(extent * side / max(cut.shape)) for extent in cut.shape[::-1]]
        cut = np.pad(Image.fromarray(cut).resize(size, Image.Resampling.BICUBIC), round(margin * side))
        seen = prepare(Image.fromarray(255 - cut if dark else cut))
        found.append(0 if seen.image is None else np.corrcoef(seen.image.flatten(), image.flatten())[0, 1])
    assert np.mean(np.array(found) > 0.6) > 0.9
    assert np.median(found) > 0.8


def test_longest_side_is_20_and_the_mass_is_in_the_middle() -> None:
    image = prepare(drawing((300, 300), SEVEN)).image
    assert max(extents(image)) in (19, 20, 21)
    for axis in (0, 1):
        mass = image.double().sum(1 - axis)
        assert abs(float(mass @ torch.arange(28.0, dtype=torch.double)) / float(mass.sum()) - 14) < 0.1


@pytest.mark.parametrize("pen", [2, 6, 20, 40])
def test_strokes_get_mnists_width(pen: int) -> None:
    image = prepare(drawing((300, 300), SEVEN, pen=pen)).image
    row = image[18].double().sum() / 255  # across the stem, which leans
    assert 1.7 < row < 4.6


def test_a_picture_and_its_negative_are_seen_alike() -> None:
    picture = drawing((300, 300), SEVEN)
    negative = Image.fromarray(255 - np.asarray(picture))
    assert torch.equal(prepare(picture).image, prepare(negative).image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_modes_are_seen_alike(mode: str) -> None:
    picture = drawing((300, 300), SEVEN)
    expected = prepare(picture).image
    if mode == "I;16":
        converted = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    else:
        converted = picture.convert(mode)
    assert converted.mode == mode
    assert (prepare(converted).image.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_nothing(ink: int) -> None:
    picture = drawing((300, 300), SEVEN)
    clear = Image.new("RGBA", picture.size, (ink, ink, ink, 0))
    clear.putalpha(Image.fromarray(255 - np.asarray(picture)))
    assert torch.equal(prepare(clear).image, prepare(picture).image)


def test_a_camera_held_upright() -> None:
    picture = drawing((300, 200), [(60, 60), (200, 60), (120, 180)])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    data = io.BytesIO()
    picture.rotate(90, expand=True).save(data, "PNG", exif=exif)
    assert torch.equal(prepare(Image.open(data)).image, prepare(picture).image)


@pytest.mark.parametrize("level", [0, 100, 255])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (300, 200)])
def test_blank(level: int, size: tuple[int, int]) -> None:
    seen = prepare(Image.new("L", size, level))
    assert (seen.status, seen.image, seen.parts) == ("blank", None, ())


def alike(picture: Image.Image, other: Image.Image) -> float:
    """How the images of two pictures of one digit correlate; 0 where one is refused."""
    one, two = prepare(picture), prepare(other)
    return 0.0 if one.image is None else float(np.corrcoef(one.image.flatten(), two.image.flatten())[0, 1])


def lit(picture: Image.Image, light: np.ndarray) -> Image.Image:
    """The same drawing, in grey ink, in a light [h, w] of which 1 is that of white paper."""
    return Image.fromarray(((60 + 0.7 * np.asarray(picture, np.float32)) * light).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("angle", range(0, 360, 45))
@pytest.mark.parametrize("reach", [-70, 0, 70])
@pytest.mark.parametrize("deep", [0.45, 0.7])
def test_a_shadow_falls_on_even_paper(angle: int, reach: int, deep: float) -> None:
    down, right = np.mgrid[:300, :260] - np.array([150, 130])[:, None, None]
    across = right * np.cos(np.radians(angle)) + down * np.sin(np.radians(angle)) - reach
    digit = drawing((260, 300), SEVEN, pen=8)
    assert alike(lit(digit, deep + (1 - deep) / (1 + np.exp(across / 2))), digit) > 0.8


@pytest.mark.parametrize("turned", range(4))
def test_chalk_on_a_board_in_uneven_light(turned: int) -> None:
    digit = drawing((260, 260), SEVEN, pen=8)
    light = np.rot90(np.linspace(0.5, 1.0, 260)[None].repeat(260, 0), turned)
    board = (230 - 0.7 * np.asarray(digit, np.float32)) * light
    assert alike(Image.fromarray(board.astype(np.uint8)), digit) > 0.8


def test_light_that_falls_into_a_corner_is_no_ink_on_even_paper() -> None:
    lit = np.add.outer(np.arange(260), np.arange(260)) < 250
    levels = np.where(lit & (np.asarray(drawing((260, 260), SEVEN)) > 127), 230, 100).astype(np.float32)
    assert inks.drawn(levels) is None


@pytest.mark.parametrize("level", [130, 170, 210])
@pytest.mark.parametrize("squared", [False, True])
def test_even_paper_is_ruled(level: int, squared: bool) -> None:
    digit = drawing((300, 300), SEVEN, pen=8)
    levels = np.asarray(digit).copy()
    levels[7::23] = np.minimum(levels[7::23], level)
    if squared:
        levels[:, 11::23] = np.minimum(levels[:, 11::23], level)
    assert alike(Image.fromarray(levels), digit) > 0.8


@pytest.mark.parametrize("turned", range(4))
def test_paper_that_gets_dark_towards_an_edge_is_blank(turned: int) -> None:
    levels = np.rot90(np.linspace(70, 255, 300)[None].repeat(200, 0), turned)
    assert prepare(Image.fromarray(levels.astype(np.uint8))).status == "blank"


@pytest.mark.parametrize("turned", range(4))
def test_paper_is_too_bright_at_one_side(turned: int) -> None:
    light = np.rot90(np.linspace(0.55, 1.8, 260)[None].repeat(260, 0), turned)
    digit = drawing((260, 260), [(x, y - 20) for x, y in SEVEN], pen=8)
    assert alike(lit(digit, np.minimum(light, 255 / 238)), digit) > 0.8


def test_a_four_whose_strokes_do_not_touch_is_one_digit() -> None:
    angle = [(110.0, 40.0), (60.0, 150.0), (135.0, 150.0)]
    assert prepare(drawing((300, 300), angle, [(155.0, 110.0), (150.0, 240.0)], pen=8)).status == "ok"
    assert prepare(drawing((300, 300), angle, [(155.0, 40.0), (150.0, 152.0)], pen=8)).status == "number"


@pytest.mark.parametrize("size", [(1, 41), (50, 3), (5, 100), (300, 9)])
def test_narrow_pictures_are_looked_at(size: tuple[int, int]) -> None:
    for levels in (np.linspace(0, 255, size[0] * size[1]), np.random.default_rng(0).integers(0, 255, size)):
        seen = prepare(Image.fromarray(levels.reshape(size).astype(np.uint8)))
        assert (seen.image is None) == (seen.status != "ok")
    assert prepare(Image.new("L", size[::-1], 90)).status == "blank"


def test_a_row_of_digits_is_a_number() -> None:
    strokes = [[(x + x_off, y) for x, y in SEVEN] for x_off in (0, 200, 400)]
    seen = prepare(drawing((700, 300), *strokes))
    assert (seen.status, seen.image, len(seen.parts)) == ("number", None, 3)
    for part in seen.parts:
        assert (part.int() - prepare(drawing((300, 300), SEVEN)).image.int()).abs().max() < 40


def test_strokes_that_do_not_touch_are_one_digit() -> None:
    five = [(60.0, 60.0), (60.0, 140.0), (150.0, 150.0), (160.0, 230.0), (60.0, 240.0)], [(80.0, 50.0), (170.0, 45.0)]
    assert prepare(drawing((300, 300), *five)).status == "ok"


def box(draw: ImageDraw.ImageDraw, pen: int) -> None:
    draw.rectangle((40, 40, 400, 400), outline=0, width=pen)


def circle(draw: ImageDraw.ImageDraw, pen: int) -> None:
    draw.ellipse((25, 25, 415, 415), outline=0, width=pen)


def open_box(draw: ImageDraw.ImageDraw, pen: int) -> None:
    draw.line([(250, 40), (400, 44), (396, 398), (44, 400), (40, 46), (180, 42)], fill=0, width=pen)


def row_of_boxes(draw: ImageDraw.ImageDraw, pen: int) -> None:
    for left in (40, 400, 760):
        draw.rectangle((left, 40, left + 360, 400), outline=0, width=pen)


@pytest.mark.parametrize("outline", [box, circle, open_box, row_of_boxes])
@pytest.mark.parametrize("pen", [3, 12])
@pytest.mark.parametrize("turned", [0, 5])
@pytest.mark.parametrize("seen", ["drawn", "light on dark", "photo"])
def test_what_is_only_drawn_around_a_digit_is_left_out(outline, pen: int, turned: int, seen: str) -> None:
    size = (1160 if outline is row_of_boxes else 440, 440)
    digit = drawing(size, [(x + 90, y + 70) for x, y in SEVEN], pen=14)
    around = digit.copy()
    outline(ImageDraw.Draw(around), pen)
    digit, around = (p.rotate(turned, Image.Resampling.BILINEAR, True, fillcolor=255) for p in (digit, around))
    if seen == "light on dark":
        around = Image.fromarray(255 - np.asarray(around))
    if seen == "photo":
        noise = np.random.default_rng(0).normal(1, 0.01, around.size[::-1])
        around = lit(around, noise * np.linspace(0.6, 1, around.width))
    assert alike(around, digit) > 0.9


def test_a_zero_around_something_small_is_a_zero() -> None:
    for corner in (0, 60):  # as on a display, and as it is written
        zero = drawing((300, 400))
        ImageDraw.Draw(zero).rounded_rectangle((60, 40, 240, 360), corner, outline=0, width=16)
        dotted = zero.copy()
        ImageDraw.Draw(dotted).ellipse((138, 188, 162, 212), fill=0)
        assert alike(zero.crop((54, 34, 247, 367)), zero) > 0.95
        assert alike(dotted, zero) > 0.9


@pytest.mark.parametrize("seen", ["drawn", "photo"])
def test_digits_in_boxes_side_by_side_are_a_number(seen: str) -> None:
    strokes = [[(x + left, y + 70) for x, y in SEVEN] for left in (90, 450)]
    digits = drawing((1160, 440), *strokes, pen=14)
    boxes = digits.copy()
    row_of_boxes(ImageDraw.Draw(boxes), 6)
    if seen == "photo":
        boxes = lit(
            boxes, np.random.default_rng(0).normal(1, 0.01, boxes.size[::-1]) * np.linspace(0.6, 1, boxes.width)
        )
    found = prepare(boxes)
    assert (found.status, len(found.parts)) == ("number", 2)
    for part, expected in zip(found.parts, prepare(digits).parts, strict=True):
        assert np.corrcoef(part.flatten(), expected.flatten())[0, 1] > 0.9


def test_a_stroke_in_a_tall_zero_is_part_of_it_and_a_box_may_be_tall() -> None:
    zero = drawing((300, 400))
    ImageDraw.Draw(zero).ellipse((60, 40, 240, 360), outline=0, width=14)
    slashed = zero.copy()
    ImageDraw.Draw(slashed).line((110, 280, 190, 120), fill=0, width=12)
    assert alike(slashed, zero) > 0.8
    seven = drawing((300, 400), [(x + 20, y + 50) for x, y in SEVEN])
    boxed = seven.copy()
    ImageDraw.Draw(boxed).rectangle((30, 20, 270, 380), outline=0, width=8)
    assert alike(boxed, seven) > 0.95


def test_a_piece_in_the_corner_of_another_is_no_digit_in_an_outline() -> None:
    four = [[(110.0, 40.0), (60.0, 170.0), (230.0, 170.0)], [(170.0, 90.0), (170.0, 162.0)]]
    touching = [four[0], [(170.0, 90.0), (170.0, 178.0)]]
    assert alike(drawing((300, 300), *four, pen=8), drawing((300, 300), *touching, pen=8)) > 0.95


def test_what_lies_beside_an_outline_is_not_all_there_is() -> None:
    for at, size in (((150, 60), (700, 300)), ((60, 150), (300, 700))):
        beside = drawing(size, [(at[0] + x * 0.6, at[1] + y * 0.6) for x, y in SEVEN])
        left, top = (350, 60) if size[0] > size[1] else (50, 350)
        ImageDraw.Draw(beside).ellipse((left, top, left + 180, top + 200), outline=0, width=10)
        assert prepare(beside).status != "ok"


@pytest.mark.parametrize("table", [0, 60, 180])
@pytest.mark.parametrize("place", [(40, 40), (20, 70), (5, 5)])
@pytest.mark.parametrize("turned", [0, 6])
@pytest.mark.parametrize(("grain", "enlarged"), [(0, 1), (2, 1), (0, 1.7)])
def test_a_sheet_that_lies_on_a_table(
    table: int, place: tuple[int, int], turned: int, grain: int, enlarged: float
) -> None:
    digit = drawing((300, 300), SEVEN, pen=9)
    sheet, cover = (
        picture.rotate(turned, Image.Resampling.BILINEAR, expand=True)
        for picture in (digit, Image.new("L", (300, 300), 255))
    )
    picture = Image.new("L", (390, 380), table)
    picture.paste(sheet, place, cover)
    picture = picture.resize([int(side * enlarged) for side in picture.size], Image.Resampling.BICUBIC)
    levels = np.asarray(picture) + np.random.default_rng(0).normal(0, grain, picture.size[::-1])
    seen = prepare(Image.fromarray(levels.clip(0, 255).astype(np.uint8)))
    assert seen.image is not None
    expected = prepare(digit.rotate(turned, Image.Resampling.BILINEAR, fillcolor=255)).image
    assert np.corrcoef(seen.image.flatten(), expected.flatten())[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_a_sheet_that_is_turned_on_a_table_of_wood(seed: int) -> None:
    random = np.random.default_rng(seed)
    grain = np.cumsum(random.normal(0, 2, (700, 1)), 0) % 40 + 90
    table = Image.fromarray((grain + random.normal(0, 6, (700, 700))).astype(np.uint8))
    digit = drawing((400, 400), [(x * 1.3, y * 1.3) for x, y in SEVEN])
    sheet, cover = (
        picture.rotate(7, Image.Resampling.BILINEAR, expand=True)
        for picture in (digit, Image.new("L", digit.size, 255))
    )
    table.paste(sheet, (120, 100), cover)
    assert alike(table, digit.rotate(7, Image.Resampling.BILINEAR, fillcolor=255)) > 0.9


@pytest.mark.parametrize("dark", [False, True])
def test_a_thick_digit_in_a_narrow_margin_is_no_sheet_on_a_table(dark: bool) -> None:
    one = drawing((60, 260), [(30.0, 8.0), (30.0, 252.0)], pen=36)
    eight = drawing((200, 260))
    for box in ((40, 16, 160, 130), (24, 112, 176, 244)):
        ImageDraw.Draw(eight).ellipse(box, outline=0, width=44)
    for digit, size in ((one, (400, 400)), (eight, (500, 500))):
        wide = Image.new("L", size, 255)
        wide.paste(digit, (120, 80))
        near = Image.fromarray(255 - np.asarray(digit)) if dark else digit
        assert alike(near, wide) > 0.95
