"""`report`: tables and pages of runs, whatever their files hold; runs side by side."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from outcome import RUNS, column, one_line, outcome
from PIL import Image
from samples import write_mnist

from mnist_lightning import Predictor
from mnist_lightning.console import console


def cells(out: str) -> dict[str, list[str]]:
    """The cells of each row of a table, by the first."""
    lines = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def run(name: str, table: str) -> Path:
    folder = RUNS / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "metrics.csv").write_text(table)
    return folder


def page(folder: Path) -> str:
    """The page of a report, well formed and in need of nothing else."""
    text = (folder / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{,5})', text)) <= {"data:", *re.findall(r'href="(#[^"]{,4})', text)}
    assert "<script" not in text
    headings = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert len(re.findall("<img ", text)) == len(re.findall(r'<img [^>]*alt="[^"]+"', text))
    return text


# ---------------------------------------------------------------------- tables


@pytest.mark.slow
def test_runs_of_fit(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 3)
    fit("--run", "[b]")
    table, accuracy = cells(cli("report", "--table").out), outcome("a")["accuracy"]
    assert table["a"] == ["3", f"{max(column('a', 'val_acc')):.2%}", f"{accuracy:.2%}", "mnist"]
    assert "[b]" in table
    out = cli("report", "--run", "a").out
    assert list(cells(out))[:3] == ["1", "2", "3"]
    assert all(f"{loss:.4f}" in out for loss in column("a", "val_loss"))
    assert cells(out)["accuracy"] == [f"{accuracy:.2%}  ({outcome('a')['correct']} of 100 images)"]
    assert "Page and pictures: checkpoints/a/report/index.html" in out
    assert (RUNS / "a" / "report" / "terminal.png").stat().st_size > 10_000


def test_any_columns(cli):
    run("callbacks", "epoch,step,lr-Adam,val_acc,note\n0,9,0.1,,\n,12,0.2,,\n0,19,,0.5,good\n1,39,,0.75,\n")
    run("theirs", "a,b\n1,2\n")
    run("early", "epoch,step,train_loss_step,lr,images\n0,49,0.5,0.1,100\n")
    run("empty", "")
    assert cells(cli("report", "--table").out) == {
        "callbacks": ["2", "75.00%", "", ""],
        "theirs": ["1", "", "", ""],
        "early": ["0", "", "", ""],
        "empty": ["0", "", "", ""],
    }
    out = cli("report", "--run", "callbacks", "--table").out
    assert cells(out) == {"1": ["50.00%", "0.2", "good"], "2": ["75.00%", "", ""]}
    assert "val_acc ┃ lr-Adam ┃ note" in out


@pytest.mark.slow
def test_damaged_files(cli):
    run("a", "epoch,val_acc\n0,0.5\n0,\n\0\n")
    (RUNS / "a" / "test.json").write_text('{"accuracy": "high"}')
    assert "is damaged" in cli("report", "--table").out
    result = cli("report", "a")
    assert (result.status, result.err) == (0, "")
    assert "Note: test.json is damaged and left out" in result.out
    assert "Note: 1 row of metrics.csv is damaged and left out" in result.out
    assert "Note: the network is not shown: checkpoints/a has no checkpoint" in result.out
    assert "test.json is damaged" in page(RUNS / "a" / "report")


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_header_is_cut(width: int, cli, monkeypatch: pytest.MonkeyPatch):
    names = ["images", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "grad_norm"]
    run("a", "\n".join([f"epoch,{','.join(names)}", *(f"{k},{','.join(['0.12345'] * 9)}" for k in range(3))]))
    monkeypatch.setattr(console, "width", width)
    lines = cli("report", "a", "--table").out.splitlines()
    assert max(map(len, lines[:8])) <= width
    header = next(line for line in lines if line.startswith("┃"))
    told = "".join(line for line in lines if line.startswith("No room for"))
    assert "…" not in header
    assert all(name in header or name in told for name in names)
    assert "val_acc" in header or width == 20


def test_words(cli):
    assert one_line(cli("report", "--table")).startswith("there is no run in checkpoints")
    assert one_line(cli("report", "--rnu", "a")) == "there is no flag --rnu; did you mean --run?"
    run("a", "")
    assert one_line(cli("report", "b")) == "there is no run 'b' in checkpoints; there are: a"
    assert one_line(cli("report", "a", "--image", "x")) == "--image: 'x' is no whole number"
    assert one_line(cli("report", "checkpoints")).endswith("give --trainer.default_root_dir checkpoints")
    result = cli("report", "--help")
    assert (result.status, "--trainer.default_root_dir" in result.out) == (0, True)


def test_tables_do_not_import_torch():
    code = "import sys; from mnist_lightning.cli import main; main(['report', '--table']); "
    code += "assert not {'torch', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True)


# ---------------------------------------------------------------------- the page of one run


@pytest.mark.slow
def test_the_page_of_a_run_that_was_resumed(fit, cli, tiny_digits):
    fit("--run", "a")
    fit("--run", "a", "--trainer.max_epochs", 3, "--ckpt_path", "last")
    result = cli("report", "a", "--json", "--image", 7)
    assert (result.status, result.err) == (0, f"Page and pictures: {RUNS}/a/report/index.html\n")
    found, test = json.loads(result.out), outcome("a")
    told = found["evaluation"]
    assert (told["accuracy"], told["correct"], told["images"]) == (test["accuracy"], test["correct"], 100)
    images, labels = tiny_digits[1]
    shares = Predictor(RUNS / "a")(images).gather(1, labels.long().view(-1, 1))  # which the temperature makes better
    assert told["cross_entropy"] == pytest.approx(-shares.log().mean().item(), rel=1e-5)
    assert [row["val_acc"] for row in found["epochs"]] == column("a", "val_acc")
    assert (found["resumed_at_epochs"], len(found["epochs"])) == ([1.0], 3)
    assert found["seconds"] > 0
    assert found["machine"]["kind"] == "cpu"
    assert found["settings"]["model.hidden"] == [8]
    matrix = told["confusion_rows_true_columns_predicted"]
    assert [sum(row) for row in matrix] == [one["support"] for one in told["classes"]]
    assert sum(matrix[k][k] for k in range(10)) == test["correct"]
    assert told["without_doubted_labels"] is None
    text = page(RUNS / "a" / "report")
    assert "resumed after 1 epochs" in text
    assert "Image 7, a " in text
    pictures = sorted((RUNS / "a" / "report").glob("*.png"))
    assert [file.stem for file in pictures] == [
        "accuracy", "confusion", "coverage", "errors", "filters", "image", "loss", "reliability", "samples",
    ]  # fmt: skip
    for file in pictures:
        with Image.open(file) as picture:
            assert min(picture.size) > 50
        assert file.stat().st_size < 150_000


@pytest.mark.slow
def test_hostile_names_stay_text(fit, cli, tiny):
    name = "<img src=x onerror=alert(1)>&$"
    fit("--run", name)
    with (RUNS / name / "metrics.csv").open("a") as file:
        file.write("0,99" + ",<script>" * 7 + "\n")
    assert cli("report", name).status == 0
    text = page(RUNS / name / "report")
    assert "<h1>&lt;img src=x onerror=alert(1)&gt;&amp;$</h1>" in text
    assert "<script" not in text
    assert "<img src=x" not in text


@pytest.mark.slow
def test_images_that_are_gone(fit, cli, tiny_mnist, no_network):
    fit("--run", "a")
    result = cli("report", "a", "--data.root", "gone")
    assert (result.status, result.err) == (0, "")
    assert "Note: no test images: MNIST could not be downloaded" in result.out
    assert "test: " in result.out  # what fit found
    assert 'id="training"' in page(RUNS / "a" / "report")
    assert json.loads(cli("report", "a", "--data.root", "gone", "--json").out)["evaluation"] is None


@pytest.mark.slow
def test_text_without_test_images_is_measured_on_held_out_ones(cli, tiny_mnist):
    cli("convert", "--data.root", tiny_mnist, "--data.source", "mnist", "--split", "train", "--output", "train.txt")
    words = "--model MLP --model.hidden [8] --data.source text --data.train_file train.txt --data.val_size 50"
    fit = cli("fit", *words.split(), "--run", "a", "--trainer.max_epochs", 1, "--trainer.limit_test_batches", 0)
    assert (RUNS / "a" / "last.ckpt").exists(), fit
    result = cli("report", "a", "--json")
    told = json.loads(result.out)["evaluation"]
    assert (told["split"], told["images"], told["accuracy"]) == ("val", 50, pytest.approx(column("a", "val_acc")[0]))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(fit, cli):
    fit("--run", "a")
    (RUNS / "a" / "report").write_text("a file in its place")
    result = cli("report", "a")
    assert (result.status, result.err) == (0, "")
    assert "accuracy" in cells(result.out)
    assert "Note: no page: checkpoints/a/report cannot be made" in result.out
    result = cli("report", "a", "--output", "there/it/is")
    assert (result.status, result.err) == (0, "")
    assert page(Path("there/it/is"))
    (Path("there") / "file").touch()
    result = cli("report", "a", "--output", "there/file")
    assert (result.status, "cannot be made" in one_line(result)) == (1, True)


@pytest.mark.slow
def test_a_network_and_data_of_the_users_own(mine, cli):
    words = "--model mine.Net --model.width 4 --data mine.Data --run a --trainer.max_epochs 2"
    assert cli("fit", *words.split()).status == 0
    result = cli("report", "a")
    assert (result.status, result.err) == (0, "")
    assert "40 images" in result.out
    assert "First layer" in page(RUNS / "a" / "report")  # what each unit weighs the pixels with


@pytest.mark.parametrize("kind", ["affine", pytest.param("all", marks=pytest.mark.slow)])
def test_what_augmentation_made_of_digits(fit, cli, kind):
    fit("--data.augment", kind, "--run", "changed")
    cli("report", "changed")
    folder = RUNS / "changed" / "report"
    assert "What training made of digits" in page(folder)
    with Image.open(folder / "augmented.png") as picture:
        assert picture.width > picture.height > 300  # six rows of ten


def test_without_a_run_the_shipped_weights_are_shown(cli, tiny_mnist, tiny_digits):
    result = cli("report", "--data.root", tiny_mnist, "--json")
    found = json.loads(result.out)
    assert (found["run"], found["page"]) == ("the shipped weights", "checkpoints/pretrained/report/index.html")
    images, labels = tiny_digits[1]
    assert found["evaluation"]["correct"] == (Predictor()(images).argmax(1) == labels).sum() > 85
    assert page(RUNS / "pretrained" / "report")


@pytest.mark.slow
def test_a_checkpoint_file(fit, cli):
    fit("--run", "a")
    told = [
        json.loads(cli("report", *words, "--json").out)["evaluation"]["sha256"]
        for words in (
            ["a", "--ckpt_path", "last"],
            [RUNS / "a" / "best.ckpt"],
            ["a", "--ckpt_path", RUNS / "a/last.ckpt"],
        )
    ]
    assert len(set(told)) == 1
    assert one_line(cli("report", "a", "--ckpt_path", "no.ckpt")).startswith("no.ckpt cannot be read")
    result = cli("report", "a", "b", "--ckpt_path", "no.ckpt")
    assert (result.status, one_line(result)[:29]) == (2, "--ckpt_path FILE is of one ru")


def test_an_image_that_is_not_there(fit, cli):
    fit("--run", "a")
    result = cli("report", "a", "--image", 100)
    assert (result.status, one_line(result)) == (2, "--image is 100; there are images 0 to 99")


def test_what_is_doubted_is_told_for_mnists_test_images_only(tiny_digits, monkeypatch: pytest.MonkeyPatch):
    import torch

    from mnist_lightning.report import evaluation, summary

    images, labels = tiny_digits[1]
    monkeypatch.setattr(evaluation, "DOUBTED", (3, 5))
    rows = torch.nn.functional.one_hot(labels.long(), 10).float().index_fill(0, torch.tensor([3, 9]), 0.1)
    rows[[3, 9], (labels[[3, 9]].long() + 1) % 10] = 0.2
    made = lambda: evaluation.Evaluation(images, labels.long(), rows, tuple("0123456789"), "mnist", "test")  # noqa: E731
    assert summary._evaluated(made())["without_doubted_labels"] is None
    monkeypatch.setattr(evaluation, "MNIST_TEST", made().fingerprint)
    told = summary._evaluated(made())
    assert (told["errors"], told["doubted_labels"]) == (2, [3, 5])
    assert (told["without_doubted_labels"]["errors"], told["without_doubted_labels"]["images"]) == (1, 98)
    assert [(one["image"], one["label_is_doubted"]) for one in told["worst_errors"]] == [(3, True), (9, False)]


# ---------------------------------------------------------------------- several runs


@pytest.mark.slow
def test_runs_side_by_side(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 2)
    fit("--run", "b", "--model.lr", 0.01, "--model.hidden", "[16]")
    found = json.loads(cli("report", "a", "b", "--json").out)
    assert [one["run"] for one in found["runs"]] == ["a", "b"]
    differ = found["settings_that_differ"]
    assert (differ["model.hidden"], differ["model.lr"][1], differ["trainer.max_epochs"]) == ([[8], [16]], 0.01, [2, 1])
    assert not [name for name in differ if name.startswith("data.")]
    (pair,) = found["mcnemar"]
    difference = outcome("a")["correct"] - outcome("b")["correct"]
    assert pair["only_first_right"] - pair["only_second_right"] == difference
    assert pair["images"] == 100
    out = cli("report", "a", "b").out
    assert "McNemar" in out
    text = page(RUNS / "report")
    assert "Settings that differ" in text
    assert "--model.lr" in text


@pytest.mark.slow
def test_different_images_are_not_compared(fit, cli, tiny_digits, tmp_path):
    fit("--run", "a")
    fit("--run", "b", "--data.root", write_mnist(tmp_path / "other", *tiny_digits[::-1]))
    result = cli("report", "a", "b")
    assert (result.status, result.err) == (0, "")
    assert "Note: a and b were measured on different images: their errors are not compared" in result.out
    assert "McNemar" not in result.out


# ---------------------------------------------------------------------- in a browser


@pytest.mark.slow
def test_in_chromium(fit, cli, tmp_path):
    """No error, nothing cut off at a phone's width, text that can be read in both colour schemes."""
    browser = pytest.importorskip("playwright.sync_api")
    fit("--run", "a", "--trainer.max_epochs", 2)
    cli("report", "a")
    with browser.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(args=["--no-sandbox"])
        except browser.Error:
            chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width, scheme in [(360, "light"), (1280, "dark")]:
            context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
            shown, said = context.new_page(), []
            shown.on("console", lambda message: said.append(message.text))  # noqa: B023
            shown.on("pageerror", lambda error: said.append(str(error)))  # noqa: B023
            shown.goto(f"file://{tmp_path / RUNS / 'a' / 'report' / 'index.html'}")
            assert said == []
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            low = SimpleNamespace(**min(shown.evaluate(CONTRASTS), key=lambda one: one["ratio"]))
            assert low.ratio >= 4.5, low
            names = shown.evaluate("[...document.querySelectorAll('svg[role=img]')].map(e => e.ariaLabel)")
            assert len(names) == 4
            assert all(names)
        chromium.close()


# The contrast of each piece of text with what is behind it, by WCAG's formula
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.tagName === 'style') continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const [a, b] = [light(rgba(svg ? style.fill : style.color)), light(behind(e))];
    found.push({ratio: (Math.max(a, b) + .05) / (Math.min(a, b) + .05), text});
  }
  return found; }"""
