"""What a loop need not do, since nobody overrides it."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

AROUND = ("on_train_batch_start", "on_train_batch_end")
INSIDE = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
OWN_WAYS = ("optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping")
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
EVALUATION = {stage: (f"on_{stage}_batch_start", f"on_{stage}_batch_end") for stage in ("validation", "test")}
# As they are before anybody replaces them: a test may patch the class itself.
ORIGINALS: dict[type, dict[str, Any]] = {
    base: {
        hook: getattr(base, hook, None)
        for hook in (*AROUND, *INSIDE, *OWN_WAYS, *TRANSFER, *sum(EVALUATION.values(), ()), "log")
    }
    for base in (Callback, LightningModule, LightningDataModule)
}


def overrides(thing: Any, hook: str, base: type) -> bool:
    return hook in vars(thing) or getattr(type(thing), hook, None) is not ORIGINALS[base][hook]


def heard(trainer: Trainer, hook: str) -> list[Any]:
    """The callbacks' own methods for a hook."""
    found = [getattr(callback, hook) for callback in trainer.callbacks if overrides(callback, hook, Callback)]
    return [method for method in found if callable(method)]


def is_known(trainer: Trainer, fetcher: Any) -> bool:
    """Whether batches come and go in ways that our loops know."""
    return (
        type(fetcher) is _PrefetchDataFetcher
        and type(trainer.profiler) is PassThroughProfiler
        and type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
    )


def moves(trainer: Trainer, loader: Any) -> bool:
    """Whether something is left to do to a loader's batches before the network takes them."""
    module, data = trainer.lightning_module, trainer.datamodule
    ours = hasattr(loader, "weight")  # which hands out float32
    return (
        not (ours and loader.device == trainer.strategy.root_device)
        or type(trainer.precision_plugin) not in (Precision, MixedPrecision)
        or any(
            overrides(module, hook, LightningModule) or (data and overrides(data, hook, LightningDataModule))
            for hook in TRANSFER
        )
    )
