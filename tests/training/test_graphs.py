"""Steps recorded as CUDA graphs: the same training as eager ones but for rounding, exact, or said why not.

Where there is no GPU a pretended recording stands for CUDA's: it does what was recorded again.
"""

import csv
import random
import shlex
from functools import partial
from inspect import unwrap
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from outcome import RUNS
from tape import Tape
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning import CNN, MLP, MNISTDataModule, quick
from mnist_lightning.training import graphs, rows
from mnist_lightning.training.graphs import GraphSteps
from mnist_lightning.training.keeper import RunKeeper
from mnist_lightning.training.trainer import make_trainer
from mnist_lightning.training.updates import RecordedUpdate

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ON_GPU = pytest.param("gpu", marks=[pytest.mark.gpu, no_gpu])
# 24 steps an epoch on tiny_mnist
SMALL = shlex.split(
    "--model MLP --model.hidden=[16] --model.lr=0.01 --data.source mnist --data.val_size 60 --data.batch_size 10 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 10"
)
MOMENTUM = [*SMALL, "--model.optimizer=SGD", '--model.optimizer_args={"momentum": 0.9, "nesterov": true}']
CYCLE = ["--model.scheduler=OneCycleLR"]
DECAY = [
    *SMALL,
    "--model.lr=0.001",
    "--model.optimizer=AdamW",
    "--model.norm=true",
    "--trainer.gradient_clip_val=0.5",
    *CYCLE,
]
STEPS = [
    *SMALL, "--model.scheduler=StepLR", '--model.scheduler_args={"step_size": 20, "gamma": 0.5}', "--data.balance=loss",
    "--model.label_smoothing=0.1", '--model.optimizer_args={"weight_decay": 0.01}',
]  # fmt: skip
CONVOLVES = [
    *SMALL[2:], "--model", "CNN", "--model.channels=[4,4]", "--model.hidden=[8]", "--trainer.precision=bf16-mixed",
    "--model.order=[conv,norm,activation,pool]", "--data.augment=all", "--trainer.max_epochs=2",
]  # fmt: skip
DROPS = [*MOMENTUM, "--model.dropout=0.3"]
GRAPH = ("--loop.step", "graph")


@pytest.fixture(params=["tape", ON_GPU])
def recorded(request, monkeypatch):
    """Sizes of the graphs that are recorded; without a GPU on a tape."""
    sizes, on_gpu = [], request.param == "gpu"
    record = GraphSteps.record

    def taped(self, run):
        tape, numbers = Tape(), torch.get_rng_state()
        with self._watched().undone(self.update.tensors()), tape:  # CUDA does nothing of what it records
            found = run()
        torch.set_rng_state(numbers)
        return tape.replay, found

    def noted(self, run):
        replay, found = record(self, run) if on_gpu else taped(self, run)
        sizes.append(len(found[0]) if self.own else 1)
        return replay, found

    if not on_gpu:
        monkeypatch.setattr(graphs, "DEVICE", "cpu")
    monkeypatch.setattr(graphs, "MANY", 20)
    monkeypatch.setattr(graphs, "SIZES", (10, 5, 2))
    monkeypatch.setattr(GraphSteps, "record", noted)
    return sizes


def table(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(run):
    return torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)


@pytest.mark.parametrize("words", [SMALL, MOMENTUM, DECAY, STEPS, [*MOMENTUM, *CYCLE], CONVOLVES])
def test_recorded_steps_train_as_eager_ones_do(fit, recorded, words):
    for way in ("eager", "graph"):
        told = fit(*words, "--loop.step", way, "--run", way)
        assert "Steps are eager" not in told.out
    assert {10, 5, 2, 1} & set(recorded) >= {5, 1}
    rows = [table(RUNS / way) for way in ("eager", "graph")]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert {name for name in one if one[name]} == {name for name in other if other[name]}
        for name in one:
            assert one[name] == other[name] or float(one[name]) == pytest.approx(float(other[name]), rel=0.05, abs=0.02)
    eager, ours = (state(RUNS / way) for way in ("eager", "graph"))
    assert eager["global_step"] == ours["global_step"]
    for name, weights in eager["state_dict"].items():
        assert torch.allclose(weights, ours["state_dict"][name], atol=0.1), name
    assert ours["lr_schedulers"] == eager["lr_schedulers"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [SMALL, MOMENTUM, STEPS, CONVOLVES, DROPS])
@pytest.mark.parametrize("first", [("--trainer.max_steps", "17"), ("--trainer.max_epochs", "1")])
def test_a_resumed_run_ends_in_the_same_bits(fit, recorded, words, first):
    words = [*words, *GRAPH]
    fit(*words, "--run", "whole")
    fit(*words, *first, "--run", "parts")
    fit(*words, "--run", "parts", "--ckpt_path", "last", "--trainer.max_steps", "-1")
    whole, parts = (state(RUNS / run) for run in ("whole", "parts"))
    for name, weights in whole["state_dict"].items():
        assert torch.equal(weights, parts["state_dict"][name]), name
    if "--trainer.max_epochs" in first:  # else others are taken together, whose losses are summed up in another order
        assert table(RUNS / "whole") == table(RUNS / "parts")
    assert whole["optimizer_states"][0]["state"].keys() == parts["optimizer_states"][0]["state"].keys()


def test_an_epoch_that_is_shorter_than_its_checkpoint_is_not_saved(fit, recorded, monkeypatch):
    saved, save = [], RunKeeper._save
    monkeypatch.setattr(
        RunKeeper, "_save", lambda self, trainer, *a: (saved.append(trainer.global_step), save(self, trainer, *a))
    )
    fit(*SMALL, *GRAPH, "--data.val_size", "0", "--run", "a")
    assert saved == [0, 90]
    assert state(RUNS / "a")["global_step"] == 90
    assert (RUNS / "a" / "best.ckpt").exists()


def test_a_resume_in_another_arithmetic_is_said(fit, recorded):
    fit(*SMALL, *GRAPH, "--run", "a")
    told = fit(*SMALL, "--loop.step", "eager", "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", "4").out
    assert "--loop.step was graph, is eager: the same training but for rounding" in told


def test_auto_is_a_graph_where_that_can_be(fit, recorded):
    told = fit(*SMALL, "--loop.step", "auto", "--run", "a")
    assert told.out.count("Steps are CUDA graphs") == 1
    assert state(RUNS / "a")["mnist_lightning"]["step_by"] == "graph"
    assert recorded


def test_without_a_gpu_steps_are_eager_and_it_is_said(fit, monkeypatch):
    told = fit(*SMALL, *GRAPH, "--trainer.accelerator", "cpu").out
    assert told.count("Steps are eager: there is no GPU") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--trainer.accumulate_grad_batches 2", "--trainer.accumulate_grad_batches 2 goes step by step"),
        ("--trainer.detect_anomaly true", "somebody looks into each step"),
        ("--model.optimizer Adagrad", "Adagrad as it is set cannot be recorded"),
        ("--model.optimizer RMSprop --model.optimizer_args {momentum:\\ 0.9} --model.scheduler OneCycleLR",
         "RMSprop cannot be recorded with a momentum that changes"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_trained_step_by_step_and_said(fit, recorded, words, reason):
    told = fit(*SMALL, *GRAPH, *shlex.split(words))
    assert told.out.count("Steps are eager: ") == 1
    assert f"Steps are eager: {reason}" in told.out
    assert not recorded


def test_callbacks_hear_of_each_step(fit, recorded):
    fit(*SMALL, *GRAPH, "--trainer.callbacks", "Timer")
    assert set(recorded) == {1}


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.7, 0.9)}),
    ],
)
@pytest.mark.parametrize("changes", [True, False])
def test_a_recorded_update_is_torchs(kind, args, changes):
    def made():
        filters = torch.ones(3, 4, 3, 3).to(memory_format=torch.channels_last)
        return [torch.ones(70, 100).requires_grad_(), filters.requires_grad_(), torch.ones(4).requires_grad_()]

    both = [made(), made()]
    theirs, ours = (kind(parameters, lr=0.1, fused=True, **args) for parameters in both)
    schedule = SimpleNamespace(scheduler=SimpleNamespace(cycle_momentum=changes))
    trainer = SimpleNamespace(optimizers=[ours], lr_scheduler_configs=[schedule], global_step=0)
    update = RecordedUpdate(trainer, unwrap(kind.step))
    for at in range(8):
        for optimizer, parameters in zip((theirs, ours), both, strict=True):
            momentum = 0.95 - 0.1 * at * changes
            group = optimizer.param_groups[0]
            group["lr"] = 0.1 / (at + 1)
            group.update({"betas": (momentum, 0.9)} if "betas" in group else {"momentum": momentum})
            for parameter in parameters:
                parameter.grad = parameter.detach() * 0.3 + torch.linspace(0, 9, parameter.numel()).view_as(parameter)
            if optimizer is theirs or at == 0:  # the first makes its state
                optimizer.step()
            else:
                update(torch.tensor(update.rates()))
        assert update._divides
        trainer.global_step += 1
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        for one, other in zip(*both, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), at
    for one, other in zip(*(optimizer.state.values() for optimizer in (theirs, ours)), strict=True):
        for name, value in one.items():
            assert value is None or torch.allclose(value, other[name], rtol=1e-3, atol=1e-3), name


class Users(pl.LightningModule):
    """As a user may write it, for any loader of pictures and labels."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
        self.accuracy = MulticlassAccuracy(10)
        self.kept, self.numbers = [], {"n": 0}
        self.register_buffer("buffer", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"accuracy": self.accuracy}, on_epoch=True)
        return self.more(loss, batch_idx)

    def more(self, loss, batch_idx):
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def trained(model, step, data=None, logger=False, **more):
    torch.manual_seed(0)
    random.seed(0)
    data = data or DataLoader(TensorDataset(torch.rand(256, 1, 28, 28), torch.randint(10, (256,))), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=2, logger=logger, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="gpu" if torch.cuda.is_available() else "cpu", devices=1, **more,
    )  # fmt: skip
    quick(trainer, step=step).fit(model, data)
    return trainer


def made(kind):
    torch.manual_seed(1)
    return kind()


def test_anybodys_step_is_recorded(recorded, capsys):
    eager, ours = made(Users), made(Users)
    first, second = trained(eager, "eager"), trained(ours, "graph")
    assert "Steps are eager" not in capsys.readouterr().out
    assert recorded == [1]
    for name, weights in eager.state_dict().items():
        assert torch.allclose(weights, ours.state_dict()[name], atol=1e-3), name
    assert first.callback_metrics.keys() == second.callback_metrics.keys() >= {"loss", "accuracy_epoch"}
    for name, value in first.callback_metrics.items():
        assert float(value) == pytest.approx(float(second.callback_metrics[name]), abs=0.02), name


def looks_at_its_number(self, loss, batch_idx):
    return loss * 2 if batch_idx % 2 else loss


def multiplies_by_its_number(self, loss, batch_idx):
    return loss * (0.5 * batch_idx)


def looks_up_its_number(self, loss, batch_idx):
    return loss * [0.1, 0.2, 0.3, 0.4][batch_idx % 4]


def has_its_number_in_a_tensor(self, loss, batch_idx):
    return loss * 0.5**batch_idx


def looks_at_the_trainer(self, loss, batch_idx):
    return loss * (self.current_epoch + 1)


def keeps_what_it_saw(self, loss, batch_idx):
    self.kept.append(loss.detach())
    return loss


def counts(self, loss, batch_idx):
    self.steps = getattr(self, "steps", 0) + 1
    return loss


def counts_in_a_dictionary(self, loss, batch_idx):
    self.numbers["n"] += 1
    return loss


def makes_its_buffer_anew(self, loss, batch_idx):
    self.buffer = self.buffer + 1
    return loss


def draws_with_python(self, loss, batch_idx):
    return loss * random.random()


def logs_a_metrics_value(self, loss, batch_idx):
    self.log("value", self.accuracy(torch.zeros(1, 10, device=loss.device), torch.zeros(1, device=loss.device).long()))
    return loss


def computes_a_metric(self, loss, batch_idx):
    return loss + self.accuracy.compute()


ITS_NUMBER, CHANGES = "it looks at batch_idx", "it changes what the module knows"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (looks_at_its_number, ITS_NUMBER),
        (multiplies_by_its_number, ITS_NUMBER),
        (looks_up_its_number, ITS_NUMBER),
        (has_its_number_in_a_tensor, ITS_NUMBER),
        (looks_at_the_trainer, "it looks at trainer.current_epoch"),
        (keeps_what_it_saw, CHANGES),
        (counts, CHANGES),
        (counts_in_a_dictionary, CHANGES),
        (makes_its_buffer_anew, CHANGES),
        (draws_with_python, "it draws random numbers that are not the device's"),
        (logs_a_metrics_value, "it logs what a metric returned"),
        (computes_a_metric, "it computes a metric"),
    ],
)
def test_a_step_that_does_more_than_compute_is_taken_as_it_is(recorded, capsys, more, reason):
    kind = type("More", (Users,), {"more": more})
    eager, ours = made(kind), made(kind)
    trained(eager, "eager")
    trained(ours, "graph")
    told = capsys.readouterr().out
    assert told.count("Steps are eager: ") == 1
    assert reason in told
    for name, weights in eager.state_dict().items():
        assert torch.equal(weights.cpu(), ours.state_dict()[name].cpu()), name
    assert (len(ours.kept), ours.numbers) == (len(eager.kept), eager.numbers)


def alike(eager, ours):
    for name, weights in eager.state_dict().items():
        assert torch.allclose(weights, ours.state_dict()[name], atol=1e-3), name


class Finetunes(pl.callbacks.BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.net[1])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net[1], optimizer, lr=0.01)


class Trained(Users):
    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


class IntegerRate(Users):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)]


class Layers(Users):
    def configure_optimizers(self):
        head = [*self.net[2].parameters(), *self.net[4].parameters()]
        return torch.optim.SGD([{"params": self.net[1].parameters()}, {"params": head}], lr=0.01)


class Freezes(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        module.net[4].requires_grad_(trainer.current_epoch == 0)
        module.net[2].requires_grad_(trainer.current_epoch == 0)


@pytest.mark.parametrize(
    ("kind", "callback", "more"),
    [
        (Trained, Finetunes, {}),
        (IntegerRate, pl.Callback, {}),
        (Layers, Freezes, {}),
        (Users, pl.Callback, {"gradient_clip_val": 0.5}),
        (Users, partial(pl.callbacks.StochasticWeightAveraging, swa_lrs=0.05, swa_epoch_start=1), {}),
    ],
)
def test_what_changes_around_a_users_step_counts(recorded, capsys, kind, callback, more):
    eager, ours = made(kind), made(kind)
    trained(eager, "eager", callbacks=[callback()], **more)
    trained(ours, "graph", callbacks=[callback()], **more)
    if not isinstance(callback, partial):  # SWA's last epoch accumulates
        assert "Steps are eager" not in capsys.readouterr().out
    alike(eager, ours)
    assert recorded


class Gradients(pl.Callback):
    def __init__(self):
        self.norms = []

    def on_train_batch_end(self, trainer, module, *args):
        self.norms.append(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item())


def test_gradients_are_there_when_a_batch_has_ended(recorded):
    seen = [Gradients(), Gradients()]
    for step, callback in zip(("eager", "graph"), seen, strict=True):
        trained(made(Users), step, callbacks=[callback])
    assert seen[0].norms == pytest.approx(seen[1].norms, rel=1e-3)
    assert min(seen[0].norms) > 0
    assert recorded


def test_a_number_beside_images_and_labels_is_part_of_a_batch(recorded, capsys):
    class Mixes(Users):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx) * batch[2]

    def together(items):
        images, labels = (torch.stack([torch.as_tensor(item[at]) for item in items]) for at in (0, 1))
        return images, labels, labels.float().mean()

    torch.manual_seed(0)
    data = TensorDataset(torch.rand(64, 1, 28, 28), torch.randint(10, (64,)))
    eager, ours = made(Mixes), made(Mixes)
    for model, step in ((eager, "eager"), (ours, "graph")):
        trained(model, step, data=DataLoader(data, batch_size=16, collate_fn=together))
    assert "Steps are eager" not in capsys.readouterr().out
    alike(eager, ours)


def own(kind, tiny_mnist, step, callbacks=(), **settings):
    torch.manual_seed(3)
    model = kind(hidden=[8], lr=0.05, optimizer="SGD")
    settings = {
        "max_epochs": 3, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    } | settings  # fmt: skip
    trainer = make_trainer(settings, [*callbacks], fit=True, step=step)
    trainer.fit(model, datamodule=MNISTDataModule(root=str(tiny_mnist), source="mnist", val_size=60, batch_size=10))
    return model


class OwnLoss(MLP):
    def _loss(self, logits, labels):
        return super()._loss(logits, labels) * (1 if self.current_epoch == 0 else 0.1)


class OwnForward(MLP):
    def forward(self, images):
        return super().forward(images) * (0.1 if self.global_step > 10 else 1.0)


@pytest.mark.parametrize("kind", [OwnLoss, OwnForward])
def test_what_a_network_of_ones_own_looks_at_is_seen(recorded, tiny_mnist, capsys, kind):
    eager, ours = (own(kind, tiny_mnist, step) for step in ("eager", "graph"))
    assert "Steps are eager: a step cannot be recorded: it looks at trainer." in capsys.readouterr().out
    for name, weights in eager.state_dict().items():
        assert torch.equal(weights.cpu(), ours.state_dict()[name].cpu()), name


class Smooths(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        module.hparams["label_smoothing"] = 0.3 * trainer.current_epoch


class FreezesAtValidation(pl.Callback):
    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            module.net[-1].weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("callback", "settings"), [(Smooths, {}), (FreezesAtValidation, {"val_check_interval": 0.5, "max_epochs": 1})]
)
def test_what_callbacks_change_is_recorded_anew(recorded, tiny_mnist, capsys, callback, settings):
    eager, ours = (own(MLP, tiny_mnist, step, [callback()], **settings) for step in ("eager", "graph"))
    assert "Steps are eager" not in capsys.readouterr().out
    alike(eager, ours)


def test_a_layer_that_learns_later_has_its_first_step_eager(recorded, tiny_mnist, capsys):
    class Later(MLP):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    class Unfreezes(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].requires_grad_(trainer.current_epoch > 0)

    eager, ours = (own(Later, tiny_mnist, step, [Unfreezes()]) for step in ("eager", "graph"))
    assert "Steps are eager" not in capsys.readouterr().out
    for name, weights in eager.state_dict().items():
        assert torch.allclose(weights, ours.state_dict()[name], atol=0.05), name


class Kept(pl.loggers.Logger):
    name = version = ""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.mark.parametrize("waiting", [3, 64])
def test_loggers_are_given_the_same_rows_in_their_order(recorded, tiny_mnist, monkeypatch, waiting):
    monkeypatch.setattr(rows, "WAITING", waiting)
    loggers = [Kept(), Kept()]
    for step, logger in zip(("eager", "graph"), loggers, strict=True):
        settings = {"logger": logger, "log_every_n_steps": 2, "limit_val_batches": 0}
        own(MLP, tiny_mnist, step, **settings)
    assert len(loggers[0].rows) == len(loggers[1].rows) > 36
    for one, other in zip(*(logger.rows for logger in loggers), strict=True):
        assert other == pytest.approx(one, abs=1e-3)
    assert recorded


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_momentum_that_cycles_with_epochs_or_steps(fit, recorded, interval):
    cycle = '{"base_lr": 0.001, "max_lr": 0.003, "base_momentum": 0.5, "max_momentum": 0.98}'
    words = [*SMALL, "--model.lr=0.003", "--model.scheduler=CyclicLR", f"--model.scheduler_args={cycle}"]
    for way in ("eager", "graph"):
        fit(*words, f"--model.scheduler_interval={interval}", "--loop.step", way, "--run", way)
    eager, ours = (state(RUNS / way)["state_dict"] for way in ("eager", "graph"))
    for name, weights in eager.items():
        assert torch.allclose(weights, ours[name], atol=1e-3), name


@pytest.mark.parametrize("recorded", [ON_GPU], indirect=True)
def test_a_step_that_waits_for_the_gpu_is_taken_as_it_is(recorded, capsys):
    def waits(self, loss, batch_idx):
        return loss if loss.item() > 0 else -loss

    trained(made(type("Waits", (Users,), {"more": waits})), "graph")
    assert "a step cannot be recorded" in capsys.readouterr().out


def test_what_changes_between_epochs_is_recorded_anew(recorded, tiny_mnist):
    class Changes(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            for layer in module.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.1 * trainer.current_epoch

    settings = {"max_epochs": 3, "enable_checkpointing": False, "enable_progress_bar": False}
    make_trainer(settings, [Changes()], fit=True, step="graph").fit(
        CNN(channels=[2], hidden=[4], dropout=0.5),
        datamodule=MNISTDataModule(root=str(tiny_mnist), source="mnist", val_size=60, batch_size=24),
    )
    assert len(recorded) >= 3


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["simple_mlp", "nielsen_mlp", "nextjournal_cnn", "fidle_cnn", "cnn", "fast"])
def test_a_gpu_trains_to_the_same_bits_again(cli, name, precision, tiny_mnist):
    words = ["--config", name, "--data.root", tiny_mnist, "--data.val_size", 0, "--data.batch_size", 10]
    words += ["--trainer.max_epochs", 2, "--trainer.max_steps", -1, "--trainer.precision", precision]
    for run in "ab":
        assert cli("fit", *words, "--run", run).status == 0
    first, second = (state(RUNS / run)["state_dict"] for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("recorded", [ON_GPU], indirect=True)
def test_a_gpu_takes_graphs_unless_told_otherwise(fit, recorded):
    fit(*SMALL)
    assert recorded
