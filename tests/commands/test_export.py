"""export: what is written answers as the network does, wherever it is read."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from samples import trained
from torch import Tensor

from mnist_lightning import CNN, MLP, Predictor
from mnist_lightning.data.ink import drawn
from mnist_lightning.data.photo import prepare
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.exporting.page import ACTIVATIONS, page
from mnist_lightning.training.checkpoints import write_checkpoint

IMAGES, LABELS = synthetic_digits(60, seed=3)
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(trained(), tmp_path / "cnn.ckpt")
    return tmp_path / "cnn.ckpt"


def checkpoint_of(model: Any, path: Path, **entries: Any) -> Path:
    settings = dict(model.hparams)
    write_checkpoint({"state_dict": model.state_dict(), "hyper_parameters": settings, **entries}, path)
    return path


@pytest.mark.slow
def test_onnx_answers_as_the_network_does(cli, checkpoint: Path, tmp_path: Path, tiny_mnist: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    output = tmp_path / "digits.onnx"
    result = cli("export", "--ckpt_path", checkpoint, "--output", output, "--data.root", tiny_mnist)
    assert result.status == 0, result.err
    assert "same answer" in result.out
    session = onnxruntime.InferenceSession(output)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [28, 28])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list("0123456789")
    expected = Predictor(checkpoint)(IMAGES).numpy()
    for count in (1, 7, 60):
        rows, logits = session.run(["probabilities", "logits"], {"images": IMAGES[:count].numpy()})
        np.testing.assert_allclose(rows, expected[:count], atol=1e-5)
        assert logits.shape == (count, 10)
    again = Predictor(output)
    np.testing.assert_allclose(again(IMAGES).numpy(), expected, atol=1e-5)
    assert again.names == tuple("0123456789")


def test_torch_export(cli, checkpoint: Path, tmp_path: Path, tiny_mnist: Path):
    output = tmp_path / "digits.pt2"
    assert cli("export", "--ckpt_path", checkpoint, "--output", output, "--data.root", tiny_mnist).status == 0
    files = {"class_names": ""}
    rows, _ = torch.export.load(output, extra_files=files).module()(IMAGES[:11])
    torch.testing.assert_close(rows, Predictor(checkpoint)(IMAGES[:11]), atol=1e-5, rtol=0)
    assert json.loads(files["class_names"]) == list("0123456789")


def test_what_cannot_be_written_is_said_first(cli, checkpoint: Path, tmp_path: Path):
    known = ("export", "--ckpt_path", checkpoint)
    for words, said in (
        ((), "--output is missing"),
        (("--output", "digits.tflite"), "ends in .onnx, .pt2 or .html"),
        (("--output", "digits.html", "--int8"), "--int8 makes a smaller ONNX file"),
        (("--outputs", "digits.onnx"), "did you mean --output?"),
    ):
        result = cli(*known, *words)
        assert (result.status, said in result.err, result.err.count("\n")) == (2, True, 1), result.err
    assert cli("export", "--ckpt_path", tmp_path / "no.ckpt", "--output", tmp_path / "a.onnx").status == 1
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in cli(*known, "--output", tmp_path / "folder.onnx").err
    missing = cli(*known, "--output", tmp_path / "no" / "digits.pt2")
    assert (missing.status, "cannot be written" in missing.err) == (1, True)


def test_the_page_holds_all_and_calls_for_nothing(checkpoint: Path):
    content, _ = page(Predictor(checkpoint))
    text = content.decode()
    assert len(content) < 1_000_000
    assert "default-src 'none'" in text
    assert re.findall(r"(?:src|href)=|https?://|import\(|fetch\(", text) == []
    assert "/*" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_hostile_names_do_not_leave_the_page(tmp_path: Path):
    model = MLP(hidden=[4], classes=2, class_names=["</script><b>", "x"])
    file = checkpoint_of(model, tmp_path / "names.ckpt")
    assert b"</script><b>" not in page(Predictor(file))[0]


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def opened(browser: Any, predictor: Predictor, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page in a tab, and what goes wrong there."""
    file, tab, problems = folder / "page.html", browser.new_page(**options), []
    file.write_bytes(page(predictor)[0])
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(file.as_uri())
    return tab, problems


def rows_of(tab: Any, images: Tensor) -> Tensor:
    script = """(text) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), rows = [];
        for (let i = 0; i < bytes.length; i += 784) rows.push(softmax(logits(bytes.subarray(i, i + 784))));
        return rows;
    }"""
    return torch.tensor(tab.evaluate(script, base64.b64encode(images.numpy().tobytes()).decode()))


NETWORKS = {
    "recipes' layers": lambda: CNN(
        channels=[4, 6, 5], kernel_size=[5, 3, 3], padding=[-2, 0, 1], stride=[1, 2, 1], pool=[2, 1, 2],
        conv_dropout=0.2, hidden=[9],
        order=["conv", "norm", "activation", "pool", "dropout"], dropout2d=True, dropout=0.5,
    ),
    "no hidden layer": lambda: MLP(hidden=[]),
    **{
        kind.__name__: lambda kind=kind: MLP(hidden=[7, 5], activation=kind.__name__)
        for kind in ACTIVATIONS if kind is not torch.nn.Identity
    },
}  # fmt: skip


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_pages_network(browser, name: str, tmp_path: Path):
    torch.manual_seed(1)
    model = NETWORKS[name]()
    model.train()(torch.randn(50, 1, 28, 28))  # statistics of batch normalisation that are not 0 and 1
    predictor = Predictor(checkpoint_of(model, tmp_path / "net.ckpt", MNISTDataModule={"mean": 0.1, "std": 0.3}))
    tab, problems = opened(browser, predictor, tmp_path)
    torch.testing.assert_close(rows_of(tab, IMAGES), predictor(IMAGES), atol=1e-4, rtol=0)
    assert problems == []
    tab.close()


def drawings(count: int) -> list[Image.Image]:
    """Digits of many sizes, anywhere on white canvases, with soft and with hard edges, some with a box or a circle."""
    images, _ = synthetic_digits(count, seed=7)
    random, pictures = np.random.default_rng(0), []
    for i, image in enumerate(images):
        side = int(random.integers(60, 300))
        width, height = (side + int(more) for more in random.integers(0, 200, 2))
        canvas = Image.new("L", (width, height), 255)
        at = int(random.integers(0, width - side + 1)), int(random.integers(0, height - side + 1))
        canvas.paste(Image.fromarray(255 - image.numpy()).resize((side, side), Image.Resampling.BICUBIC), at)
        if i % 10 > 6:
            outline = ImageDraw.Draw(canvas).ellipse if i % 10 == 9 else ImageDraw.Draw(canvas).rectangle
            outline((2, 2, width - 3, height - 3), outline=0, width=3)
        pictures.append(canvas.point(lambda level: 255 * (level > 128)) if i % 2 else canvas)
    return [picture for picture in pictures if drawn(np.asarray(picture, dtype=np.float32)) is not None]


@needs_browser
@pytest.mark.slow
def test_the_page_prepares_drawings_as_python_does(browser, tmp_path: Path):
    predictor, pictures = Predictor(), drawings(150)
    tab, problems = opened(browser, predictor, tmp_path)
    script = """([height, width, text]) => {
        const { status, parts, probabilities } = read(plane(height, width,
            Float32Array.from(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)))));
        const image = parts.length ? Array.from(parts[parts.length - 1]) : null;
        return [status === "unsure" ? "ok" : status, image, probabilities ?? null];
    }"""
    on_edge = 0  # drawings with a pixel that is ink in one arithmetic and not in the other
    for picture in pictures:
        seen = prepare(picture)
        words = [picture.height, picture.width, base64.b64encode(picture.tobytes()).decode()]
        status, image, row = tab.evaluate(script, words)
        assert status == seen.status
        if seen.image is not None:
            shown = torch.tensor(image, dtype=torch.uint8).view(1, 28, 28)
            apart = (shown.int() - seen.image.int()).abs()
            assert apart.max() <= 4
            on_edge += int(apart.max() > 1)
            expected, found = predictor(seen.image[None])[0], torch.tensor(row)
            assert expected.argmax() == found.argmax()
            torch.testing.assert_close(found, predictor(shown)[0], atol=1e-4, rtol=0)
            assert apart.max() > 1 or (expected - found).abs().max() < (2e-3 if apart.any() else 1e-3)
    assert len(pictures) > 120
    assert on_edge <= 2
    assert problems == []
    tab.close()


STROKES = {  # corners of a 7, a 1 and a 4, as parts of the canvas' side
    "7": [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]],
    "1": [[(0.5, 0.2), (0.5, 0.8)]],
    "4": [[(0.4, 0.2), (0.3, 0.55), (0.7, 0.55)], [(0.6, 0.3), (0.6, 0.85)]],
}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_a_digit_is_drawn_and_read(browser, size: tuple[int, int], tmp_path: Path):
    viewport = {"width": size[0], "height": size[1]}
    tab, problems = opened(browser, Predictor(), tmp_path, viewport=viewport)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    for digit, strokes in STROKES.items():
        box = tab.locator("#canvas").bounding_box()
        for (x, y), *others in strokes:
            tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            tab.mouse.down()
            for x, y in others:
                tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
            tab.mouse.up()
        tab.locator("#digit", has_text=re.compile(f"^{digit}$")).wait_for(timeout=10_000)
        for _ in strokes:
            tab.click("#undo")
        tab.locator("#words", has_text="Nothing drawn yet").wait_for(timeout=10_000)
    assert problems == []
    tab.close()


@needs_browser
@pytest.mark.slow
def test_export_checks_the_page_and_the_int8_model(cli, tmp_path: Path):
    for words, said in ((["--output", tmp_path / "digits.html"], "1,000 of 1,000"), (
        ["--output", tmp_path / "digits.onnx", "--int8"], "8-bit weights and activations",
    )):  # fmt: skip
        result = cli("export", "--ckpt_path", "pretrained", "--data.root", tmp_path / "none", *words)
        assert result.status == 0, result.err
        assert said in result.out
    assert (tmp_path / "digits.onnx").stat().st_size < 300_000
