"""AveragedStatistics: batch normalisation that fits averaged weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.nn.modules.batchnorm import _BatchNorm

from mnist_lightning.data.module import MNISTDataModule

IMAGES = 10_000  # training images that the statistics are made of: these many tell mean and variance to a hundredth
AT_ONCE = 1000


class AveragedStatistics(Callback):
    """Makes the running means and variances anew for Lightning's averaged weights, before they are validated.

    Those that training has collected are of other weights, each a step apart (Izmailov et al. 2018, Averaging weights).
    Without validation they stay as Lightning averages them; those of frozen layers stay what they were.
    """

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and _learns(layer)]
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
        if (
            not (averages and layers and isinstance(data, MNISTDataModule))
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
        ):
            return
        images = data.images("train")
        images = images[:: -(-len(images) // IMAGES)]  # from all of them: they may lie sorted
        if len(images) < 2:
            return
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.train().momentum = None  # the mean over the parts, which are equally large
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for part in images.tensor_split(-(-len(images) // AT_ONCE)):
                module(data.normalized(part.to(module.device)))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval().momentum = momentum


def _learns(layer: _BatchNorm) -> bool:
    return layer.track_running_stats and not (layer.affine and not layer.weight.requires_grad)
