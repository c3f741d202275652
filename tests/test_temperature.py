"""Temperature: the least loss on validation images, kept beside weights that stay as they are, used by all."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from outcome import RUNS, outcome, same
from torch import Tensor

from mnist_lightning import CNN, MLP, MNISTDataModule, Predictor
from mnist_lightning.report import terminal
from mnist_lightning.report.measures import calibration_error
from mnist_lightning.run import Run
from mnist_lightning.temperature import fitted, keep_temperature
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import read_checkpoint, read_weights


def temperature(run: str, name: str = "best") -> float | None:
    return read_checkpoint(RUNS / run / f"{name}.ckpt").get(FOUND, {}).get("temperature")


def drawn(count: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from what they would say if they were `sharpness` times as large."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 10, generator=generator) * 2
    return logits, torch.multinomial((logits * sharpness).softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("wanted", [0.2, 1.0, 3.0])
def test_the_least_cross_entropy(wanted: float):
    logits, labels = drawn(20_000, 1 / wanted)
    found = fitted(logits, labels)
    assert found == pytest.approx(wanted, rel=0.05)  # of so many draws
    losses = [float(F.cross_entropy(logits.double() / one, labels)) for one in (found, found * 0.99, found * 1.01)]
    assert losses[0] == min(losses)
    assert calibration_error(labels, (logits / found).softmax(1)) < 0.02


def test_where_there_is_no_least():
    logits = torch.eye(3)
    assert fitted(logits, torch.arange(3)) is None  # all are right: the surer, the better
    assert fitted(logits[:0], torch.arange(0)) is None
    assert fitted(logits * float("nan"), torch.arange(3)) is None
    assert fitted(torch.zeros(3, 3), torch.arange(3)) is None  # no temperature changes anything
    assert fitted(logits, torch.tensor([1, 2, 0])) == 100.0  # all are wrong: the less sure, the better


@pytest.fixture
def overconfident(fit) -> str:
    """A run whose network is too sure: it has learnt few images by heart, and so sharply as nobody should."""
    words = "--run a --data.train_size 100 --data.val_size 150 --model.hidden [64] --trainer.max_epochs 40"
    fit(*words.split(), "--model.lr", 0.01)
    return "a"


def test_a_training_ends_with_it(overconfident: str, tiny_mnist: Path, cli):
    data = MNISTDataModule(str(tiny_mnist), "mnist", val_size=150)
    data.setup("fit")
    images, labels = data.images("val"), data.labels("val").long()
    predictor = Predictor(RUNS / overconfident)
    assert predictor.temperature == temperature(overconfident) > 1.05
    raw = predictor.logits(images) * predictor.temperature
    before, after = (calibration_error(labels, rows.softmax(1)) for rows in (raw, raw / predictor.temperature))
    assert after < before
    assert fitted(raw, labels) == pytest.approx(predictor.temperature, abs=2e-4)
    told = outcome(overconfident)
    assert told["temperature"] == predictor.temperature
    assert cli("test").status == 0
    assert outcome(overconfident) == told


def test_best_and_last_have_their_own(fit):
    fit("--run", "a", "--trainer.max_epochs", 6, "--model.lr", 0.03)
    best, last = temperature("a"), temperature("a", "last")
    if (RUNS / "a" / "best.ckpt").samefile(RUNS / "a" / "last.ckpt"):
        assert best == last
    else:
        data = MNISTDataModule(str(Path(settings("a")["root"])), "mnist", val_size=50)
        data.setup("fit")
        for name, found in (("best", best), ("last", last)):
            predictor = Predictor(RUNS / "a" / f"{name}.ckpt")
            raw = predictor.logits(data.images("val")) * predictor.temperature
            assert fitted(raw, data.labels("val").long()) == pytest.approx(found, abs=2e-4)


def settings(run: str) -> dict:
    return read_checkpoint(RUNS / run / "best.ckpt")["datamodule_hyper_parameters"]


def test_weights_and_state_stay_as_they_are(overconfident: str, tiny_mnist: Path):
    run = Run(RUNS / overconfident)
    whole = read_weights(run.last)
    plain = {name: entry for name, entry in whole.items() if name != FOUND}
    shutil.copytree(run.folder, "again")
    again = Run(Path("again"))
    torch.save(plain, again.last)
    again.best.unlink()
    data = MNISTDataModule(str(tiny_mnist), "mnist", val_size=150)
    data.setup("fit")
    model = MLP(hidden=[8])
    model.net[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert keep_temperature(again, model, data) is None
    assert again.last.read_bytes() == run.last.read_bytes()  # nothing else has changed
    assert not again.best.exists()
    assert same(again.last, run.last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.net[1].training) == (True, False)


def test_it_goes_on_exactly(fit, cli):
    fit("--run", "whole", "--trainer.max_epochs", 3)
    fit("--run", "halves", "--trainer.max_epochs", 2)
    assert cli("fit", "--run", "halves", "--ckpt_path", "last", "--trainer.max_epochs", 3).status == 0
    for name in ("last.ckpt", "best.ckpt", "metrics.csv"):
        assert (RUNS / "whole" / name).read_bytes() == (RUNS / "halves" / name).read_bytes()


def test_without_validation_images_there_is_none(fit):
    fit("--run", "a", "--data.val_size", 0)
    assert FOUND not in read_checkpoint(RUNS / "a" / "best.ckpt")
    assert Predictor("a").temperature == 1
    assert outcome("a")["temperature"] == 1


def test_a_plain_lightning_user_loads_it(overconfident: str, tiny_mnist: Path):
    file = RUNS / overconfident / "best.ckpt"
    model = MLP.load_from_checkpoint(file)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in read_weights(file)["state_dict"].items())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    data = MNISTDataModule(str(tiny_mnist), "mnist", val_size=150)
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
    assert trainer.test(model, data, ckpt_path=file, verbose=False)[0]["test_acc"] == pytest.approx(
        outcome("a")["accuracy"]
    )


@pytest.mark.slow
def test_the_table_of_predict_and_the_report_use_it(overconfident: str, tiny_digits, cli, capsys):
    images, labels = tiny_digits[1][0], tiny_digits[1][1].long()
    predictor = Predictor(RUNS / overconfident)
    rows = predictor(images)
    assert cli("predict").status == 0
    table = csv.DictReader((RUNS / overconfident / "predictions.csv").read_text().splitlines())
    assert [float(row["probability"]) for row in table] == pytest.approx(rows.amax(1).tolist(), abs=1e-4)
    result = cli("report", "--json")
    found = json.loads(result.out)
    assert found["temperature"] == predictor.temperature
    assert found["evaluation"]["expected_calibration_error"] == pytest.approx(calibration_error(labels, rows), abs=1e-5)
    least = rows.amax(1).sort(descending=True).values[98]
    wrong = rows.argmax(1) != labels
    assert found["evaluation"]["surest"] == {
        "share": 0.99, "images": 99, "errors": int((wrong & (rows.amax(1) >= least)).sum()),
    }  # fmt: skip
    terminal.measured(found)
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"surest 99% answered │ {found['evaluation']['surest']['errors']} errors in 99 answers" in told
    assert f"temperature │ {predictor.temperature:.3f}" in told
    assert f"divided by {predictor.temperature:.3f}" in (RUNS / overconfident / "report" / "index.html").read_text()


def test_an_exported_file_has_it_inside(overconfident: str, tiny_digits, cli):
    pytest.importorskip("onnxruntime")
    assert cli("export", "--output", "a.pt2").status == 0
    module = torch.export.load("a.pt2").module()
    with torch.inference_mode():
        probabilities, logits = module(tiny_digits[1][0])
    predictor = Predictor(RUNS / overconfident)
    torch.testing.assert_close(probabilities, predictor(tiny_digits[1][0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, predictor.logits(tiny_digits[1][0]), rtol=1e-4, atol=1e-3)


def test_a_module_of_the_users_own_has_one_too(fit, cli, tmp_path: Path):
    text = "from mnist_lightning import MLP\n\n\nclass Mine(MLP):\n    pass\n"
    (tmp_path / "ours.py").write_text(text)
    fit("--model", "ours.Mine", "--run", "a", "--model.hidden", "[8]")
    assert temperature("a") == pytest.approx(Predictor(RUNS / "a").temperature)


def test_one_that_cannot_be_fitted_is_told(tiny_mnist: Path, fit):
    fit("--run", "a", "--data.val_size", 150)
    data = MNISTDataModule(str(tiny_mnist), "mnist", val_size=150)
    data.setup("fit")
    run = Run(RUNS / "a")
    for file in (run.last, run.best):
        checkpoint = read_weights(file)
        checkpoint.pop(FOUND, None)
        torch.save(checkpoint, file)
    told = keep_temperature(run, CNN(channels=[4], hidden=[8]), data)
    assert told is not None
    assert told.startswith("no temperature is kept in checkpoints/a: ")
    assert "\n" not in told
