"""DigitClassifier: a block of steps is so many steps, each exactly that of a loop written by hand."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, RichProgressBar, WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.sources import read_idx
from mnist_lightning.errors import BadSetting
from mnist_lightning.models import CNN, MLP, DigitClassifier
from mnist_lightning.training.metrics_csv import MetricsCSV

pytestmark = pytest.mark.usefixtures("quiet")
BATCHES = 8  # of 32 images, the last of 26, in an epoch of 250


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture
def train(tiny_mnist: Path, tmp_path: Path):
    """`train(steps_per_block, lr=..., max_epochs=...)` -> the model, its Trainer, the rows of its table."""

    def run(
        steps_per_block: int = 1,
        kind: type[DigitClassifier] = MLP,
        data: dict[str, Any] | None = None,
        **options,
    ) -> tuple[DigitClassifier, Trainer, list[dict[str, str]]]:
        names = ("max_epochs", "max_steps", "precision", "callbacks", "val_check_interval")
        settings = {"max_epochs": 1} | {name: options.pop(name) for name in names if name in options}
        torch.manual_seed(1)
        small = {"hidden": [16]} if kind is MLP else {"channels": [4], "hidden": [16]}
        model = kind(**small | options)
        digits = {"batch_size": 32, "val_size": 50, "steps_per_block": steps_per_block} | (data or {})
        table = tmp_path / "metrics.csv"
        table.unlink(missing_ok=True)
        trainer = Trainer(
            logger=MetricsCSV(table), log_every_n_steps=1, accelerator="cpu", num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(model, datamodule=MNISTDataModule(str(tiny_mnist), source="mnist", **digits))
        return model, trainer, list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []

    return run


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def rates(rows: list[dict[str, str]]) -> list[float]:
    """The learning rate of each step, in order."""
    return [float(row["lr"]) for row in rows if row["train_loss_step"]]


# ---------------------------------------------------------------------- a block is so many steps

SETTINGS: list[dict[str, Any]] = [
    {},
    {"precision": "bf16-mixed"},
    {"dropout": 0.5, "optimizer": "SGD", "lr": 0.1, "optimizer_args": {"momentum": 0.9}},
    {"loss": "mse", "output_activation": "Sigmoid", "gradient_clip_val": 0.01},
    {"scheduler": "StepLR", "scheduler_args": {"step_size": 3, "gamma": 0.5}},
    {"scheduler": "OneCycleLR", "lr": 0.01},
    {"kind": CNN, "dropout": 0.5, "precision": "bf16-mixed"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(map(str, options)) or "defaults")
def test_the_size_of_a_block_changes_nothing(train, options: dict[str, Any]):
    single, trainer, rows = train(1, max_epochs=2, **options)
    assert trainer.global_step == 2 * BATCHES
    for steps in (3, 100):
        blocked, trainer, other_rows = train(steps, max_epochs=2, **options)
        assert trainer.global_step == 2 * BATCHES
        assert same(single, blocked)
        # the sums behind an epoch's mean are added in another order; all else is the same to the last digit
        steps_of = [[row for row in table if row["train_loss_step"]] for table in (rows, other_rows)]
        assert steps_of[0] == steps_of[1]


@pytest.mark.parametrize("steps_per_block", [1, 3, 4, 100])
@pytest.mark.parametrize("max_steps", [5, BATCHES, BATCHES + 1])
def test_max_steps_ends_the_training_inside_a_block(train, steps_per_block: int, max_steps: int):
    model, trainer, rows = train(steps_per_block, max_epochs=-1, max_steps=max_steps)
    assert trainer.global_step == max_steps
    assert [int(row["step"]) for row in rows if row["train_loss_step"]] == list(range(1, max_steps + 1))
    assert same(model, train(1, max_epochs=-1, max_steps=max_steps)[0])


# ---------------------------------------------------------------------- a step is that of a loop by hand


def by_hand(
    root: Path, model: DigitClassifier, optimizer: torch.optim.Optimizer, epochs: int, mse: bool, smoothing: float = 0.0
) -> list[float]:
    """The articles' own loop, on the same images in the same order; the loss of each step."""
    images, labels = read_idx(root, "train")
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
    model, _, rows = train(3, optimizer=optimizer, lr=lr, optimizer_args=args, loss=loss, max_epochs=2)
    torch.manual_seed(1)
    plain = MLP(hidden=[16])
    steps = getattr(torch.optim, optimizer)(plain.parameters(), lr=lr, **args)
    losses = by_hand(tiny_mnist, plain, steps, epochs=2, mse=loss == "mse")
    assert [float(row["train_loss_step"]) for row in rows if row["train_loss_step"]] == pytest.approx(losses, abs=2e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 2e-6


def test_label_smoothing_is_for_training_only(train, tiny_mnist: Path):
    model, trainer, rows = train(3, label_smoothing=0.2)
    torch.manual_seed(1)
    plain = MLP(hidden=[16])
    losses = by_hand(tiny_mnist, plain, torch.optim.Adam(plain.parameters()), epochs=1, mse=False, smoothing=0.2)
    assert [float(row["train_loss_step"]) for row in rows if row["train_loss_step"]] == pytest.approx(losses, abs=2e-6)
    assert float(rows[-1]["val_loss"]) == pytest.approx(validation_by_hand(model, trainer)[0], abs=1e-6)


@pytest.mark.parametrize(("kind", "threads"), [(MLP, 1), (CNN, 2)])
def test_a_small_network_without_convolutions_steps_in_one_thread(train, monkeypatch, kind, threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    used, backward = set(), DigitClassifier.manual_backward
    monkeypatch.setattr(
        DigitClassifier, "manual_backward", lambda *args: (used.add(torch.get_num_threads()), backward(*args))
    )
    try:
        train(kind=kind)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == {threads}


def test_an_epochs_row_says_where_it_stands(train):
    rows = [row for row in train(3, max_epochs=2)[2] if row["train_loss"]]
    assert [(row["epoch"], row["step"], row["images"]) for row in rows] == [
        ("1", "8", "250"),
        ("2", "16", "500"),
    ]
    for row in rows:
        correct = float(row["train_acc"]) * 250
        assert 0 < correct < 250
        assert correct == pytest.approx(round(correct), abs=1e-3)


def test_an_epochs_loss_is_the_mean_over_its_images(train):
    rows = train(3, max_epochs=2)[2]
    steps = [float(row["train_loss_step"]) for row in rows if row["train_loss_step"]]
    means = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    for epoch, mean in enumerate(means):
        *whole, last = steps[epoch * BATCHES : (epoch + 1) * BATCHES]
        assert mean == pytest.approx((sum(whole) * 32 + last * 26) / 250, abs=1e-6)


def validation_by_hand(model: DigitClassifier, trainer: Trainer) -> tuple[float, float]:
    """Loss and accuracy."""
    data = trainer.datamodule
    [block] = [data.on_after_batch_transfer(block.to("cpu"), 0) for block in data.val_dataloader()[0]]
    with torch.no_grad():
        output = model.eval()(block.prepare(block.images))
    accuracy = (output.argmax(1) == block.labels).double().mean().item()
    return F.cross_entropy(output, block.labels).item(), accuracy


def test_validation_rows_are_what_the_network_does(train):
    model, trainer, rows = train(max_epochs=1)
    loss, accuracy = validation_by_hand(model, trainer)
    assert float(rows[-1]["val_loss"]) == pytest.approx(loss, abs=1e-6)
    assert float(rows[-1]["val_acc"]) == pytest.approx(accuracy)


# ---------------------------------------------------------------------- dropout


class Disturb(Callback):
    """Draws random numbers between the blocks."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(7)


def test_dropout_is_a_function_of_seed_and_step(train):
    model = train(dropout=0.5)[0]
    assert same(model, train(dropout=0.5)[0])
    assert same(model, train(dropout=0.5, callbacks=[Disturb()])[0])


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed(train):
    one_image = {"batch_size": 1, "train_size": 1}
    rows = train(dropout=0.5, lr=0.0, optimizer="SGD", data=one_image, max_epochs=6)[2]
    losses = [row["train_loss_step"] for row in rows if row["train_loss_step"]]
    assert len(set(losses)) == 6
    seeded = one_image | {"seed": 5}
    other = train(dropout=0.5, lr=0.0, optimizer="SGD", data=seeded, seed=5, max_epochs=6)[2]
    assert [row["train_loss_step"] for row in other if row["train_loss_step"]] != losses


# ---------------------------------------------------------------------- schedules and clipping


def test_a_schedule_by_steps(train):
    args = {"scheduler": "StepLR", "scheduler_args": {"step_size": 3, "gamma": 0.5}, "lr": 0.8}
    _, _, rows = train(5, max_epochs=2, **args)
    assert rates(rows) == [0.8] * 3 + [0.4] * 3 + [0.2] * 3 + [0.1] * 3 + [0.05] * 3 + [0.025]


def test_a_schedule_by_epochs(train):
    args = {"scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.5}, "lr": 0.8}
    _, _, rows = train(5, max_epochs=3, scheduler_interval="epoch", **args)
    assert rates(rows) == [0.8] * 8 + [0.4] * 8 + [0.2] * 8


def test_a_plateau_by_epochs(train):
    args = {
        "scheduler": "ReduceLROnPlateau",
        "scheduler_args": {"patience": 0, "factor": 0.5, "threshold": 1e9},
    }
    _, _, rows = train(5, max_epochs=3, scheduler_interval="epoch", lr=0.8, optimizer="SGD", **args)
    assert rates(rows) == [0.8] * 8 + [0.4] * 8 + [0.2] * 8  # no epoch is so much better


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"max_epochs": 2}, 16), ({"max_epochs": -1, "max_steps": 11}, 11)],
    ids=["epochs", "steps"],
)
def test_one_cycle_is_as_long_as_the_training(train, options: dict[str, int], steps: int):
    _, trainer, rows = train(5, scheduler="OneCycleLR", lr=0.1, **options)
    found = rates(rows)
    assert len(found) == steps == trainer.global_step
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == pytest.approx(0.1, rel=0.05)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.02


@pytest.mark.parametrize("clip", [0.01, 0.5])
def test_clipping_bounds_the_norm_of_the_gradient(train, clip: float):
    options = {"optimizer": "SGD", "lr": 1.0, "max_epochs": -1}

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


def test_a_plain_trainer_with_a_rich_bar(tiny_mnist: Path):
    """The bar's own thread looks for the bar while steps are made; and `test` returns what it found."""
    seen: list[Any] = []

    class Listener(Callback):
        def on_after_backward(self, trainer: Trainer, module: Any) -> None:
            seen.append(trainer.progress_bar_callback)

    data = MNISTDataModule(str(tiny_mnist), source="mnist", val_size=50)
    model, bar = MLP(hidden=[16]), RichProgressBar()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[bar, Listener()],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert seen
    assert all(found is bar for found in seen)
    (results,) = trainer.test(model, datamodule=data, verbose=False)
    assert results == {name: float(trainer.callback_metrics[name]) for name in ("test_acc", "test_loss")}


REFUSED = [(LearningRateFinder, 1, False), (WeightAveraging, 4, False), (WeightAveraging, 1, True)]


@pytest.mark.parametrize(("callback", "block", "works"), REFUSED)
def test_callbacks_that_take_a_block_for_a_step_are_refused(train, callback, block: int, works: bool):
    if works:
        train(block, callbacks=[callback()])
    else:
        with pytest.raises(BadSetting, match=r"--trainer\.callbacks"):
            train(block, callbacks=[callback()])


@pytest.mark.filterwarnings("ignore")  # of few workers
def test_without_a_data_module_it_says_so():
    digits: Any = [(torch.zeros(1, 28, 28), 0)]
    with pytest.raises(BadSetting, match="datamodule="):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit(MLP(), DataLoader(digits))


def test_a_subclass_may_have_a_forward_of_its_own(train):
    class Zero(CNN):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 0

    *_, rows = train(kind=Zero)
    for name in ("train_loss", "val_loss"):
        assert [float(row[name]) for row in rows if row[name]] == [pytest.approx(math.log(10))]


def test_a_test_after_one_that_kept_nothing_counts_its_own_images(tiny_mnist: Path):
    data, model = MNISTDataModule(str(tiny_mnist), source="mnist", val_size=50), MLP(hidden=[16])
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**quiet)
    trainer.test(model, datamodule=data, verbose=False)
    first = dict(trainer.callback_metrics)
    model.metrics["test_acc"].update(torch.zeros(500, 10), torch.ones(500, dtype=torch.int64))
    trainer.test(model, datamodule=data, verbose=False)
    assert dict(trainer.callback_metrics) == first
