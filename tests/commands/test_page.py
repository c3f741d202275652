"""The page in a real browser: drawn on by mouse, finger and keys, at a desktop's and a telephone's width."""

import io
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from served import picture, served

from mnist_lightning.predictor import Predictor
from mnist_lightning.serving.app import App
from mnist_lightning.serving.collection import Collection

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# In units of the side, a list of points for each stroke
DIGITS = {
    "0": [[(0.5, 0.15), (0.33, 0.25), (0.27, 0.5), (0.33, 0.76), (0.5, 0.86), (0.67, 0.76), (0.73, 0.5), (0.67, 0.25),
           (0.5, 0.15)]],
    "1": [[(0.5, 0.15), (0.5, 0.85)]],
    "2": [[(0.28, 0.3), (0.38, 0.17), (0.58, 0.16), (0.7, 0.3), (0.65, 0.45), (0.28, 0.83), (0.75, 0.83)]],
    "3": [[(0.3, 0.2), (0.5, 0.14), (0.67, 0.24), (0.64, 0.4), (0.46, 0.48), (0.67, 0.56), (0.7, 0.72), (0.53, 0.85),
           (0.3, 0.79)]],
    "4": [[(0.62, 0.18), (0.28, 0.6), (0.78, 0.6)], [(0.63, 0.4), (0.6, 0.87)]],
    "7": [[(0.27, 0.2), (0.73, 0.2), (0.45, 0.86)]],
}  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "collected"


@pytest.fixture(scope="module")
def url(collected: Path) -> Iterator[str]:
    predictor = Predictor()
    with served(App(predictor, collection=Collection(collected, predictor.names))) as (address, _):
        yield address


@pytest.fixture
def opened(browser, url):
    """`opened(viewport, …)` is the page there; nothing may go wrong on it."""
    contexts, problems = [], []

    def open_(viewport=DESKTOP, path="/", **settings):
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url + path)
        page.locator("#bars li").nth(9).wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    expected = ("Failed to load resource", "Canvas2D")  # a 422 that was meant; advice on `ink`
    assert [text for text in problems if not text.startswith(expected)] == []


def draw(page, digit: str, left: float = 0.0, scale: float = 1.0) -> None:
    """With the mouse."""
    box = page.locator("#canvas").bounding_box()
    for stroke in DIGITS[digit]:
        points = [(box["x"] + (left + scale * x) * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()


def touch(page, digit: str) -> None:
    """With a finger, as the browser gets it from the screen."""
    session, box = page.context.new_cdp_session(page), page.locator("#canvas").bounding_box()

    def send(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    for stroke in DIGITS[digit]:
        send("touchStart", stroke[0])
        for (x, y), (next_x, next_y) in pairwise(stroke):
            for part in (0.25, 0.5, 0.75, 1):
                send("touchMove", (x + part * (next_x - x), y + part * (next_y - y)))
        send("touchEnd")


def read(page, digit: str) -> None:
    page.locator("#digit", has_text=re.compile(f"^{digit}$")).wait_for()


def ink(page) -> int:
    """How many pixels of the canvas are drawn on, in thousandths of all."""
    return page.locator("#canvas").evaluate(
        """canvas => { const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0; for (let i = 3; i < data.length; i += 4) count += data[i] > 127;
        return Math.round(4000 * count / data.length); }"""
    )


@pytest.mark.parametrize("digit", DIGITS)
def test_a_digit_drawn_with_the_mouse_is_read(opened, digit):
    page = opened()
    draw(page, digit)
    read(page, digit)
    assert page.locator("#seen img").count() == 1
    assert page.locator("#seen img").evaluate("image => image.naturalWidth") == 28


@pytest.mark.parametrize("digit", DIGITS)
def test_a_digit_drawn_with_a_finger_is_read_and_the_page_stays_where_it_is(opened, digit):
    page = opened(PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    touch(page, digit)
    read(page, digit)
    assert page.locator("html").evaluate("page => page.scrollTop") == 0
    page.locator(f"#spoken:has-text('{digit}')").wait_for(state="attached")


def test_the_answer_moves_while_the_pen_is_down(opened):
    page = opened()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=10)
    read(page, "1")
    page.mouse.up()


def test_undo_and_clear_and_their_keys(opened):
    page = opened()
    draw(page, "4")
    read(page, "4")
    whole = ink(page)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_timeout(100)
    assert 0 < ink(page) < whole
    draw(page, "1")
    page.get_by_role("button", name="Clear").click()
    page.locator("#sentence", has_text="Draw, and").wait_for()
    assert ink(page) == 0
    page.keyboard.press("Control+z")  # what was cleared is back
    page.wait_for_timeout(100)
    assert ink(page) > 0
    page.locator("#canvas").focus()
    page.keyboard.press("Delete")
    page.locator("#sentence", has_text="Draw, and").wait_for()
    assert page.locator("#digit").text_content() == ""


def test_a_turned_telephone_keeps_the_drawing(opened):
    page = opened(PHONE, has_touch=True, is_mobile=True)
    touch(page, "3")
    read(page, "3")
    before = ink(page)
    page.set_viewport_size({"width": 740, "height": 360})
    page.wait_for_timeout(300)
    assert page.locator("#canvas").bounding_box()["width"] < 270
    assert abs(ink(page) - before) <= 10
    draw(page, "1")  # goes on as before
    page.get_by_role("button", name="Undo").click()
    read(page, "3")


def test_a_digit_drawn_with_the_keyboard_alone_is_read(opened):
    page = opened()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.locator("#canvas").evaluate("canvas => canvas === document.activeElement"):
            break
    page.keyboard.press(" ")
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    read(page, "1")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"undo", "clear", "open", "photo", "SUMMARY", "label"} <= reached


def test_several_digits_are_read_as_a_number(opened):
    page = opened()
    draw(page, "4", left=0.0, scale=0.5)
    draw(page, "2", left=0.48, scale=0.5)
    read(page, "42")
    assert page.locator("#seen img").count() == 2


def test_a_picture_is_opened_dropped_and_pasted(opened):
    page = opened()
    file = {"name": "four.png", "mimeType": "image/png", "buffer": picture(side=300)}
    page.locator("#open").set_input_files(file)
    read(page, "4")
    assert ink(page) > 900  # the whole picture is shown
    content = list(picture(side=200))
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.get_by_role("button", name="Clear").click()
        page.locator("#sentence", has_text="Draw, and").wait_for()
        page.evaluate(
            """([event, field, content]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(content)], "four.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true, [field]: files };
            document.getElementById("canvas").dispatchEvent(
              event === "drop" ? new DragEvent(event, options) : new ClipboardEvent(event, options)); }""",
            [event, field, content],
        )
        read(page, "4")


def test_what_is_no_picture_is_told(opened):
    page = opened()
    page.locator("#open").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#problem", has_text="is no picture").wait_for()
    draw(page, "1")
    read(page, "1")
    assert page.locator("#problem").text_content() == ""


def test_a_correction_is_saved_under_its_label(opened, collected: Path):
    page = opened()
    draw(page, "7")
    read(page, "7")
    page.locator("#label").select_option("1")
    page.get_by_role("button", name="Save it").click()
    page.locator("#saved", has_text="Saved as 1").wait_for()
    (file,) = collected.glob("1/*.png")
    assert Image.open(io.BytesIO(file.read_bytes())).size == (28, 28)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_can_be_read_in_both_colour_schemes(opened, viewport, scheme):
    page = opened(viewport, color_scheme=scheme)
    draw(page, "4")
    read(page, "4")
    assert page.locator("html").evaluate("page => page.scrollWidth") == viewport["width"]  # nothing sticks out
    worst = page.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst
    screen = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert (screen.getpixel((2, 2)) < 60) == (scheme == "dark")


# The least contrast of a text to what is behind it, by WCAG 2: [ratio, text]
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || !element.getClientRects().length || ["SCRIPT", "CANVAS"].includes(element.tagName)) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), text]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""


def test_the_token_is_taken_from_the_address_and_else_asked_for(browser):
    with served(App(Predictor(), token="open", hosts=None)) as (url, _):
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        page.locator("#bars li").nth(9).wait_for()
        draw(page, "1")
        page.get_by_role("textbox", name="Token").fill("open")
        page.get_by_role("button", name="Go on").click()
        read(page, "1")
        page.close()
        page = browser.new_page()
        page.goto(f"{url}/#token=open")
        page.locator("#bars li").nth(9).wait_for()
        assert page.url == f"{url}/"
        draw(page, "1")
        read(page, "1")
        page.close()
