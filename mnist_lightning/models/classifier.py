"""DigitClassifier: everything that MLP and CNN share: loss, metrics, optimizer, and the block of steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning.data.loader import Block, TensorLoader, derived_seed, global_seed
from mnist_lightning.errors import BadSetting
from mnist_lightning.models.layers import named
from mnist_lightning.models.limits import check_use
from mnist_lightning.models.metrics import MeanLoss
from mnist_lightning.models.optimizers import optimizer_of, scheduler_of

SMALL_STEP = 2_000_000  # multiplications of a forward through fully connected layers
STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


class DigitClassifier(LightningModule):
    """A network `net` from float32 [n, 1, 28, 28] to logits [n, 10], and how it is trained.

    Args:
        loss: cross_entropy on logits, or mse: mean squared error against one-hot targets.
        label_smoothing: With cross_entropy, the part of the target that is spread over all classes in training.
        optimizer: Name of a torch.optim class.
        lr: Learning rate.
        optimizer_args: Its other arguments, e.g. {momentum: 0.5}.
        scheduler: Name of a torch.optim.lr_scheduler class; OneCycleLR is told the length of the training.
        scheduler_args: Its arguments, e.g. {step_size: 1, gamma: 0.7}.
        scheduler_interval: Whether the scheduler steps after each optimizer step or each epoch.
        gradient_clip_val: Clip the norm of the gradient to this value.
        seed: Seed of what is random inside a step, such as dropout; by default that of the run.
    """

    net: nn.Sequential
    forward_images = 1000  # of one evaluation forward on a CPU, for its cache

    def __init__(
        self,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        label_smoothing: float = 0.0,
        optimizer: str = "Adam",
        lr: float = 1e-3,
        optimizer_args: dict[str, Any] | None = None,
        scheduler: str | None = None,
        scheduler_args: dict[str, Any] | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        gradient_clip_val: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hparams["seed"] = global_seed() if seed is None else seed
        if not 0 <= self.hparams["seed"] < 2**63:
            raise BadSetting(f"--model.seed is {seed}; it must be from 0 to {2**63 - 1}")
        self.automatic_optimization = False  # a block holds several optimizer steps
        if lr < 0:
            raise BadSetting(f"--model.lr is {lr}; it must not be below 0")
        if not 0 <= label_smoothing < 1 or (label_smoothing and loss != "cross_entropy"):
            raise BadSetting(f"--model.label_smoothing is {label_smoothing}; it is from 0 to 1, and for cross_entropy")
        named(torch.optim, optimizer, Optimizer, "--model.optimizer")
        if scheduler:
            named(lr_scheduler, scheduler, lr_scheduler.LRScheduler, "--model.scheduler")
        self.example_input_array = torch.zeros(1, 1, 28, 28)  # for the summary's shapes
        self.metrics: Any = nn.ModuleDict()
        for split in ("train", "val", "test"):
            # the block checks its labels once, when they are read from the file
            self.metrics[f"{split}_acc"] = MulticlassAccuracy(10, average="micro", validate_args=False)
            self.metrics[f"{split}_loss"] = MeanLoss()
        self.epoch_results: dict[str, float] = {}  # of the validation at this epoch's end

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning sets it a dozen times a step; nn.Module would look for parameters
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def setup(self, stage: str) -> None:
        check_use(self.trainer)

    # ------------------------------------------------------------------ training

    def training_step(self, block: Block, batch_idx: int) -> dict[str, Tensor]:
        """One optimizer step for each mini-batch of the block -> losses [steps], detached, on the device."""
        trainer, scheduler = self.trainer, self._scheduler("step")
        optimizer: Any = self.optimizers()
        parameters, world_size, device = list(self.parameters()), trainer.world_size, self.device
        clip, targets = self.hparams["gradient_clip_val"], self._targets(block.labels)
        stream = derived_seed(self.hparams["seed"], "steps", trainer.global_rank)
        first, last = trainer.global_step, trainer.max_steps
        losses, outputs, rates = [], [], []
        with self._only_listeners(), self._few_threads(block):
            for step, (images, target, share) in enumerate(block.split(targets), first):
                if step == last:
                    break
                # Random state is a function of the step: a resumed run draws what the first would have drawn.
                seed_generators(device, stream + step)
                output = self.forward(images)
                loss = self._loss(output, target)
                for parameter in parameters:  # optimizer.zero_grad() takes ten times as long
                    parameter.grad = None
                # DDP averages over ranks; the weight makes that a mean over images when the last batch is uneven
                weight = share * world_size
                self.manual_backward(loss if weight == 1 else loss * weight)
                if clip:
                    self.clip_gradients(optimizer, clip, "norm")
                if scheduler is not None:
                    rates.append(self._rate())
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                losses.append(loss)
                outputs.append(output)
        done = block.sizes[: len(losses)]
        with torch.no_grad():  # cheaper than to detach each of them
            stacked = torch.stack(losses).float()
            self._update("train", torch.cat(outputs), block.labels[: sum(done)], stacked, done)
        self._log_steps(first, stacked, rates or [self._rate()] * len(losses))
        return {"losses": stacked}

    @contextmanager
    def _only_listeners(self) -> Iterator[None]:
        """Leaves Lightning only those callbacks that listen inside a step; it calls each one three times a step."""
        callbacks = self.trainer.callbacks
        self.trainer.callbacks = [
            callback
            for callback in callbacks
            if any(is_overridden(hook, callback, Callback) for hook in STEP_HOOKS)
            or isinstance(callback, RichProgressBar)  # its thread looks for it there
        ]
        try:
            yield
        finally:
            self.trainer.callbacks = callbacks

    @contextmanager
    def _few_threads(self, block: Block) -> Iterator[None]:
        """One CPU thread for steps so small that to wake a second costs more than it helps."""
        threads = torch.get_num_threads()
        small = block.sizes[0] * sum(parameter.numel() for parameter in self.net.parameters()) < SMALL_STEP
        convolves = any(isinstance(layer, nn.Conv2d) for layer in self.net.modules())  # it reuses its weights
        if small and not convolves:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _targets(self, labels: Tensor) -> Tensor:
        """What the loss compares with: the labels [n], or for mse one-hot rows [n, 10]."""
        return F.one_hot(labels, 10).to(self.dtype) if self.hparams["loss"] == "mse" else labels

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the images: [n, 10], targets -> []. A rank can have no image at the end of an epoch: then 0."""
        if len(target) == 0:
            return output.sum()
        if target.is_floating_point():
            return F.mse_loss(output, target)
        if self.training:
            return F.cross_entropy(output, target, label_smoothing=self.hparams["label_smoothing"])
        return F.cross_entropy(output.T[None], target[None])  # along columns torch's softmax is vectorised

    def on_train_epoch_end(self) -> None:
        if self.trainer.global_step % self._loader().batches:
            return  # max_steps ended the training inside the epoch; a run that goes on from here ends the epoch
        row, self.epoch_results = self.epoch_results | self._results("train"), {}
        self._write(self.trainer.global_step, self.trainer.current_epoch + 1, self._rate(), row)
        scheduler = self._scheduler("epoch")
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(row.get("val_loss", row["train_loss"]))
        elif scheduler is not None:
            scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.parameters(), self.hparams, self.device)
        if not self.hparams["scheduler"]:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler_of(optimizer, self.hparams, self.scheduled_steps)}

    def _scheduler(self, interval: str) -> Any:
        """The scheduler if this is its interval. Lightning steps none under manual optimization."""
        scheduler = self.lr_schedulers()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)  # it waits for results, which an epoch has
        return scheduler if interval == ("epoch" if plateau else self.hparams["scheduler_interval"]) else None

    def _rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    @property
    def scheduled_steps(self) -> int | None:
        """Optimizer steps that the schedule is made for, where it matters. (Lightning's estimate counts blocks.)"""
        trainer = self.trainer
        if self.hparams["scheduler"] != "OneCycleLR":
            return None
        if trainer.max_steps != -1:
            return trainer.max_steps
        return self._loader().batches * (trainer.max_epochs or 1)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, block: Block, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(self.trainer.datamodule.val_splits[dataloader_idx], block)

    def test_step(self, block: Block, batch_idx: int) -> None:
        self._evaluate("test", block)

    def predict_step(self, block: Block, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Positions in the data set [n] and probabilities [n, 10]."""
        return block.positions, self._outputs(block).float().softmax(1)

    def _outputs(self, block: Block) -> Tensor:
        """Logits [n, 10] of a large batch."""
        most = self.forward_images * (1 if self.device.type == "cpu" else 10)
        outputs = torch.empty(len(block), 10, device=self.device).type(self.dtype)
        for part, output in zip(outputs.split(most), map(self.forward, block.parts(most)), strict=True):
            part.copy_(output)  # small results kept between large ones would leave holes in the memory
        return outputs

    def _evaluate(self, split: str, block: Block) -> None:
        output = self._outputs(block)
        loss = self._loss(output, self._targets(block.labels))
        self._update(split, output, block.labels, loss.reshape(1), [len(block)])

    def on_validation_epoch_end(self) -> None:
        row: dict[str, float] = {}
        for split in self.trainer.datamodule.val_splits:
            row |= self._results(split)
        trainer = self.trainer
        if trainer.sanity_checking:
            if trainer.num_sanity_val_steps == float("inf"):  # all images: what an untrained network reads
                self._write(0, 0, self._rate(), row)
        elif trainer.state.fn == "fit":
            self.epoch_results = row
            if not trainer.is_last_batch:
                self._write(trainer.global_step, trainer.current_epoch + 1, self._rate(), row)
                self.epoch_results = {}

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1:  # batch normalisation: all validate what the first writes into a checkpoint
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_test_epoch_start(self) -> None:
        for name in ("test_loss", "test_acc"):
            self.metrics[name].reset()  # an evaluation before this one may have been cut off

    def on_test_epoch_end(self) -> None:
        for name in ("test_loss", "test_acc"):
            self.log(name, self.metrics[name])

    # ------------------------------------------------------------------ metrics and rows

    def _update(self, split: str, output: Tensor, labels: Tensor, losses: Tensor, sizes: list[int]) -> None:
        self.metrics[f"{split}_acc"].update(output, labels)
        self.metrics[f"{split}_loss"].update(losses.float(), torch.tensor(sizes, device=losses.device))

    def _results(self, split: str) -> dict[str, float]:
        """Loss and accuracy of all ranks since the last call; also where Lightning's callbacks look for them."""
        results = {}
        for name in (f"{split}_loss", f"{split}_acc"):
            results[name] = self.metrics[name].compute().item()
            self.metrics[name].reset()
        self.log_dict(results, logger=False if self.trainer.state.fn == "fit" else None)  # `_write` does
        return results

    def _log_steps(self, first: int, losses: Tensor, rates: list[float]) -> None:
        """Writes a row for each of a block's steps that is a multiple of `log_every_n_steps`."""
        every = self.trainer.log_every_n_steps
        due = [i for i in range(len(losses)) if every and (first + i + 1) % every == 0]
        if due and self.trainer.is_global_zero:
            values = losses.tolist()
            for i in due:
                self._write(first + i + 1, self.trainer.current_epoch + 1, rates[i], {"train_loss_step": values[i]})

    def _write(self, step: int, epoch: int, rate: float, values: dict[str, float]) -> None:
        row = {"epoch": epoch, "images": self._loader().images_after(step), "lr": rate, **values}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step)

    def _loader(self) -> TensorLoader:
        loader = self.trainer.train_dataloader
        return loader if loader is not None else self.trainer.datamodule.train_dataloader()


def seed_generators(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for just the generators that a step draws from: 1 us instead of 20."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
