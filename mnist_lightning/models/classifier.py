"""DigitClassifier: what MLP and CNN share: loss, metrics, optimizer."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from mnist_lightning.errors import BadSetting
from mnist_lightning.models.layers import named
from mnist_lightning.models.metrics import Accuracy
from mnist_lightning.models.optimizers import optimizer_of, scheduler_of


class DigitClassifier(LightningModule):
    """A network `net` from images [n, 1, 28, 28] to logits [n, classes], and how it is trained.

    Batches are (images, labels [n]): images float, normalised, or uint8, which are divided by 255.

    Args:
        classes: Number of classes; `fit` takes it from the data, and the next two.
        class_names: What they are called, where that is not 0, 1, 2 and so on.
        class_weights: What the loss of an image of each class weighs in training; see --data.balance.
        loss: cross_entropy on logits, or mse: mean squared error against one-hot targets.
        label_smoothing: With cross_entropy, the part of the target that is spread over all classes in training.
        optimizer: Name of a torch.optim class.
        lr: Learning rate.
        optimizer_args: Its other arguments, e.g. {momentum: 0.5}.
        scheduler: Name of a torch.optim.lr_scheduler class; OneCycleLR is told the length of the training.
        scheduler_args: Its arguments, e.g. {step_size: 1, gamma: 0.7}.
        scheduler_interval: Whether the scheduler steps after each optimizer step or each epoch.
        scheduler_monitor: What ReduceLROnPlateau looks at, e.g. train_loss where no images are held out.
    """

    net: nn.Sequential
    one_hot: Tensor
    loss_weights: Tensor

    def __init__(
        self,
        classes: int = 10,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        label_smoothing: float = 0.0,
        optimizer: str = "Adam",
        lr: float = 1e-3,
        optimizer_args: dict[str, Any] | None = None,
        scheduler: str | None = None,
        scheduler_args: dict[str, Any] | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        scheduler_monitor: str = "val_loss",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if classes < 2:
            raise BadSetting(f"--model.classes is {classes}; it must be at least 2")
        for name, given in (("class_names", class_names), ("class_weights", class_weights)):
            if given is not None and len(given) != classes:
                raise BadSetting(f"--model.{name} has {len(given)} entries; there are {classes} classes")
        if lr < 0:
            raise BadSetting(f"--model.lr is {lr}; it must not be below 0")
        if not 0 <= label_smoothing < 1 or (label_smoothing and loss != "cross_entropy"):
            raise BadSetting(f"--model.label_smoothing is {label_smoothing}; it is from 0 to 1, and for cross_entropy")
        named(torch.optim, optimizer, Optimizer, "--model.optimizer")
        if scheduler:
            named(lr_scheduler, scheduler, lr_scheduler.LRScheduler, "--model.scheduler")
        self.classes = classes
        self.example_input_array = torch.zeros(1, 1, 28, 28)  # for the summary's shapes
        self.register_buffer("one_hot", torch.eye(classes), persistent=False)  # looked up, four times as fast as made
        self.register_buffer("loss_weights", torch.tensor(class_weights or [1.0] * classes), persistent=False)
        self.accuracy = nn.ModuleDict({f"{stage}_acc": Accuracy(classes) for stage in ("train", "val", "test")})

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.dtype) if images.is_floating_point() else images.to(self.dtype) / 255
        return self.net(images if images.ndim == 4 else images.unsqueeze(1))

    def on_fit_start(self) -> None:
        self.train()  # a loaded model is in evaluation mode

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._step("train", batch)
        self.log("train_loss_step", loss, on_step=True, on_epoch=False)
        return loss

    def tell_several(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Logs what several training steps came to that were taken at once, a loss [steps] each."""
        self._tell("train", losses.mean(), logits, labels)
        self.log("train_loss_step", losses[-1], on_step=True, on_epoch=False)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step("test" if dataloader_idx else "val", batch)  # a second loader has test images that are watched

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities [n, classes]."""
        return self(batch[0]).float().softmax(1)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss [] of the batch; logs it and the accuracy as those of the stage's epoch."""
        loss, logits = self._outputs(batch)
        self._tell(stage, loss, logits, batch[1].long())
        return loss

    def _outputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean loss [] and logits [n, classes]."""
        logits = self(batch[0])
        return self._loss(logits, batch[1].long()), logits

    def _tell(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        accuracy: Any = self.accuracy[f"{stage}_acc"]
        accuracy.add(logits, labels)
        epoch: Any = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        images_as_float: Any = float(labels.numel())  # Lightning cuts the mean of whole numbers over ranks
        self.log(f"{stage}_loss", loss, batch_size=images_as_float, sync_dist=True, **epoch)
        self.log(f"{stage}_acc", accuracy, **epoch)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.numel() == 0:  # a rank can have no image at the end of an epoch
            return logits.sum()
        weighted = self.training and self.hparams["class_weights"]
        reduction = "none" if weighted else "mean"
        if self.hparams["loss"] == "mse":
            loss = F.mse_loss(logits, self.one_hot.index_select(0, labels).to(logits.dtype), reduction=reduction)
        else:
            smoothing = self.hparams["label_smoothing"] if self.training else 0.0
            loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing)
        if weighted:  # a mean over images, as without weights: ranks share it out alike
            loss = (loss.view(len(labels), -1).mean(1) * self.loss_weights[labels]).mean()
        return loss

    def configure_optimizers(self) -> Any:
        # under mixed precision a fused optimizer unscales the gradients itself, too late to clip them
        clips_scaled = self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision)
        fused = self.device.type in ("cpu", "cuda") and not clips_scaled
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        optimizer = optimizer_of(trained, self.hparams, fused)
        if not self.hparams["scheduler"]:
            return optimizer
        one_cycle = self.hparams["scheduler"] == "OneCycleLR"
        steps = int(self.trainer.estimated_stepping_batches) if one_cycle else None
        scheduler = scheduler_of(optimizer, self.hparams, steps)
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)  # it waits for results, which an epoch has
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": "epoch" if plateau else self.hparams["scheduler_interval"],
                "monitor": self.hparams["scheduler_monitor"],
            },
        }
