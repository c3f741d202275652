"""DigitClassifier: an ordinary LightningModule, each of whose steps is exactly that of a loop written by hand."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.sources import read as read_digits
from mnist_lightning.errors import BadSetting
from mnist_lightning.models import CNN, MLP, DigitClassifier
from mnist_lightning.models.metrics import WAITING, Accuracy
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.trainer import quick

pytestmark = [pytest.mark.usefixtures("seed"), pytest.mark.filterwarnings("ignore")]  # Lightning's, of few workers
BATCHES = 8  # of 32 images, the last of 26, in an epoch of 250


@pytest.fixture
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture
def train(tiny_mnist: Path, tmp_path: Path):
    """`train(lr=..., max_epochs=...)` -> the model, its Trainer, the rows of its table."""

    def run(
        kind: type[DigitClassifier] = MLP, data: dict[str, Any] | None = None, **options
    ) -> tuple[DigitClassifier, Trainer, list[dict[str, str]]]:
        names = ("max_epochs", "max_steps", "precision", "callbacks", "val_check_interval", "gradient_clip_val")
        settings = {"max_epochs": 1} | {name: options.pop(name) for name in names if name in options}
        torch.manual_seed(1)
        model = kind(**({"hidden": [16]} if kind is MLP else {"channels": [4], "hidden": [16]}) | options)
        table = tmp_path / "metrics.csv"
        table.unlink(missing_ok=True)
        trainer = quick(Trainer(
            logger=MetricsCSV(table), log_every_n_steps=1, accelerator="cpu", num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
        ))  # fmt: skip
        digits = {"batch_size": 32, "val_size": 50} | (data or {})
        trainer.fit(model, datamodule=MNISTDataModule(str(tiny_mnist), source="mnist", **digits))
        return model, trainer, list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []

    return run


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


# ---------------------------------------------------------------------- a step is that of a loop by hand


def by_hand(
    root: Path, model: DigitClassifier, optimizer: torch.optim.Optimizer, epochs: int, mse: bool, smoothing: float = 0.0
) -> list[float]:
    """The articles' own loop, on the same images in the same order; the loss of each step."""
    images, labels, _ = read_digits(root, "train")
    pixels = images.float() / 255
    mean, std = round(pixels.mean().item(), 4), round(pixels.std().item(), 4)
    pixels = ((images.float() - 255 * mean) / (255 * std)).unsqueeze(1)
    train = torch.randperm(300, generator=torch.Generator().manual_seed(0))[50:].sort().values
    order = TensorLoader(images, labels, train, batch_size=32, shuffle=True, seed=0)
    losses = []
    for epoch in range(epochs):
        for batch in order.order(epoch).split(32):
            optimizer.zero_grad()
            output, target = model.net(pixels[batch]), labels[batch].long()
            one_hot = torch.zeros(len(batch), 10)
            one_hot[torch.arange(len(batch)), target] = 1
            if mse:
                loss = ((output - one_hot) ** 2).mean()
            else:
                wanted = (1 - smoothing) * one_hot + smoothing / 10
                loss = -(output.log_softmax(1) * wanted).sum(1).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(
    ("optimizer", "lr", "args"), [("Adam", 1e-3, {}), ("SGD", 0.1, {"momentum": 0.5}), ("Adadelta", 1.0, {})]
)
def test_training_is_a_loop_written_by_hand(train, tiny_mnist: Path, optimizer, lr, args, loss: str):
    model, _, rows = train(optimizer=optimizer, lr=lr, optimizer_args=args, loss=loss, max_epochs=2)
    torch.manual_seed(1)
    plain = MLP(hidden=[16])
    steps = getattr(torch.optim, optimizer)(plain.parameters(), lr=lr, **args)
    losses = by_hand(tiny_mnist, plain, steps, epochs=2, mse=loss == "mse")
    assert column(rows, "train_loss_step") == pytest.approx(losses, abs=2e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 2e-6


def test_label_smoothing_is_for_training_only(train, tiny_mnist: Path):
    model, trainer, rows = train(label_smoothing=0.2)
    torch.manual_seed(1)
    plain = MLP(hidden=[16])
    losses = by_hand(tiny_mnist, plain, torch.optim.Adam(plain.parameters()), epochs=1, mse=False, smoothing=0.2)
    assert column(rows, "train_loss_step") == pytest.approx(losses, abs=2e-6)
    assert column(rows, "val_loss") == pytest.approx([validation_by_hand(model, trainer)[0]], abs=1e-6)


# ---------------------------------------------------------------------- what is logged


def validation_by_hand(model: DigitClassifier, trainer: Trainer) -> tuple[float, float]:
    """Loss and accuracy."""
    [(images, labels)] = trainer.datamodule.val_dataloader()
    with torch.no_grad():
        output = model.eval()(images)
    return F.cross_entropy(output, labels).item(), (output.argmax(1) == labels).double().mean().item()


def test_validation_rows_are_what_the_network_does(train):
    model, trainer, rows = train(max_epochs=1)
    loss, accuracy = validation_by_hand(model, trainer)
    assert column(rows, "val_loss") == pytest.approx([loss], abs=1e-6)
    assert column(rows, "val_acc") == pytest.approx([accuracy])


def test_an_epochs_loss_is_the_mean_over_its_images(train):
    rows = train(max_epochs=2)[2]
    steps = column(rows, "train_loss_step")
    assert len(steps) == 2 * BATCHES
    for epoch, mean in enumerate(column(rows, "train_loss")):
        *whole, last = steps[epoch * BATCHES : (epoch + 1) * BATCHES]
        assert mean == pytest.approx((sum(whole) * 32 + last * 26) / 250, abs=1e-6)


def test_an_epochs_accuracy_counts_its_images(train):
    rows = train(max_epochs=2)[2]
    for accuracy in column(rows, "train_acc"):
        assert 0 < accuracy < 1
        assert accuracy * 250 == pytest.approx(round(accuracy * 250), abs=1e-3)


def test_low_precision_does_not_lower_that_of_metrics(train):
    """Losses are bfloat16, with three digits; their mean is the mean of these, with all of its digits."""
    rows = train(precision="bf16-true", max_epochs=1)[2]
    *whole, last = column(rows, "train_loss_step")
    assert column(rows, "train_loss") == pytest.approx([(sum(whole) * 32 + last * 26) / 250], abs=1e-6)
    [accuracy] = column(rows, "train_acc")
    assert accuracy * 250 == pytest.approx(round(accuracy * 250), abs=1e-3)


def test_test_images_that_are_watched_have_their_own_names(train):
    rows = train(data={"test_each_epoch": True})[2]
    assert len(column(rows, "val_acc")) == len(column(rows, "test_acc")) == 1
    assert column(rows, "val_loss") != column(rows, "test_loss")


def test_a_test_after_one_that_kept_nothing_counts_its_own_images(tiny_mnist: Path):
    data, model = MNISTDataModule(str(tiny_mnist), source="mnist", val_size=50), MLP(hidden=[16])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(model, datamodule=data, verbose=False)
    first = dict(trainer.callback_metrics)
    model.accuracy["test_acc"].update(torch.zeros(500, 10), torch.ones(500, dtype=torch.int64))
    trainer.test(model, datamodule=data, verbose=False)
    assert dict(trainer.callback_metrics) == first


@pytest.mark.parametrize("sizes", [[1] * 3, [10] * (WAITING + 3), [WAITING * 10 + 1, 5], [7, 0, 7], []])
def test_batches_that_wait_are_counted_when_somebody_looks(sizes: list[int]):
    ours, theirs = Accuracy(3), MulticlassAccuracy(3, average="micro")
    for number, size in enumerate(sizes):
        logits = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        labels = torch.arange(size) % 3
        ours.add(logits, labels)
        if size:
            theirs.update(logits, labels)
        if size and number % 5 == 0:
            assert ours.compute() == theirs.compute()
    states = {name: state.tolist() for name, state in theirs.metric_state.items()}
    assert {name: state.tolist() for name, state in ours.metric_state.items()} == states
    ours.reset()
    ours.add(torch.eye(3), torch.tensor([0, 1, 0]))
    assert ours.compute() == pytest.approx(2 / 3)


def test_probabilities(tiny_mnist: Path):
    model = MLP(hidden=[16])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    [found] = trainer.predict(model, datamodule=MNISTDataModule(str(tiny_mnist), source="mnist", val_size=50))
    assert found.shape == (100, 10)
    assert torch.allclose(found.sum(1), torch.ones(100))


# ---------------------------------------------------------------------- any images, any classes


@pytest.mark.parametrize("shape", [(-1, 1, 28, 28), (-1, 28, 28)])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_images_of_whole_numbers_are_divided_by_255(kind, shape, tiny_digits):
    images, model = tiny_digits[0][0][:20], kind().eval()
    with torch.no_grad():
        assert torch.equal(model(images.view(shape)), model((images.float() / 255).unsqueeze(1)))
        assert torch.equal(model.double()(images.view(shape)), model(images.double().div(255).unsqueeze(1)))


@pytest.mark.parametrize("classes", [2, 3, 62])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_the_number_of_classes_is_a_setting(kind, loss: str, classes: int):
    data = DataLoader(TensorDataset(torch.rand(12, 1, 28, 28), torch.arange(12) % classes), batch_size=5)
    model = kind(classes=classes, hidden=[8], loss=loss)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, data, data)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, classes)
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_weights_of_classes(loss: str):
    """The loss of each image times the weight of its class, in training only; shares of a batch add up to the whole."""
    model, weights = MLP(hidden=[5], classes=3, loss=loss, class_weights=[0.5, 1.0, 4.0]), torch.tensor([0.5, 1.0, 4.0])
    images, labels = torch.randn(9, 1, 28, 28), torch.tensor([0, 1, 2] * 3)
    logits = model(images)
    rows = F.mse_loss(logits, F.one_hot(labels, 3).float(), reduction="none").mean(1)
    each = F.cross_entropy(logits, labels, reduction="none") if loss == "cross_entropy" else rows
    assert float(model.train()._loss(logits, labels)) == pytest.approx(float((each * weights[labels]).mean()), rel=1e-5)
    shares = [len(part) / 9 * model._loss(logits[part], labels[part]) for part in (torch.arange(4), torch.arange(4, 9))]
    assert float(sum(shares)) == pytest.approx(float(model._loss(logits, labels)), rel=1e-5)
    assert float(model.eval()._loss(logits, labels)) == pytest.approx(float(each.mean()), rel=1e-5)


def test_a_batch_of_nothing():
    """A rank can have no image at the end of an epoch."""
    model = MLP(hidden=[8])
    assert model._loss(model(torch.zeros(0, 1, 28, 28)), torch.zeros(0, dtype=torch.int64)) == 0


def test_a_subclass_may_have_a_forward_of_its_own(train):
    class Zero(CNN):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 0

    *_, rows = train(kind=Zero)
    for name in ("train_loss", "val_loss"):
        assert column(rows, name) == pytest.approx([math.log(10)])


# ---------------------------------------------------------------------- schedules and clipping


def rates(model: type[DigitClassifier], train: Any, **options: Any) -> tuple[list[float], Trainer]:
    """The learning rate of each step, in order."""
    found: list[float] = []

    class Watched(model):  # type: ignore[misc, valid-type]
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            found.append(optimizer.param_groups[0]["lr"])

    return found, train(kind=Watched, channels=[2], hidden=[4], **options)[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"scheduler": "StepLR", "scheduler_args": {"step_size": 3, "gamma": 0.5}, "max_epochs": 2},
            [0.8] * 3 + [0.4] * 3 + [0.2] * 3 + [0.1] * 3 + [0.05] * 3 + [0.025],
        ),
        (
            {"scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.5}, "scheduler_interval": "epoch"},
            [0.8] * 8 + [0.4] * 8 + [0.2] * 8,
        ),
        (  # no epoch is so much better
            {"scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0, "factor": 0.5, "threshold": 1e9}},
            [0.8] * 8 + [0.4] * 8 + [0.2] * 8,
        ),
        (
            {"scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0, "factor": 0.5, "threshold": 1e9},
             "scheduler_monitor": "train_loss", "data": {"val_size": 0}, "max_epochs": 2},
            [0.8] * 10 + [0.4] * 10,
        ),
    ],
    ids=["steps", "epochs", "plateau", "plateau of training"],
)  # fmt: skip
def test_schedules(train, options: dict[str, Any], expected: list[float]):
    found, _ = rates(CNN, train, lr=0.8, optimizer="SGD", **{"max_epochs": 3} | options)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"max_epochs": 2}, 16), ({"max_epochs": -1, "max_steps": 11}, 11)],
    ids=["epochs", "steps"],
)
def test_one_cycle_is_as_long_as_the_training(train, options: dict[str, int], steps: int):
    found, trainer = rates(CNN, train, scheduler="OneCycleLR", lr=0.1, **options)
    assert len(found) == steps == trainer.global_step
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == pytest.approx(0.1, rel=0.05)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.02


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("clip", [0.01, 0.5])
def test_clipping_bounds_the_norm_of_the_gradient(train, clip: float, precision: str):
    options = {"optimizer": "SGD", "lr": 1.0, "max_epochs": -1, "precision": precision}

    def step(**more: float) -> Tensor:
        before, after = train(max_steps=0, **options)[0], train(max_steps=1, **options | more)[0]
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        return torch.cat([(a - b).detach().flatten() for a, b in pairs])

    free, clipped = step(), step(gradient_clip_val=clip)
    assert free.norm() > clip
    assert clipped.norm().item() == pytest.approx(clip, rel=1e-3)
    assert F.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer_args": {"momentun": 1}}, "--model.optimizer Adam does not take "),
        ({"lr": -1.0}, "--model.lr is -1.0; "),
        ({"classes": 1}, "--model.classes is 1; "),
        ({"label_smoothing": 1.0}, "--model.label_smoothing is 1.0; "),
        ({"label_smoothing": 0.1, "loss": "mse"}, "--model.label_smoothing is 0.1; "),
        ({"optimizer": "Adamm"}, "did you mean Adam?"),
        ({"scheduler": "StepLR"}, "--model.scheduler StepLR does not take "),
        ({"scheduler": "StepLR", "scheduler_args": {"size": 1}}, "--model.scheduler StepLR does not take "),
        ({"scheduler": "StepLR", "scheduler_args": {"step_size": 0}}, "--model.scheduler StepLR does not take "),
        ({"scheduler": "OneCycleLR", "scheduler_args": {"total_steps": 2}}, "the training has 8 steps"),
        ({"optimizer_args": {"foreach": True, "fused": True}}, "--model.optimizer Adam does not take "),
    ],
)
def test_bad_optimizers_and_schedules(train, options: dict[str, Any], expected: str):
    with pytest.raises(BadSetting) as caught:
        train(**options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
